"""gunicorn ends or recycles a web process: each reader is told when to come back, its stream is complete (F13, F14).

TEST_STREAMS=5000 is the run by hand; what it prints is then of interest, not only that it passes.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.transport import RedisTransport
from tests.faults.crowd import Crowd, histogram, many_descriptors, some_users
from tests.faults.redis_journal import web_settings
from tests.support.waiting import wait_until
from tests.support.web_servers import gunicorn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import WebServer

GUNICORN = ["gthread", "sync", "gevent"]
#: Open streams of the process with many.
STREAMS = int(os.environ.get("TEST_STREAMS", "400"))
#: What gunicorn says of a worker that has had its number of requests.
RECYCLED = "Autorestarting worker"


@pytest.fixture
def make_gunicorn(redis_server: GivenRedis, tmp_path: Path) -> Iterator[Callable[..., WebServer]]:
    """Return what starts a gunicorn with workers of one kind and with such options.

    It has more time to end than a test waits for it: one that ends in time does so by itself.
    """
    started: list[WebServer] = []

    def make(worker_class: str, *options: str) -> WebServer:
        options = ("--graceful-timeout", "300", "--timeout", "300", *options)
        settings = web_settings(redis_server.url, WORKER_TTL=1)
        web = gunicorn(worker_class, *options, folder=tmp_path, settings=settings)
        started.append(web)
        return web.start()

    yield make
    for web in started:
        web.process.kill()


@pytest.mark.defends("F13")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("worker_class", GUNICORN)
def test_at_a_signal_each_reader_is_told_when_to_come_back(
    worker_class: str, number: signal.Signals, make_gunicorn: Callable[..., WebServer]
) -> None:
    web = make_gunicorn(worker_class)
    with Crowd(web.address, some_users(30), stay_away=True) as crowd:
        crowd.all_live()

        web.process.popen.send_signal(number)

        assert web.process.wait() == 0
        crowd.all_seen_off()


@pytest.mark.defends("F14")
@pytest.mark.parametrize("worker_class", GUNICORN)
def test_a_worker_that_is_recycled_tells_its_readers_when_to_come_back(
    worker_class: str, make_gunicorn: Callable[..., WebServer]
) -> None:
    web = make_gunicorn(worker_class, "--max-requests", "40")
    with Crowd(web.address, some_users(30), stay_away=True) as crowd:
        crowd.all_live()
        [before] = web.worker_pids()

        wait_until(lambda: web.get("/ordinary") and RECYCLED in web.log(), what="a recycled worker")

        crowd.all_seen_off()
        wait_until(lambda: web.worker_pids() not in ([before], []), what="another worker")
        assert web.get("/ordinary").json()["pid"] != before


@pytest.mark.defends("F13")
@pytest.mark.timeout(60 + STREAMS / 20)
def test_a_process_with_many_streams_ends_all_of_them_and_then_itself(
    redis_server: GivenRedis, make_gunicorn: Callable[..., WebServer]
) -> None:
    """One of them has a running task to look after meanwhile, for which there is no thread any more."""
    running = TaskEvent(task_id="running", task="task", state="STARTED", attempt=1)
    with closing(RedisTransport(Settings(redis_url=redis_server.url))) as transport:
        transport.publish([events.publication(some_users(1)[0], running, worker="gone.1")])
    with many_descriptors(STREAMS):
        web = make_gunicorn("gthread")
        with Crowd(web.address, some_users(STREAMS), stay_away=True) as crowd:
            crowd.all_live(timeout=60)
            [pid] = web.worker_pids()
            memory = psutil.Process(pid).memory_info().rss

            begun = time.monotonic()
            web.process.popen.send_signal(signal.SIGTERM)
            assert web.process.wait() == 0
            took = time.monotonic() - begun
            crowd.all_seen_off()
    assert "Traceback" not in web.log()

    print(  # noqa: T201 - for a run by hand
        f"{STREAMS} streams in {memory / 2**20:.0f} MiB; all ended, and the process, after {took:.2f} s",
        "streams that ended, in 0.1 s:",
        histogram([end.at - begun for end in crowd.ends], 0.1),
        "retry, in 500 ms:",
        histogram([end.retry for end in crowd.ends if end.retry is not None], 500),
        sep="\n",
    )


@pytest.mark.defends("F14")
def test_recycling_brings_on_no_more_than_what_it_must(make_gunicorn: Callable[..., WebServer]) -> None:
    """Those who come back count as requests to the worker that takes them, which may be its last ones.

    With fewer streams than requests that a worker may have that ends with the second worker: what is new then never has
    so many.
    """
    streams, requests = 150, 200
    web = make_gunicorn("gthread", "--workers", "2", "--threads", "4", "--max-requests", str(requests))
    with Crowd(web.address, some_users(streams)) as crowd:
        crowd.all_live()
        before = set(web.worker_pids())

        wait_until(lambda: web.get("/ordinary") and RECYCLED in web.log(), what="a recycled worker")

        wait_until(lambda: len(before & set(web.worker_pids())) < 2, what="the end of that worker")
        crowd.until(lambda: crowd.ends and crowd.opened == streams + len(crowd.ends), what="the return of all")
        crowd.all_live()
        came_back = crowd.opened - streams

        print(crowd.summary())  # noqa: T201 - how many it were is of interest
        assert web.log().count(RECYCLED) <= 2
        assert 0 < came_back <= 2 * streams
        assert all(end.complete and end.retry for end in crowd.ends)
        assert not crowd.refused


@pytest.mark.defends("F14")
def test_a_limit_below_the_number_of_streams_never_lets_them_rest(make_gunicorn: Callable[..., WebServer]) -> None:
    """It is what README.md warns of: no defence of ours is against it, but that all come back at times of their own."""
    streams = 60
    web = make_gunicorn("gthread", "--max-requests", str(streams // 2))
    with Crowd(web.address, some_users(streams)) as crowd:
        crowd.until(lambda: web.log().count(RECYCLED) > 3, what="one recycled worker after another")

        assert crowd.opened > 2 * streams
        assert all(end.complete and end.retry for end in crowd.ends)
