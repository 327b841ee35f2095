"""Runs in an environment of its own, with the package `etcd3`: does what a line of JSON says, and answers with one.

Not imported by any test. `etcd3` 0.12.0 only loads with protobuf's Python implementation, which is chosen per process.
"""

import json
import sys
from typing import Any

import etcd3  # type: ignore[import-not-found]  # not installed here, on purpose


def main() -> None:
    client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]), timeout=10)
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        if verb == "get":
            value, meta = client.get(arguments[0])
            answer: Any = None
            if value is not None:
                answer = [value.hex(), meta.mod_revision, meta.create_revision, meta.lease_id]
        elif verb == "list":
            answer = [[meta.key.decode(), value.hex()] for value, meta in client.get_prefix(arguments[0])]
        elif verb == "put":
            client.put(arguments[0], bytes.fromhex(arguments[1]))
            answer = True
        elif verb == "swap":
            key, revision, value = arguments
            answer, _ = client.transaction(
                compare=[client.transactions.mod(key) == revision],
                success=[client.transactions.put(key, bytes.fromhex(value))],
                failure=[],
            )
        elif verb == "delete":
            answer = client.delete(arguments[0])
        elif verb == "ttl":
            answer = client.get_lease_info(arguments[0]).TTL
        else:
            raise ValueError(verb)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
