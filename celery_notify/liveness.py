"""Which worker runs a task, and its sign of life, by which others see that it still does.

A worker's main process signs, and names the tasks that run in its pool: it knows them also while one of them holds the
GIL, and it knows when one is over whose end was never told.
"""

from __future__ import annotations

import atexit
import os
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

from celery_notify import config
from celery_notify.handover import Handover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_notify.progress import Run
    from celery_notify.transport import Transport

#: Signs within one lease.
SIGNS = 3


class Worker:
    """A worker, or another process that runs tasks. `active` returns the ids of the tasks that run in its pool."""

    def __init__(self, active: Callable[[], Iterable[str]] | None = None) -> None:
        self.id = uuid.uuid4().hex[:16]
        self._pid = os.getpid()
        self._active = active
        self.handover = Handover() if active is not None else None

    @property
    def has_pool(self) -> bool:
        """Whether tasks run also in other processes than this one."""
        return self._active is not None

    @property
    def is_here(self) -> bool:
        """Whether this is the process that signs."""
        return self._pid == os.getpid()

    def sign(self, to: Transport, runs: Iterable[Run], worker_ttl: float) -> None:
        """Give a sign of life, for these runs too. Raises TransportError."""
        active = {*(self._active() if self._active is not None else ()), *(run.event.task_id for run in runs)}
        to.sign(self.id, map(_encoded, active), lease=config.LEASE * worker_ttl)


def _encoded(task_id: str) -> str:
    """Return a task's id as text without a space, a quote or a full stop."""
    return quote(task_id, safe="", errors="surrogatepass").replace(".", "%2E")


_worker: Worker | None = None
#: The task whose message this process has begun last: in a pool's child the one by which its worker knows what runs.
_task = ""


def begin(active: Callable[[], Iterable[str]]) -> None:
    """Let this process be a worker's main process, and those that it forks from now on its pool."""
    global _worker  # noqa: PLW0603 - one for each process is the point
    reset()
    _worker = Worker(active)


def worker() -> Worker:
    """Return the worker that this process belongs to; a process that runs tasks without one is one of its own."""
    global _worker  # noqa: PLW0603
    if _worker is None:
        _worker = Worker()
    return _worker


def begin_task(task_id: str) -> None:
    """Note that this process begins with a message; what the task calls within itself is none."""
    global _task  # noqa: PLW0603
    _task = task_id


def name_of(run: Run) -> str:
    """Return what the entry of a running task says of who runs it."""
    runner = worker()
    return f"{runner.id}.{_encoded(run.event.task_id if runner.is_here else _task)}"


def reset() -> None:
    """Belong to no worker any more."""
    global _worker  # noqa: PLW0603
    if _worker is not None and _worker.handover is not None:
        _worker.handover.close()
    _worker = None


def _after_fork() -> None:
    """In a forked child: a pool's child belongs to its worker, any other is on its own."""
    if _worker is not None and not _worker.has_pool:
        reset()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(reset)
