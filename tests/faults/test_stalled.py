"""A worker that is lost without a word: its task does not spin for ever (FAULTS: F17, F18, F24)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from celery import current_app, shared_task

from celery_notify import notify
from tests.faults.test_redis_clocks import ahead
from tests.support.celery_nodes import Worker, configuration
from tests.support.event_stream import data_of, states
from tests.support.gates import Gates
from tests.support.names import MODULE
from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import Web

#: Seconds after which a worker counts as lost in these tests, for those who sign and those who look.
TTL = 2 * SLOWNESS


@pytest.fixture
def webs(make_web: Callable[..., Web], redis_server: GivenRedis) -> list[Web]:
    """Return two web processes, which both look after the same tasks."""
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_WORKER_TTL": str(TTL)}
    return [make_web("gunicorn gthread", settings), make_web("gunicorn sync", settings)]


@pytest.mark.defends("F17")
def test_a_task_of_a_killed_worker_is_stalled_once_however_many_look(
    webs: list[Web], make_worker: Callable[..., Worker], tasks: ModuleType, user: str, gates: Gates
) -> None:
    worker = make_worker(notify_worker_ttl=TTL)
    streams = [web.stream(user) for web in webs]
    result = tasks.slow.apply_async((user, user), queue=worker.worker_queue)
    gates.open(user)
    for stream in streams:
        stream.state("PROGRESS")

    worker.process.kill()

    for stream in streams:
        stalled = stream.state("STALLED", timeout=20)
        assert (stalled["task_id"], stalled["current"], stalled["total"]) == (result.id, 1, 2)
        stream.close()
    ids = {event.id for stream in streams for event in stream.events if '"STALLED"' in event.data}
    assert len(ids) == 1
    assert [task["state"] for task in webs[0].tasks(user)["tasks"]] == ["STALLED"]
    assert webs[0].delete(user, result.id).status == 204


@pytest.mark.defends("F17")
def test_a_task_of_a_frozen_worker_goes_on_when_that_wakes(
    webs: list[Web], make_worker: Callable[..., Worker], tasks: ModuleType, user: str, gates: Gates
) -> None:
    worker = make_worker(notify_worker_ttl=TTL)
    stream = webs[0].stream(user)
    tasks.slow.apply_async((user, user), queue=worker.worker_queue)
    gates.open(user)
    stream.state("PROGRESS")

    worker.process.pause()
    stream.state("STALLED", timeout=20)
    worker.process.resume()

    stream.state("PROGRESS", timeout=20)
    gates.open(user, 2)
    stream.state("SUCCESS")
    assert states(stream.events).count("STALLED") == 1
    stream.close()


@pytest.mark.defends("F18")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_holds_the_gil_is_stalled_only_where_its_worker_cannot_sign_meanwhile(
    pool: str, webs: list[Web], make_worker: Callable[..., Worker], tasks: ModuleType, user: str, gates: Gates
) -> None:
    """With threads it is the worker's own GIL: nothing signs then, which shows that it is the sign that counts."""
    worker = make_worker(pool=pool, notify_worker_ttl=TTL)
    with webs[0].stream(user) as stream:
        tasks.holding.apply_async((user, user, round(2 * TTL) + 1), queue=worker.worker_queue)
        stream.state("STARTED")

        gates.open(user)
        if pool == "threads":
            stream.state("STALLED", timeout=20)
        stream.state("PROGRESS", timeout=20)
        gates.open(user)

        stream.state("SUCCESS", timeout=20)
        assert states(stream.events).count("STALLED") == (pool == "threads")


@pytest.mark.defends("F24")
def test_clocks_hours_apart_make_nobody_lost_and_do_not_hide_who_is(
    own_redis: RedisServer,
    make_web: Callable[..., Web],
    tmp_path: Path,
    tasks: ModuleType,
    user: str,
) -> None:
    """The broker is the worker's own: by its clock, what others have taken from a shared one was lost hours ago."""
    settings = {"CELERY_NOTIFY_REDIS_URL": own_redis.url, "CELERY_NOTIFY_WORKER_TTL": str(TTL)}
    web = make_web("flask run", {**settings, **ahead(-2)})
    worker = Worker(
        folder=tmp_path, configuration=configuration(own_redis, notify_worker_ttl=TTL), concurrency=1, settings=ahead(2)
    )
    gates = Gates(own_redis.admin_url)
    try:
        worker.start()
        with web.stream(user) as stream, tasks.app.connection_for_write(own_redis.admin_url) as broker:
            tasks.holding.apply_async((user, user, round(2 * TTL) + 1), connection=broker)
            gates.open(user)
            stream.state("PROGRESS", timeout=20)
            assert "STALLED" not in states(stream.events)

            worker.process.kill()

            assert stream.state("STALLED", timeout=20)["current"] == 1
    finally:
        worker.process.kill()


@shared_task
@notify(user="user")
def threaded(user: str, gate: str) -> None:
    """Call another task in a thread of this one, in the same process."""
    call = threading.Thread(target=current_app.tasks[f"{MODULE}.slow"].apply, args=((user, gate),))
    call.start()
    call.join()


@pytest.mark.defends("F17", "F18")
def test_what_a_task_calls_in_a_thread_is_not_stalled_while_that_task_runs(
    make_web: Callable[..., Web],
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
    tasks: ModuleType,
    user: str,
    gates: Gates,
) -> None:
    """The worker knows only the task that calls. One that is lost is stalled by then, and so shows that time enough
    has passed.
    """
    ttl = 3 * SLOWNESS
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_WORKER_TTL": str(ttl)}
    web = make_web("gunicorn gthread", settings)
    worker, lost = make_worker("--include", __name__, notify_worker_ttl=ttl), make_worker(notify_worker_ttl=ttl)
    with web.stream(user) as stream:
        calling = tasks.app.send_task(f"{__name__}.threaded", (user, user), queue=worker.worker_queue)
        gates.open(user)
        called = stream.state("PROGRESS", timeout=20)["task_id"]
        assert called != calling.id
        witness = tasks.slow.apply_async((user, f"{user} witness"), queue=lost.worker_queue)
        stream.until(lambda event: data_of(event).get("task_id") == witness.id and '"STARTED"' in event.data)

        lost.process.kill()

        assert stream.state("STALLED", timeout=20)["task_id"] == witness.id
        gates.open(user, 2)
        stream.until(lambda event: data_of(event).get("task_id") == calling.id and '"SUCCESS"' in event.data)
        assert states(stream.events, called)[-1] == "SUCCESS"
        assert "STALLED" not in states(stream.events, called) + states(stream.events, calling.id)
