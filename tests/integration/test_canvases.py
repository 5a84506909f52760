"""What a job looks like: ARCHITECTURE.md has a table of canvases, each line of it happens here."""

from __future__ import annotations

import contextlib
import re
import uuid
from typing import TYPE_CHECKING, NamedTuple

import celery
import pytest
from celery import chain, chord, group

import celery_notify
from celery_notify.events import FINAL_STATES
from celery_notify.jobs import jobs
from tests.support.celery_nodes import is_idle, node_of
from tests.support.processes import ROOT
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from celery.canvas import Signature

    from tests.support.celery_nodes import Worker
    from tests.support.redis_server import GivenRedis

SECTION = "## What a job looks like"
ALL_SUCCEED = "all succeed"
#: Marks in the table how much is done where that depends on the order of things.
DEPENDS = "*"
#: What happens to a task by another canvas.
MORE = {"is replaced by": "instead", "starts": "child"}


class Row(NamedTuple):
    """A canvas as the table has it, what happens in it, and what a page shows in the end."""

    canvas: str
    happens: str
    job: str
    done: str
    tasks: str

    def says(self, job: str, done: str, tasks: str) -> bool:
        return (job, tasks) == (self.job, self.tasks) and self.done in {done, DEPENDS}


def table() -> list[Row]:
    """Return what ARCHITECTURE.md says."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    said = [Row(*cells) for cells in rows[2:]]
    assert len({(row.canvas, row.happens) for row in said}) == len(said) > 0
    return said


class Canvases:
    """Starts the canvases of the table."""

    def __init__(self, worker: Worker, tasks: ModuleType) -> None:
        self._tasks = tasks
        self._node = {"destination": [node_of(worker)], "limit": 1, "timeout": 10 * SLOWNESS}

    def start(self, row: Row) -> None:
        fates = dict(re.findall(r"`(\w)` ([^,`]+(?:`[^`]+`)?)", row.happens.removeprefix(ALL_SUCCEED)))
        self._read(row.canvas.strip("`"), fates).apply_async()

    def _read(self, canvas: str, fates: dict[str, str]) -> Any:
        """Return the canvas that a text says, in which each task has one letter."""
        names = {name: self._task(name, fates) for name in re.findall(r"\b[a-z]\b", canvas)}

        def chunks(_: Signature, calls: int, size: int) -> Any:
            return self._tasks.called.chunks([(fates.get("a"),), *[("succeeds",)] * (calls - 1)], size)

        return eval(canvas, {"chain": chain, "group": group, "chord": chord, "chunks": chunks, **names})  # noqa: S307 - our own documentation

    def _task(self, name: str, fates: dict[str, str]) -> Signature:
        fate, others = re.fullmatch(r"([^`]+?)(?: `(.+)`)?", fates.get(name, "succeeds")).groups()
        if fate == "is revoked":
            task_id = str(uuid.uuid4())
            assert self._tasks.app.control.revoke(task_id, reply=True, **self._node)
            return self._tasks.acting.s(name=name).set(task_id=task_id)
        more = {MORE[fate]: self._read(others, fates)} if others else {"fate": fate}
        return self._tasks.acting.s(name=name, **more)


def seen(user: str) -> tuple[str, str, str]:
    """Return what a page shows of the user's only job, as the table says it."""
    [job] = jobs(celery_notify.tasks(user))
    fraction = "–" if job["fraction"] is None else f"{job['fraction']:.0%}"  # noqa: RUF001 - a dash
    told = sorted((task["title"], task["state"]) for task in job["tasks"])
    return job["state"], fraction, ", ".join(f"`{title}` {state}" for title, state in told)


@pytest.mark.timeout(120)
@pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="the table says what the newest version of Celery does")
def test_each_canvas_looks_as_the_documentation_says(
    worker: Worker, tasks: ModuleType, redis_server: GivenRedis, user: str
) -> None:
    rows = {f"{user} {n}": row for n, row in enumerate(table())}
    canvases = Canvases(worker, tasks)
    for who, row in rows.items():
        with celery_notify.notify_user(who):
            canvases.start(row)
    wait_until(lambda: is_idle(worker, tasks.app, redis_server), timeout=30, what="all tasks to be over")
    with contextlib.suppress(TimeoutError):  # which of them have not ended is said below
        wait_until(lambda: all(seen(who)[0] in FINAL_STATES for who in rows))

    told = {row: seen(who) for who, row in rows.items()}
    assert {row: found for row, found in told.items() if not row.says(*found)} == {}
