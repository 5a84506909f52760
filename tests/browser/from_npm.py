"""What the tests have from npm: `make test` installs it in the virtual environment, beside the Python packages."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.waiting import missing

FOLDER = Path(sys.prefix) / "npm" / "node_modules"
#: Comes with npm.
NODE = Path(sys.prefix) / "bin" / "node"


def package(name: str) -> Path:
    """Return the folder of a package of tests/browser/package.json."""
    folder = FOLDER / name
    if not folder.is_dir():
        missing(f"{name} from npm, which `make test` installs where there is a network")
    return folder
