"""What events to many users, with one stream each, cost a server: deliveries for each second of its CPU.

Some events are on their way at once, as happens where many people have tasks; each is for one of them.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.audience import Audience, compared
from tests.benchmarks.report import at_least
from tests.benchmarks.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.benchmarks.audience import Cost
    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server


class Scale(NamedTuple):
    """How many users, rounds, seconds of a program's turn, and events that are on their way at once."""

    users: int
    rounds: int
    seconds: float
    at_once: int


FULL = Scale(5000, rounds=5, seconds=2.0, at_once=50)
QUICK = Scale(1000, rounds=3, seconds=0.4, at_once=50)
SMOKE = Scale(10, rounds=1, seconds=0.0, at_once=5)
GOALS = {"nchan": at_least(0.6)}


def run(audience: Audience, users: Iterator[int], scale: Scale) -> Cost:
    """Publish some events at a time for a while; return what they have cost."""
    before, end = audience.cost(), time.monotonic() + scale.seconds
    while True:
        for user in itertools.islice(users, scale.at_once):
            audience.tell(user)
        audience.await_all()
        if time.monotonic() >= end:
            return audience.cost().since(before)


@pytest.mark.timeout(600)
def test_what_events_to_many_users_cost(
    programs: Programs,
    start: Callable[[str], Server],
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    scale = choose(FULL, QUICK, SMOKE)
    shuffled = random.Random(8).sample(range(scale.users), scale.users)  # noqa: S311 - no secret
    users = {name: itertools.cycle(shuffled) for name in SERVERS}
    costs: dict[str, list[Cost]] = {name: [] for name in SERVERS}
    with contextlib.ExitStack() as stack:
        audiences = {
            name: stack.enter_context(Audience(programs, start(name), streams=scale.users)) for name in SERVERS
        }
        for _ in range(scale.rounds):
            for name, audience in audiences.items():
                costs[name].append(run(audience, users[name], scale))
        for audience in audiences.values():
            audience.check()
    compared(f"{scale.users} users", costs).finish(GOALS, measuring=measuring)
