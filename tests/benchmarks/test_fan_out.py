"""What one event to many streams of one user costs a server: deliveries for each second of its CPU.

The next event is published when all readers have had the one before, so that no program saves work by writing several
at once. All programs have their readers at the same time and their turn in each round; those that wait do nothing.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.audience import Audience, compared
from tests.benchmarks.report import at_least
from tests.benchmarks.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.benchmarks.audience import Cost
    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server


class Scale(NamedTuple):
    """The numbers of streams, the rounds, the seconds of a program's turn, and the least number of its events."""

    streams: tuple[int, ...]
    rounds: int
    seconds: float
    events: int


FULL = Scale((100, 1000, 5000), rounds=5, seconds=1.0, events=2)
QUICK = Scale((100, 1000), rounds=3, seconds=0.25, events=2)
SMOKE = Scale((5, 20), rounds=1, seconds=0.0, events=2)
#: Not counted: after them all that a program makes when it is first needed is there, and who left before is forgotten.
WARM_UP = 2
GOALS = {
    "nchan": at_least(1.0),
    "send()": at_least(0.8),
    "sse-starlette": at_least(4.0),
    "flask-sse": at_least(4.0),
    "django-eventstream": at_least(4.0),
}


def run(audience: Audience, scale: Scale) -> Cost:
    """Publish event after event for a while; return what they have cost."""
    before, end = audience.cost(), time.monotonic() + scale.seconds
    for number in range(1_000_000):
        if number >= scale.events and time.monotonic() >= end:
            break
        audience.tell()
        audience.await_all()
    return audience.cost().since(before)


def measure(servers: Mapping[str, Server], programs: Programs, streams: int, scale: Scale) -> dict[str, list[Cost]]:
    """Return what each program's rounds have cost."""
    costs: dict[str, list[Cost]] = {name: [] for name in servers}
    with contextlib.ExitStack() as stack:
        audiences = {
            name: stack.enter_context(Audience(programs, server, streams=streams, user=streams))
            for name, server in servers.items()
        }
        for audience in audiences.values():
            for _ in range(WARM_UP):
                audience.tell()
                audience.await_all()
        for _ in range(scale.rounds):
            for name, audience in audiences.items():
                costs[name].append(run(audience, scale))
        for audience in audiences.values():
            audience.check()
    return costs


@pytest.mark.timeout(600)
def test_what_a_delivery_costs(
    programs: Programs,
    start: Callable[[str], Server],
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    scale = choose(FULL, QUICK, SMOKE)
    servers = {name: start(name) for name in SERVERS}
    for streams in scale.streams:
        costs = measure(servers, programs, streams, scale)
        compared(f"fan-out {streams}", costs).finish(GOALS, measuring=measuring)
