"""What a job's tasks come to: how many there are, how many have ended, which part of the whole is done.

publish.lua keeps the same numbers in Redis, with the same names; tests ask both the same questions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from celery_notify.events import FAILED_STATES, FINAL_STATES

if TYPE_CHECKING:
    from celery_notify.events import Position, State

#: Ends that count as done, whatever the task said of its progress; one that was revoked stays where it was.
_DONE = FINAL_STATES - {"REVOKED"}


class Member(NamedTuple):
    """What a job remembers of one of its tasks, for as long as the job is known: the entry may be gone before."""

    attempt: int
    state: State
    weight: float
    fraction: float
    hidden: bool


def fraction_of(task: Position) -> float:
    """Return which part of a task is done, 0 to 1."""
    if task.state in _DONE:
        return 1.0
    if task.current is None or task.total is None or task.total <= 0:
        return 0.0
    return min(1.0, max(0.0, task.current / task.total))


class Tally:
    """The numbers of one job, each task counted once, whatever is told of it and how often.

    `most` is how many of its tasks that wait, and of those that have ended, have an entry in the history.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[str, Member] = {}
        self._weight = self._done = 0.0
        #: Which part of the known tasks is done, which falls with each new one; and what is told, which does not.
        self._part = self._fraction = 0.0
        self.ended = self.failed = self.revoked = self.hidden = 0
        self._ring: dict[int, str] = {}
        self._turn = 0
        #: The first task that failed: its entry says why the job did, and stays as long as any.
        self.failure: str | None = None

    def __len__(self) -> int:
        return len(self._members)

    def member(self, task_id: str) -> Member | None:
        """Return what is remembered of a task."""
        return self._members.get(task_id)

    def hides(self, task_id: str, task: Position) -> bool:
        """Say whether a task is only to be counted: one more that waits, where many do.

        Each time the job has grown to twice its size one is shown, so that a page learns of it.
        """
        new = task_id not in self._members
        waiting = len(self) - self.ended - self.hidden
        return new and task.state == "PENDING" and waiting >= self._most and math.frexp(len(self) + 1)[0] != 0.5  # noqa: PLR2004 - a power of two

    def count(self, task_id: str, task: Position, *, hidden: bool = False) -> None:
        """Count a task as what it is now. What an earlier attempt has reached it keeps: its work is done again."""
        fraction = fraction_of(task)
        if (before := self._members.get(task_id)) is not None:
            self._add(before, -1)
            fraction = max(fraction, before.fraction)
        now = Member(task.attempt, task.state, task.weight, fraction, hidden)
        self._members[task_id] = now
        self._add(now, 1)
        self._move()

    def _move(self) -> None:
        """Let what is told grow by that part of what is left to be told which has been done of what was left to do.

        So it reaches 1 with the last task, also where tasks became known on the way, and never falls.
        """
        before, self._part = self._part, min(1.0, self._done / self._weight)
        if self._part > before:
            self._fraction += (1 - self._fraction) * (self._part - before) / (1 - before)

    def _add(self, member: Member, times: int) -> None:
        self._weight += times * member.weight
        self._done += times * member.weight * member.fraction
        self.ended += times * (member.state in FINAL_STATES)
        self.failed += times * (member.state in FAILED_STATES)
        self.revoked += times * (member.state == "REVOKED")
        self.hidden += times * member.hidden

    def gives_up(self, task_id: str, task: Position) -> str | None:
        """Return the task whose entry is to make room for this one's, now that it has ended or waits for its retry."""
        if task.state not in FINAL_STATES and task.state != "RETRY":
            return None
        if task.state in FAILED_STATES and self.failure is None:
            self.failure = task_id
            return None
        self._turn += 1
        slot = self._turn % self._most
        oldest, self._ring[slot] = self._ring.get(slot), task_id
        if oldest is None or oldest == task_id:
            return None
        state = self._members[oldest].state
        return oldest if state in FINAL_STATES or state == "RETRY" else None

    def numbers(self) -> dict[str, float]:
        """Return what an event says of its job."""
        return {
            "tasks": len(self),
            "ended": self.ended,
            "failed": self.failed,
            "revoked": self.revoked,
            "hidden": self.hidden,
            # Down to a part of 10 000. Adding and subtracting leaves errors: they must not keep a whole from being one.
            "fraction": math.floor(self._fraction * 10_000 + 0.001) / 10_000,
        }
