"""Tasks that applications have already, however they are written, on a real worker of each pool."""

from __future__ import annotations

import importlib
import uuid
from typing import TYPE_CHECKING

import pytest

import celery_notify
from tests.support.celery_nodes import Worker, configuration
from tests.support.celery_nodes import result_of as wait_for_result
from tests.support.event_stream import data_of, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis

MODULE = "tests.support.existing_tasks"
FINAL = {"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"}


@pytest.fixture(scope="module", params=["prefork", "threads", "gevent", "solo"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pool_worker(pool: str, lasting_redis: GivenRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Return a worker with this pool, for all tests here."""
    name = f"existing-{pool}"
    settings = configuration(lasting_redis, task_default_queue=f"{name}-{uuid.uuid4().hex[:8]}", include=[MODULE])
    folder = tmp_path_factory.mktemp(name)
    worker = Worker(folder=folder, configuration=settings, name=name, pool=pool, lasting=True)
    yield worker.start()
    worker.process.kill()


@pytest.fixture
def existing(tasks: ModuleType) -> ModuleType:
    """Return the tasks."""
    return importlib.import_module(MODULE)


@pytest.fixture
def run(existing: ModuleType, pool_worker: Worker) -> Callable[..., str]:
    """Start a task on the worker, return its id."""
    return lambda task, *args: str(getattr(existing, task).apply_async(args, queue=pool_worker.worker_queue).id)


@pytest.fixture
def result_of(existing: ModuleType) -> Callable[[str], Any]:
    """Wait for a task by way of Celery, return its result."""
    return lambda task_id: wait_for_result(existing.app, task_id)


def fence(stream: EventStream, user: str) -> None:
    """Read the stream up to now."""
    key = uuid.uuid4().hex
    celery_notify.send(user, "fence", None, key=key)
    stream.until(lambda event: event.event == "fence" and data_of(event)["key"] == key)


def ended(stream: EventStream, task_id: str) -> dict[str, Any]:
    """Wait for a task's end and return what is said of it."""
    found = stream.until(lambda event: event.event == "task-done" and data_of(event)["task_id"] == task_id, timeout=15)
    return data_of(found[-1])


def shown(told: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(told.get(name) for name in ("state", "current", "total", "description"))


def test_a_task_that_celery_retries_by_itself_tells_of_it_and_ends_once(
    stream: EventStream, run: Callable[..., str], user: str
) -> None:
    task_id = run("downloading", user, 1)

    retry = stream.state("RETRY")
    last = ended(stream, task_id)

    assert (retry["attempt"], retry["error"], retry["description"]) == (1, "The task failed.", "Attempt 1")
    assert retry["retry_at"] > retry["at"]
    assert (last["attempt"], last["title"], *shown(last)) == (2, f"Download for {user}", "SUCCESS", 1, 2, "Attempt 2")
    assert [state for state in states(stream.events, task_id) if state in {"RETRY", *FINAL}] == ["RETRY", "SUCCESS"]


def test_a_task_that_celery_gives_up_to_retry_fails_once(
    stream: EventStream, run: Callable[..., str], user: str
) -> None:
    task_id = run("downloading", user, 2)
    last = ended(stream, task_id)
    ended(stream, run("sharing", user))

    assert (last["state"], last["attempt"], last["error"]) == ("FAILURE", 2, "The task failed.")
    assert [state for state in states(stream.events, task_id) if state in FINAL] == ["FAILURE"]
    assert b"s3cret" not in stream.raw


@pytest.mark.parametrize(
    ("task", "title", "progress"),
    [
        ("sharing", "Shared by {}", (1, 2, "Shared")),
        ("one_bill", "Bill of {}", (3, 10, "OneBill")),
        ("long_bill", "Long bill of {}", (4, 20, "LongBill")),
        ("billed", "Bill of {}", (5, 10, "billed")),
        ("leaflet", "Rendering for {}", (2, 2, "Leaflet")),
    ],
)
def test_a_task_is_shown_however_it_is_made(
    task: str, title: str, progress: tuple[Any, ...], stream: EventStream, run: Callable[..., str], user: str
) -> None:
    last = ended(stream, run(task, user))

    assert (last["title"], *shown(last)) == (title.format(user), "SUCCESS", *progress)


def test_a_run_that_replaces_a_marked_one_is_not_marked(
    stream: EventStream, run: Callable[..., str], result_of: Callable[[str], Any], user: str
) -> None:
    unmarked = run("book", user)

    assert result_of(unmarked) == user
    fence(stream, user)
    assert states(stream.events) == []


@pytest.mark.parametrize("place", ["in a coroutine", "in a coroutine's thread", "in a thread", "in an executor"])
def test_progress_is_told_where_the_tasks_context_is(
    place: str, stream: EventStream, run: Callable[..., str], user: str
) -> None:
    last = ended(stream, run("telling", user, place))

    assert shown(last) == ("SUCCESS", 3, 3, place.capitalize())


def test_progress_in_a_thread_without_the_context_does_nothing(
    stream: EventStream, run: Callable[..., str], user: str
) -> None:
    last = ended(stream, run("telling", user, "in a thread without the context"))

    assert shown(last) == ("SUCCESS", None, None, None)


def test_a_task_that_a_thread_starts_has_the_user_of_the_context(
    stream: EventStream, run: Callable[..., str], result_of: Callable[[str], Any], user: str, gates: Gates
) -> None:
    name = uuid.uuid4().hex
    run("starting_from_threads", user, name)
    with_context, without = gates.read(name), gates.read(name)

    assert ended(stream, with_context)["state"] == "SUCCESS"
    assert result_of(without) == 1
    fence(stream, user)
    assert states(stream.events, without) == []


def test_what_a_thread_tells_after_its_tasks_end_is_not_shown(
    stream: EventStream, run: Callable[..., str], user: str, gates: Gates
) -> None:
    gate, name = uuid.uuid4().hex, uuid.uuid4().hex
    task_id = run("outlived", user, gate, name)
    last = ended(stream, task_id)
    gates.open(gate)
    assert gates.read(name) == "told"
    fence(stream, user)
    ended(stream, run("sharing", user))

    assert shown(last) == ("SUCCESS", 1, 3, "In time")
    assert states(stream.events, task_id)[-1] == "SUCCESS"
