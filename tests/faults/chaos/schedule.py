"""Which fault comes when, to what, and for how long: all of it follows from the seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.chaos.dice import dice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.faults.chaos.driver import Driver

    #: What begins a fault, and returns what ends it.
    Begin = Callable[[Driver, "Fault"], Callable[[], object] | None]

#: Seconds before the first fault, and on average between two.
QUIET, GAP = 0.5, 0.8
#: Seconds that what was restarted, or connected anew, has to itself before the next fault of its kind.
RECOVERY = 1.5
#: The part of a run in which Redis may forget what it was told: little can be said at the end of what came before.
LOSSES = 0.5


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what it happens to, how long it lasts at least and at the most, and what begins it.

    `loses` says that Redis forgets by it what it was told.
    """

    to: str
    shortest: float
    longest: float
    begin: Begin
    loses: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `target` says which of several is meant, `detail` is a number for what else is to be chosen."""

    at: float
    name: str
    kind: Kind
    target: int
    lasts: float
    detail: int

    @property
    def resource(self) -> str:
        """Return what it happens to: two faults do not happen to the same thing at a time."""
        return f"{self.kind.to} {self.target}"


def schedule(
    seed: int, seconds: float, kinds: Mapping[str, Kind], *, counts: Mapping[str, int], gap: float = GAP
) -> list[Fault]:
    """Return the faults of a run: each kind comes once before any comes again.

    `counts` says of what there are several; `gap` is the time between two on average.
    """
    rng = dice(seed)
    faults: list[Fault] = []
    free: dict[str, float] = {}
    deck: list[str] = []
    now = QUIET
    while now < seconds:
        if not deck:
            deck = sorted(kinds)
            rng.shuffle(deck)
        name = deck.pop()
        kind = kinds[name]
        target, lasts = rng.randrange(counts.get(kind.to, 1)), rng.uniform(kind.shortest, kind.longest)
        fault = Fault(now, name, kind, target, lasts, rng.randrange(1000))
        start = max(now, free.get(fault.resource, 0.0))
        if start + lasts <= (seconds * LOSSES if kind.loses else seconds):
            faults.append(dataclasses.replace(fault, at=start))
            free[fault.resource] = start + lasts + RECOVERY
        now += rng.expovariate(1 / gap)
    return sorted(faults, key=lambda fault: fault.at)


def only(kinds: Mapping[str, Kind], names: Iterable[str]) -> dict[str, Kind]:
    """Return the kinds of these names, all if none is named."""
    chosen = set(names)
    return {name: kind for name, kind in kinds.items() if not chosen or name in chosen}
