"""Which process runs a task, and a worker's sign of life, by which others see that it still does.

A worker's main process signs for its pool's children: it knows which of them live, also while a task holds the GIL.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_notify.transport import Transport

#: A sign lasts for this part of WORKER_TTL. Who looks for it waits for the rest: Redis may have lost the sign, not the
#: worker its life.
LEASE = 0.5
#: Signs within one lease.
SIGNS = 3


class Worker:
    """A worker, or another process that runs tasks; `children` returns the process ids of its pool."""

    def __init__(self, children: Callable[[], Iterable[int]] = tuple, *, lasting: bool = False) -> None:
        self.id = uuid.uuid4().hex[:16]
        self.pid = os.getpid()
        #: Whether it signs also while this process runs no task: others may.
        self.lasting = lasting
        self._children = children

    @property
    def is_here(self) -> bool:
        """Whether this is the process that signs."""
        return self.pid == os.getpid()

    def sign(self, to: Transport, worker_ttl: float) -> float:
        """Give a sign of life; return the seconds until the next one. Raises TransportError."""
        lease = LEASE * worker_ttl
        to.sign(self.id, {self.pid, *self._children()}, lease=lease)
        return lease / SIGNS


_worker: Worker | None = None


def begin(children: Callable[[], Iterable[int]]) -> None:
    """Let this process be a worker's main process, and those that it forks from now on its children."""
    global _worker  # noqa: PLW0603 - one for each process is the point
    _worker = Worker(children, lasting=True)


def worker() -> Worker:
    """Return the worker that this process belongs to; a process that runs tasks without one is one of its own."""
    global _worker  # noqa: PLW0603
    if _worker is None:
        _worker = Worker()
    return _worker


def process() -> str:
    """Return what names this process in the state of a task that it runs."""
    return f"{worker().id}.{os.getpid()}"


def reset() -> None:
    """Belong to no worker any more."""
    global _worker  # noqa: PLW0603
    _worker = None


def _after_fork() -> None:
    """In a forked child: a pool's child belongs to its worker, any other is on its own."""
    if _worker is not None and not _worker.lasting:
        reset()


os.register_at_fork(after_in_child=_after_fork)
