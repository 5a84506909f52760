"""Clients that come and go without end: nothing of them is left, and who comes as another leaves misses nothing."""

from __future__ import annotations

import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.faults.footprint import MIB, calls, descriptors, memory, subscriptions, threads
from tests.faults.redis_journal import Journal, web_settings
from tests.faults.rough_clients import HastyStream, connect, read_until, request, reset, rest
from tests.support.event_stream import data_of
from tests.support.proxy import BOTH, Proxy
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer

    Way = Callable[[socket.socket, str], None]

#: Clients that come and go at the same time.
AT_ONCE = 4
#: TEST_CHURN=100 has a hundred times as many come and go, twice: on gunicorn with threads 100 000.
TIMES = int(os.environ.get("TEST_CHURN", "1"))
CLOSING = "Connection: close"


# Ways to come and go; each is given a connection


def before_the_request(sock: socket.socket, _: str) -> None:
    reset(sock)


def within_the_head(sock: socket.socket, user: str) -> None:
    asked = request(user)
    sock.sendall(asked[: random.randrange(1, len(asked))])  # noqa: S311 - no secret
    reset(sock)


def right_after_the_request(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user))
    reset(sock)


def moments_after_the_request(sock: socket.socket, user: str) -> None:
    """Leave at any moment: while the request is read, its socket handed off, adopted, its user subscribed to."""
    sock.sendall(request(user))
    time.sleep(random.uniform(0, 0.005))  # noqa: S311 - nothing is waited for: when it ends is left to chance
    reset(sock)


def in_good_order(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user))
    sock.close()


def after_the_head(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user, CLOSING))
    read_until(sock, b"\r\n\r\n")
    reset(sock)


def after_the_catch_up(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user, CLOSING))
    read_until(sock, b"event: ready")
    sock.close()


def half(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user, CLOSING))
    sock.shutdown(socket.SHUT_WR)
    rest(sock)
    sock.close()


def with_more_to_say(sock: socket.socket, user: str) -> None:
    sock.sendall(request(user, CLOSING))
    read_until(sock, b"event: ready")
    sock.sendall(request(user))
    rest(sock)
    sock.close()


#: On a server that keeps its sockets the last two are its own affair.
EVERYWHERE: list[Way] = [
    before_the_request,
    within_the_head,
    right_after_the_request,
    moments_after_the_request,
    in_good_order,
    after_the_head,
    after_the_catch_up,
]
HANDING_OVER: list[Way] = [*EVERYWHERE, half, with_more_to_say]


def churn(web: WebServer, user: str, cycles: int, ways: list[Way]) -> None:
    """Have clients come and go, each in one of these ways."""

    def come_and_go(number: int) -> None:
        with suppress(ConnectionResetError, BrokenPipeError):  # the server was quicker: it had refused already
            ways[number % len(ways)](connect(web), user)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(come_and_go, number) for number in range(cycles)]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@pytest.mark.defends("F30", "S12")
@pytest.mark.timeout(60 * TIMES)
@pytest.mark.parametrize(
    ("kind", "cycles", "ways"),
    [
        ("gunicorn gthread", 1000, HANDING_OVER),
        ("gunicorn sync", 600, HANDING_OVER),
        ("gunicorn gevent", 300, EVERYWHERE),
        ("waitress", 300, EVERYWHERE),
    ],
    ids=["gunicorn gthread", "gunicorn sync", "gunicorn gevent", "waitress"],
)
def test_of_clients_that_come_and_go_nothing_is_left(
    kind: str, cycles: int, ways: list[Way], own_redis: RedisServer, make_web: Callable[..., WebServer], user: str
) -> None:
    settings = web_settings(own_redis.url, HEARTBEAT=0.3, MAX_STREAMS_PER_USER=8, MAX_STREAMS=12)
    # A server that loses count of its own connections would soon accept no more.
    limits = ("--worker-connections", "20") if kind == "gunicorn gthread" else ()
    web = make_web(kind, settings, *limits)
    footprints = []
    for number in (cycles // 3, cycles * TIMES, cycles * TIMES):  # the first is there to have all done once
        churn(web, user, number, ways)
        wait_until(lambda: subscriptions(own_redis, user) == 0, what="no subscription")
        if footprints:
            most = footprints[0][0]
            wait_until(lambda: descriptors(web) <= most, what=f"no more than {most} descriptors")  # noqa: B023
        footprints.append((descriptors(web), threads(web), memory(web)))

    assert footprints[2][1] <= footprints[1][1], footprints
    assert footprints[2][2] < footprints[1][2] + MIB / 4, footprints
    assert_all_places_are_free(web, user)


def assert_all_places_are_free(web: WebServer, user: str) -> None:
    """Fill the user's places and the process's, neither more nor less than there are."""
    with ExitStack() as stack:
        for number in range(12):
            stream = stack.enter_context(web.stream(user if number < 8 else f"{user} too"))
            assert stream.status == 200, number
            stream.ready()
            if number == 7:
                assert web.request("HEAD", STREAM, user=user).status == 429
        assert web.request("HEAD", STREAM, user=f"{user} too").status == 503


# Between the last who leaves and the first who comes


@pytest.mark.defends("F11", "F12")
def test_one_who_comes_as_the_last_leaves_misses_nothing(
    own_redis: RedisServer, make_web: Callable[..., WebServer], user: str
) -> None:
    """Subscribing takes long: a subscription may be confirmed when its user has left and returned."""
    users = [f"{user} {number}" for number in range(4)]
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(own_redis))
        proxy = stack.enter_context(Proxy(own_redis.address))
        web = make_web("gunicorn gthread", web_settings(own_redis.url_by_way_of(proxy.port)))
        web.stream(user).close()  # a new process has to reach Redis first
        proxy.slow(0.01, *BOTH, of=b"SUBSCRIBE")
        pool = stack.enter_context(ThreadPoolExecutor(len(users)))

        for sent, told in pool.map(partial(come_again_and_again, web, journal), users):
            assert told == sent

        proxy.heal()
        assert calls(own_redis)["unsubscribe"] > 100
        wait_until(lambda: subscriptions(own_redis, *users) == 0, what="no subscription")


def come_again_and_again(
    web: WebServer, journal: Journal, user: str, *, times: int = 60
) -> tuple[list[str], list[str]]:
    """Leave and come, with one between who is soon gone, while events are sent; return what was sent and told."""
    sent: list[str] = []
    told: list[str] = []
    last_id = None
    stream = HastyStream(web, user)
    stream.ready()
    for number in range(times):
        leave(stream)
        sent += send_at_any_moment(journal, user)
        passer_by = HastyStream(web, user)
        sent += send_at_any_moment(journal, user)
        leave(passer_by)
        if number % 2:
            sent += send_at_any_moment(journal, user)
        stream = HastyStream(web, user, last_id=last_id)
        for _ in range(8):
            sent += send_at_any_moment(journal, user)
        events = stream.until(lambda event: event.id and data_of(event)["key"] == sent[-1])  # noqa: B023
        told += [data_of(event)["key"] for event in events if event.id is not None]
        last_id = events[-1].id
    stream.close()
    return sent, told


def leave(stream: HastyStream) -> None:
    random.choice([stream.close, partial(reset, stream.socket)])()  # noqa: S311 - no secret


def send_at_any_moment(journal: Journal, user: str) -> list[str]:
    time.sleep(random.uniform(0, 0.006))  # noqa: S311 - nothing is waited for: the moment is left to chance
    return journal.send(user, "note")
