"""What Celery's signals say, told to people. The only module that names a signal.

A receiver runs inside Celery: it never raises and never waits for Redis. The one wait is at a task's end, bounded, so
that its last event is out before the child takes its next task.

https://docs.celeryq.dev/en/stable/userguide/signals.html
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from celery import bootsteps, signals
from celery.app.task import Context
from celery.exceptions import Reject, WorkerShutdown, WorkerTerminate
from celery.local import Proxy
from celery.worker.state import active_requests

from celery_notify import cancel, config, liveness, plan, publisher, transport
from celery_notify.events import FAILED_STATES, FINAL_STATES, clean_text, encode
from celery_notify.marked import apps, check_markers, check_when_registered, marker_for, marker_of, task_named
from celery_notify.marker import FAILED, Call, Marker, check_users
from celery_notify.message import (
    JOB,
    USER,
    again_of,
    carry_on,
    describe,
    describe_unshown,
    inherited_users,
    job_id,
    job_of,
    named_users,
    retry_time,
    url_of,
    users_of,
)
from celery_notify.progress import Run, current_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery import Celery, Task

    from celery_notify.events import State

logger = logging.getLogger(__name__)

#: What waits for a chord's tasks where the result backend cannot count them.
CHORD_UNLOCK = "celery.chord_unlock"
#: What a worker's main process has received and not let go of, by task id.
_received: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def init_app(app: Celery) -> None:
    """Show the marked tasks of a Celery application to their users. Call it beside the application; idempotent.

    Raises ConfigurationError for a setting that cannot be used. Settings that are made later are read when the first
    event is published, and before a worker starts.
    """
    if isinstance(app, Proxy):  # celery.current_app
        app = app._get_current_object()  # noqa: SLF001
    reference = weakref.ref(app)
    config.announce("celery", lambda: _configuration(reference()))
    transport.check(config.settings())
    if app in apps:
        return
    apps.add(app)
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"celery_notify.{receiver.__name__}")
    app.steps["worker"].add(CheckBeforeStart)
    check_when_registered(app)


class CheckBeforeStart(bootsteps.Step):
    """Keeps a worker from starting with a setting or a marker that cannot be used.

    From then on the process is a worker's main process, and what it forks its children.
    """

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        transport.check(config.settings())
        check_markers(parent.app)
        liveness.begin(_active_tasks)
        cancel.begin(parent)


def _active_tasks() -> list[str]:
    """Return the ids of the tasks that run in this worker's pool, as `inspect active` shows them."""
    while True:
        try:
            return [str(request.id) for request in tuple(active_requests)]
        except RuntimeError:  # it has changed meanwhile, in another thread
            continue


def _configuration(app: Celery | None) -> tuple[Mapping[str, object], str | None]:
    """Return Celery's configuration, and the URL of its broker or result backend if that is Redis."""
    if app is None:
        return {}, None
    namespace = f"{app.namespace}_".lower() if app.namespace else ""  # type: ignore[attr-defined]
    named = {name.lower().removeprefix(namespace).removeprefix("celery_"): name for name in app.conf}
    ours = {short: app.conf[name] for short, name in named.items() if short.startswith(config.CELERY_PREFIX)}
    for setting in ("broker_url", "result_backend"):
        url = app.conf.get(setting)
        first = (url[0] if isinstance(url, list | tuple) and url else url) or ""
        if isinstance(first, str) and first.startswith(("redis://", "rediss://", "redis+socket://")):
            return ours, _without_celery_forms(first.split(";")[0])
    return ours, None


def _without_celery_forms(url: str) -> str:
    """Return the URL as redis-py has it: kombu says redis+socket:// and virtual_host, and has options of its own."""
    if url.startswith("redis+socket://"):
        url = url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    base, _, query = url.partition("?")
    kept = [
        (name, value.removeprefix("CERT_").lower() if name == "ssl_cert_reqs" else value)
        for name, value in parse_qsl(query)
        if name == "db" or name.startswith("ssl_")
    ]
    return f"{base}?{urlencode(kept)}" if kept else base


def _harmless(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep what goes wrong here from the task."""

    @functools.wraps(receiver)
    def harmless(*args: Any, **kwargs: Any) -> None:
        try:
            receiver(*args, **kwargs)
        except Exception:
            logger.exception("celery_notify: %s failed, the task goes on", receiver.__name__)

    return harmless


# --- whose a task is, and what is known of it -----------------------------------------------------------------------


def _about(task: Task[..., Any], request: Any) -> dict[str, Any]:
    """Return a request's headers as they stood in its message."""
    own = {name: getattr(request, name, None) for name in ("id", "retries", "root_id", "parent_id", "group")}
    return {**(request.headers or {}), **own, "task": task.name}


def _run_of(task: Task[..., Any], request: Any) -> Run:
    """Return the run that a request is: the current one, or in a worker's main process one made from the request."""
    run = current_run.get()
    if run is not None and run.event.task_id == str(request.id):
        return run
    return _make_run(task, request, parent=None)


def _make_run(task: Task[..., Any], request: Any, *, parent: Run | None) -> Run:
    call = Call(task.run, tuple(request.args or ()), request.kwargs or {})
    marker = marker_for(task, call.kwargs)
    about = _about(task, request)
    users = users_of(marker, call, about, inherited_users(parent))
    inherited = parent.event.job_id if parent and parent.users else None
    about[JOB] = job_of(about) or inherited or request.root_id or request.id
    embed = {name: value for name in _FOLLOWING if (value := getattr(request, name, None))}
    again = again_of(about)
    event = describe(marker, call, about) if users and (marker is not None or "task" in again) else None
    if event is None:
        return Run(describe_unshown(about), users, shown=False, embed=embed, previous=parent)
    url = marker.filled_url(call) if marker is not None else url_of(again)
    cancellable = marker is not None and marker.cancellable
    return Run(event, users, shown=True, url=url, cancellable=cancellable, embed=embed, previous=parent)


#: What Celery has in a message, and in a request, of the tasks that follow.
_FOLLOWING = ("callbacks", "chain", "chord")


def _tell(run: Run, state: State, **fields: Any) -> None:
    """Tell a run's users how it ends; that it has begun, or how far it is, is told no more."""
    if run.shown:
        run.begun = True
        publisher.current().leave(run)
        publisher.current().put(publisher.publications_of(run, state, **fields))
    if state in FINAL_STATES and state != "SUCCESS" and run.users and run.embed:
        _close(run, failed=state in FAILED_STATES)


def _close(run: Run, *, failed: bool) -> None:
    """Tell the end of all that would have followed a run: Celery will not publish it, and gives no signal for it.

    That is REVOKED. But where nobody sees the task that has failed, the first one of which they know has, in their
    eyes; and so has a task that was replaced by others.
    """
    unseen = failed and not run.shown
    for step in plan.steps(run.embed, run.users):
        event = plan.event_of(step, run.event.job_id or run.event.task_id)
        if not step.users or event is None:
            continue
        if unseen or (failed and step.carries_on):
            event = msgspec.structs.replace(event, state="FAILURE", error=FAILED)
            unseen = False
        else:
            event = msgspec.structs.replace(event, state="REVOKED")
        publisher.current().put(publisher.publications(step.users, event))


# --- receivers ------------------------------------------------------------------------------------------------------


@_harmless
def before_task_publish(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
    """Write into the message whose the task is, and to which job it belongs."""
    if "id" not in headers:  # task protocol 1 has no headers
        return
    parent = _parent_of(headers)
    task = task_named(sender)
    args, kwargs, embed = body
    call = Call(task.run, tuple(args), kwargs) if task is not None else None
    marker = marker_for(task, kwargs) if task is not None else None
    users = users_of(marker, call, headers, inherited_users(parent))
    if parent is not None and not plan.goes_on(parent.embed, str(headers["id"])):
        own = parent.event.task_id
        for step in plan.steps(_embedded(sender, args, embed), None):
            # Task.replace gives it to the last task of a chain, and to a group's `celery.accumulate`.
            if step.id == own:
                carry_on(step.signature["options"].setdefault("headers", {}), parent)
                parent.handed_on = True
        if str(headers["id"]) == own:
            carry_on(headers, parent)
            parent.handed_on = True
    if users:
        headers[USER] = users[0] if len(users) == 1 else users
        inherited = parent.event.job_id if parent is not None and parent.users else None
        headers[JOB] = job_of(headers) or inherited or job_id(headers, embed, args)
        plan.settle_body(embed, users, headers[JOB], group=headers.get("group"))
    elif USER in headers:  # of somebody whom the argument rules out, or of nobody that could be told
        headers[USER] = None


def _embedded(sender: str, args: Sequence[Any], embed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a message brings along of what follows.

    What waits for a chord's tasks is published before them, and has what follows them as an argument.
    """
    return {"chord": args[1]} if sender == CHORD_UNLOCK else embed


def _parent_of(headers: Mapping[str, Any]) -> Run | None:
    """Return the run in which a task is published: also that of a lost child, for which the main process does it."""
    request = None if current_run.get() is not None else _received.get(str(headers.get("parent_id")))
    task = task_named(request.type) if request is not None else None
    return _make_run(task, request._context, parent=None) if task is not None and request else current_run.get()  # noqa: SLF001


@_harmless
def after_task_publish(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
    """Tell PENDING, once the broker has the message: a task it refused must not be waited for."""
    if "id" not in headers:
        return
    users = check_users(headers.get(USER))
    args, kwargs, embed = body
    task = task_named(sender)
    marker = marker_for(task, kwargs) if task is not None else None
    # What carries a task on, a retry or a replacement, is no new one.
    if users and marker is not None and task is not None and not again_of(headers):
        event = describe(marker, Call(task.run, tuple(args), kwargs), headers)
        if event is not None:
            publisher.current().put(publisher.publications(users, event))
    waits = sender == CHORD_UNLOCK
    if not users and not waits:
        return
    embed, parent = _embedded(sender, args, embed), current_run.get()
    known = parent.embed if parent is not None else {}
    if not any(embed.get(name) for name in _FOLLOWING) or plan.goes_on(known, str(headers["id"])):
        return
    for step in plan.new(embed, users, known=known, once=waits):
        event = plan.event_of(step, str(headers.get(JOB)))
        if users and step.users and event is not None:
            publisher.current().put(publisher.publications(step.users, event))


@_harmless
def task_prerun(sender: Task[..., Any], **_: Any) -> None:
    """Tell STARTED, and look after the task's progress."""
    request = sender.request  # is looked up each time
    if not request.is_eager:
        liveness.begin_task(str(request.id))
    if sender.app not in apps:
        return
    parent = current_run.get()
    current_run.set(None)  # whatever goes wrong below, nothing of this task is taken for its parent's
    run = _make_run(sender, request, parent=parent)
    current_run.set(run)
    if run.shown:
        publisher.current().look_after(run)  # first, so that it is signed for when it is told
        if not (run.cancellable and cancel.is_wanted(run, eager=request.is_eager)):
            publisher.current().begin(run)


@_harmless
def task_success(sender: Task[..., Any], result: Any, **_: Any) -> None:
    """Tell SUCCESS, with the result and the URL as far as the marker gives them."""
    run = current_run.get()
    if run is not None and run.shown and run.event.task_id == str(sender.request.id):
        _tell(run, "SUCCESS", url=run.url, result=_public_result(marker_of(sender), result, run))


def _public_result(marker: Marker | None, result: Any, run: Run) -> Any:
    """Return what the browser is sent of a result, None if that is nothing or cannot be sent."""
    if marker is None or marker.result is None:
        return None
    try:
        return json.loads(
            encode(marker.result(result))
        )  # as the browser will have it, whatever subclasses it was made of
    except Exception as error:  # noqa: BLE001 - a callable of the application's may raise anything
        logger.error("Task %s (%s): its result is left out: %s", run.event.task, run.event.task_id, error)  # noqa: TRY400
        return None


@_harmless
def worker_ready(**_: Any) -> None:
    """Begin to give signs of life; not before the pool's children are forked, which need no thread of ours."""
    publisher.current().wake()


@_harmless
def worker_process_shutdown(**_: Any) -> None:
    """Have what a pool's child said last go out: it ends without running what Python runs at exit."""
    publisher.hand_over()


@_harmless
def task_received(sender: Any, request: Any, **_: Any) -> None:
    """Remember, in a worker's main process, the request of a child that may be lost, or of what may be cancelled."""
    _received[request.id] = request
    if request.task.app in apps and (run := _cancellable_run(request)) is not None:
        cancel.hold(sender, request, run)


def _cancellable_run(request: Any) -> Run | None:
    """Return the run that a request will be, with what says who may cancel it; None if nobody may.

    What is wrong with it is logged where it runs.
    """
    task = request.task
    marker = marker_for(task, request.kwargs)
    if marker is None or not marker.cancellable:
        return None
    about = _about(task, request._context)  # noqa: SLF001
    about[JOB] = job_of(about) or request.root_id or request.id
    try:
        users = named_users(marker, Call(task.run, tuple(request.args), request.kwargs), about, [])
    except Exception:  # noqa: BLE001 - a callable of the application's may raise anything
        return None
    return Run(describe_unshown(about), users, shown=True, cancellable=marker.cancellable) if users else None


@_harmless
def task_failure(
    sender: Task[..., Any], task_id: str, exception: BaseException, args: Any, kwargs: Any, **_: Any
) -> None:
    """Tell FAILURE; in a worker's main process for a child that is gone."""
    request = sender.request
    if request.id != task_id and task_id in _received:
        request = Context(vars(_received[task_id]._context), args=args, kwargs=kwargs)  # noqa: SLF001
    if sender.app not in apps or request.id != task_id:
        return
    run = _run_of(sender, request)
    if isinstance(exception, Reject):  # its child tells this too, in another process: both must say the same
        _tell(run, "REJECTED")
    else:
        _tell(run, "FAILURE", error=_public_error(sender, exception))


def _public_error(task: Task[..., Any], exception: BaseException) -> str | None:
    return clean_text((marker_of(task) or Marker()).public_error(exception))


@_harmless
def task_retry(sender: Task[..., Any], request: Any, reason: Any = None, **_: Any) -> None:
    """Tell RETRY: why, and when it runs again.

    Without a reason it is none: a worker that is told to end at once, or has lost its broker, killed the task.
    """
    if sender.app not in apps or reason is None:
        return
    run = _run_of(sender, request)
    run.handed_on = True
    cause = getattr(reason, "exc", None) or reason
    _tell(run, "RETRY", error=_public_error(sender, cause), retry_at=retry_time(getattr(reason, "when", None)))


@_harmless
def task_postrun(sender: Task[..., Any], state: str | None, retval: Any, **_: Any) -> None:
    """Tell the endings that have no signal of their own, and wait for the last event to be out."""
    run = current_run.get()
    if run is None or sender.app not in apps or run.event.task_id != str(sender.request.id):
        return
    current_run.set(run.previous)
    if run.cancellable:
        cancel.leave(run)
    if run.users:
        _tell_other_end(run, sender, state, retval)
    if run.shown:
        publisher.current().leave(run)
        if not run.begun:  # no end was told either: by its beginning it is known who ran it, and does so no more
            publisher.current().put(publisher.publications_of(run, "STARTED"))
        publisher.current().flush(publisher.TASK_END)


def _tell_other_end(run: Run, task: Task[..., Any], state: str | None, retval: Any) -> None:
    if state is None and _ended_by_itself():
        _tell(run, "FAILURE", error=_public_error(task, SystemExit()))
    elif state == "IGNORED" and isinstance(retval, cancel.TaskCancelledError):
        _tell(run, "REVOKED")
        if not task.request.is_eager:
            cancel.mark_as_revoked(task)
    elif state == "IGNORED" and not run.handed_on:
        _tell(run, "IGNORED")
    elif state == "REJECTED" and not _comes_again(task, retval):
        _tell(run, "REJECTED")


def _comes_again(task: Task[..., Any], rejection: object) -> bool:
    """Say whether a rejected message is delivered once more: not one that was acknowledged before the run."""
    return bool(getattr(rejection, "requeue", False) and task.acks_late and not task.request.is_eager)


def _ended_by_itself() -> bool:
    """Say whether a task that ends in neither way called sys.exit(), where nobody else tells it.

    In a pool's child it may as well have been told to end: the worker's main process knows, and tells that. A worker
    that is told to end raises an exception of its own kind.
    """
    if not liveness.worker().is_here:
        return False
    greenlet = sys.modules.get("greenlet")  # a greenlet is ended from outside by an exception of this module
    from_outside = (WorkerShutdown, WorkerTerminate, *([greenlet.GreenletExit] if greenlet else []))
    return not isinstance(sys.exc_info()[1], from_outside)


@_harmless
def task_revoked(sender: Task[..., Any], request: Any, **_: Any) -> None:
    """Tell REVOKED: also for a task that expired."""
    if sender.app in apps:
        _tell(_run_of(sender, request), "REVOKED")


_RECEIVERS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (signals.before_task_publish, before_task_publish),
    (signals.after_task_publish, after_task_publish),
    (signals.worker_ready, worker_ready),
    (signals.worker_process_shutdown, worker_process_shutdown),
    (signals.task_received, task_received),
    (signals.task_prerun, task_prerun),
    (signals.task_success, task_success),
    (signals.task_failure, task_failure),
    (signals.task_retry, task_retry),
    (signals.task_postrun, task_postrun),
    (signals.task_revoked, task_revoked),
)
