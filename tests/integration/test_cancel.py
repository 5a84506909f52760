"""Cancelling, on real workers, as a browser asks for it and is told of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from celery_notify import notify_user
from celery_notify.events import FINAL_STATES
from tests.support.celery_nodes import configuration, environment, result_of
from tests.support.event_stream import data_of, states
from tests.support.names import PREFIX
from tests.support.processes import run_python
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import Web

POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture
def gate() -> str:
    """Return a gate's name that no other test has."""
    return uuid.uuid4().hex


@pytest.fixture
def cancel(web: Web, user: str) -> Callable[..., int]:
    """Return what asks for a cancel as the browser does, which was told of the task; it returns the answer's status."""

    def known(key: str, user: str) -> bool:
        told = web.request("GET", f"{PREFIX}/tasks", user=user).json()["tasks"]
        return any(key in {task["task_id"], task["job_id"]} for task in told)

    def cancel(key: str, user: str = user, *, told: bool = True) -> int:
        if told:  # a worker may well have a message before Redis has what is told of it
            wait_until(lambda: known(key, user), what=f"{key} to be shown")
        return web.request("POST", f"{PREFIX}/tasks/{quote(key, safe='')}/cancel", user=user).status

    return cancel


def ended(stream: EventStream, *task_ids: str) -> dict[str, str]:
    """Wait for the ends of tasks, in any order, and return their states."""
    found: dict[str, str] = {}
    while not found.keys() >= set(task_ids):
        told = data_of(stream.until("task-done", timeout=15)[-1])
        found[told["task_id"]] = told["state"]
    return {task_id: found[task_id] for task_id in task_ids}


def told(stream: EventStream, tasks: ModuleType, user: str, queue: str, task_id: str) -> list[str]:
    """Return all states of a task, once another one has run in the same pool: whatever came late has come."""
    assert [*ended(stream, tasks.ok.apply_async((user,), queue=queue).id).values()] == ["SUCCESS"]
    return states(stream.events, task_id)


def backend_says(tasks: ModuleType, task_id: str, state: str) -> None:
    wait_until(lambda: AsyncResult(task_id, app=tasks.app).state == state, what=f"{state} in the result backend")


# What runs


@pytest.mark.parametrize("task", ["cancellable", "cancellable_late"])
def test_a_running_task_is_ended_with_its_process_and_no_other_task_is(
    task: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(concurrency=2)
    queue = worker.worker_queue
    other = tasks.slow.apply_async((user, f"{gate} other", 1), queue=queue)
    stream.state("STARTED")
    result = getattr(tasks, task).apply_async((user, gate), queue=queue)
    gates.read(gate)
    children = set(worker.process.children())

    assert cancel(result.id) == 202

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    backend_says(tasks, result.id, "REVOKED")
    gates.open(f"{gate} other", 2)
    assert ended(stream, other.id) == {other.id: "SUCCESS"}
    seen = told(stream, tasks, user, queue, result.id)
    assert [state for state in seen if state in FINAL_STATES] == ["REVOKED"]
    wait_until(lambda: len(set(worker.process.children()) - children) == 1, what="another process in its place")
    assert len(children & set(worker.process.children())) == 1


def test_no_other_task_is_lost_however_cancels_and_ends_meet(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
) -> None:
    """Each of the first half is cancelled while it runs, at a time when others end and begin."""
    queue = make_worker(concurrency=3, worker_prefetch_multiplier=4).worker_queue
    ids = [tasks.napping.apply_async((user, 0.1 + n % 7 / 10), queue=queue).id for n in range(40)]
    chosen, others = set(ids[::2]), ids[1::2]
    found: dict[str, str] = {}
    while len(found) < len(ids):
        event = stream.next(timeout=20)
        said = data_of(event)
        if said.get("state") == "STARTED" and said["task_id"] in chosen:
            cancel(said["task_id"])
            chosen.remove(said["task_id"])
        elif event.event == "task-done":
            found[said["task_id"]] = said["state"]

    assert [found[each] for each in others] == ["SUCCESS"] * len(others)
    assert "REVOKED" in found.values()


def test_cancelling_is_told_at_once_and_until_the_end(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    result = tasks.tidy.apply_async((user, gate), queue=share_worker().worker_queue)
    stream.state("PROGRESS")

    assert cancel(result.id) == 202
    ended(stream, result.id)

    said = [data_of(event) for event in stream.events if event.event.startswith("task-")]
    assert all(each.get("cancellable") for each in said[:-1])
    cancelling = [each.get("cancelling", False) for each in said]
    assert cancelling == [*sorted(cancelling[:-1]), False]
    assert any(cancelling)
    assert not said[-1].get("cancellable")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("task", ["tidy", "tidy_tracking", "tidy_recording"])
def test_a_running_task_cleans_up_when_it_is_cancelled_at_its_progress(
    task: str,
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(pool).worker_queue
    result = getattr(tasks, task).apply_async((user, gate), queue=queue)
    assert gates.read(gate) == "begun"
    stream.state("PROGRESS")

    assert cancel(result.id) == 202

    assert gates.read(gate) == "cleaned up"
    assert ended(stream, result.id) == {result.id: "REVOKED"}
    backend_says(tasks, result.id, "REVOKED")
    seen = told(stream, tasks, user, queue, result.id)
    assert [state for state in seen if state in FINAL_STATES] == ["REVOKED"]


def test_a_task_that_cleans_up_keeps_its_process_however_long_that_takes(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
) -> None:
    queue = make_worker(concurrency=2).worker_queue
    result = tasks.tidy_later.apply_async((user, gate), queue=queue)
    stream.state("STARTED")
    other = tasks.cancellable.apply_async((user, f"{gate} other"), queue=queue)
    gates.read(f"{gate} other")

    assert [cancel(result.id), cancel(other.id)] == [202, 202]

    assert ended(stream, other.id) == {other.id: "REVOKED"}  # so that the worker has looked for both
    gates.open(gate)
    assert [gates.read(gate), gates.read(gate)] == ["begun", "cleaned up"]
    assert ended(stream, result.id) == {result.id: "REVOKED"}


def test_without_an_event_loop_no_process_is_ended(
    stream: EventStream,
    user: str,
    cancel: Callable[..., int],
    redis_server: GivenRedis,
    tmp_path: Path,
    make_worker: Callable[..., Worker],
) -> None:
    """As with messages in files: a process may have begun its next task before the worker knows."""
    (tmp_path / "messages").mkdir()
    folders = dict.fromkeys(("data_folder_in", "data_folder_out"), str(tmp_path / "messages"))
    broker = {
        "broker_url": "filesystem://",
        "broker_transport_options": {**folders, "control_folder": str(tmp_path)},
        "result_backend": None,
    }
    worker = make_worker(concurrency=2, **broker)
    code = f"""
from tests.support.tasks import counting
print(*[counting.apply_async(({user!r},), countdown=seconds).id for seconds in (0, 0, 3600)])
"""
    caller = configuration(redis_server, task_default_queue=worker.worker_queue, **broker)
    script = run_python("-c", code, settings=environment(caller))
    assert script.returncode == 0, script.stderr
    one, other, later = script.stdout.split()
    moving: set[str] = set()
    while moving != {one, other}:
        moving.add(data_of(stream.until(lambda event: data_of(event).get("current", 0) > 0)[-1])["task_id"])
    worker.process.wait_for_log(f"[{later}] received")
    children = worker.process.children()

    assert [cancel(one), cancel(later)] == [202, 202]

    assert ended(stream, one, later) == {one: "REVOKED", later: "REVOKED"}
    assert not set(states(stream.events, other)) & FINAL_STATES
    assert cancel(other) == 202
    assert ended(stream, other) == {other: "REVOKED"}
    assert worker.process.children() == children


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_where_no_process_can_be_ended_a_task_ends_at_its_progress(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    result = tasks.telling.apply_async((user, gate), queue=share_worker(pool).worker_queue)
    gates.read(gate)

    assert cancel(result.id) == 202

    assert gates.read(gate) == "cleaned up"
    assert ended(stream, result.id) == {result.id: "REVOKED"}


# What waits


@pytest.mark.parametrize(
    ("task", "pool"),
    [*(("cancellable", pool) for pool in POOLS), ("cancellable_late", "prefork"), ("tidy", "prefork")],
)
def test_what_was_cancelled_while_no_worker_ran_never_begins(
    task: str,
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
    gates: Gates,
) -> None:
    worker = make_worker(pool=pool, start=False)
    result = getattr(tasks, task).apply_async((user, gate), queue=worker.worker_queue)
    stream.state("PENDING")
    assert cancel(result.id) == 202

    worker.start()

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    backend_says(tasks, result.id, "REVOKED")
    assert told(stream, tasks, user, worker.worker_queue, result.id) == ["PENDING", "PENDING", "REVOKED"]
    with pytest.raises(TimeoutError):
        gates.read(gate, timeout=0.1)


@pytest.mark.parametrize("pool", POOLS)
def test_what_waits_for_its_time_is_cancelled_long_before(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    worker = share_worker(pool)
    result = tasks.cancellable.apply_async((user, gate), queue=worker.worker_queue, countdown=3600)
    stream.state("PENDING")
    worker.process.wait_for_log(f"[{result.id}] received")

    assert cancel(result.id) == 202

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    backend_says(tasks, result.id, "REVOKED")
    assert told(stream, tasks, user, worker.worker_queue, result.id) == ["PENDING", "PENDING", "REVOKED"]


@pytest.mark.parametrize("pool", POOLS)
def test_what_waits_for_its_retry_is_cancelled_long_before(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(pool).worker_queue
    result = tasks.retrying_cancellable.apply_async((user, gate, 3600), queue=queue)
    stream.state("RETRY")

    assert cancel(result.id) == 202

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    assert told(stream, tasks, user, queue, result.id)[-3:] == ["RETRY", "RETRY", "REVOKED"]


def test_what_waits_for_a_place_in_the_pool_is_cancelled_before_it_gets_one(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(worker_prefetch_multiplier=4)
    queue = worker.worker_queue
    running = tasks.slow.apply_async((user, gate, 1), queue=queue)
    stream.state("STARTED")
    result = tasks.cancellable.apply_async((user, f"{gate} other"), queue=queue)
    worker.process.wait_for_log(f"[{result.id}] received")

    assert cancel(result.id) == 202

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    gates.open(gate, 2)
    assert ended(stream, running.id) == {running.id: "SUCCESS"}
    assert told(stream, tasks, user, queue, result.id) == ["PENDING", "PENDING", "REVOKED"]


# Jobs


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_chain_that_is_cancelled_goes_no_further(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(pool).worker_queue
    first, last = tasks.telling.si(user, gate), tasks.cancellable_step.si(2, f"{gate} last")
    result = chain(each.set(queue=queue) for each in (first, last)).delay()
    gates.read(gate)

    assert cancel(result.parent.id) == 202

    ids = (result.parent.id, result.id)
    assert ended(stream, *ids) == dict.fromkeys(ids, "REVOKED")
    told(stream, tasks, user, queue, result.id)
    with pytest.raises(TimeoutError):
        gates.read(f"{gate} last", timeout=0.1)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_all_members_of_a_group_are_cancelled_with_their_job(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(pool, 2).worker_queue
    result = group(tasks.telling.si(user, gate).set(queue=queue) for _ in range(6)).delay()
    gates.read(gate)

    assert cancel(result.id) == 202

    ids = [each.id for each in result]
    assert ended(stream, *ids) == dict.fromkeys(ids, "REVOKED")
    for task_id in ids:
        backend_says(tasks, task_id, "REVOKED")
    assert told(stream, tasks, user, queue, ids[0])[-1] == "REVOKED"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_chord_fails_when_a_member_is_cancelled(
    pool: str,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(pool, 2).worker_queue
    with notify_user(user):
        header = [tasks.cancellable_step.si(1), tasks.telling.si(user, gate)]
        body = tasks.gathered.s().set(queue=queue)
        result = chord([each.set(queue=queue) for each in header], body).delay()
    gates.read(gate)
    first, member = (each.id for each in result.parent)

    assert cancel(member) == 202

    assert ended(stream, first, member) == {first: "SUCCESS", member: "REVOKED"}
    backend_says(tasks, result.id, "FAILURE")


def test_a_member_that_is_published_after_the_cancel_does_not_begin(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    share_worker: Callable[..., Worker],
) -> None:
    queue = share_worker(concurrency=2).worker_queue
    first = tasks.cancellable.apply_async((user, gate), queue=queue)
    gates.read(gate)
    assert cancel(first.id) == 202

    later = tasks.cancellable.apply_async((user, f"{gate} later"), queue=queue, headers={"notify_job": first.id})

    assert ended(stream, first.id, later.id) == {first.id: "REVOKED", later.id: "REVOKED"}
    assert "STARTED" not in told(stream, tasks, user, queue, later.id)


# Who may, and when


def test_a_cancel_may_be_repeated_until_it_is_too_late(
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    cancel: Callable[..., int],
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(start=False)
    result = tasks.cancellable.apply_async((user, gate), queue=worker.worker_queue)
    stream.state("PENDING")

    assert [cancel(result.id), cancel(result.id)] == [202, 202]
    worker.start()

    assert ended(stream, result.id) == {result.id: "REVOKED"}
    assert cancel(result.id) == 409
    assert states(stream.events, result.id) == ["PENDING", "PENDING", "REVOKED"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("task", ["telling", "tidy"])
def test_a_cancel_counts_only_for_tasks_of_whoever_asked(
    task: str,
    pool: str,
    web: Web,
    stream: EventStream,
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    cancel: Callable[..., int],
    redis_server: GivenRedis,
    make_worker: Callable[..., Worker],
) -> None:
    """Neither by the endpoint, nor by what it would write, nor by a task of their own with the same id."""
    queue = make_worker(pool=pool, concurrency=2).worker_queue
    result = getattr(tasks, task).apply_async((user, gate), queue=queue)
    gates.read(gate)
    stream.state("PROGRESS")
    other = f"{user} too"

    assert cancel(result.id, user=other, told=False) == 404
    with redis_server.client() as client:
        client.hset(f"celery-notify:cancel:{result.id}", other, "1")
    own = getattr(tasks, task).apply_async((other, f"{gate} own"), task_id=result.id, queue=f"{queue} nobody reads")
    wait_until(lambda: web.tasks(other)["tasks"], what="the other's own task")
    assert cancel(own.id, user=other) == 202

    last = tasks.tidy.apply_async((other, f"{gate} last"), queue=queue)
    if pool != "solo":
        gates.read(f"{gate} last")
        assert cancel(last.id, user=other) == 202
        assert gates.read(f"{gate} last") == "cleaned up"  # so that whoever looks has looked
    assert not set(states(stream.events, result.id)) & FINAL_STATES
    assert cancel(result.id) == 202
    assert ended(stream, result.id) == {result.id: "REVOKED"}


# Without Redis


def test_a_task_begins_also_if_nobody_can_say_whether_it_is_cancelled(
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    own_redis: RedisServer,
    make_worker: Callable[..., Worker],
) -> None:
    queue = make_worker(notify_redis_url=own_redis.url).worker_queue
    result_of(tasks.app, tasks.ok.apply_async((user,), queue=queue).id)
    own_redis.pause()

    try:
        for number in range(3):
            tasks.cancellable.apply_async((user, f"{gate} {number}"), queue=queue)
            assert gates.read(f"{gate} {number}") == "begun"
            gates.open(f"{gate} {number}")
    finally:
        own_redis.resume()


def test_what_was_cancelled_while_its_worker_could_not_know_is_ended_when_it_can(
    tasks: ModuleType,
    user: str,
    gate: str,
    gates: Gates,
    own_redis: RedisServer,
    make_web: Callable[..., Web],
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(notify_redis_url=own_redis.url)
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    result = tasks.cancellable.apply_async((user, gate), queue=worker.worker_queue)
    gates.read(gate)
    wait_until(lambda: [task["state"] for task in web.tasks(user)["tasks"]] == ["STARTED"])
    worker.process.pause()

    assert web.request("POST", f"{PREFIX}/tasks/{result.id}/cancel", user=user).status == 202
    worker.process.resume()

    wait_until(lambda: [task["state"] for task in web.tasks(user)["tasks"]] == ["REVOKED"], timeout=15)
