"""How many readers a server lets in, and how soon all are told what they have missed when they come back at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.load import Load
from tests.benchmarks.report import OURS, Comparison, at_least, at_most
from tests.benchmarks.servers import SERVERS, FlaskAlone, data_of, started

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server
    from tests.support.redis_server import RedisServer

NAMES = (OURS, "nchan", "sse-starlette")
#: What a stream could cost at the least where a Flask application opens it.
ALONE = FlaskAlone.name
#: Streams that come and go before: what is made once is made then.
FIRST = 50
#: Events that each reader has before it leaves, and those that it misses.
HAD, MISSED = 1, 2


class Scale(NamedTuple):
    """How many streams, and how often."""

    streams: int
    rounds: int


def opening(programs: Programs, server: Server, streams: int, *, users: int, rate: int = 200) -> Load:
    request = server.request(users=users > 1)
    return Load(programs, server.address, request, streams, users=users, rate=rate, ready=server.ready)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", [False, True], ids=["of one user", "of a user each"])
def test_connects_per_second(
    choose: Callable[[Scale, Scale, Scale], Scale],
    own_redis: RedisServer,
    programs: Programs,
    *,
    each: bool,
    measuring: bool,
) -> None:
    scale = choose(Scale(2000, 5), Scale(1000, 2), Scale(20, 1))
    whose = "of a user each" if each else "of one user"
    comparison = Comparison(f"connects, streams {whose}", "streams that go live per CPU-second of the server", "1/s")
    wall = Comparison(f"connects by the clock, streams {whose}", "streams that go live per second", "1/s")
    redis: dict[str, float] = {}
    for _ in range(scale.rounds):
        for name in (*NAMES, ALONE):
            with started(name, own_redis) as server:
                with opening(programs, server, FIRST, users=1) as load:
                    assert load.opened().opened == FIRST
                used, beside = server.cpu(), server.beside()
                with opening(programs, server, scale.streams, users=scale.streams if each else 1) as load:
                    opened = load.opened()
                    assert opened.opened == scale.streams
                    comparison.add(name, opened.opened / (server.cpu() - used))
                    wall.add(name, opened.opened / opened.seconds)
                    redis[name] = 1e6 * (server.beside() - beside) / opened.opened
    comparison.note(f"Redis beside, for a stream: {', '.join(f'{name} {us:.0f} us' for name, us in redis.items())}")
    comparison.finish({OURS: at_least(3000)}, measuring=measuring)
    wall.finish(measuring=measuring)


@pytest.mark.timeout(600)
def test_connects_per_second_of_two_worker_processes(
    choose: Callable[[Scale, Scale, Scale], Scale], own_redis: RedisServer, programs: Programs, *, measuring: bool
) -> None:
    scale = choose(Scale(2000, 5), Scale(1000, 2), Scale(20, 1))
    comparison = Comparison("connects by the clock, two processes", "streams of a user that go live per second", "1/s")
    for _ in range(scale.rounds):
        for name in NAMES[:2]:
            with (
                started(name, own_redis, workers=2) as server,
                opening(programs, server, scale.streams, users=1) as load,
            ):
                opened = load.opened()
                assert opened.opened == scale.streams
                comparison.add(name, opened.opened / opened.seconds)
    comparison.finish(measuring=measuring)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", [False, True], ids=["of one user", "of a user each"])
def test_all_come_back_at_once(
    choose: Callable[[Scale, Scale, Scale], Scale],
    own_redis: RedisServer,
    programs: Programs,
    *,
    each: bool,
    measuring: bool,
) -> None:
    scale = choose(Scale(10_000, 2), Scale(2000, 1), Scale(20, 1))
    users = scale.streams if each else 1
    whose = "of a user each" if each else "of one user"
    row = f"{scale.streams} come back at once, {whose}"
    comparison = Comparison(row, f"seconds until all have the {MISSED} events that they missed", "s")
    costs: dict[str, str] = {}
    for _ in range(scale.rounds):
        for name in filter(keeps_history, NAMES):
            with (
                started(name, own_redis) as server,
                opening(programs, server, scale.streams, users=users, rate=scale.streams) as load,
            ):
                assert load.opened().opened == scale.streams
                tell(server, users, 1, HAD)
                load.until(scale.streams * HAD)
                load.close()
                tell(server, users, HAD + 1, HAD + MISSED)
                used, beside, begun = server.cpu(), server.beside(), time.monotonic()
                load.again()
                opened = load.opened()
                reached = load.until(scale.streams * (HAD + MISSED))
                check = load.check()
                assert (check.complete, check.missing, check.twice) == (scale.streams, 0, 0)
                comparison.add(name, max(reached.at - begun, opened.seconds))
                cost, redis = (1e6 * each / scale.streams for each in (server.cpu() - used, server.beside() - beside))
                costs[name] = f"{name} {cost:.0f} us of the server and {redis:.0f} us of Redis"
    comparison.note(f"for a reader: {', '.join(costs.values())}")
    comparison.note(f"no history, so that nothing can be told again: {', '.join(set(NAMES) - costs.keys())}")
    comparison.finish({OURS: at_most(10)}, measuring=measuring)


def keeps_history(name: str) -> bool:
    return SERVERS[name].keeps_history


def tell(server: Server, users: int, first: int, last: int) -> None:
    """Publish these serial numbers to all users."""
    for serial in range(first, last + 1):
        for user in range(users):
            server.publish(user, data_of(serial))
