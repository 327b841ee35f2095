"""Take a host's data plane down: `python -m hostd.network.dismantle --state DIR [--netns NAME] [--bridge NAME]`.

For the end of a simulated host and for taking a machine out of service: hostd itself never removes what guests may need. What
carries our mark goes, nothing else. Run it when hostd is stopped and no guest runs.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from fabric.clock import SystemClock
from hostd.core.tap_names import BRIDGE
from hostd.network.driver import LinuxWires, NetworkSettings
from hostd.network.netns import Namespace
from hostd.network.routers import Routers


def main() -> None:
    """The entry point of this module, as a command."""
    parser = argparse.ArgumentParser(prog="python -m hostd.network.dismantle", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="hostd's state folder")
    parser.add_argument("--netns", default="", help="the host's network namespace (default: this one)")
    parser.add_argument("--bridge", default=BRIDGE, help="the guests' bridge")
    arguments = parser.parse_args()
    settings = NetworkSettings(state=arguments.state, netns=arguments.netns, bridge=arguments.bridge)
    routers = Routers(Namespace(arguments.netns), {})
    asyncio.run(LinuxWires(settings, SystemClock(), routing=routers).dismantle())


if __name__ == "__main__":
    main()
