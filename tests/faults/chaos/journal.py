"""What all that takes part in a chaos run writes down. Times are the wall clock's, as ids are its microseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.chaos.page import Shown

#: Microseconds, in which ids count.
SECOND = 1_000_000
#: The beginning of time: a Redis that restarts empty has lost all since then.
EVER = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """An event with an id as it came over a connection; of a task's event where in its story the task is."""

    id: int
    event: str
    key: str
    attempt: int = 0
    state: str = ""
    current: float | None = None
    token: str = ""


@dataclass(slots=True)
class Connection:
    """One connection of a client. `foreign` are the secrets of others that were among its bytes."""

    client: str
    user: str
    web: int
    opened: float
    told: list[Told] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    closed: float = 0.0
    ending: str = "open"


@dataclass(frozen=True, slots=True)
class Sent:
    """A custom event: when its sending began, and when it was acknowledged, with its id where the answer is known.

    `key` is "" for one under a key of its own. `number` rises for each publisher, so that of two events under one key
    the newer one is known. `done` is 0.0 for what was never acknowledged: it may have been published or not.
    """

    publisher: str
    number: int
    user: str
    key: str
    token: str
    began: float
    done: float = 0.0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A task that the broker has taken; `end` is how it means to end."""

    task_id: str
    user: str
    end: str
    late: bool
    at: float


@dataclass(slots=True)
class Run:
    """One run of a task's body: in which pool child and worker, and how it ended, "" if its end was not reached."""

    task_id: str
    attempt: int
    child: int
    worker: int
    began: float
    ended: float = 0.0
    how: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Redis forgot what it had been told between `since` and `end`: of one user, or of all (None)."""

    end: float
    since: float = EVER
    user: str | None = None
    kind: str = ""

    @property
    def goes_back(self) -> bool:
        """Whether Redis came back older than it was, not empty."""
        return self.since > EVER


@dataclass(frozen=True, slots=True)
class Removal:
    """Somebody asked for an entry to be removed; `status` is the answer's, 0 for none."""

    user: str
    key: str
    began: float
    done: float
    status: int


@dataclass(slots=True)
class Deaths:
    """When processes ended: `killed` by us, at that very moment; `seen` when they were last seen alive.

    `alive` are those that live when the run ends.
    """

    killed: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Stored:
    """What Redis holds of a user: the entries by key, and the keys and ids of the two sorted sets."""

    entries: dict[str, Shown] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Viewed:
    """What a page shows at the end. `moment` is "live", "reloaded" with its last event id, or "fresh" without one."""

    client: str
    user: str
    moment: str
    shown: dict[str, Shown]
    heard: dict[str, int]
    announced: list[tuple[str, int, int]]


@dataclass(slots=True)
class Polled:
    """What the polling endpoint of a web process says at the end."""

    web: int
    user: str
    answer: dict[str, Any]


@dataclass(slots=True)
class Measured:
    """What is counted of a process before the clients came, or would be, and after they have gone."""

    what: str
    before: int
    after: int


@dataclass
class Journal:
    """All of it."""

    #: The most entries of a history.
    size: int = 2000
    secrets: dict[str, str] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    enqueued: list[Enqueued] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    #: When workers could not be sure to reach Redis: (from, until).
    troubles: list[tuple[float, float]] = field(default_factory=list)
    deaths: Deaths = field(default_factory=Deaths)
    removals: list[Removal] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)
    views: list[Viewed] = field(default_factory=list)
    polled: list[Polled] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    #: Seconds that the slowest call of send() took.
    slowest_send: float = 0.0

    def lost_after(self, user: str, moment: float) -> bool:
        """Say whether Redis forgot anything of a user after this moment."""
        return any(loss.end >= moment for loss in self.losses_of(user))

    def may_be_lost(self, user: str, began: float, done: float) -> bool:
        """Say whether Redis may have forgotten what it was told between two moments."""
        return any(began <= loss.end and done >= loss.since for loss in self.losses_of(user))

    def losses_of(self, user: str) -> list[Loss]:
        """Return what Redis forgot of a user."""
        return [loss for loss in self.losses if loss.user in (None, user)]

    def is_trimmed(self, user: str, number: int) -> bool:
        """Say whether the bound of the history may have removed an entry: it removes the oldest of what has ended."""
        entries = self.stored[user].entries.values()
        removed = sum(each.user == user for each in self.removals)
        if len(entries) + removed < self.size:
            return False
        return number < min((each.id for each in entries if each.event != "task-progress"), default=0)
