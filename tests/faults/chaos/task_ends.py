"""Whether each task shows how it ended, or STALLED if nobody can tell; none may look as if it went on."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

from tests.faults.chaos.journal import SECOND
from tests.faults.chaos.page import FINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.chaos.journal import Enqueued, Journal, Run

#: Seconds from trouble with Redis to when a publisher has tried again: a time-out, then a part of WORKER_TTL.
PAUSE = 4.0
#: Seconds that an event is under way where Redis is sound.
AT_ONCE = 0.5
#: Seconds after its last sign that a worker counts as lost; so often a process looks whether Redis is still the same.
WORKER_TTL = 3.0
#: Seconds from a task's end until its last event is out, if nothing is in its way.
TELLING = 2.0
#: Seconds within which it is seen which processes live.
LOOK = 1.0
#: States in which no process runs a task.
WAITING = {"PENDING", "RETRY"}
#: How a task's body ends, and what is told of it.
ENDS = {"success": "SUCCESS", "failure": "FAILURE", "ignore": "IGNORED", "reject": "REJECTED"}


def stories(journal: Journal) -> Iterator[tuple[Enqueued, Story]]:
    """Yield each task with what is known of it."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in journal.runs:
        runs[run.task_id].append(run)
    for task in journal.enqueued:
        yield task, Story(journal, task, sorted(runs[task.task_id], key=lambda run: run.began))


def ends(journal: Journal) -> Iterator[str]:
    """Each task shows how it ended, or STALLED if nobody can tell; none looks as if it went on."""
    for task, story in stories(journal):
        problem = story.problem()
        if problem:
            yield f"end: task {task.task_id} of {task.user}, meant to end in {task.end}: {problem} ({story.ran})"


class Story:
    """What is known of one task, and what is shown of it."""

    def __init__(self, journal: Journal, task: Enqueued, runs: list[Run]) -> None:
        self._journal = journal
        self._task = task
        self._runs = runs
        self._last = runs[-1] if runs else None
        self._entry = journal.stored[task.user].entries.get(task.task_id)

    @property
    def ran(self) -> str:
        """What the task has done, for people."""
        return ", ".join(f"attempt {run.attempt}: {run.how or 'cut'}" for run in self._runs) or "it never ran"

    @property
    def _state(self) -> str:
        return str(self._entry.data["state"]) if self._entry is not None else ""

    @cached_property
    def _told(self) -> list[Run]:
        """The runs whose ends were told to Redis."""
        return [run for run in self._runs if is_told(self._journal, run)]

    def _is_known(self, run: Run) -> bool:
        """Say whether Redis was told the end of a run, and has not forgotten it."""
        by = out_by(self._journal, run.ended) + TELLING
        return run in self._told and not self._journal.may_be_lost(self._task.user, run.ended, by)

    @property
    def is_owed(self) -> bool:
        """Whether Redis was told how the task ended, and has not forgotten it."""
        return self._last is not None and self._last.how in ENDS and self._is_known(self._last)

    def problem(self) -> str | None:
        """Say what is wrong, None if nothing is."""
        if self._entry is None:
            return self._wrong_absence()
        if self._state in FINAL:
            return self._wrong_end()
        if self._last is not None and self._last.how in ENDS and self._last in self._told:
            return self._wrong_state(self._last)
        return None if self._is_explained() else f"expected an end, got {self._state}"

    def _wrong_absence(self) -> str | None:
        user, key = self._task.user, self._task.task_id
        if any(each.user == user and each.key == key for each in self._journal.removals):
            return None
        since = max([self._task.at, *(run.ended for run in self._told)])
        if self._journal.may_be_lost(user, since, out_by(self._journal, since) + TELLING):
            return None
        if self._journal.is_trimmed(user, int(since * SECOND)):
            return None
        return f"expected it in the history since {since:.3f}, it is not there"

    def _wrong_end(self) -> str | None:
        """Judge an end: what is told of a run that was cut may be another than was meant."""
        meant = {ENDS[run.how] for run in self._runs if run.how in ENDS}
        if not self._runs or not all(map(self._is_known, self._runs)) or self._state in meant:
            return None
        return f"expected {' or '.join(sorted(meant))}, got {self._state}"

    def _wrong_state(self, last: Run) -> str | None:
        """Judge the state of a task that ended and does not show it: Redis may have forgotten the end.

        Then it must not seem to run. And a process that told an end tells it again to a Redis that comes back older.
        """
        if self._is_known(last):
            return f"expected {ENDS[last.how]}, got {self._state}"
        for loss in self._journal.losses_of(self._task.user):
            again = out_by(self._journal, loss.end) + WORKER_TTL + TELLING
            if loss.goes_back and last.ended <= loss.end and _lived_until(self._journal, last.child, again):
                return f"expected {ENDS[last.how]} to be told again when Redis had gone back, got {self._state}"
        if self._state in {"STALLED", *WAITING}:
            return None
        return f"expected STALLED or an end, since its end was forgotten, got {self._state}"

    def _is_explained(self) -> bool:
        """Say whether a task may go on without an end: nobody is there who could have told it."""
        last = self._last
        if last is not None and not last.ended and last.worker in self._journal.deaths.alive:
            return False  # its worker tells that the child was lost
        if self._state == "STALLED" or (self._state in WAITING and last is None):
            return self._a_worker_died(self._task.at)
        if self._state in WAITING and last is not None:
            return last not in self._told or self._a_worker_died(last.ended)
        return False

    def _a_worker_died(self, since: float) -> bool:
        """Say whether any did: messages are lost between the broker and a worker that is killed."""
        return any(at >= since for at in self._journal.deaths.killed.values())


def out_by(journal: Journal, moment: float) -> float:
    """Return the time by which what was said at a moment has reached Redis, as far as that was to be reached."""
    for begin, end in sorted(journal.troubles):
        if begin - AT_ONCE <= moment <= end + PAUSE:
            moment = max(moment, end + PAUSE)
    return moment


def is_told(journal: Journal, run: Run) -> bool:
    """Say whether a run reached its end and its process lived until that was certainly told.

    A pool's child that ends in an orderly way leaves what it has not told to its worker.
    """
    if not run.ended:
        return False
    out = out_by(journal, run.ended)
    if any(journal.deaths.killed.get(process, out + TELLING) < out + TELLING for process in (run.child, run.worker)):
        return False
    return run.worker in journal.deaths.alive or journal.deaths.seen.get(run.worker, 0.0) + LOOK >= out


def _lived_until(journal: Journal, process: int, moment: float) -> bool:
    killed = journal.deaths.killed.get(process)
    if killed is not None:
        return killed > moment
    return process in journal.deaths.alive or journal.deaths.seen.get(process, 0.0) > moment
