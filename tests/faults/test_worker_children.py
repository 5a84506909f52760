"""A pool's child that is killed, in each way it can be; children that come and go lose no end (FAULTS: F16)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import celery
import pytest
from celery.utils.nodenames import gethostname

import celery_notify
from tests.support.event_stream import data_of, states
from tests.support.proxy import Proxy, SlowProxy
from tests.support.waiting import Deadline, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

#: How many tasks a test has run to see that the end of none is lost.
MANY = 50
#: Seconds by which each round trip of the library to Redis is slower, where it is: so slow that no task waits for it.
SLOW = 0.1

WAYS = ["child killed", "terminated", "aborted", "at a null pointer", "`os._exit(0)`", "`os._exit(1)`"]


@pytest.fixture
def stream(web: Web, user: str) -> Iterator[EventStream]:
    with web.stream(user) as stream:
        stream.ready()
        yield stream


def fence(stream: EventStream, user: str) -> None:
    """Read all that has been published up to now."""
    key = uuid.uuid4().hex
    celery_notify.send(user, "fence", None, key=key)
    stream.until(lambda event: event.event == "fence" and data_of(event)["key"] == key)


def ends_of(stream: EventStream) -> dict[str, str]:
    """Return the tasks that have ended, and in which states."""
    ends: dict[str, str] = {}
    for told in [data_of(event) for event in stream.events if event.event == "task-done"]:
        assert told["task_id"] not in ends, f"expected one end of a task, got another: {told}"
        ends[told["task_id"]] = told["state"]
    return ends


def wait_for_ends(stream: EventStream, task_ids: set[str], *, timeout: float = 30.0) -> dict[str, str]:
    """Wait until these tasks have ended; return in which states."""
    deadline = Deadline(timeout)
    while not task_ids <= ends_of(stream).keys():
        stream.until("task-done", timeout=deadline.left)
    return {task_id: state for task_id, state in ends_of(stream).items() if task_id in task_ids}


@pytest.mark.defends("F16")
@pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="older versions of Celery say nothing of some of these")
def test_a_task_whose_child_is_killed_fails_once_or_is_run_again(
    stream: EventStream, worker: Worker, tasks: ModuleType, user: str, gates: Gates
) -> None:
    """A child that is killed before it could tell of the task's beginning says nothing of it: each waits for that."""
    expected = {}
    for way in WAYS:
        for task, end in ((tasks.perishing_early, "FAILURE"), (tasks.perishing_lost, "SUCCESS")):
            expected[task.delay(user, way, user).id] = ["STARTED", end]
    for _ in expected:
        stream.state("STARTED")
        gates.open(user)

    wait_for_ends(stream, {*expected})
    fence(stream, user)

    told = {task_id: states(stream.events, task_id) for task_id in expected}
    assert {task_id: each[each[:1] == ["PENDING"] :] for task_id, each in told.items()} == expected


@pytest.fixture
def make_slow_worker(redis_server: GivenRedis, make_worker: Callable[..., Worker]) -> Iterator[Callable[..., Worker]]:
    """Return what starts a worker from which Redis is far away, for what is told."""
    with SlowProxy(redis_server.address, delay=SLOW) as proxy:

        def make(*options: str, **more: Any) -> Worker:
            return make_worker(*options, notify_redis_url=redis_server.url_by_way_of(proxy.port), **more)

        yield make


@pytest.mark.parametrize(("option", "many"), [("--max-tasks-per-child=1", MANY), ("--max-memory-per-child=1", 12)])
def test_children_that_are_replaced_after_each_task_lose_no_end(
    option: str,
    many: int,
    make_slow_worker: Callable[..., Worker],
    stream: EventStream,
    tasks: ModuleType,
    user: str,
) -> None:
    worker = make_slow_worker(option, concurrency=4)

    sent = {tasks.ok.apply_async((user,), queue=worker.worker_queue).id for _ in range(many)}

    assert {*wait_for_ends(stream, sent).values()} == {"SUCCESS"}


def test_children_that_are_replaced_while_redis_is_away_lose_no_end(
    make_worker: Callable[..., Worker], stream: EventStream, tasks: ModuleType, user: str, redis_server: GivenRedis
) -> None:
    with Proxy(redis_server.address) as proxy:
        url = redis_server.url_by_way_of(proxy.port)
        worker = make_worker("--max-tasks-per-child=1", concurrency=4, notify_redis_url=url)
        wait_for_ends(stream, {tasks.ok.apply_async((user,), queue=worker.worker_queue).id})

        proxy.hold()
        sent = {tasks.ok.apply_async((user,), queue=worker.worker_queue).id for _ in range(12)}
        wait_until(lambda: all(f"{task_id}] succeeded" in worker.logs() for task_id in sent), timeout=30)
        assert not sent & ends_of(stream).keys()
        proxy.heal()

        assert {*wait_for_ends(stream, sent).values()} == {"SUCCESS"}


def test_a_pool_that_grows_and_shrinks_loses_no_end(
    make_slow_worker: Callable[..., Worker], stream: EventStream, tasks: ModuleType, user: str, gates: Gates
) -> None:
    worker = make_slow_worker("--autoscale", "4,1", worker_prefetch_multiplier=4)
    node = {"destination": [f"{worker.worker_queue}@{gethostname()}"], "limit": 1}
    sent = {tasks.slow.apply_async((user, user, 0), queue=worker.worker_queue).id for _ in range(4)}
    wait_until(lambda: len(worker.process.children()) == 4)
    gates.open(user, 4)
    inspect = tasks.app.control.inspect(**node)
    wait_until(lambda: [*(inspect.active() or {}).values()] == [[]], what="an idle worker")

    tasks.app.control.autoscale(1, 1, reply=True, **node)

    wait_until(lambda: len(worker.process.children()) == 1)
    sent.add(tasks.ok.apply_async((user,), queue=worker.worker_queue).id)
    assert {*wait_for_ends(stream, sent).values()} == {"SUCCESS"}


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 8), ("threads", MANY)])
def test_a_worker_that_is_stopped_tells_the_end_of_all_that_ran(
    pool: str,
    concurrency: int,
    make_slow_worker: Callable[..., Worker],
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gates: Gates,
    redis_server: GivenRedis,
) -> None:
    """What it has not begun goes back to the queue."""
    worker = make_slow_worker(pool=pool, concurrency=concurrency)
    sent = [tasks.slow.apply_async((user, user, 0), queue=worker.worker_queue).id for _ in range(MANY)]
    for _ in range(concurrency):
        stream.state("STARTED")

    worker.kill("SIGTERM")
    worker.process.wait_for_log("Warm shutdown")
    gates.open(user, MANY)
    assert worker.process.wait() == 0

    fence(stream, user)
    ended = ends_of(stream)
    begun = {task_id for task_id in sent if "STARTED" in states(stream.events, task_id)}
    assert ended == dict.fromkeys(begun, "SUCCESS")
    with redis_server.client() as client:
        assert len(ended) + client.llen(worker.worker_queue) == MANY


def test_a_worker_that_is_stopped_while_redis_is_away_for_a_moment_loses_no_end(
    make_worker: Callable[..., Worker],
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gates: Gates,
    redis_server: GivenRedis,
) -> None:
    """What its children cannot tell they leave to it, as its last task."""
    with Proxy(redis_server.address) as proxy:
        url = redis_server.url_by_way_of(proxy.port)
        worker = make_worker(concurrency=4, notify_redis_url=url)
        sent = {tasks.slow.apply_async((user, user, 0), queue=worker.worker_queue).id for _ in range(4)}
        for _ in sent:
            stream.state("STARTED")

        proxy.refuse()
        proxy.cut()
        worker.kill("SIGTERM")
        worker.process.wait_for_log("Warm shutdown")
        gates.open(user, 4)
        wait_until(lambda: not worker.process.children())
        proxy.heal()

        assert {*wait_for_ends(stream, sent).values()} == {"SUCCESS"}
        assert worker.process.wait() == 0
