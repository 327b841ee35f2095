"""The daemon of one host, run from the tree: `python cmd/hostd`."""

import sys

from hostd.main import main

if __name__ == "__main__":
    sys.exit(main())
