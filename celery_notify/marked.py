"""Which tasks are marked, in the Celery applications that show theirs."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from celery_notify.cancel import guard
from celery_notify.exceptions import ConfigurationError
from celery_notify.marker import ATTRIBUTE, Call, Marker, fields
from celery_notify.update_state import heed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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


def check_when_registered(app: Any) -> None:
    """Have markers that do not fit raise where the tasks are registered; what a receiver raises Celery only logs.

    That is when the application is finalised, and at once for all that comes later: the first task that is a class
    finalises it.
    """
    complete = app.finalized
    if complete:
        check_markers(app)
    finalize = app.finalize

    @functools.wraps(finalize)
    def finalize_and_check(*args: Any, **kwargs: Any) -> None:
        nonlocal complete
        finalize(*args, **kwargs)
        if not complete:
            complete = True
            check_markers(app)

    def checked(register: Callable[..., Task[..., Any]]) -> Callable[..., Task[..., Any]]:
        @functools.wraps(register)
        def register_and_check(*args: Any, **kwargs: Any) -> Task[..., Any]:
            task = register(*args, **kwargs)
            if complete:
                marker_of(task)
            return task

        return register_and_check

    app.finalize = finalize_and_check
    # The second makes a task of a function, for app.task and shared_task; it has no public name.
    app.register_task, app._task_from_fun = checked(app.register_task), checked(app._task_from_fun)  # noqa: SLF001


def marker_of(task: Task[..., Any]) -> Marker | None:
    """Return how a task is marked, None if it is not. Raises ConfigurationError if that does not fit the task."""
    if task not in _markers:
        try:
            marker = _markers[task] = _find_marker(task)
        except ConfigurationError as error:
            raise ConfigurationError(f"task {task.name}: {error}") from None
        if marker is not None:
            heed(task)
            if marker.cancellable:
                guard(task)
    return _markers[task]


#: Celery's own tasks that call another one many times within themselves, and how: chunks() makes such ones.
_CALLERS: dict[str, Callable[[Any], tuple[Any, ...]]] = {"celery.map": lambda each: (each,), "celery.starmap": tuple}


def called_many_times(name: str, kwargs: Mapping[str, Any]) -> Task[..., Any] | None:
    """Return the task that a message of this name and these arguments calls many times; None for any other message."""
    called = kwargs.get("task") if name in _CALLERS else None
    return task_named(called["task"]) if called else None


def marker_for(task: Task[..., Any], kwargs: Mapping[str, Any]) -> Marker | None:
    """Return how a message's task is marked: for one that calls a marked task many times, that task's marker.

    It is then somebody's if each call is theirs; its title and URL are those that are the same for each.
    """
    called = called_many_times(task.name, kwargs)
    marker = marker_of(task if called is None else called)
    if called is None or marker is None:
        return marker
    own, function, arguments = marker, called.run, _CALLERS[task.name]

    def user(task: Any, it: Iterable[Any]) -> list[str] | None:  # noqa: ARG001 - as Celery names them
        all_users = [own.users(Call(function, arguments(each), {})) for each in it]
        return all_users[0] if all(each == all_users[0] for each in all_users) else []

    constant = {option: value for option in ("title", "url") if not fields(option, value := getattr(own, option))}
    return Marker(
        user=user if own.user is not None else None,
        error=own.error,
        cancellable=own.cancellable,
        weight=own.weight,
        **constant,
    )


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
