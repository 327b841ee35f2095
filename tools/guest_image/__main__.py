"""`python3 -m tools.guest_image`: build the guest image, or check the one that is there."""

from __future__ import annotations

import sys

from tools.guest_image.build import BUILDER

if __name__ == "__main__":
    sys.exit(BUILDER.main(__doc__))
