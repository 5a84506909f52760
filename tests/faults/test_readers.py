"""Readers that take nothing, that vanish, that are too many, that all come back at once: no other reader feels it."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from celery_notify.connection import MAX_BUFFER
from tests.faults.footprint import MIB, calls, descriptors, memory, threads
from tests.faults.redis_journal import web_settings
from tests.faults.rough_clients import HastyStream, connect, never_reading, request, reset, rest
from tests.support.event_stream import SocketStream, data_of
from tests.support.namespaces import lead_astray, two_hosts, unplug
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM, user_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.redis_journal import Journal
    from tests.support.event_stream import EventStream
    from tests.support.namespaces import Host
    from tests.support.web_servers import WebServer

#: Those whose socket the stream takes over.
HANDING_OVER = ["gunicorn gthread", "gunicorn sync"]
SLOW = 100
#: Clients that come back at once, and users they belong to; TEST_CLIENTS=2000 to see more of them.
CLIENTS = int(os.environ.get("TEST_CLIENTS", "500"))
USERS = CLIENTS // 10


def notes(stream: EventStream) -> list[object]:
    return [data_of(event)["data"] for event in stream.events if event.event == "note"]


# Those who do not read


def flood(web: WebServer, journal: Journal, streams: dict[str, EventStream], crowded: list[str]) -> int:
    """Have slow readers come, and publish until all of them are cut; return the most memory that it took."""
    before, logged = descriptors(web), web.log().count("too slow")
    peak, told = 0, len(notes(next(iter(streams.values()))))
    slow = [never_reading(web, crowded[number % len(crowded)]) for number in range(SLOW)]
    wait_until(lambda: descriptors(web) == before + SLOW, what="a stream for each slow reader")
    with web.stream(crowded[0]) as late:  # it is told after the slow ones, the others before them
        late.ready()
        for number in range(told, told + 300):
            for user in streams:
                journal.send(user, [number, "x" * 60_000], key=str(number % 3))
            for stream in (*streams.values(), late):
                assert data_of(stream.until("note")[-1])["data"][0] == number
            peak = max(peak, memory(web))
            if descriptors(web) <= before + 1:
                break
    wait_until(lambda: descriptors(web) == before, what="the end of all slow readers' streams")
    assert web.log().count("too slow") == logged + SLOW
    for sock in slow:
        # What the kernel held for it is gone with the stream: it would be megabytes, for a reader who may never leave.
        assert len(rest(sock)) < MAX_BUFFER
        reset(sock)
    return peak


@pytest.mark.defends("F22")
def test_100_readers_that_never_read_are_cut_and_nobody_else_feels_it(
    own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer], user: str
) -> None:
    web = make_web("gunicorn gthread", web_settings(own_redis.url))
    crowded = [user, f"{user} too"]
    with ExitStack() as stack:
        streams = {each: stack.enter_context(web.stream(each)) for each in (*crowded, f"{user} three")}
        for stream in streams.values():
            stream.ready()

        peaks = [flood(web, journal, streams, crowded) for _ in range(3)]
    # The first round is not counted: what Python takes for so many buffers it keeps for the next ones.
    assert peaks[2] < peaks[1] + SLOW * MAX_BUFFER / 4, [peak / MIB for peak in peaks]


@pytest.mark.defends("F22", "S13")
@pytest.mark.parametrize("kind", HANDING_OVER)
def test_readers_that_take_nothing_are_left_however_little_waits_for_them(
    kind: str, own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer], user: str
) -> None:
    """What waits for them is in the kernel, far below the cap; their window is closed, and stays so."""
    web = make_web(kind, web_settings(own_redis.url, HEARTBEAT=0.5))
    journal.send(user, *("x" * 10_000 for _ in range(10)))
    journal.settle()
    with web.stream(user) as reader:
        reader.ready()
        before = descriptors(web)
        slow = [never_reading(web, user) for _ in range(20)]
        wait_until(lambda: descriptors(web) == before + len(slow), what="a stream for each slow reader")

        wait_until(lambda: descriptors(web) == before, timeout=20, what="the end of all slow readers' streams")

        assert "too slow" not in web.log()
        [key] = journal.send(user, "after")
        assert data_of(reader.until("note")[-1])["key"] == key
    for sock in slow:
        reset(sock)


@pytest.mark.defends("S13")
def test_requests_that_never_end_hold_no_stream_and_no_place(
    own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer], user: str
) -> None:
    """They hold the only thread that the server has: what is open goes on, and their places are free."""
    settings = web_settings(own_redis.url, MAX_STREAMS_PER_USER=2, MAX_STREAMS=2)
    web = make_web("gunicorn gthread", settings, threads=1)
    with web.stream(user) as stream:
        stream.ready()
        before = descriptors(web)
        endless = [connect(web) for _ in range(4)]
        for sock in endless:
            sock.sendall(request(user)[:-2])
        wait_until(lambda: descriptors(web) == before + len(endless), what="all connections")
        for number in range(20):
            journal.send(user, number)
            stream.until("note")
        for sock in endless:
            sock.sendall(b"X-More: of it\r\n")
        assert notes(stream) == [*range(20)]

        for sock in endless:
            reset(sock)
        with web.stream(user) as another:
            another.ready()


# Those who are refused


@pytest.mark.defends("S12")
@pytest.mark.parametrize(("setting", "status"), [("MAX_STREAMS_PER_USER", 429), ("MAX_STREAMS", 503)])
def test_a_stream_too_many_costs_redis_nothing_and_the_process_little(
    setting: str, status: int, own_redis: RedisServer, make_web: Callable[..., WebServer], user: str
) -> None:
    web = make_web("gunicorn gthread", web_settings(own_redis.url, **{setting: 1}), threads=1)
    with web.stream(user) as stream:
        stream.ready()
        assert web.get(STREAM, user=user).status == status
        before = calls(own_redis), descriptors(web), threads(web)

        answers = [web.get(STREAM, user=user) for _ in range(100)]

        assert {answer.status for answer in answers} == {status}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        wait_until(lambda: descriptors(web) == before[1], what=f"{before[1]} descriptors")
        assert (calls(own_redis), threads(web)) == (before[0], before[2])


@contextmanager
def few_descriptors(limit: int) -> Iterator[None]:
    """Let processes that are started meanwhile open no more files than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.defends("S12")
def test_more_streams_than_the_process_may_open_files_end_nothing(
    own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer], user: str
) -> None:
    """Gunicorn's worker ends, with all that it has, when it cannot accept a connection."""
    settings = web_settings(own_redis.url, MAX_STREAMS_PER_USER=1000)
    with few_descriptors(256):
        web = make_web("gunicorn gthread", settings)
    [worker] = web.worker_pids()
    with ExitStack() as stack:
        streams = [stack.enter_context(web.stream(user)) for _ in range(192)]
        for stream in streams:
            stream.ready()
        for _ in range(50):
            assert web.get(STREAM, user=user).status == 503
        idle = [connect(web) for _ in range(12)]

        journal.send(user, "after")
        for stream in streams:
            assert data_of(stream.until("note")[-1])["data"] == "after"
        assert web.worker_pids() == [worker]
        for sock in idle:
            reset(sock)
        assert web.get("/ordinary").status == 200
    assert "files: 192 streams instead of" in web.log()


# Those who come back


@pytest.mark.defends("F23", "S5")
@pytest.mark.timeout(60 + CLIENTS / 10)
def test_all_streams_of_a_process_that_was_killed_come_back_to_another_at_once(
    own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer]
) -> None:
    """Redis is slow on top of it, as it may be then: nobody is read for before all have come."""
    doomed, survivor = (make_web(kind, web_settings(own_redis.url)) for kind in HANDING_OVER[::-1])
    users = [f"user {number}" for number in range(USERS)]
    with ExitStack() as stack:
        before = come(doomed, journal, users, stack)
        stack.enter_context(survivor.stream("another")).ready()

        doomed.process.kill()
        missed = {user: journal.send(user, "missed", "this too") for user in users}
        journal.settle()
        counted, reads = calls(own_redis)["evalsha"], round_trips(own_redis)
        own_redis.pause()
        streams = [stack.enter_context(HastyStream(survivor, user, last_id=last_id)) for user, last_id in before]
        wait_until(lambda: survivor.log().count(STREAM) > CLIENTS, timeout=30, what="all of them")
        own_redis.resume()

        for (user, _), stream in zip(before, streams, strict=True):
            told = [event for event in stream.ready(timeout=30) if event.id is not None]
            assert [data_of(event)["key"] for event in told] == missed[user]
        # A read serves all tabs of a user, also if Redis was found lost meanwhile; many users share a round trip.
        assert calls(own_redis)["evalsha"] - counted <= 2 * USERS
        assert round_trips(own_redis) - reads < USERS
        for user in users:
            journal.send(user, "live")
        for stream in streams:
            assert data_of(stream.until("note")[-1])["data"] == "live"


def come(web: WebServer, journal: Journal, users: list[str], stack: ExitStack) -> list[tuple[str, str]]:
    """Have all clients come, and be told of something; return the user and the last event id of each."""
    streams = [(user, stack.enter_context(HastyStream(web, user))) for user in users for _ in range(CLIENTS // USERS)]
    for _, stream in streams:
        stream.ready(timeout=30)
    for user in users:
        journal.send(user, "first")
    return [(user, str(stream.until("note")[-1].id)) for user, stream in streams]


def round_trips(server: RedisServer) -> int:
    """Return how often the server has read from a connection."""
    with server.client() as client:
        return int(client.info("stats")["total_reads_processed"])


# Those who vanish


@contextmanager
def redis_for_all_hosts(folder: Path) -> Iterator[str]:
    """Start a Redis that is reached by way of the file system, which all hosts share; return its URL."""
    path = folder / "redis"
    server = RedisServer(folder, "--unixsocket", str(path)).start()
    try:
        yield server.url.replace("redis:", "unix:").replace(f"127.0.0.1:{server.port}/0", str(path))
    finally:
        server.stop()


@pytest.mark.defends("F26")
@pytest.mark.parametrize("vanish", [unplug, lead_astray])
def test_a_reader_whose_host_vanishes_is_found(
    vanish: Callable[[Host, Host], None], tmp_path: Path, make_web: Callable[..., WebServer], user: str
) -> None:
    with two_hosts() as (server, client), redis_for_all_hosts(tmp_path) as url, server.entered():
        settings = web_settings(url, HEARTBEAT=0.5, MAX_STREAMS_PER_USER=1)
        web = make_web("gunicorn gthread", settings, "--bind", f"{server.address}:8000")
        with client.entered():
            stream = SocketStream((server.address, 8000), STREAM, headers=user_headers(user).items())
        with stream:
            stream.ready()
            assert web.request("HEAD", STREAM, user=user).status == 429

            vanish(server, client)

            wait_until(lambda: web.request("HEAD", STREAM, user=user).status == 200, timeout=20, what="room")
