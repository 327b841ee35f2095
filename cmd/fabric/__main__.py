"""The command line, run from the tree: `python cmd/fabric`."""

import sys

from fabric.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
