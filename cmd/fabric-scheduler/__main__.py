"""The scheduler, run from the tree: `python cmd/fabric-scheduler`."""

import sys

from fabric.server.scheduler import main

if __name__ == "__main__":
    sys.exit(main())
