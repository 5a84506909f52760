"""What cannot be used, from the outside: the task runs all the same, and the worker's log says why in one line."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import pytest
from celery import chain

import celery_notify
from celery_notify import notify_user
from tests.support.celery_nodes import result_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from tests.support.celery_nodes import Worker

#: Stands in a header for the id of the task whose message it is in.
THIS = "this task's id"


def nested(value: object, levels: int) -> object:
    return value if levels == 0 else [nested(value, levels - 1)]


@pytest.fixture
def run(worker: Worker, tasks: ModuleType) -> Callable[[dict[str, Any]], str]:
    """Publish `step(1)` with these headers past all that we do here, as another version would; see that it runs."""

    def run(headers: dict[str, Any]) -> str:
        task_id, app = str(uuid.uuid4()), tasks.app
        message = app.amqp.as_task_v2(task_id, tasks.step.name, (1,), {})
        sent = {name: _with_id(value, task_id) for name, value in headers.items()}
        with app.producer_or_acquire() as producer:
            producer.publish(
                message.body,
                routing_key=worker.worker_queue,
                serializer="json",
                headers={**message.headers, **sent},
                **message.properties,
            )
        assert result_of(app, task_id) == 1
        return task_id

    return run


def _with_id(header: object, task_id: str) -> object:
    return {**header, "id": task_id} if isinstance(header, dict) and header.get("id") == THIS else header


@pytest.fixture
def complaints(worker: Worker) -> Callable[[], list[str]]:
    """Return what says which warnings and errors the worker's pool has logged since the test began."""
    start = len(worker.process.log())

    def read() -> list[str]:
        log = worker.process.log()[start:]
        assert "Traceback" not in log
        found = re.findall(r"^\[[^\]]*: (?:WARNING|ERROR|CRITICAL)/ForkPoolWorker.*$", log, re.MULTILINE)
        return [line for line in found if "DeprecationWarning" not in line]  # Celery's own, of other libraries

    return read


def succeeded(user: str, task_id: str) -> dict[str, Any]:
    """Wait until a task is told to have succeeded; return what is said of it."""

    def find() -> dict[str, Any] | None:
        told = (dict(task) for task in celery_notify.tasks(user) if task["task_id"] == task_id)
        return next((task for task in told if task["state"] == "SUCCESS"), None)

    return wait_until(find, what="a task's success") or {}


# Headers of another version


@pytest.mark.defends("S24")
@pytest.mark.parametrize(
    "odd",
    [{"id": "42"}, [["42"]], nested("42", 50), ["42", None], True, 1.5, "", "x" * 10_000],
    ids=lambda odd: repr(odd)[:20],
)
def test_a_header_that_names_no_user_is_logged_once(
    odd: object, run: Callable[[dict[str, Any]], str], complaints: Callable[[], list[str]]
) -> None:
    run({"notify_user": odd})

    [line] = complaints()
    assert "expected a user's id" in line
    assert len(line) < 400


@pytest.mark.defends("S24")
@pytest.mark.parametrize(
    "odd", [7, True, None, "", ["job"], {"id": "job"}, "x" * 10_000], ids=lambda odd: repr(odd)[:20]
)
def test_a_header_that_names_no_job_says_nothing(
    odd: object, run: Callable[[dict[str, Any]], str], complaints: Callable[[], list[str]], user: str
) -> None:
    task_id = run({"notify_user": user, "notify_job": odd})

    assert succeeded(user, task_id)["job_id"] == task_id
    assert complaints() == []


@pytest.mark.defends("S24")
@pytest.mark.parametrize(
    "odd",
    [
        None,
        True,
        [],
        {},
        {"id": [THIS]},
        {"id": THIS},
        {"id": THIS, "attempt": "two", "task": 5, "title": ["a"], "url": {"b": 1}},
        {"id": THIS, "attempt": True, "title": "x" * 10_000, "url": "/" + "x" * 10_000},
        {"id": THIS, "attempt": -1, "more": {"of": ["another", "version"]}},
        {"id": THIS, "attempt": 10**18},
    ],
    ids=lambda odd: repr(odd)[:60],
)
def test_a_header_that_carries_a_task_on_in_another_way_says_nothing(
    odd: object, run: Callable[[dict[str, Any]], str], complaints: Callable[[], list[str]], user: str
) -> None:
    task_id = run({"notify_user": user, "notify_again": odd})

    told = succeeded(user, task_id)
    assert (told["attempt"], type(told["attempt"]), told.get("title")) == (1, int, None)
    assert complaints() == []


def test_headers_that_nobody_knows_yet_say_nothing(
    run: Callable[[dict[str, Any]], str], complaints: Callable[[], list[str]], user: str
) -> None:
    later = {"notify_tenant": {"id": [1, None]}, "notify_": 7, "notify_user_v2": "x" * 10_000}

    task_id = run({"notify_user": user, **later})

    assert succeeded(user, task_id)
    assert complaints() == []


# Calls that a marker cannot be filled from


def test_a_user_that_is_neither_text_nor_a_whole_number_is_logged_and_the_task_runs_unnotified(
    tasks: ModuleType,
    complaints: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = tasks.told.delay(1.5, 7)

    assert result_of(tasks.app, result.id) == 14
    [line] = complaints()
    assert "expected a user's id" in line
    assert [record.levelname for record in caplog.records] == ["ERROR"], "expected the caller to say so as well"


def test_a_title_that_cannot_be_filled_is_logged_and_the_task_runs_unnotified(
    tasks: ModuleType,
    complaints: Callable[[], list[str]],
    user: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with notify_user(user):
        result = tasks.labelled.delay({"name": "seven"})

    assert result_of(tasks.app, result.id) == {"name": "seven"}
    [line] = complaints()
    assert "the template 'Order {order[number]}' cannot be filled: KeyError: 'number'" in line
    assert [record.levelname for record in caplog.records] == ["ERROR"], "expected the caller to say so as well"
    assert celery_notify.tasks(user) == []


def test_a_step_whose_title_cannot_be_filled_from_a_result_is_told_to_its_end(
    worker: Worker, tasks: ModuleType, complaints: Callable[[], list[str]], user: str
) -> None:
    """It was told before it was published."""
    with notify_user(user):
        result = chain(tasks.step.s(1), tasks.labelled.s()).delay()

    assert succeeded(user, result.id).get("title") is None
    assert all("cannot be filled: TypeError" in line for line in complaints())
    assert len(celery_notify.tasks(user)) == 2
