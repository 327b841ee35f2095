"""`python3 -m tools.guest_image`: build the guest image, or check the one that is there."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tools.guest_image import build
from tools.guest_image.errors import BuildError


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.guest_image", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".cache/guest-image"),
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache/packages"),
        help="folder of unpacked packages (default: %(default)s)",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="build again from the newest packages that apt knows"
    )
    parser.add_argument(
        "--check", action="store_true", help="only tell whether the results are there, whole and current"
    )
    arguments = parser.parse_args()
    # Ending by exception, not at once, takes the half-made files along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out, cache = arguments.out.resolve(), arguments.cache.resolve()
    if arguments.check:
        reason = build.check(out)
        print(
            f"guest image: {reason}: build it again"
            if reason
            else f"guest image is whole: {out / build.DISK_IMAGE}"
        )
        return 1 if reason else 0
    try:
        build.build(out, cache, refresh=arguments.refresh, say=lambda text: print(text, flush=True))
    except BuildError as error:
        print(f"guest image: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
