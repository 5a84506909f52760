"""What a task's message says of it: whose it is, to which job it belongs, which attempt it is.

https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_notify.events import MAX_SAFE_INTEGER, TaskEvent, check_key, clean_text
from celery_notify.marked import called_many_times
from celery_notify.marker import UNSET, check_users, context_user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_notify.marker import Call, Marker
    from celery_notify.progress import Run

logger = logging.getLogger(__name__)

#: Headers of ours: whose the task is (an id, several, or None to stop the inheritance), its job, and, where the message
#: carries on a task under its id, what that task was: see `carry_on`.
USER, JOB, AGAIN = "notify_user", "notify_job", "notify_again"


def users_of(marker: Marker | None, call: Call | None, headers: Mapping[str, Any], inherited: list[str]) -> list[str]:
    """Return whose a task is, as `named_users` does; what is wrong is logged, and the task is nobody's."""
    try:
        return named_users(marker, call, headers, inherited)
    except Exception as error:  # noqa: BLE001 - a callable of the application's may raise anything
        logger.error("Whose a task is cannot be told, it is shown to nobody: %s", error)  # noqa: TRY400
        return []


def named_users(
    marker: Marker | None, call: Call | None, headers: Mapping[str, Any], inherited: list[str]
) -> list[str]:
    """Return whose a task is, by what says so first: its argument, the caller's header, then what is inherited.

    Raises ValueError for what is no user's id, and whatever a callable of the application's raises.
    """
    if marker is not None and call is not None and (users := marker.users(call)) is not None:
        return users
    return check_users(headers[USER]) if USER in headers else inherited


def inherited_users(parent: Run | None) -> list[str]:
    """Return whose a task is by where it is started: in a block of notify_user(), else by its parent."""
    if (user := context_user()) is not UNSET:
        return check_users(user)
    return parent.users if parent is not None else []


def job_of(headers: Mapping[str, Any]) -> str | None:
    """Return the job that a message says its task belongs to, None for nothing, or for what is no job's name."""
    job = headers.get(JOB)
    try:
        return None if job is None else check_key(job)
    except ValueError:
        return None


def carry_on(headers: dict[str, Any], run: Run) -> None:
    """Write into a message that it carries on the task of `run` under its id: the next attempt, to the same people.

    What runs next may be no marked task, such as the one with which Celery ends a task replaced by a group; its title
    and URL are then those of the task that people know.
    """
    headers.update({USER: run.users, JOB: run.event.job_id} if run.users else {})
    told = {"task": run.event.task, "title": run.event.title, "url": run.url} if run.shown else {}
    headers[AGAIN] = {"id": run.event.task_id, "attempt": run.event.attempt + 1, **told}


def again_of(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `carry_on` wrote for this very task, {} for nothing: a copied header says nothing of another one."""
    again = headers.get(AGAIN)
    return again if isinstance(again, dict) and again.get("id") == str(headers["id"]) else {}


def url_of(again: Mapping[str, Any]) -> str | None:
    """Return the URL of the task that is carried on, None for nothing, or for what is not a whole one."""
    url = again.get("url")
    return url if isinstance(url, str) and url == clean_text(url) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) and 0 <= value <= MAX_SAFE_INTEGER else 0


def describe(marker: Marker | None, call: Call, about: Mapping[str, Any]) -> TaskEvent | None:
    """Return what is the same in all events of one attempt; `about` are the message's headers, or the like.

    None, and an error is logged, for a task that cannot be shown: its marker's title cannot be filled from the call.
    One that was brought about by another is shown without: people may know it as a step to come, and wait for its end.
    """
    known = again_of(about) if marker is None else {}
    called = called_many_times(about["task"], call.kwargs)
    try:
        title = marker.filled_title(call) if marker else clean_text(_text(known.get("title")))
    except ValueError as error:
        title, has_parent = None, about.get("parent_id") is not None
        shown = "without a title" if has_parent else "to nobody"
        logger.error("Task %s (%s) is shown %s: %s", about["task"], about["id"], shown, error)  # noqa: TRY400
        if not has_parent:
            return None
    name = clean_text(_text(known.get("task"))) or (about["task"] if called is None else called.name)
    more = {"weight": marker.weight, "cancellable": bool(marker.cancellable)} if marker is not None else {}
    return describe_unshown(about, task=name, title=title, **more)


def describe_unshown(about: Mapping[str, Any], **more: Any) -> TaskEvent:
    """Return what is known of a task whether or not it is shown: those that it starts have some of it."""
    known = {
        "task_id": str(about["id"]),  # Celery takes a UUID as well
        "task": about["task"],
        "state": "PENDING",
        "attempt": max(_number(again_of(about).get("attempt")), _number(about.get("retries")) + 1),
        "job_id": _text(about.get(JOB)),
        "root_id": _text(about.get("root_id")),
        "parent_id": _text(about.get("parent_id")),
        "group_id": _text(about.get("group")),
    }
    return TaskEvent(**{**known, **more})


def job_id(headers: Mapping[str, Any], embed: Mapping[str, Any], args: Sequence[Any] = ()) -> str:
    """Return what names all that a person starts with one call: its outermost group, else its first task.

    Each member of a group is a root of its own to Celery, so root_id does not. From the end of a chain (its tail is
    stored in reverse) the way leads outwards through the chords it is part of. What waits for a chord's members, where
    the result backend cannot count them, has their group and the chord's body as its arguments.
    """
    tail = embed.get("chain") or []
    group = _outermost_group(tail[0]) if tail else headers.get("group")
    chord = embed.get("chord")
    if headers.get("task") == "celery.chord_unlock":
        group, chord = args[:2]
    if chord:
        group = _outermost_group(chord) or group
    return str(group or headers.get("root_id") or headers["id"])


def parts_of(signature: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any], Mapping[str, Any]]:
    """Return what a signature is, such as "chain" or None for a single task, its keyword arguments and its options."""
    return signature.get("subtask_type"), signature.get("kwargs") or {}, signature.get("options") or {}


def _outermost_group(signature: Mapping[str, Any]) -> str | None:
    """Return the outermost group of which a signature is the end of a member.

    What is inside says it best: Celery gives a chord's body the id of the chord's own group, but not its tasks.
    """
    kind, kwargs, options = parts_of(signature)
    end = None
    if kind == "chord":
        end = kwargs.get("body")
    elif kind in {"chain", "group"} and kwargs.get("tasks"):
        end = list(kwargs["tasks"])[-1]
    group = _outermost_group(end) if end else None
    if kind == "group" and group == options.get("task_id"):
        group = None  # it is only in this one
    group = group or options.get("group_id")
    for following in [*(options.get("chain") or [])[:1], *([options["chord"]] if options.get("chord") else [])]:
        group = _outermost_group(following) or group
    return group


def retry_time(when: object) -> str | None:
    """Return a time in RFC 3339 from what a Retry says: a moment, or seconds from now."""
    if isinstance(when, int | float):
        when = datetime.now(UTC) + timedelta(seconds=when)
    if not isinstance(when, datetime):
        return None
    moment = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
