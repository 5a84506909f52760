"""How long an event is on its way to the median and to the last of many sockets, at parts of what each program can do.

What a program can do is measured first: events a second while it is given so many that always some of them wait. An
event's time begins before the call that publishes it; where that call comes late, since the one before took too long,
it begins when the event was due. Readers that share two cores with the server have it later than others would.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.audience import Audience, beside
from tests.benchmarks.report import OURS, Comparison, at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.benchmarks.audience import Cost
    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server


class Scale(NamedTuple):
    """How many streams, rounds, seconds at each rate, and events at the least; events that wait in a flood."""

    streams: int
    rounds: int
    seconds: float
    events: int
    waiting: int


FULL = Scale(1000, rounds=3, seconds=6.0, events=30, waiting=20)
QUICK = Scale(250, rounds=1, seconds=1.5, events=20, waiting=20)
SMOKE = Scale(10, rounds=1, seconds=0.0, events=2, waiting=2)
NAMES = (OURS, "nchan", "sse-starlette")
#: Of the capacity, in per cent.
PARTS = (10, 50, 90)
GOALS = {name: at_most(1.0) for name in NAMES if name != OURS}


class Latency(NamedTuple):
    """Events a second, and the milliseconds to the median and to the last socket for half of them, and for 99 %."""

    rate: float
    half_to_median: float
    most_to_median: float
    half_to_last: float
    most_to_last: float

    @classmethod
    def middle(cls, found: list[Latency]) -> Latency:
        """Return the medians of several."""
        return cls(*map(statistics.median, zip(*found, strict=True)))

    def __str__(self) -> str:
        median = f"{self.half_to_median:.1f} and {self.most_to_median:.1f} ms to the median socket"
        return f"{median}, {self.half_to_last:.1f} and {self.most_to_last:.1f} to the last at {self.rate:.0f} a second"


def flood(audience: Audience, scale: Scale) -> Cost:
    """Publish so much that always some events wait: the rate at which they come then is all that the program can."""
    before = audience.cost()
    while audience.events - before.events <= scale.waiting or time.monotonic() < before.clock + scale.seconds / 2:
        audience.tell()
        audience.await_all(but=scale.waiting)
    return audience.cost().since(before)


def latency(audience: Audience, rate: float, scale: Scale) -> Latency:
    """Publish at this rate for a while."""
    audience.load.times()  # what came before
    begun, start = {}, time.monotonic()
    for number in range(max(scale.events, round(rate * scale.seconds))):
        due = start + number / rate
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
            due = time.monotonic()
        begun[audience.tell()] = due
    audience.await_all()
    times = audience.load.times()
    to_median = sorted(1000 * (times[serial].median - at) for serial, at in begun.items())
    to_last = sorted(1000 * (times[serial].last - at) for serial, at in begun.items())
    return Latency(rate, *(least(values, share) for values in (to_median, to_last) for share in (0.5, 0.99)))


def least(values: list[float], share: float) -> float:
    """Return the least of the sorted values that so great a share of them does not exceed."""
    return values[math.ceil(share * len(values)) - 1]


class Found:
    """What was measured: floods by program, latencies by program and part of its capacity, ours at rates of others."""

    def __init__(self) -> None:
        self.floods: dict[str, list[Cost]] = {name: [] for name in NAMES}
        self.latencies = {(name, part): list[Latency]() for name in NAMES for part in PARTS}
        self.ours_at = {name: list[Latency]() for name in GOALS}

    def measure(self, audiences: Mapping[str, Audience], scale: Scale) -> None:
        """Measure all once."""
        for name, audience in audiences.items():
            self.floods[name].append(flood(audience, scale))
        for part in PARTS:
            for name, audience in audiences.items():
                self.latencies[name, part].append(latency(audience, self._rate(name, part), scale))
        for name, found in self.ours_at.items():
            found.append(latency(audiences[OURS], self._rate(name, PARTS[-1]), scale))

    def _rate(self, name: str, part: int) -> float:
        found = self.floods[name][-1]
        return found.events / found.clock * part / 100

    def report(self, part: int, streams: int) -> Comparison:
        """Return what there is to say of a part of the capacity."""
        row = f"latency at {part} % of capacity"
        comparison = Comparison(row, f"99 % of events are at the last of {streams} sockets within", unit="ms")
        for name in NAMES:
            for one in self.latencies[name, part]:
                comparison.add(name, one.most_to_last)
            comparison.note(f"{name}, 50 and 99 % of events: {Latency.middle(self.latencies[name, part])}")
        if part == PARTS[-1]:
            for name, found in self.ours_at.items():
                comparison.note(f"ours at the rate of {name}: {Latency.middle(found)}")
        for note in beside(self.floods):
            comparison.note(f"at full capacity: {note}")
        return comparison


@pytest.mark.timeout(900)
def test_how_long_an_event_is_on_its_way(
    programs: Programs,
    start: Callable[[str], Server],
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    scale, found = choose(FULL, QUICK, SMOKE), Found()
    with contextlib.ExitStack() as stack:
        audiences = {
            name: stack.enter_context(Audience(programs, start(name), streams=scale.streams, user=1)) for name in NAMES
        }
        for _ in range(scale.rounds):
            found.measure(audiences, scale)
        for audience in audiences.values():
            audience.check()
    for part in PARTS:
        found.report(part, scale.streams).finish(GOALS, measuring=measuring)
