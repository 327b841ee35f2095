"""The front door, run from the tree: `python cmd/fabric-api`."""

import sys

from fabric.server.api import main

if __name__ == "__main__":
    sys.exit(main())
