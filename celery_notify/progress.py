"""How far a task is: what it says is stored, nothing more; the publisher looks when it has time."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import msgspec

from celery_notify.events import FINAL_STATES, clean_number, clean_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from celery_notify.events import State, TaskEvent

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Count:
    """How many items of an iterable are done; what is said in a loop for each item is only this number."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = 0


def _nobody() -> None:
    """Wake nobody: what a run does that no publisher looks after."""


class Run:
    """One run of a task in this process: what it was started with, and what it says while it runs.

    `newest` is what the task said last: current, or a Count of it, total, description, as given, unchecked. It is
    replaced as a whole, so that another thread never sees a mixture. `quiet` is set by the publisher when it waits for
    news of this run.
    """

    __slots__ = (
        "_complained",
        "_said",
        "begun",
        "cancellable",
        "cancelled",
        "due",
        "embed",
        "event",
        "handed_on",
        "newest",
        "previous",
        "quiet",
        "shown",
        "told",
        "url",
        "users",
        "wake",
    )

    def __init__(
        self,
        event: TaskEvent,
        users: list[str],
        *,
        shown: bool,
        url: str | None = None,
        cancellable: Literal[False, True, "progress"] = False,
        embed: Mapping[str, Any] | None = None,
        previous: Run | None = None,
    ) -> None:
        self.event = event
        #: What its message says of the tasks that follow: see plan.py.
        self.embed: Mapping[str, Any] = embed or {}
        self.url = url
        self.users = users
        self.shown = shown
        self.previous = previous
        #: Its message has been published again: a retry or a replacement, so that the task goes on under its id.
        self.handed_on = False
        #: Whether its user may cancel it, and how; and whether one has: then it does not begin, or ends where it says
        #: something next.
        self.cancellable = cancellable
        self.cancelled = False
        self.newest: tuple[Any, Any, Any] = (None, None, None)
        self.told: tuple[Any, Any, Any] = self.newest
        self.quiet = True
        self.wake: Callable[[], None] = _nobody
        #: Whether it was told that it has begun, or is not to be; and from when on it may say something again.
        self.begun = True
        self.due = 0.0
        self._said: tuple[float | None, float | None, str | None] = (None, None, None)
        self._complained = False

    def said(self) -> tuple[Any, Any, Any]:
        """Return what the task said last, as it is now."""
        current, total, description = self.newest
        return current.done if type(current) is Count else current, total, description

    @property
    def has_news(self) -> bool:
        """Whether the task has said anything since what was told."""
        return any(now is not told for now, told in zip(self.said(), self.told, strict=True))

    def state(self, state: State, **fields: Any) -> TaskEvent:
        """Return the whole state of the task as it is now."""
        current, total, description = self._read()
        if state in FINAL_STATES:
            fields["cancellable"] = False
        return msgspec.structs.replace(
            self.event, state=state, current=current, total=total, description=description, **fields
        )

    def _read(self) -> tuple[float | None, float | None, str | None]:
        """Return what the task said last, in so far as it can be shown; `current` does not fall."""
        current, total, description = self.said()
        was_current, was_total, was_description = self._said
        description = self._clean(clean_text, description, was_description)
        current = self._clean(clean_number, current, was_current)
        total = self._clean(clean_number, total, was_total)
        if was_current is not None and (current is None or current < was_current):
            current, total = was_current, was_total
        self._said = (current, total, description)
        return self._said

    def _clean(self, clean: Callable[[object], Any], value: object, otherwise: Any) -> Any:
        try:
            return clean(value)
        except Exception as error:  # noqa: BLE001 - a value's own methods may raise anything
            if not self._complained:
                self._complained = True
                logger.warning("Task %s (%s): progress is ignored: %s", self.event.task, self.event.task_id, error)
            return otherwise


#: The run in whose task this code is called.
current_run: ContextVar[Run | None] = ContextVar("celery_notify_run", default=None)


#: Bound once: `progress` costs half as much as it would as an object's method that looks everything up.
_current = current_run.get


def _progress(current: float, total: float | None = None, description: str | None = None) -> None:
    """Say that `current` of `total` is done, and what is being done now; outside a notified task do nothing.

    What is left out stays as it was. Costs a task no more than an update of a progress bar: no input or output, no
    check. A value that cannot be shown is logged and ignored; a `current` that falls is shown as it was.
    """
    run = _current()
    if run is None:
        return
    was = run.newest
    run.newest = (current, was[1] if total is None else total, was[2] if description is None else description)
    if run.quiet:
        run.wake()


def _track(iterable: Iterable[Item], total: float | None = None, description: str | None = None) -> Iterator[Item]:
    """Yield the items of `iterable`, counting those that are done; `total` is its length where it has one."""
    run = _current()
    if run is None:
        yield from iterable
        return
    count = Count()
    _progress(count, _length(iterable) if total is None else total, description)  # type: ignore[arg-type]
    newest = run.newest
    total = newest[1]
    for done, item in enumerate(iterable, 1):
        yield item
        count.done = done
        if run.newest is not newest:  # said in the loop
            newest = run.newest = (count, total, run.newest[2])
        if run.quiet:
            run.wake()


def _length(iterable: Iterable[object]) -> int | None:
    """Return how many items there will be, None if that cannot be told: whoever iterates need not know."""
    try:
        return length_hint(iterable) or None
    except Exception:  # noqa: BLE001 - also what its __len__ raises, and a range longer than any list
        return None


@contextmanager
def _step(description: str) -> Iterator[None]:
    """Describe what is being done inside the ``with`` block; the description before it returns afterwards."""
    run = _current()
    if run is None:
        yield
        return
    before = run.newest[2]
    _describe(run, description)
    try:
        yield
    finally:
        _describe(run, before)


def _describe(run: Run, description: object) -> None:
    run.newest = (*run.newest[:2], description)
    if run.quiet:
        run.wake()


class Progress(Protocol):
    """The type of `progress`: a function with two more, `track` and `step`."""

    def __call__(self, current: float, total: float | None = None, description: str | None = None) -> None:
        """Say that `current` of `total` is done, and what is being done now."""

    def track(
        self, iterable: Iterable[Item], total: float | None = None, description: str | None = None
    ) -> Iterator[Item]:
        """Yield the items of `iterable`, counting those that are done."""

    def step(self, description: str) -> AbstractContextManager[None]:
        """Describe what is being done inside the ``with`` block."""


_progress.__name__ = _progress.__qualname__ = "progress"
vars(_progress).update(track=_track, step=_step)
progress = cast("Progress", _progress)
