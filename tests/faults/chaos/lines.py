"""Journals in files: one line of JSON for each fact, written by any process, whole lines only."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: The environment variable that names the file.
FILE_VARIABLE = "TEST_CHAOS_JOURNAL"


def write(**fact: Any) -> None:
    """Append a fact; one write of an appending file is not torn by another's, nor by the writer's end."""
    line = json.dumps(fact).encode() + b"\n"
    descriptor = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[dict[str, Any]]:
    """Return all facts."""
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
