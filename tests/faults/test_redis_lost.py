"""Redis forgets, or the connection to it is lost: what was acknowledged is told all the same (F1, F2, F4, F9)."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.faults.redis_journal import Page, agree, history, once, subscribers, wait_for_subscribers, web_settings
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.faults.redis_journal import Journal
    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer


@pytest.fixture
def web(own_redis: RedisServer, make_web: Callable[..., WebServer]) -> WebServer:
    return make_web("gunicorn gthread", web_settings(own_redis.url))


# What Redis held is gone


@pytest.mark.defends("F1")
def test_a_redis_that_comes_back_empty_is_followed_at_once(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    with Page(web, user) as page:
        before = journal.send(user, *range(20))
        page.shows(before)
        own_redis.kill()
        page.until(lambda: page.count["degraded"])
        during = journal.send(user, *range(10))
        own_redis.start()
        page.ready()
        after = journal.send(user, *range(10))
        page.shows([*during, *after])

        assert page.keys.isdisjoint(before)
        assert page.count["opened"] == 1
        agree(page, own_redis, user)
        once(page)


@pytest.mark.defends("F1")
def test_a_flush_under_load_stops_nothing_that_is_live(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    """The keys that were flushed are gone from the page at its next `ready`, which is that of its next connection."""
    with Page(web, user) as page, own_redis.client() as client:
        with journal.load(user) as keys:
            for _ in range(5):
                client.flushall()
                before = len(page.told)
                page.until(lambda: len(page.told) >= before + 20)  # noqa: B023 - called at once
        page.shows(keys)
        assert page.told == journal.acknowledged
        assert len(page.told) > len(history(own_redis, user)) > 0

        page.close()
        page.open().ready()
        agree(page, own_redis, user)
        once(page)


@pytest.mark.defends("F1")
def test_scripts_that_are_flushed_under_load_are_loaded_again(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    with Page(web, user) as page, own_redis.client() as client:
        with journal.load(user) as keys:
            for number in range(1, 11):
                page.until(lambda: len(page.told) >= 10 * number)  # noqa: B023 - called at once
                client.script_flush()
                with Page(web, user) as another:
                    another.ready()
        page.shows(keys)

        assert page.told == journal.acknowledged
        agree(page, own_redis, user)


# What Redis held last is gone


@pytest.mark.defends("F2")
def test_after_an_older_snapshot_all_is_told_to_those_who_saw_later_ids(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    """One page stays, two come back with an id that Redis no longer knows: before the first new event, and after."""
    stays, early, late = (Page(web, user) for _ in range(3))
    with ExitStack() as stack, own_redis.client() as client:
        for page in (stays, early, late):
            stack.enter_context(page)
        saved = journal.send(user, *range(5))
        journal.settle()
        client.save()
        lost = journal.send(user, *range(50))
        for page in (stays, early, late):
            page.shows(lost)
        early.close()
        late.close()
        own_redis.kill()
        own_redis.start()
        assert set(history(own_redis, user)) == set(saved)

        stays.ready()
        early.open().ready()
        new = journal.send(user, *range(10))
        journal.settle()
        late.open().ready()

        for page in (stays, early, late):
            page.shows(new)
            assert [key for _, key in page.told if key in new] == new
            agree(page, own_redis, user)
        once(stays)
        assert stays.count["opened"] == 1


@pytest.mark.defends("F2")
def test_after_an_older_snapshot_an_end_that_redis_forgot_is_told_again(
    own_redis: RedisServer,
    web: WebServer,
    tasks: ModuleType,
    gates: Gates,
    user: str,
    make_worker: Callable[..., Worker],
) -> None:
    """Else the task would go on for ever on each page that is opened from now on."""
    gate = uuid.uuid4().hex
    worker = make_worker(notify_redis_url=own_redis.url, notify_worker_ttl=2)
    with Page(web, user) as page, own_redis.client() as client:
        result = tasks.slow.apply_async((user, gate, 1), queue=worker.worker_queue)
        page.until(lambda: page.data.get(result.id, {}).get("state") == "STARTED")
        client.save()
        gates.open(gate, 2)
        page.until(lambda: page.ended == [result.id])
        own_redis.kill()
        own_redis.start()

        with Page(web, user) as new:
            new.until(lambda: new.ended == [result.id], timeout=20)
            assert new.data[result.id]["state"] == "SUCCESS"
        page.ready()
        agree(page, own_redis, user)
        assert page.data[result.id]["state"] == "SUCCESS"


# The connection is lost


def killing(server: RedisServer, over: threading.Event) -> None:
    """Kill the subscribed connections five times a second."""
    with server.client() as client:
        while not over.wait(0.2):
            client.client_kill_filter(_type="pubsub")


@pytest.mark.defends("F4")
@pytest.mark.parametrize("delay", [0.0, 0.3], ids=["at once", "late"])
def test_nothing_is_missing_when_the_subscribed_connection_is_killed_again_and_again(
    delay: float, own_redis: RedisServer, journal: Journal, make_web: Callable[..., WebServer], user: str
) -> None:
    """`late`: each subscription is on its way longer than a connection that is subscribed lives."""
    over = threading.Event()
    killer = threading.Thread(target=killing, args=(own_redis, over), name="killer")
    with Proxy(own_redis.address) as proxy:
        proxy.slow(delay, only=b"\r\nSUBSCRIBE")
        web = make_web("gunicorn gthread", web_settings(own_redis.url_by_way_of(proxy.port)))
        with Page(web, user) as page:
            page.ready()
            with journal.load(user) as keys:
                killer.start()
                page.until(lambda: page.count["degraded"] >= 4, timeout=30)
            over.set()
            killer.join()
            page.shows(keys)

            assert page.told == journal.acknowledged
            assert page.count["opened"] == 1
            agree(page, own_redis, user)
        web.stop()


@pytest.mark.defends("F9")
def test_nothing_is_missing_when_redis_cuts_a_subscriber_that_was_stopped(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    """The web process sleeps while more is published to it than Redis keeps for a subscriber."""
    big = "x" * 60_000
    with Page(web, user) as page, own_redis.client() as client:
        client.config_set("client-output-buffer-limit", "pubsub 64kb 32kb 1")
        page.ready()
        web.process.pause()
        small: list[str] = []

        def is_cut() -> bool:
            small.extend(journal.send(user, *range(5)))
            for number in range(50):
                journal.send(user, big, key=f"big {number % 10}")
            journal.settle()
            return subscribers(own_redis) == 0

        wait_until(is_cut, timeout=20, what="an overflow of the subscriber's buffer")
        web.process.resume()
        small += journal.send(user, *range(5))
        page.shows(small)
        agree(page, own_redis, user)
        once(page)
        wait_for_subscribers(own_redis, 1)
