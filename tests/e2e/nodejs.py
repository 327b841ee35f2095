"""The client in tests/e2e/node, run as somebody else's program would be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "node"


def run(*words: str, endpoint: str, ca_file: Path, token: str) -> dict[str, Any]:
    """What the client prints. Everything it needs is below its folder: the test's environment tells it nothing else."""
    node = shutil.which("node")
    assert node is not None, "node is missing: run tools/setup test"
    assert (FOLDER / "node_modules").is_dir(), "node's packages are missing: run tools/setup test"
    done = subprocess.run(
        (node, str(FOLDER / "client.mjs"), *words),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={
            "PATH": os.environ["PATH"],
            "FABRIC_ENDPOINT": endpoint,
            "FABRIC_CA_FILE": str(ca_file),
            "FABRIC_TOKEN": token,
        },
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
