"""The controls to all other tests here: what they are made of sees what it is there to see."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import h11
import pytest

from tests.support.event_stream import StreamEndedError
from tests.support.leftovers import Leftovers
from tests.support.processes import Process
from tests.support.proxy import SlowProxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web, WebServer


def test_a_thread_that_is_left_behind_is_found() -> None:
    leftovers, over = Leftovers(), threading.Event()
    thread = threading.Thread(target=over.wait, name="forgotten")
    thread.start()

    assert leftovers.find() == ["thread forgotten"]

    over.set()
    assert leftovers.settle() == []


def test_a_process_that_is_left_behind_is_found(tmp_path: Path) -> None:
    leftovers = Leftovers()
    command = (sys.executable, "-c", "import signal; signal.pause()", "forgotten")
    process = Process(*command, folder=tmp_path, name="forgotten").start()

    wait_until(lambda: "forgotten" in "".join(leftovers.find()))

    process.stop()

    assert leftovers.settle() == []


def test_waiting_has_a_limit() -> None:
    with pytest.raises(TimeoutError, match="expected rain within"):
        wait_until(lambda: False, timeout=0.05, what="rain")


def test_the_proxy_is_slow_where_it_is_told_to(redis_server: GivenRedis) -> None:
    with (
        SlowProxy(redis_server.address, delay=0.1, only=b"PING") as proxy,
        redis_server.by_way_of(proxy.port).client() as client,
    ):
        client.echo("connected")
        times = []
        for command in (client.ping, lambda: client.echo("hello")):
            start = time.monotonic()
            command()
            times.append(time.monotonic() - start)

    assert times[0] >= 0.1
    assert times[1] < times[0]


def test_a_stream_is_over_in_the_end(each_web: Web, user: str) -> None:
    """The helpers themselves: a stream that is closed by its server raises nothing but this."""
    with each_web.stream(user) as stream:
        stream.ready()
        each_web.close_streams(user)
        with pytest.raises(StreamEndedError):
            stream.until("never")


def test_a_body_that_breaks_off_is_noticed(
    user: str, redis_server: GivenRedis, make_web: Callable[..., WebServer]
) -> None:
    """The helpers themselves: a killed server is no orderly end."""
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    with web.stream(user) as stream:
        stream.ready()
        web.process.kill()
        with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
            stream.rest(timeout=5)
