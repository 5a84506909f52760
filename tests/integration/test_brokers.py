"""Whatever carries Celery's messages: the worker half needs Redis for what it tells, for nothing else.

No result backend here, no events of Celery's own (`-E`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_notify.events import FINAL_STATES
from tests.support.celery_nodes import configuration, environment
from tests.support.event_stream import data_of, states
from tests.support.processes import run_python
from tests.support.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.redis_server import GivenRedis

#: A script that starts tasks and prints their ids.
START = """
from celery import chain
from celery_notify import notify_user
from tests.support.tasks import failing, retrying, step, told

started = [told.delay({user!r}, 7), failing.delay({user!r}, "s3cret"), retrying.delay({user!r}, 1)]
ids = [task.id for task in started]
with notify_user({user!r}):
    last = chain(step.s(1), step.s()).delay()
    ids += [step.apply_async((1,), headers={{"notify_user": [{user!r}]}}).id, last.parent.id, last.id]
print(*ids)
"""

#: The same, and a worker in the same process until all have ended.
START_WITH_WORKER = """
from celery.contrib.testing.worker import start_worker
import celery_notify
from celery_notify.events import FINAL_STATES
from tests.support.tasks import app
from tests.support.waiting import wait_until

with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
    exec({start!r})
    wait_until(lambda: [task["state"] in FINAL_STATES for task in celery_notify.tasks({user!r})] == [True] * len(ids))
"""


@pytest.fixture
def filesystem(tmp_path: Path) -> dict[str, Any]:
    """Return the configuration for messages in files."""
    folder = tmp_path / "messages"
    folder.mkdir()
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(tmp_path)}
    return {"broker_url": "filesystem://", "broker_transport_options": options}


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return the configuration for messages in a RabbitMQ."""
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    server = RabbitMQ(folder)
    try:
        yield {"broker_url": server.start().url}
    finally:
        server.stop()


def ends_of(stream: EventStream, ids: list[str]) -> list[dict[str, Any]]:
    """Wait until all these tasks have ended, each once; return what is said of each at its end."""
    ends: dict[str, dict[str, Any]] = {}
    while not ends.keys() >= set(ids):
        [*_, event] = stream.until("task-done", timeout=20)
        last = data_of(event)
        ends[last["task_id"]] = last
    for task_id in ids:
        told = [state for state in states(stream.events, task_id) if state in FINAL_STATES]
        assert told == [ends[task_id]["state"]]
    return [ends[task_id] for task_id in ids]


def check(stream: EventStream, ids: list[str]) -> None:
    """See that all tasks of START are told as ever."""
    told, failing, retrying, named, first, second = ends_of(stream, ids)

    assert (told["state"], told["title"], told["result"]) == ("SUCCESS", "Order 7", {"pages": 14})
    assert (failing["state"], failing["error"]) == ("FAILURE", "The task failed.")
    assert (retrying["state"], retrying["attempt"]) == ("SUCCESS", 2)
    assert named["state"] == first["state"] == second["state"] == "SUCCESS"
    assert first["job_id"] == second["job_id"] == first["task_id"]


@pytest.mark.parametrize("broker", ["filesystem", "rabbitmq"])
def test_tasks_are_told_whatever_carries_their_messages(
    broker: str,
    stream: EventStream,
    user: str,
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
    request: pytest.FixtureRequest,
) -> None:
    without_redis = {**request.getfixturevalue(broker), "result_backend": None}
    worker = make_worker(**without_redis)
    caller = configuration(redis_server, task_default_queue=worker.worker_queue, **without_redis)

    script = run_python("-c", START.format(user=user), settings=environment(caller))

    assert script.returncode == 0, script.stderr
    check(stream, script.stdout.split())
    assert "-E" not in worker.process.command


def test_tasks_are_told_whose_messages_never_leave_the_process(
    stream: EventStream, user: str, redis_server: GivenRedis
) -> None:
    code = START_WITH_WORKER.format(user=user, start=START.format(user=user))
    settings = environment(configuration(redis_server, broker_url="memory://", result_backend=None))

    script = run_python("-c", code, settings=settings)

    assert script.returncode == 0, script.stderr
    check(stream, script.stdout.split())


def test_a_task_whose_child_is_lost_is_told_to_have_failed_or_is_delivered_again(
    rabbitmq: dict[str, Any],
    stream: EventStream,
    user: str,
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
) -> None:
    without_redis = {**rabbitmq, "result_backend": None}
    worker = make_worker(**without_redis)
    caller = configuration(redis_server, task_default_queue=worker.worker_queue, **without_redis)
    code = f"""
from tests.support.tasks import dying, dying_once, requeueing
for task in (dying, dying_once, requeueing):
    print(task.delay({user!r}).id)
"""

    script = run_python("-c", code, settings=environment(caller))

    assert script.returncode == 0, script.stderr
    ends = ends_of(stream, script.stdout.split())
    assert [(end["state"], end["attempt"]) for end in ends] == [("FAILURE", 1), ("SUCCESS", 1), ("SUCCESS", 1)]
