"""The vectors in tests/vectors: what the Python and the JavaScript implementation of one rule both have to say.

A vector of jobs is a list of steps: an event that is told, or the id of a task that is removed. Where one has `jobs`,
they are what there is after it, the newest first. Each names the fields it is about, the last step names all; the tasks
of a job stand there by their ids.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from typing import Any

FOLDER = ROOT / "tests" / "vectors" / "jobs"
JOBS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def named(jobs: list[dict[str, Any]], expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of `jobs` the fields that are expected, so that the two can be compared."""
    briefly = [{**job, "tasks": [task["task_id"] for task in job["tasks"]]} for job in jobs]
    if len(jobs) != len(expected):
        return briefly
    return [{field: job.get(field) for field in wanted} for job, wanted in zip(briefly, expected, strict=True)]
