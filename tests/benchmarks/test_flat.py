"""Whether an event and a read cost the same however much there is beside them: entries, users, open streams.

What is compared is CPU time: of Redis, of the process that publishes or reads, of the web process. The tests assert
that the work was done, nothing about time; run as tests they tell little.
"""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from celery_notify import events
from celery_notify.transport import WHOLE
from tests.benchmarks import cpu
from tests.benchmarks.report import OURS, Comparison, at_most
from tests.benchmarks.telling import Costs, batches, publish, told, transport_to
from tests.support.waiting import missing, wait_until
from tests.support.web_servers import STREAM, gthread, user_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery_notify.events import Publication
    from tests.benchmarks.report import Goal
    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import WebServer


class Scale(NamedTuple):
    """How much there is beside, the most last, and how many events or reads of each size are counted, and how often."""

    entries: tuple[int, ...]
    users: tuple[int, ...]
    streams: tuple[int, ...]
    count: int
    runs: int


FULL = Scale((1, 10, 200), (1, 1000, 100_000), (0, 1000, 5000), 5000, 7)
QUICK = Scale((1, 10, 200), (1, 1000, 20_000), (0, 1000), 2000, 3)
SMOKE = Scale((1, 2), (1, 20), (0, 5), 10, 1)
#: What the greatest may cost, as a multiple of the others.
FLAT = 1.2
#: A prime number, by which one goes through all users in no order.
FAR = 7919
#: Descriptors that a process needs beside those of its streams.
SPARE = 500


@pytest.fixture
def scale(choose: Callable[[Scale, Scale, Scale], Scale]) -> Scale:
    return choose(FULL, QUICK, SMOKE)


def names(sizes: tuple[int, ...], of: str) -> dict[int, str]:
    """Return how the sizes are called in a report: the greatest is what the others are compared with."""
    return {size: OURS if size == sizes[-1] else f"{size} {of}" for size in sizes}


def goals(sizes: tuple[int, ...], of: str) -> dict[str, Goal]:
    return {f"{size} {of}": at_most(FLAT) for size in sizes[:-1]}


def running(user: str, count: int, *, first: int = 0) -> list[Publication]:
    """Return the beginnings of so many tasks."""
    return [told(user, f"{number:032x}", "STARTED", 0, 0) for number in range(first, first + count)]


def note(user: str, number: int) -> Publication:
    return events.custom(user, "note", {"text": "An invoice has come in", "number": number}, key=f"note {number}")


def progress(user: str, count: int, *, task: int = 0) -> list[Publication]:
    """Return so many events of one task that runs."""
    return [told(user, f"{task:032x}", "PROGRESS", number, count) for number in range(count)]


class Sides:
    """Two comparisons of the same: what Redis' CPU had to do, and what the process had."""

    def __init__(self, row: str, what: str, sizes: tuple[int, ...], of: str) -> None:
        self._sizes, self._of, self._names = sizes, of, names(sizes, of)
        self._redis = Comparison(row, f"CPU time of Redis for {what}", unit="us")
        self._process = Comparison(row, f"CPU time of the process for {what}", unit="us")
        self._redis.note(f"ours: {sizes[-1]} {of}")

    def add(self, size: int, costs: Costs) -> None:
        self._redis.add(self._names[size], costs.found.redis)
        self._process.add(self._names[size], costs.found.process)

    def note(self, text: str) -> None:
        self._redis.note(text)

    def finish(self, *, flat: bool = True, measuring: bool) -> None:
        for each in (self._redis, self._process):
            each.finish(goals(self._sizes, self._of) if flat else {}, measuring=measuring)


def forget(server: GivenRedis) -> None:
    with server.client() as client:
        client.flushall()


# Entries


def test_an_event_whatever_its_history_holds(own_redis: RedisServer, scale: Scale, *, measuring: bool) -> None:
    """Progress takes its place among the entries; one that is new, where a history is full, the oldest one's."""
    sizes = scale.entries
    replacing = Sides("flat: entries", "progress of one of a history's tasks", sizes, "entries")
    dropping = Sides("flat: entries", "a new entry, for which the oldest goes", sizes, "entries")
    for _ in range(scale.runs):
        for size in sizes:
            forget(own_redis)
            with transport_to(own_redis.url, history_size=size) as to:
                publish(to, running("ada", size))
                with Costs(own_redis, scale.count) as costs:
                    publish(to, progress("ada", scale.count))
                replacing.add(size, costs)
                publish(to, [note("grace", number) for number in range(size)])
                later = [note("grace", number) for number in range(size, size + scale.count)]
                with Costs(own_redis, scale.count) as costs:
                    publish(to, later)
                dropping.add(size, costs)
                found = to.events_after([("ada", 0), ("grace", 0)], room=WHOLE)
            assert [len(each.keys) for each in found if not isinstance(each, Exception)] == [size, size]
    replacing.finish(measuring=measuring)
    dropping.finish(measuring=measuring)


def test_a_read_whatever_the_history_holds(own_redis: RedisServer, scale: Scale, *, measuring: bool) -> None:
    """All of a history is as much as it holds; one task of it runs.

    With nothing new its keys are told all the same, so that what was removed is known.
    """
    sizes = scale.entries
    nothing = Sides("reads", "a read that finds nothing new", sizes, "entries")
    everything = Sides("reads", "a read of all", sizes, "entries")
    for _ in range(scale.runs):
        for size in sizes:
            forget(own_redis)
            with transport_to(own_redis.url) as to:
                publish(to, running("ada", size))
                publish(to, [told("ada", f"{number:032x}", "SUCCESS", 0, 0) for number in range(1, size)])
                [whole] = to.events_after([("ada", 0)], room=WHOLE)
                assert not isinstance(whole, Exception)
                assert len(whole.entries) == size
                for kind, after in ((nothing, whole.newest), (everything, 0)):
                    reads = max(1, scale.count // 10)
                    with Costs(own_redis, reads) as costs:
                        for _ in range(reads):
                            to.events_after([("ada", after)], room=WHOLE)
                    kind.add(size, costs)
    nothing.finish(flat=False, measuring=measuring)
    everything.finish(flat=False, measuring=measuring)


# Users


def test_an_event_however_many_users_there_are(own_redis: RedisServer, scale: Scale, *, measuring: bool) -> None:
    """All users that there are have a history."""
    sizes = scale.users
    one = Comparison("flat: users", "CPU time of Redis for an event of one user", unit="us")
    each = Comparison("flat: users", "CPU time of Redis for events of as many users as there are, in turn", unit="us")
    called = names(sizes, "users")
    begun = here = 0
    count = scale.count
    forget(own_redis)
    for size in sizes:
        with transport_to(own_redis.url) as to:
            for batch in batches([item for user in range(here, size) for item in running(f"user {user}", 1)]):
                publish(to, batch)
        here = size
        for _ in range(scale.runs):
            for kind, others in ((one, 1), (each, size)):
                steps = range(begun, begun := begun + count)
                users = (f"user {step * FAR % others}" for step in steps)
                items = [
                    told(user, f"{0:032x}", "PROGRESS", step, 10**9) for user, step in zip(users, steps, strict=True)
                ]
                with transport_to(own_redis.url) as to:
                    publish(to, items[:1])
                    with Costs(own_redis, count - 1) as costs:
                        publish(to, items[1:])
                kind.add(called[size], costs.found.redis)
    with own_redis.client() as client:
        memory = client.info("memory")["used_memory"] / sizes[-1]
        assert client.dbsize() == 3 * sizes[-1]
    one.note(f"ours: {sizes[-1]} users, whose histories of one entry take {memory:.0f} bytes each")
    one.finish(goals(sizes, "users"), measuring=measuring)
    each.note("where they are more than the processor's caches hold, each is fetched from memory")
    each.finish(measuring=measuring)


# Open streams


@contextmanager
def web_process(server: GivenRedis, folder: Path) -> Iterator[WebServer]:
    settings = {
        "CELERY_NOTIFY_REDIS_URL": server.url,
        "CELERY_NOTIFY_HEARTBEAT": "600",
        "CELERY_NOTIFY_MAX_STREAM_AGE": "86400",
        "CELERY_NOTIFY_MAX_STREAMS": "10000",
    }
    web = gthread(folder=folder, settings=settings)
    web.start()
    try:
        yield web
    finally:
        web.stop()


def opened(web: WebServer, user: str) -> socket.socket:
    """Open a stream that does nothing but take what it is told; it is live when this returns."""
    stream = socket.create_connection(web.address)
    headers = "".join(f"{name}: {value}\r\n" for name, value in user_headers(user).items())
    stream.sendall(f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    heard = b""
    while b"event: ready" not in heard:
        data = stream.recv(1 << 16)
        assert data, heard
        heard += data
    return stream


def read(stream: socket.socket, until: bytes) -> None:
    """Read until these bytes have come."""
    heard = b""
    while until not in heard:
        data = stream.recv(1 << 16)
        assert data
        heard = heard[-len(until) :] + data


@pytest.mark.timeout(300)
def test_an_event_however_many_streams_others_have(
    own_redis: RedisServer, tmp_path: Path, scale: Scale, *, measuring: bool
) -> None:
    sizes = scale.streams
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < sizes[-1] * 4 / 3 + SPARE:
        missing(f"a limit of open files (ulimit -n) for {sizes[-1]} streams")
    web_cost = Comparison("flat: streams", "CPU time of the web process for an event to one stream", unit="us")
    redis_cost = Comparison("flat: streams", "CPU time of Redis for it", unit="us")
    called = names(sizes, "other streams")
    with ExitStack() as stack:
        web = stack.enter_context(web_process(own_redis, tmp_path))
        to = stack.enter_context(transport_to(own_redis.url))
        stream = stack.enter_context(opened(web, "ada"))
        publish(to, running("ada", 1))
        begun = 0
        for here, size in zip((0, *sizes), sizes, strict=False):
            for number in range(here, size):
                stack.enter_context(opened(web, f"other {number}"))
            for _ in range(scale.runs):
                steps = range(begun, begun := begun + scale.count)
                before = cpu.seconds(web.process.pid)
                with Costs(own_redis, scale.count) as costs:
                    # One at a time: events that come together are written together.
                    for step in steps:
                        publish(to, [told("ada", f"{0:032x}", "PROGRESS", step, 10**9)])
                        read(stream, b'"current":%d,' % step)
                web_cost.add(called[size], (cpu.seconds(web.process.pid) - before) / scale.count * 1e6)
                redis_cost.add(called[size], costs.found.redis)
        with own_redis.client() as client:
            wait_until(lambda: len(client.pubsub_channels()) == sizes[-1] + 1, what="all subscriptions")
    web_cost.note(f"ours: {sizes[-1]} other streams, each of a user of its own, that are told nothing")
    for each in (web_cost, redis_cost):
        each.finish(goals(sizes, "other streams"), measuring=measuring)
