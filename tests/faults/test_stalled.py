"""A worker that is lost without a word: its task does not spin for ever (FAULTS: F17, F18)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.event_stream import states

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

#: Seconds after which a worker counts as lost in these tests, for those who sign and those who look.
TTL = 3


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
