"""What a stream takes of the server's memory while nothing happens on it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.load import Load
from tests.benchmarks.report import OURS, Comparison, at_most
from tests.benchmarks.servers import started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server
    from tests.support.redis_server import RedisServer

NAMES = (OURS, "nchan", "sse-starlette")
#: Bytes that one of ours is to take at the most.
GOAL = 4096
#: Seconds that all have to open: some programs are slow at it.
LIMIT = 300
#: Streams that come before, and how often, a few at a time: what is made once is not theirs. Most of it are pages of
#: memory that a worker process shares with its parent until it first writes to them, two megabytes of gunicorn's.
FIRST, TIMES = 10, 30
#: Streams of what takes two descriptors for each, of the 20 000 that a process has here.
MOST_OF_TWO = 9900


class Scale(NamedTuple):
    """How many streams, one number after the other on the same server, and how often all that."""

    streams: tuple[int, ...]
    rounds: int


@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", [False, True], ids=["of one user", "of a user each"])
def test_the_memory_of_an_idle_stream(
    choose: Callable[[Scale, Scale, Scale], Scale],
    own_redis: RedisServer,
    programs: Programs,
    *,
    each: bool,
    measuring: bool,
) -> None:
    scale = choose(Scale((1000, 10_000), 2), Scale((1000,), 1), Scale((20,), 1))
    whose = "of a user each" if each else "of one user"
    comparisons = {
        streams: Comparison(f"memory at {streams}, {whose}", "PSS of the server for an idle stream", "byte")
        for streams in scale.streams
    }
    for number in range(scale.rounds):
        for name in NAMES:
            if name == "sse-starlette" and number:  # it takes long, and comes to the same
                continue
            with started(name, own_redis) as server:
                with idle(programs, server, FIRST, each=each) as load:
                    for _ in range(TIMES):
                        load.again()
                        assert load.opened().opened == FIRST
                    before, beside = server.pss(), used_memory(own_redis)
                for streams, comparison in comparisons.items():
                    fitting = min(streams, MOST_OF_TWO) if server.descriptors > 1 else streams
                    with idle(programs, server, fitting, each=each):
                        comparison.add(name, (server.pss() - before) / fitting)
                        in_redis = max(0.0, used_memory(own_redis) - beside) / fitting
                    if number == 0:
                        without = f"{name}: {before / 1e6:.0f} MB without streams"
                        comparison.note(f"{without}, {in_redis:.0f} byte of Redis beside for each")
    for comparison in comparisons.values():
        comparison.finish({OURS: at_most(GOAL)}, measuring=measuring)


def used_memory(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.info("memory")["used_memory"])


@contextlib.contextmanager
def idle(programs: Programs, server: Server, streams: int, *, each: bool) -> Iterator[Load]:
    """Have so many streams open for a while."""
    users, request = streams if each else 1, server.request(users=each)
    with Load(programs, server.address, request, streams, users=users, ready=server.ready) as load:
        assert load.opened(LIMIT).opened == streams
        yield load
