"""What a message says is still to come of its canvas: the rest of a chain, the body of a chord, what is inside them.

Celery gives these steps their ids when it publishes the first message, so they can be told before they are published:
as PENDING, each under its own id; and as ended when a task before them ends in a way after which they never will be.

https://docs.celeryq.dev/en/stable/userguide/canvas.html
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_notify.marked import marker_for, task_named
from celery_notify.marker import UNKNOWN, Call
from celery_notify.message import AGAIN, JOB, USER, describe, job_of, named_users, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from celery_notify.events import TaskEvent

    Signature = Mapping[str, Any]

#: Whose a step is, None where that cannot be told before it is published: it depends on a result, or on which of a
#: group's tasks ends last.
Users = list[str] | None


class Step(NamedTuple):
    """A single task that is still to come, and whose it will be."""

    signature: Any
    users: Users
    #: Whether a result is put before its arguments.
    given: bool
    #: The group that it is directly in.
    group: str | None = None

    @property
    def id(self) -> str:
        """Return the id under which it will run."""
        return str(self.signature["options"]["task_id"])

    @property
    def carries_on(self) -> bool:
        """Whether it is the next attempt of a task that was replaced, and so no new one."""
        return AGAIN in (self.signature["options"].get("headers") or {})


def steps(embed: Mapping[str, Any], users: Users) -> list[Step]:
    """Return the marked and unmarked tasks that follow a task of `users`, in their order, each id once.

    A callback has an id only if its author gave it one: else it is known once it is published.
    """
    found: dict[str, Step] = {}
    with contextlib.suppress(RecursionError):  # nested more deeply than Python calls: told when it is published
        for step in _Reader().following(embed.get("callbacks"), embed.get("chain"), embed.get("chord"), users):
            found.setdefault(step.id, step)
    return list(found.values())


class _Reader:
    """Walks through signatures; `after` is whose the task is that was met last: what follows it is theirs."""

    def __init__(self) -> None:
        self.after: Users = None

    def following(self, callbacks: Any, chain: Any, chord: Any, users: Users) -> Iterator[Step]:
        """Yield what follows one task of `users`: a chain is stored in reverse."""
        for callback in [callbacks] if isinstance(callbacks, dict) else callbacks or ():
            yield from self.inside(callback, users, given=True)
        self.after = users
        for each in [*reversed(chain or ()), *([chord] if chord else ())]:
            yield from self.inside(each, self.after, given=True)

    def inside(self, signature: Signature, users: Users, *, given: bool, group: str | None = None) -> Iterator[Step]:
        """Yield the tasks of a signature that follows a task of `users`."""
        kind, kwargs, options = parts_of(signature)
        given = given and not signature.get("immutable")
        if kind == "chain":
            yield from self._in_turn(kwargs["tasks"], users, given=given)
        elif kind == "group":
            yield from self._at_once(kwargs["tasks"], users, given=given, group=options.get("task_id"))
        elif kind == "chord":
            header = kwargs["header"]  # a group once Celery has given it its id
            yield from self._at_once(
                header["kwargs"]["tasks"] if isinstance(header, dict) else header, users, given=given
            )
            if kwargs.get("body"):
                yield from self.inside(kwargs["body"], self.after, given=True)
        else:
            users = _users_of(signature, users, given=given)
            if options.get("task_id"):
                yield Step(signature, users, given, options.get("group_id") or group)
            self.after = users
        yield from self.following(options.get("link"), options.get("chain"), options.get("chord"), self.after)

    def _in_turn(self, tasks: Iterable[Signature], users: Users, *, given: bool) -> Iterator[Step]:
        self.after = users
        for each in tasks:
            yield from self.inside(each, self.after, given=given)
            given = True

    def _at_once(
        self, tasks: Iterable[Signature], users: Users, *, given: bool, group: str | None = None
    ) -> Iterator[Step]:
        ends = []
        for each in tasks:
            yield from self.inside(each, users, given=given, group=group)
            ends.append(self.after)
        self.after = ends[0] if ends and all(each == ends[0] for each in ends) else None


def _users_of(signature: Signature, before: Users, *, given: bool) -> Users:
    """Return whose a task will be, as it is decided when its message is published."""
    if before is None or (task := task_named(signature["task"])) is None:
        return None
    call = _call(task, signature, given=given)
    marker = marker_for(task, call.kwargs)
    if marker is not None and marker.asks(call, "user"):
        return None
    try:
        return named_users(marker, call, signature["options"].get("headers") or {}, before)
    except Exception:  # noqa: BLE001 - it is logged when its message is published, not by each of those before it
        return []


def _call(task: Any, signature: Signature, *, given: bool) -> Call:
    args = tuple(signature.get("args") or ())
    return Call(task.run, (UNKNOWN, *args) if given else args, signature.get("kwargs") or {})


def event_of(step: Step, job_id: str) -> TaskEvent | None:
    """Return what is the same in all that is told of a step; None for one that is not shown."""
    task = task_named(step.signature["task"])
    if task is None:
        return None
    call = _call(task, step.signature, given=step.given)
    marker = marker_for(task, call.kwargs)
    if marker is None and not step.carries_on:
        return None
    options = step.signature["options"]
    about = {
        **(options.get("headers") or {}),
        "id": step.id,
        "task": step.signature["task"],
        "root_id": options.get("root_id"),
        "group": step.group,
    }
    return describe(marker, call, {**about, JOB: job_of(about) or job_id})


def settle_body(embed: dict[str, Any], users: list[str], job_id: str, *, group: object = None) -> None:
    """Write into the body of a message's chord whose it will be, unless it says so itself.

    The task that ends last publishes the body. Where a chord's tasks are of several people, it would be anybody's of
    them, and none of them could be told before. It is theirs whose message was published first. `group` is the one that
    the message's own task is in.
    """
    tail = embed.get("chain") or []
    if tail and (tail[0].get("options") or {}).get("chord"):
        options = tail[0]["options"]
        body = _settled(options["chord"], users, (job_id, str(options.get("group_id"))))
        last = {**tail[0], "options": {**options, "chord": body}}
        embed["chain"] = [last, *tail[1:]]
    elif not tail and embed.get("chord"):
        embed["chord"] = _settled(embed["chord"], users, (job_id, str(group)))


def goes_on(embed: Mapping[str, Any], task_id: str) -> bool:
    """Say whether a task is the next one of the chain that another one's message holds: it brings nothing new."""
    chain = embed.get("chain") or []
    return bool(chain) and str((chain[-1].get("options") or {}).get("task_id")) == task_id


#: The steps that this process has told lately, and to whom: each task of a chord brings its body along.
_told: dict[tuple[str, ...], None] = {}
MOST_TOLD = 10_000


def new(embed: Mapping[str, Any], users: list[str], *, known: Mapping[str, Any], once: bool = False) -> list[Step]:
    """Return those steps of which nothing was told yet here, and that were not `known` from an earlier message.

    What was told anew would be refused by the history, at a price. `once` says that they are these people's, whoever
    brings them along later.
    """
    before = {step.id for step in steps(known, None)} if known else set()
    found = []
    for step in steps(embed, users):
        told = (step.id, *(() if once else step.users or ()))
        if not (step.id in before or step.carries_on or told in _told or (step.id,) in _told):
            _told[told] = None
            found.append(step)
    while len(_told) > MOST_TOLD:
        _told.pop(next(iter(_told)), None)
    return found


#: What this process has settled, by the job, the chord's group and the id of the body's first task. All three, since an
#: application may give its tasks ids of its own: another person's body may have the same one, and is not the first
#: person's. The body itself may be another one by then: a task that was replaced by a group has its id in the body of
#: that group.
_settled_headers: dict[tuple[str, ...], dict[str, Any]] = {}
MOST_BODIES = 1000


def _settled(body: Signature, users: list[str], chord: tuple[str, str]) -> Signature:
    first = None
    with contextlib.suppress(RecursionError):
        first = next((step.id for step in _Reader().inside(body, None, given=True)), None)
    if first is None:
        return body
    key = (*chord, first)
    if key not in _settled_headers:
        while len(_settled_headers) >= MOST_BODIES:
            _settled_headers.pop(next(iter(_settled_headers)), None)
        _settled_headers[key] = {USER: users, JOB: chord[0]}
    return _with_headers(body, _settled_headers[key])


def _with_headers(signature: Signature, headers: Mapping[str, Any]) -> Signature:
    """Return a copy whose first tasks have these headers, unless they have them already."""
    kind, kwargs, options = parts_of(signature)
    if kind == "chain":
        first, *rest = kwargs["tasks"]
        return {**signature, "kwargs": {**kwargs, "tasks": [_with_headers(first, headers), *rest]}}
    if kind == "group":
        return {**signature, "kwargs": {**kwargs, "tasks": [_with_headers(each, headers) for each in kwargs["tasks"]]}}
    if kind == "chord":
        header = kwargs["header"]
        if isinstance(header, dict):
            header = _with_headers(header, headers)
        else:
            header = [_with_headers(each, headers) for each in header]
        return {**signature, "kwargs": {**kwargs, "header": header}}
    return {**signature, "options": {**options, "headers": {**headers, **(options.get("headers") or {})}}}
