"""`update_state` as progress: existing tasks, unchanged, eager and in one process; real workers are elsewhere."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, shared_task

import celery_notify
from celery_notify import notify, publisher
from celery_notify.marked import marker_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery


def told_of(task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the task for a user of its own; return what they are told of it at the end."""
    user = uuid.uuid4().hex
    with celery_notify.notify_user(user):
        task.apply(args=args, kwargs=kwargs).get()
    assert publisher.current().flush(5.0, patient=True)
    [told] = celery_notify.tasks(user)
    assert told["state"] == "SUCCESS"
    return {name: told[name] for name in ("current", "total", "description") if name in told}  # type: ignore[literal-required]


@pytest.fixture
def run(app: Celery) -> Callable[..., Any]:
    """Run a bound task that says one thing by `update_state`; return what is told of it."""

    @app.task(name=f"{app.main}.say", bind=True, shared=False)
    @notify()
    def say(self: Task[..., Any], *args: Any, **kwargs: Any) -> None:
        self.update_state(*args, **kwargs)

    return lambda *args, **kwargs: told_of(say, *args, **kwargs)


def test_the_meta_of_celery_progress_is_progress(run: Callable[..., Any]) -> None:
    meta = {"pending": False, "current": 3, "total": 10, "percent": 30.0, "description": "Rendering"}

    assert run(state="PROGRESS", meta=meta) == {"current": 3, "total": 10, "description": "Rendering"}


def test_the_meta_of_jobtastic_is_progress(run: Callable[..., Any]) -> None:
    meta = {"progress_percent": 42, "time_remaining": 12}

    assert run(None, "PROGRESS", meta) == {"current": 42, "total": 100}


def test_a_description_alone_is_progress(run: Callable[..., Any]) -> None:
    assert run(state="PROGRESS", meta={"description": "Rendering"}) == {"description": "Rendering"}


@pytest.mark.parametrize(
    "said",
    [
        {"state": "STARTED", "meta": {"current": 3}},
        {"state": "PROGRESS", "meta": None},
        {"state": "PROGRESS", "meta": ["current", 3]},
        {"state": "PROGRESS", "meta": {"percent": 3}},
        {"task_id": "of-another-task", "state": "PROGRESS", "meta": {"current": 3}},
    ],
)
def test_what_is_no_progress_of_this_task_is_not_shown(said: dict[str, Any], run: Callable[..., Any]) -> None:
    assert run(**said) == {}


def test_a_call_that_celery_refuses_raises_what_celery_says(app: Celery) -> None:
    @app.task(name=f"{app.main}.wrong", bind=True, shared=False)
    @notify()
    def wrong(self: Any) -> None:
        with pytest.raises(TypeError, match="multiple values"):
            self.update_state("id", task_id="id")

    assert told_of(wrong) == {}


def test_a_class_that_tells_its_progress_by_a_method_of_its_own_is_heeded(app: Celery) -> None:
    class Reporting(Task):  # type: ignore[type-arg]
        def update_progress(self, done: int, total: int) -> None:
            self.update_state(None, "PROGRESS", {"progress_percent": 100 * done // total})

    @app.task(name=f"{app.main}.report", bind=True, shared=False, base=Reporting)
    @notify()
    def report(self: Any) -> None:
        self.update_progress(1, 4)

    assert told_of(report) == {"current": 25, "total": 100}


def test_a_shared_task_is_heeded(app: Celery) -> None:
    @shared_task(name=f"{app.main}.shared", bind=True)
    @notify()
    def shared(self: Any) -> None:
        self.update_state(state="PROGRESS", meta={"current": 1, "total": 2})

    assert told_of(app.tasks[f"{app.main}.shared"]) == {"current": 1, "total": 2}


def test_a_task_that_is_not_marked_keeps_its_own_method(app: Celery) -> None:
    @app.task(name=f"{app.main}.plain", shared=False)
    def plain() -> None:
        """Do nothing."""

    marker_of(app.tasks[plain.name])

    assert "update_state" not in vars(app.tasks[plain.name])
