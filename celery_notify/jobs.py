"""Jobs: what a person has started, put together from the events of its tasks (ARCHITECTURE.md, "Jobs").

client.js follows the same rules in the browser, tests/vectors/jobs holds both to them. A field that is not what it
should be counts as absent.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, TypedDict, cast

from celery_notify.events import FAILED_STATES, FINAL_STATES, MAX_SAFE_INTEGER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Event = Mapping[str, Any]

#: In one of these a task has something to say of what it is doing.
TELLING_STATES = frozenset({"STARTED", "PROGRESS", "RETRY"})


class Counts(TypedDict):
    """How many tasks a job has, those still to come included, and how they have ended.

    `ended` counts all that have, `failed` FAILURE and REJECTED, `hidden` those that wait without an event of their own.
    """

    tasks: int
    ended: int
    failed: int
    revoked: int
    hidden: int


class Job(TypedDict):
    """What a person has started: one task, or all tasks of a canvas and what those have started.

    `fraction` is 0 to 1, None while unknown. `tasks` holds the newest event of each task that is known, in the order in
    which they were first heard of; `counts` speaks of all.
    """

    job_id: str
    title: str | None
    state: str
    fraction: float | None
    counts: Counts
    description: str | None
    error: str | None
    url: str | None
    cancellable: bool
    cancelling: bool
    at: str | None
    tasks: list[Event]


def jobs(events: Iterable[Event]) -> list[Job]:
    """Return the jobs that task events tell of, the newest first. The events come in the order of their ids."""
    fold = Jobs()
    for event in events:
        fold.add(event)
    return fold.all()


class Jobs:
    """The jobs of one person, kept up to date event by event: each costs the same, however many tasks a job has."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._job_of: dict[str, _Job] = {}

    def add(self, event: Event) -> None:
        """Take in a task event: it replaces the one before of the same task. What is no task event is left out."""
        task_id, state = _text(event.get("task_id")), _text(event.get("state"))
        if task_id is None or state is None:
            return
        job_id = _text(event.get("job_id")) or task_id
        known = self._job_of.get(task_id)
        if known is not None and known.job_id != job_id:
            self.remove(task_id)
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = _Job(job_id)
        self._job_of[task_id] = job
        job.put(task_id, state, event)

    def remove(self, task_id: str) -> None:
        """Let go of a task that the history no longer holds; of its job too, if that was the last one."""
        job = self._job_of.pop(task_id, None)
        if job is not None and not job.remove(task_id):
            del self._jobs[job.job_id]

    def all(self) -> list[Job]:
        """Return all jobs as they are now, the newest first."""
        return [job.shown() for job in reversed(self._jobs.values())]


class _Job:
    """What is kept of a job, so that an event changes counters and looks at no other task."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self._tasks: dict[str, Event] = {}
        self._states: Counter[str] = Counter()
        #: The events of those tasks that are in one of TELLING_STATES, the newest last.
        self._telling: OrderedDict[str, Event] = OrderedDict()
        #: What those that failed say of it, the first to fail first.
        self._errors: OrderedDict[str, str] = OrderedDict()
        self._cancellable = 0
        self._cancelling = 0
        self._numbers: Counts | None = None
        self._told_fraction: float | None = None
        self._fraction: float | None = None
        #: The task that names the job, and what speaks for it: 0 its id, 1 that it is not one of many, 2 nothing.
        self._namer: Event = {}
        self._rank = 3
        #: What tasks that succeeded link to, no more than two: of two, none is the job's.
        self._urls: set[str] = set()
        self._at: str | None = None

    def put(self, task_id: str, state: str, event: Event) -> None:
        """Put an event in the place of the one before of its task."""
        self._take_back(task_id)
        self._errors.pop(task_id, None)
        self._count(event, 1)
        self._tasks[task_id] = event
        error, url = _text(event.get("error")), _text(event.get("url"))
        if state in TELLING_STATES:
            self._telling[task_id] = event
        if error and state in FAILED_STATES:
            self._errors[task_id] = error
        if url and len(self._urls) <= 1:
            self._urls.add(url)
        self._name(task_id, event)
        numbers = _numbers(event.get("job"))
        if numbers:
            self._numbers, self._told_fraction = numbers, _number(event["job"].get("fraction"))
        self._at = _text(event.get("at")) or self._at
        self._advance()

    def remove(self, task_id: str) -> bool:
        """Let go of a task; return whether any is left.

        What the job has learnt from it stays, since it is true of the job: its title, its link, why it failed.
        """
        self._take_back(task_id)
        del self._tasks[task_id]
        if len(self._errors) > 1:
            self._errors.pop(task_id, None)
        self._advance()
        return bool(self._tasks)

    def _take_back(self, task_id: str) -> None:
        before = self._tasks.get(task_id)
        if before is not None:
            self._count(before, -1)
        self._telling.pop(task_id, None)

    def _count(self, event: Event, by: int) -> None:
        self._states[event["state"]] += by
        if event["state"] in FINAL_STATES:
            return
        if event.get("cancelling") is True:
            self._cancelling += by
        elif event.get("cancellable") is True:
            self._cancellable += by

    def _name(self, task_id: str, event: Event) -> None:
        """Let a titled task name the job if more speaks for it than for the one that does: the first of its rank.

        Celery gives a chord's body the group's id too, but only those with which a group begins are their own roots.
        """
        is_member = bool(event.get("group_id")) and event.get("root_id") == task_id
        rank = 0 if task_id == self.job_id else 2 if is_member else 1
        if _text(event.get("title")) and (rank < self._rank or task_id == self._namer.get("task_id")):
            self._namer, self._rank = event, rank

    def _advance(self) -> None:
        """Move the fraction on. It never falls, whatever is discovered."""
        measured = self._measured() if self._tasks else None
        if measured is not None:
            self._fraction = max(measured, self._fraction or 0.0)

    def _measured(self) -> float | None:
        counts = self._counts()
        if self._told_fraction is not None:
            return _clipped(self._told_fraction)
        if counts["tasks"] == 1 and self._numbers is None:
            return _fraction_of(next(iter(self._tasks.values())))
        return _clipped(counts["ended"] / counts["tasks"])

    def _counts(self) -> Counts:
        """Return what the newest event that has numbers says; else what the tasks themselves come to."""
        return self._numbers or Counts(
            tasks=len(self._tasks),
            ended=self._in(*FINAL_STATES),
            failed=self._in(*FAILED_STATES),
            revoked=self._in("REVOKED"),
            hidden=0,
        )

    def _in(self, *states: str) -> int:
        return sum(self._states[state] for state in states)

    def _state(self, counts: Counts) -> str:
        first: str = next(iter(self._tasks.values()))["state"]
        if counts["tasks"] == 1:
            return first
        if self._has_ended(counts):
            if counts["failed"] or counts["revoked"]:
                return "FAILURE" if counts["failed"] else "REVOKED"
            return "SUCCESS" if self._in("SUCCESS") else first
        if self._in("STALLED") and not self._in("STARTED", "PROGRESS"):
            return "STALLED"
        if counts["ended"] or self._in("PROGRESS"):
            return "PROGRESS"
        return next((state for state in ("STARTED", "RETRY") if self._in(state)), "PENDING")

    def _has_ended(self, counts: Counts) -> bool:
        known = self._in(*FINAL_STATES) == len(self._tasks)
        return known and counts["ended"] >= counts["tasks"] and not counts["hidden"]

    def shown(self) -> Job:
        """Return the job as it is now."""
        counts = self._counts()
        state = self._state(counts)
        told = next(reversed(self._telling.values())) if self._telling else {}
        error = next(iter(self._errors.values()), None)
        return Job(
            job_id=self.job_id,
            title=_text(self._namer.get("title")),
            state=state,
            fraction=self._fraction,
            counts=counts,
            description=_text(told.get("description")),
            error=error or (_text(told.get("error")) if state == "RETRY" else None),
            url=_text(self._namer.get("url")) or (next(iter(self._urls)) if len(self._urls) == 1 else None),
            cancellable=self._cancellable > 0,
            cancelling=self._cancelling > 0,
            at=self._at,
            tasks=list(self._tasks.values()),
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    """Return a number that JSON and JavaScript can say; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SAFE_INTEGER:
        return float(value)
    return None


def _numbers(value: object) -> Counts | None:
    """Return a job's numbers, if they are some and it has a task."""
    if not isinstance(value, dict):
        return None
    counts = {name: value.get(name) for name in Counts.__annotations__}
    if not value.get("tasks") or not all(type(count) is int and count >= 0 for count in counts.values()):
        return None
    return cast("Counts", counts)


def _fraction_of(event: Event) -> float | None:
    """Return how far a task is, None if it has not said so."""
    if event["state"] == "SUCCESS":
        return 1.0
    current, total = _number(event.get("current")), _number(event.get("total"))
    return None if current is None or not total or total < 0 else _clipped(current / total)


def _clipped(fraction: float) -> float:
    return min(1.0, max(0.0, fraction))
