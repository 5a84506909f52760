"""Which tasks are marked, in the Celery applications that show theirs."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from celery_notify.exceptions import ConfigurationError
from celery_notify.marker import ATTRIBUTE, Marker
from celery_notify.update_state import heed

if TYPE_CHECKING:
    from celery import Celery, Task

#: The applications that were given to init_app.
apps: weakref.WeakSet[Celery] = weakref.WeakSet()
_markers: weakref.WeakKeyDictionary[Task[..., Any], Marker | None] = weakref.WeakKeyDictionary()


def task_named(name: str) -> Task[..., Any] | None:
    """Return the task of this name, None if no application here knows it."""
    return next((app.tasks[name] for app in list(apps) if name in app.tasks), None)


def check_markers(app: Celery) -> None:
    """Raise ConfigurationError if a registered task is marked with what does not fit it."""
    for task in list(app.tasks.values()):
        marker_of(task)


def check_when_finalized(app: Any) -> None:
    """Have markers that do not fit raise where the tasks are registered; what a receiver raises Celery only logs."""
    if app.finalized:
        check_markers(app)
        return
    finalize = app.finalize

    @functools.wraps(finalize)
    def finalize_and_check(*args: Any, **kwargs: Any) -> None:
        was_finalized = app.finalized
        finalize(*args, **kwargs)
        if not was_finalized:
            check_markers(app)

    app.finalize = finalize_and_check


def marker_of(task: Task[..., Any]) -> Marker | None:
    """Return how a task is marked, None if it is not. Raises ConfigurationError if that does not fit the task."""
    if task not in _markers:
        try:
            marker = _markers[task] = _find_marker(task)
        except ConfigurationError as error:
            raise ConfigurationError(f"task {task.name}: {error}") from None
        if marker is not None:
            heed(task)
    return _markers[task]


def _find_marker(task: Task[..., Any]) -> Marker | None:
    """Return the decorator's marker, else the option's; tasks of Celery's own are never shown."""
    if task.name.startswith("celery."):
        return None
    marker: Marker | None = getattr(task.run, ATTRIBUTE, None)
    option = getattr(task, "notify", None)
    if marker is None and option is not None and not callable(option):  # a task's class may have a method of that name
        marker = Marker.from_option(option)
    if marker is not None:
        marker.check(task.run)
    return marker
