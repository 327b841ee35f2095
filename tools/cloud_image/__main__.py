"""`python3 -m tools.cloud_image`, as root: build the Debian image with cloud-init, or check the one that is there."""

from __future__ import annotations

import sys

from tools.cloud_image.build import BUILDER

if __name__ == "__main__":
    sys.exit(BUILDER.main(__doc__))
