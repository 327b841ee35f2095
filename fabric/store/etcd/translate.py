"""Between the port's values and etcd's messages. Functions only; the namespace goes on and comes off here."""

from __future__ import annotations

from collections.abc import Iterable

from fabric.pb.etcd.v3 import wire_pb2 as pb
from fabric.store.base import Committed, Entry, Event, Refused, Snapshot, Txn
from fabric.store.etcd.wire import EVENT_DELETE, TARGET_MOD_REVISION, interval


class Namespace:
    """All keys of one store inside a cluster: a prefix that callers never see."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()

    def key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def interval(self, prefix: str) -> tuple[bytes, bytes]:
        return interval(self.key(prefix))

    def name(self, key: bytes) -> str:
        return key[len(self._prefix) :].decode()

    # ------------------------------------------------------------------ requests

    def read(self, key: str) -> pb.RequestOp:
        return pb.RequestOp(request_range=pb.RangeRequest(key=self.key(key)))

    def txn(self, txn: Txn) -> pb.TxnRequest:
        """Writes first, so that the reads see them; a refusal brings back every compared key."""
        success = [
            pb.RequestOp(
                request_put=pb.PutRequest(key=self.key(key), value=value, lease=txn.leases.get(key, 0))
            )
            for key, value in txn.put.items()
        ]
        success += [
            pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self.key(key)))
            for key in dict.fromkeys(txn.delete)
        ]
        success += [self.read(key) for key in txn.reads]
        for prefix in txn.read_prefixes:
            first, end = self.interval(prefix)
            success.append(pb.RequestOp(request_range=pb.RangeRequest(key=first, range_end=end)))
        compare = [
            pb.Compare(target=TARGET_MOD_REVISION, key=self.key(key), mod_revision=revision)
            for key, revision in txn.unchanged.items()
        ]
        for prefix in txn.empty:
            first, end = self.interval(prefix)
            # Of an interval every key is compared, and no key there has revision 0: so it must have none.
            compare.append(pb.Compare(target=TARGET_MOD_REVISION, key=first, mod_revision=0, range_end=end))
        return pb.TxnRequest(
            compare=compare,
            success=success,
            failure=[self.read(key) for key in txn.unchanged],
        )

    # ------------------------------------------------------------------ answers

    def entries(self, kvs: Iterable[pb.KeyValue]) -> dict[str, Entry]:
        return {
            (name := self.name(kv.key)): Entry(
                key=name,
                value=kv.value,
                mod_revision=kv.mod_revision,
                create_revision=kv.create_revision,
                lease_id=kv.lease,
            )
            for kv in kvs
        }

    def outcome(self, answer: pb.TxnResponse) -> Committed | Refused:
        seen: dict[str, Entry] = {}
        for response in answer.responses:
            if response.HasField("response_range"):
                seen.update(self.entries(response.response_range.kvs))
        snapshot = Snapshot(answer.header.revision, dict(sorted(seen.items())))
        return Committed(answer.header.revision, snapshot) if answer.succeeded else Refused(snapshot)

    def events(self, events: Iterable[pb.Event]) -> list[Event]:
        return [
            Event(
                key=self.name(event.kv.key),
                value=None if event.type == EVENT_DELETE else event.kv.value,
                mod_revision=event.kv.mod_revision,
            )
            for event in events
        ]
