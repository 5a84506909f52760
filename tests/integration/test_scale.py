"""Many streams on few threads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

from tests.support.event_stream import data_of
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer

STREAMS = 300
USERS = 40


def test_300_streams_on_2_workers_of_2_threads(own_redis: RedisServer, make_web: Callable[..., WebServer]) -> None:
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url}, workers=2, threads=2)
    with own_redis.client() as client:
        _warm_up(web, own_redis)
        threads, descriptors = _threads(web), _descriptors(web)
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(web.stream(f"user {n % USERS}")) for n in range(STREAMS)]
            for stream in streams:
                stream.ready()

            for _ in range(20):
                assert web.get("/ordinary").status == 200  # or its time-out: nobody waits for a stream to end
            wait_until(
                lambda: web.log().count(f'"GET {STREAM} HTTP/1.1" 200') == STREAMS,
                what="a line for each stream",
            )
            assert _connections(web, own_redis) == dict.fromkeys(web.worker_pids(), 2)
            ours = [row for row in client.client_list() if row["id"] != str(client.client_id())]
            assert len(ours) == 2 * 2

            assert all(now <= then + 2 for now, then in zip(_threads(web), threads, strict=True))

            for number in range(USERS):
                web.send(f"user {number}", "note", number)
            for n, stream in enumerate(streams):
                assert data_of(stream.until("note")[-1])["data"] == n % USERS
        wait_until(
            lambda: all(now <= then for now, then in zip(_descriptors(web), descriptors, strict=True)),
            what=lambda: f"no more descriptors than {descriptors}, got {_descriptors(web)}",
        )
        assert all(now <= then + 2 for now, then in zip(_threads(web), threads, strict=True))


def _warm_up(web: WebServer, server: RedisServer) -> None:
    """Have each process do all that it ever does, so that what grows later has no excuse."""
    senders: set[int] = set()

    def reach_all() -> bool:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(web.stream("warm", query="?warm")).ready()
            senders.add(web.send("warm", "note", None))
            return len(senders) == 2 and set(_connections(web, server).values()) == {2}

    wait_until(reach_all, timeout=20, what=lambda: f"all processes in use, got {senders}")


def _threads(web: WebServer) -> list[int]:
    """Return each process's number of threads; gunicorn's own two come with the first requests."""
    return [psutil.Process(pid).num_threads() for pid in sorted(web.worker_pids())]


def _descriptors(web: WebServer) -> list[int]:
    """Return each process's number of open descriptors."""
    return [psutil.Process(pid).num_fds() for pid in sorted(web.worker_pids())]


def _connections(web: WebServer, server: RedisServer) -> dict[int, int]:
    """Return how many connections to Redis each process has."""
    found = {}
    for pid in web.worker_pids():
        all_of_it = psutil.Process(pid).net_connections(kind="tcp")
        found[pid] = sum(1 for one in all_of_it if one.raddr and one.raddr.port == server.port)
    return found
