"""Redis does not answer, or late, and nobody says so: pages are told, tasks do not wait (F5, F6)."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.faults.redis_journal import Journal, Page, agree, once, web_settings
from tests.support.proxy import BOTH, FROM_SERVER, TO_SERVER, Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.address, narrow=True) as made:
        yield made


@pytest.fixture
def web(own_redis: RedisServer, proxy: Proxy, make_web: Callable[..., WebServer]) -> WebServer:
    """Return a web process that has only the proxy between itself and Redis."""
    return make_web("gunicorn gthread", web_settings(own_redis.url_by_way_of(proxy.port)))


#: What happens, and what ends it. A half-open connection stays so, what is new is sound. What is held is late, what is
#: lost never comes.
SILENCES: dict[str, tuple[Callable[[RedisServer, Proxy], object], Callable[[RedisServer, Proxy], object]]] = {
    "frozen": (lambda server, _: server.pause(), lambda server, _: server.resume()),
    "half open": (lambda _, proxy: proxy.lose_what_is_open(), lambda _, __: None),
    "nothing reaches it": (lambda _, proxy: proxy.hold(TO_SERVER), lambda _, proxy: proxy.heal()),
    "nothing comes from it": (lambda _, proxy: proxy.lose(FROM_SERVER), lambda _, proxy: proxy.heal()),
}


@pytest.mark.defends("F5")
@pytest.mark.parametrize("silence", SILENCES)
def test_a_silent_redis_is_told_and_the_truth_when_it_is_back(
    silence: str, own_redis: RedisServer, proxy: Proxy, journal: Journal, web: WebServer, user: str
) -> None:
    """The publisher is not the web process; what the web process itself sends waits in it."""
    begin, end = SILENCES[silence]
    with Page(web, user) as page:
        page.ready()
        begin(own_redis, proxy)
        keys = journal.send(user, *range(10))
        page.until(lambda: page.count["degraded"])
        with Page(web, user) as another:
            web.send(user, "note", "from the web process", key="web")
            if silence != "half open":
                another.until(lambda: another.count["degraded"])
            end(own_redis, proxy)

            for each in (page, another):
                each.ready(timeout=30)
                each.shows([*keys, "web"])
                agree(each, own_redis, user)
                once(each)
                assert each.count["opened"] == 1


@pytest.mark.defends("F5")
def test_a_page_whose_history_is_never_answered_is_told_while_the_others_go_on(
    own_redis: RedisServer, proxy: Proxy, journal: Journal, web: WebServer, user: str
) -> None:
    with Page(web, user) as page:
        page.ready()
        proxy.hold(TO_SERVER, only=b"\r\nEVALSHA\r\n")
        with Page(web, user) as another:
            another.until(lambda: another.count["degraded"])
            keys = journal.send(user, *range(5))
            page.shows(keys)
            assert page.count["degraded"] == another.count["ready"] == 0
            proxy.heal()
            another.ready()
            another.shows(keys)
            agree(another, own_redis, user)
            assert another.count["opened"] == 1


@pytest.mark.defends("F5")
def test_a_subscription_that_cannot_even_be_written_keeps_no_page_waiting(
    own_redis: RedisServer, proxy: Proxy, journal: Journal, web: WebServer, user: str
) -> None:
    """More channels than fit into what is on its way: what is never written must not keep the hub from a new try."""
    users = [f"{user} {number} {'é' * 200}" for number in range(250)]
    with ExitStack() as stack, own_redis.client() as client:
        pages = [stack.enter_context(Page(web, each)) for each in users]
        for page in pages:
            page.ready()
        proxy.hold(TO_SERVER, only=b"\r\nSUBSCRIBE")
        client.client_kill_filter(_type="pubsub")
        wait_until(lambda: proxy.held, what="a subscription that is on its way")
        proxy.lose_what_is_open()
        proxy.heal()

        for each in users:
            journal.send(each, "after", key="after")
        for page in pages:
            page.ready(timeout=30)
            page.shows(["after"])
            assert page.count["opened"] == 1
        agree(pages[0], own_redis, users[0])


@pytest.mark.defends("F5")
def test_what_a_network_delivers_late_replaces_nothing_newer(
    own_redis: RedisServer, proxy: Proxy, web: WebServer, user: str
) -> None:
    """The publisher gave up its connection and repeated the event on another; the network still has the first one."""
    with Journal(own_redis.by_way_of(proxy.port)) as journal, Page(web, user) as page:
        journal.send(user, "first", key="key")
        journal.settle()
        proxy.hold_what_is_open()
        journal.send(user, "older", key="key")
        wait_until(lambda: proxy.held, what="an event that is on its way")
        journal.send(user, "newer", key="key")
        journal.settle()
        proxy.heal()
        page.shows(journal.send(user, "the last"))

        assert page.data["key"]["data"] == "newer"
        agree(page, own_redis, user)


# The task


@pytest.mark.defends("F6")
def test_a_slow_redis_costs_a_task_its_progress_but_not_its_end(
    own_redis: RedisServer,
    proxy: Proxy,
    tasks: ModuleType,
    gates: Gates,
    user: str,
    make_worker: Callable[..., Worker],
    make_web: Callable[..., WebServer],
) -> None:
    """The worker's way to Redis is slow, at last without any end; the page's is not, nor is that to the broker."""
    worker = make_worker(notify_redis_url=own_redis.url_by_way_of(proxy.port))
    web = make_web("gunicorn gthread", web_settings(own_redis.url))
    calls, name = 5000, uuid.uuid4().hex
    with Page(web, user) as page:
        for delay in (0.05, 0.5):
            proxy.slow(delay)
            result = tasks.chatty.apply_async((user, calls), queue=worker.worker_queue)
            page.until(lambda: page.ended[-1:] == [result.id], timeout=30)  # noqa: B023 - called at once

            assert page.data[result.id]["state"] == "SUCCESS"
            assert page.data[result.id]["current"] == calls
            assert sum(key == result.id for _, key in page.told) < calls / 10

        proxy.hold(*BOTH)
        results = [tasks.timing.apply_async((user, name), queue=worker.worker_queue) for _ in range(5)]
        for _ in results:
            gates.read(name, timeout=30)  # its loop is done
        assert proxy.held
        assert len(page.ended) == 2
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: proxy.refused >= 3, what="three attempts that fail")
        proxy.heal()
        page.until(lambda: len(page.ended) == 7, timeout=30)

        assert page.ended[2:] == [result.id for result in results]
        assert [page.data[result.id]["state"] for result in results] == ["SUCCESS"] * 5
        agree(page, own_redis, user)
    worker.process.kill()
