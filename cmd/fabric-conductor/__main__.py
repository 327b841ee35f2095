"""A cell's conductor, run from the tree: `python cmd/fabric-conductor`."""

import sys

from fabric.server.conductor import main

if __name__ == "__main__":
    sys.exit(main())
