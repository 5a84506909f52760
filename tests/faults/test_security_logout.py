"""A session that is over ends its streams in every web process, and no one else's."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import psutil
import pytest

from celery_notify import events, transport
from celery_notify.config import Settings
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.support.event_stream import EventStream
    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import WebServer

PROCESSES = 3
#: Streams of one user that are opened at the most, until each process has one.
MOST = 60


def streams_by_process(web: WebServer) -> dict[int, int]:
    """Return how many connections of clients each process has."""
    port = web.address[1]
    return {
        pid: sum(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
            for connection in psutil.Process(pid).net_connections("tcp")
        )
        for pid in web.worker_pids()
    }


def open_in_each(web: WebServer, user: str, stack: ExitStack) -> list[EventStream]:
    """Open streams of a user until each process has one more."""
    wait_until(lambda: len(streams_by_process(web)) == PROCESSES, what="all processes")  # the first one answers already
    before, opened = streams_by_process(web), []
    while len(opened) < MOST:
        new = [stack.enter_context(web.stream(user)) for _ in range(4)]
        for stream in new:
            stream.ready()
        opened += new
        now = streams_by_process(web)
        if all(now[pid] > before[pid] for pid in before):
            return opened
    raise AssertionError(f"expected a stream in each of {PROCESSES} processes, got {now}")


@pytest.mark.defends("S11")
def test_a_logout_ends_the_users_streams_in_every_process_and_no_others(
    user: str, redis_server: GivenRedis, make_web: Callable[..., WebServer]
) -> None:
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_MAX_STREAMS_PER_USER": str(MOST)}
    web = make_web("gunicorn gthread", settings, workers=PROCESSES)
    other = f"{user} too"
    with contextlib.ExitStack() as stack:
        mine, theirs = open_in_each(web, user, stack), open_in_each(web, other, stack)

        web.close_streams(user)

        for stream in mine:
            assert [event.event for event in stream.rest(timeout=2)] == []
        # The one process that answered told the others by way of Redis; all of them had it and told only this user.
        assert web.get(STREAM).status == 401
        web.send(other, "note", "still here")
        for stream in theirs:
            assert '"still here"' in stream.until("note")[-1].data
        again = stack.enter_context(web.stream(user))  # whoever is logged in anew
        assert again.ready() == []


def channel_of(server: RedisServer, user: str) -> str:
    source = transport.RedisTransport(Settings(redis_url=server.url))
    try:
        return source.channel(user)
    finally:
        source.close()


@pytest.mark.defends("S11")
def test_a_logout_whose_message_is_lost_ends_the_stream_at_its_full_age(
    user: str, own_redis: RedisServer, make_web: Callable[..., WebServer]
) -> None:
    """Pub/sub tells at most once. What is told while no web process is subscribed nobody hears of, ever."""
    settings = {"CELERY_NOTIFY_REDIS_URL": own_redis.url, "CELERY_NOTIFY_MAX_STREAM_AGE": "3"}
    web = make_web("gunicorn gthread", settings)
    logout = {"id": "", "user": user, "event": events.CLOSE_STREAMS, "data": {}}
    with web.stream(user) as stream, own_redis.client() as client, client.pipeline() as at_once:
        stream.ready()
        at_once.client_kill_filter(_type="pubsub")
        at_once.publish(channel_of(own_redis, user), json.dumps(logout))
        assert at_once.execute() == [1, 0], "expected one subscriber, who has gone when the message comes"

        told = [event.event for event in stream.rest(timeout=10)]

    assert "ready" in told  # the subscription came back, the stream went on
    assert set(told) <= {"degraded", "ready", "heartbeat"}
    refused = web.get(STREAM)  # as the browser comes back, whose session is over
    assert (refused.status, refused.json()) == (401, {"error": "not logged in"})
