"""Cancelling, where tasks are: what a person no longer wants does not begin, or ends.

The web half only writes down that it is wanted (`Transport.cancel`); whoever has to do with a task looks for that: a
run before it begins, and while it goes on if its own `progress()` is to end it; a worker's main process for what waits
in it, and for what only the end of a process can stop. So nobody needs to listen when a cancel is made.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from celery.worker import state

from celery_notify import publisher
from celery_notify.progress import current_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import NoReturn

    from celery import Task

    from celery_notify.progress import Run
    from celery_notify.transport import Transport

#: Seconds between two looks for cancels: what runs is to end within a second.
LOOK = 0.3
#: Seconds that a task's beginning waits for the first one, and not at all while Redis is known not to answer.
PATIENCE = 0.5
#: How many of the tasks that wait in a worker are looked for at a time; a worker may hold many until their time comes.
SOME = 100


class TaskCancelledError(Ignore):
    """The task is cancelled: raised in it by `progress()` and all that is like it, so that it ends.

    It may be caught to clean up, without progress, and is to be raised again. Celery's retries leave it alone.
    """

    def __init__(self, text: str = "cancelled by its user") -> None:
        super().__init__(text)


class Cancels:
    """What a process looks for. The looks are the publisher's thread's, `look`; all else may come from any thread."""

    def __init__(self, *, ends_processes: bool = False) -> None:
        #: Whether the worker may end the process of a task: see `begin`.
        self.ends_processes = ends_processes
        self._lock = threading.Lock()
        self._looked = -math.inf
        #: Runs in this process, and whether one look has been taken.
        self._runs: dict[Run, bool] = {}
        #: In a worker's main process the requests it has received, with its consumer and the runs that they are.
        self._held: weakref.WeakKeyDictionary[Any, tuple[Any, Run]] = weakref.WeakKeyDictionary()
        self._turn = 0
        self._ticks = False

    def add(self, run: Run) -> None:
        """Look for a run from now on."""
        with self._lock:
            self._runs[run] = False

    def has_looked_for(self, run: Run) -> bool:
        """Say whether a look has been taken for this run."""
        return self._runs.get(run, True)

    def leave(self, run: Run) -> None:
        """Look for it no more."""
        with self._lock:
            self._runs.pop(run, None)

    def hold(self, consumer: Any, request: Any, run: Run) -> None:
        """Look for a request that a worker's main process has received, until it is with the pool or has ended."""
        with self._lock:
            self._held[request] = consumer, run
        hub = consumer.hub
        if hub is not None and not hasattr(hub, "_waker") and not self._ticks:
            # The event loop of kombu before 5.7 is not woken by what another thread would have it call.
            hub.call_repeatedly(LOOK, _nothing)
            self._ticks = True

    def left(self) -> float | None:
        """Return the seconds until the next look is due, None if there is nothing to look for."""
        with self._lock:
            if not all(self._runs.values()):
                return 0.0
            return LOOK - (time.monotonic() - self._looked) if self._runs or self._held else None

    def look(self, at: Transport) -> None:
        """Look for all that may be cancelled, and stop what is. Raises TransportError."""
        self._looked = time.monotonic()
        with self._lock:
            runs = list(self._runs)
        held = self._requests()
        found = at.cancelled({name for run in [*runs, *(run for _, _, run in held)] for name in _names(run)})
        for run in runs:
            if _is_cancelled(run, found):
                _stop(run)
        with self._lock:
            self._runs.update((run, True) for run in runs if run in self._runs)
        for consumer, request, run in held:
            if _is_cancelled(run, found):
                consumer.call_soon(self._stop_request, consumer, request, run)

    def _requests(self) -> list[tuple[Any, Any, Run]]:
        """Return what is worth a look of what is held: what runs, and some of what waits, each in its turn."""
        with self._lock:
            held = [(consumer, request, run) for request, (consumer, run) in self._held.items()]
        running = [each for each in held if self._is_to_be_ended(*each[1:])]
        waiting = [each for each in held if _waits(each[1])]
        if len(waiting) > SOME:
            self._turn = (self._turn + SOME) % len(waiting)
            waiting = [*waiting, *waiting][self._turn : self._turn + SOME]
        return [*running, *waiting]

    def _is_to_be_ended(self, request: Any, run: Run) -> bool:
        """Say whether a request runs in a process of its own that is to be ended."""
        return self.ends_processes and run.cancellable is True and request in state.active_requests

    def _stop_request(self, consumer: Any, request: Any, run: Run) -> None:
        """Stop what waits or runs, in the consumer's thread: nobody else may acknowledge a message.

        There, too, a request that is active is still the one its process works on: a process is given the next one only
        when the consumer has heard of the end of the last.
        """
        if self._is_to_be_ended(request, run):
            request.terminate(consumer.pool)
        elif _waits(request):
            _discard(consumer, request)


def _nothing() -> None:
    """Do nothing: what a tick is for."""


def _names(run: Run) -> Iterable[str]:
    """Return the ids under which a run is cancelled: its own, and that of all that the person has started."""
    return (run.event.task_id, run.event.job_id or run.event.task_id)


def _is_cancelled(run: Run, found: Mapping[str, set[str]]) -> bool:
    """Say whether somebody has cancelled it whose it is: anybody may start a task under an id that another has."""
    return any(not found.get(name, set()).isdisjoint(run.users) for name in _names(run))


def _stop(run: Run) -> None:
    """Have a run raise where it says something next. Done again with each look, since it may be saying it just now."""
    run.cancelled = True
    publisher.current().leave(run)
    run.wake = _raise
    run.quiet = True


def _raise() -> NoReturn:
    raise TaskCancelledError


def _waits(request: Any) -> bool:
    """Say whether a request waits in the worker's main process: for its time, or for a place in the pool."""
    return not (request.time_start or request._apply_result or request._already_revoked)  # noqa: SLF001


def _discard(consumer: Any, request: Any) -> None:
    """Have a request that waits end now as revoked, as Celery has it end when its turn comes."""
    state.revoked.add(request.id)
    if consumer.task_buckets[request.task.name]:
        return  # its turn comes soon: it waits since too many of its kind would run
    if request in getattr(state, "scheduled_requests", ()):
        consumer.timer.cancel(request._eta_timer_entry)  # noqa: SLF001
        consumer.apply_eta_task(request)
    request.revoked()


# --- for the receivers ----------------------------------------------------------------------------------------------

_cancels = publisher.also = Cancels()


def begin(worker: Any) -> None:
    """Note how this worker's main process may stop what runs in its pool.

    Only a pool of processes that the worker's event loop feeds: any other gives a process its next task before the
    worker has heard of the end of the last, and to end it would end that one.
    """
    _begin_anew(ends_processes=worker.use_eventloop and worker.pool_cls.__module__.endswith(".prefork"))


def _begin_anew(*, ends_processes: bool) -> None:
    global _cancels  # noqa: PLW0603 - one for each process is the point
    _cancels = publisher.also = Cancels(ends_processes=ends_processes)


def guard(task: Any) -> None:
    """Have the function of a task that can be cancelled not be called in a run that is.

    No receiver of a signal could keep Celery from calling it, and Celery calls `run`, by way of the task's own
    `__call__` if it has one; of `celery.map` and its like by way of theirs.
    """
    run_function = task.run

    @functools.wraps(run_function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        run = current_run.get()
        if run is not None and run.cancelled:
            raise TaskCancelledError
        return run_function(*args, **kwargs)

    task.run = guarded


def hold(consumer: Any, request: Any, run: Run) -> None:
    """Look for a request that a worker's main process has received."""
    idle = _cancels.left() is None
    _cancels.hold(consumer, request, run)
    if idle:
        publisher.current().wake()


def is_wanted(run: Run, *, eager: bool) -> bool:
    """Say whether it is wanted that a run that begins is cancelled; if not, go on looking where nobody else does.

    Waits for the answer of Redis, but not for long. An `eager` one has no message that its worker could hold.
    """
    _cancels.add(run)
    publisher.current().wait_for(lambda: _cancels.has_looked_for(run), PATIENCE)
    if _cancels.ends_processes and run.cancellable is True and not (eager or run.cancelled):
        _cancels.leave(run)  # the worker's main process does
    return run.cancelled


def leave(run: Run) -> None:
    """Look for a run no more: it has ended."""
    _cancels.leave(run)


def mark_as_revoked(task: Task[..., Any]) -> None:
    """Have the result backend say that the task that ends here is revoked; a chord fails that waits for it."""
    request: Any = task.request
    ignored = vars(request).get("ignore_result")
    if ignored is None:
        ignored = task.ignore_result
    stored = not ignored or task.store_errors_even_if_ignored
    task.backend.mark_as_revoked(request.id, "cancelled", request=request, store_result=stored)


def _after_fork() -> None:
    """In a forked child: what the parent looks for is the parent's business."""
    _begin_anew(ends_processes=_cancels.ends_processes)


os.register_at_fork(after_in_child=_after_fork)
