"""Write requirements/*.txt: every package, exact and by hash, from what pyproject.toml asks for.

Four files, because they are installed at different moments and by different people:

    build.txt    what builds a source distribution; first, so that nothing is fetched unpinned behind a build
    runtime.txt  servers and command line; wheels only
    host.txt     hostd's binding to libvirt; compiled, so after the system's headers are there
    dev.txt      runtime.txt and everything that checks, generates and tests

Pins already in the files stay unless they no longer fit; `--upgrade` lets all of them move. The files hold for every platform and
name no index: where packages come from is the business of the machine that installs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"


def group(project: dict[str, Any], name: str) -> list[str]:
    """The requirements of a dependency group, with the groups it includes (PEP 735)."""
    found: list[str] = []
    for entry in project["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(project, entry["include-group"])
    return found


def wanted(project: dict[str, Any]) -> dict[str, list[str]]:
    """What each lock file has to satisfy, in the order in which they are made: later files obey the pins of earlier ones."""
    meta = project["project"]
    return {
        "build": [*project["build-system"]["requires"], "wheel"],
        "runtime": meta["dependencies"],
        "host": meta["optional-dependencies"]["host"],
        "dev": [*meta["dependencies"], *group(project, "dev")],
    }


def lock(name: str, requirements: list[str], *, earlier: list[str], upgrade: bool) -> int:
    """Resolve one file; uv says what is wrong if that fails."""
    command = [
        str(Path(sysconfig.get_path("scripts")) / "uv"),
        *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
        *(
            "--no-emit-index-url",
            "--no-emit-find-links",
            "--no-annotate",
            "--custom-compile-command",
            "make lock",
        ),
        *(["--upgrade"] if upgrade else []),
        *(word for other in earlier for word in ("--constraint", str(LOCKS / f"{other}.txt"))),
        *("--output-file", str(LOCKS / f"{name}.txt"), "-"),
    ]
    return subprocess.run(
        command, input="\n".join(requirements), text=True, stdout=subprocess.DEVNULL, check=False
    ).returncode


def main() -> int:
    """Write all four files, or stop at the first that cannot be resolved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args().upgrade
    LOCKS.mkdir(exist_ok=True)
    done: list[str] = []
    for name, requirements in wanted(tomllib.loads((ROOT / "pyproject.toml").read_text())).items():
        if lock(name, requirements, earlier=done, upgrade=upgrade) != 0:
            print(f"lock: requirements/{name}.txt could not be resolved", file=sys.stderr)
            return 1
        done.append(name)
        print(f"lock: requirements/{name}.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
