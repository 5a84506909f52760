"""Which tasks are marked: what does not fit a task is an error where it is registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import Task

import celery_notify
from celery_notify import notify
from celery_notify.exceptions import ConfigurationError
from celery_notify.marked import check_markers, marker_of, task_named
from tests.support.apps import named

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery


def test_the_decorator_counts_before_the_option(app: Celery) -> None:
    @notify(user="user_id", title="By the decorator")
    def bill(user_id: str) -> None:
        """Do nothing."""

    marker = marker_of(named(app, bill, notify={"title": "By the option"}))

    assert marker is not None
    assert marker.title == "By the decorator"


def test_no_task_of_celerys_own_is_marked(app: Celery) -> None:
    app.conf.task_annotations = {"*": {"notify": {}}}

    def bill() -> None:
        """Do nothing."""

    assert marker_of(named(app, bill)) is not None
    assert marker_of(app.tasks["celery.chord"]) is None


def test_a_task_is_found_by_its_name_in_the_applications_that_show_theirs(app: Celery) -> None:
    def bill() -> None:
        """Do nothing."""

    task = named(app, bill)

    assert task_named(task.name) is app.tasks[task.name]
    assert task_named("marked.nobody") is None


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"user": "nobody"}, "nobody"),
        ({"title": "{order}"}, "order"),
        ({"titel": "x"}, "titel"),
        ({"cancellable": "yes"}, "yes"),
        (True, "True"),
        ("user_id", "user_id"),
        ([("user", "user_id")], "user_id"),
    ],
)
def test_an_option_that_does_not_fit_its_task_is_an_error_when_the_task_is_registered(
    option: object, text: str, app: Celery
) -> None:
    def bill(user_id: str) -> None:
        """Do nothing."""

    task = named(app, bill, notify=option)

    with pytest.raises(ConfigurationError, match=text) as refused:
        app.finalize()
    assert task.name in str(refused.value)
    with pytest.raises(ConfigurationError, match=text):  # as a worker does before it starts
        check_markers(app)


def test_a_task_that_is_registered_late_is_checked_at_once(app: Celery) -> None:
    """The first task that is a class finalises its application, and is no part of that yet."""

    class Billing(Task):
        abstract = True

        def run(self, user_id: str) -> None:
            """Do nothing."""

    class Bill(Billing):
        name = f"{app.main}.Bill"
        notify = {"user": "user_id"}  # noqa: RUF012

    class BadBill(Billing):
        name = f"{app.main}.BadBill"
        notify = {"user": "nobody"}  # noqa: RUF012

    with pytest.raises(ConfigurationError, match=r"BadBill.*'nobody'"):
        app.register_task(BadBill())
    assert app.finalized
    assert marker_of(app.register_task(Bill())) is not None

    def bad() -> None:
        """Do nothing."""

    with pytest.raises(ConfigurationError, match=r"bad.*'nobody'"):
        named(app, bad, notify={"user": "nobody"})


def test_an_application_that_was_complete_before_is_checked_when_it_is_made_known(
    make_app: Callable[..., Celery],
) -> None:
    app = make_app(shown=False)

    def bad() -> None:
        """Do nothing."""

    named(app, bad, notify={"user": "nobody"})
    app.finalize()

    with pytest.raises(ConfigurationError, match=r"bad.*'nobody'"):
        celery_notify.init_app(app)


def test_a_method_of_a_tasks_class_that_is_named_notify_is_none_of_our_business(app: Celery) -> None:
    class Notifying(Task):
        def notify(self) -> None:
            """Do what the application means by it."""

    def bill(user_id: str) -> None:
        """Do nothing."""

    task = named(app, bill, base=Notifying)
    app.finalize()

    assert marker_of(task) is None
