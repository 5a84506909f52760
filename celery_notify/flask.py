"""The blueprint: a user's stream, and the few endpoints beside it (PROTOCOL sections 3 and 4)."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response, current_app, request
from werkzeug.routing import BaseConverter

from celery_notify import config, events, guards, history, hub, lookout, script, sse, transport, wsgi
from celery_notify.events import Publication
from celery_notify.exceptions import ConfigurationError, TooManyStreamsError, TransportError
from celery_notify.page import Page

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from flask.blueprints import BlueprintSetupState
    from flask.typing import ResponseReturnValue

    from celery_notify.admission import Admission
    from celery_notify.config import Settings
    from celery_notify.events import Entry
    from celery_notify.guards import View
    from celery_notify.hub import Hub
    from celery_notify.transport import Transport

logger = logging.getLogger(__name__)

EXTENSION = "celery_notify"
#: How often a task that moves is told to be cancelled, before it is left at that it will be.
ATTEMPTS = 5
#: Sent with what never changes under its URL.
FOR_EVER = "public, max-age=31536000, immutable"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class KeyConverter(BaseConverter):
    """Takes all that is left of a path, as it is: a custom key may hold any character."""

    regex = "(?s:.+)"
    part_isolating = False


def create_blueprint(load_user: Callable[[], str | None]) -> Blueprint:
    """Return the blueprint; register it with a prefix: ``url_prefix="/notifications"``.

    `load_user` is called in each request and returns the id of the user who is logged in, None for nobody. There is no
    other way to say whose stream is opened. Raises ConfigurationError if it is not callable, and at registration for a
    setting that cannot be used.
    """
    if not callable(load_user):
        raise ConfigurationError(f"create_blueprint(load_user): expected a callable, got {load_user!r}")
    blueprint = Blueprint(EXTENSION, __name__)
    blueprint.record(_record)
    blueprint.record(functools.partial(_offer, load_user))

    def add(rule: str, view: View, *methods: str, **options: Any) -> None:
        """Add a view; other methods than its own are answered by us, since the application's answer is no JSON."""
        options |= {"methods": [*_METHODS], "provide_automatic_options": False}
        blueprint.add_url_rule(rule, view.__name__, guards.only(methods, view), **options)

    for_user = functools.partial(guards.for_user, load_user)
    add("/stream", for_user(guards.same_user(stream)), "GET", "HEAD")
    add("/tasks", for_user(tasks), "GET", "HEAD")
    one = f"/tasks/<{KeyConverter.__name__}:key>"
    add(one, for_user(guards.same_site(remove)), "DELETE", merge_slashes=False)
    add(f"{one}/cancel", for_user(guards.same_site(cancel)), "DELETE", "POST", merge_slashes=False)
    add("/client.js", client, "GET", "HEAD")
    add("/schema.json", schema, "GET", "HEAD")
    return blueprint


def _record(state: BlueprintSetupState) -> None:
    """Check the application's settings now, and make them the process's."""
    app = state.app
    app.url_map.converters[KeyConverter.__name__] = KeyConverter
    settings, before = config.settings(flask=app.config), config.settings()
    transport.check(settings)
    if config.is_announced("flask") and transport.world(settings) != transport.world(before):
        logger.warning(
            "A second application in this process has another Redis or key prefix: send(), tasks() and close_streams() "
            "follow the one that was registered last"
        )
    config.announce("flask", lambda: (app.config, None))


def _offer(load_user: Callable[[], Any], state: BlueprintSetupState) -> None:
    """Give the application's templates what they may call; of several registrations the last one's is called."""

    def tasks_now() -> tuple[str, bytes] | None:
        user = guards.who(load_user)
        return None if user is None else (guards.user_tag(user), lookout.answer(_settings(), user))

    page = Page(f"{state.name_prefix}.{state.name}".lstrip("."), tasks_now)
    state.app.context_processor(page.globals)


def _settings() -> Settings:
    """Return the application's settings, as they are at its first request, or when more became known since."""
    settings: Settings
    known, settings = current_app.extensions.get(EXTENSION, (None, None))
    if known != config.announced():
        settings = config.settings(flask=current_app.config)
        current_app.extensions[EXTENSION] = (config.announced(), settings)
    return settings


# --- views ----------------------------------------------------------------------------------------------------------


def stream(user: str) -> ResponseReturnValue:
    """Stream the user's events."""
    if request.method == "GET" and wsgi.would_hold_a_thread(request.environ):
        refusal = guards.error(
            HTTPStatus.BAD_REQUEST, "expected a GET without a body, without Upgrade, of HTTP/1", Connection="close"
        )
        refusal.call_on_close(functools.partial(wsgi.hang_up, request.environ))
        return refusal
    streams = hub.of(_settings())
    response = StreamResponse(streams, headers={**guards.PRIVATE, "X-Accel-Buffering": "no"})
    streams.wait_until_reached()
    try:
        admission = streams.admissions.admit(user)
    except TooManyStreamsError as refused:
        if refused.of_user:
            return guards.error(HTTPStatus.TOO_MANY_REQUESTS, str(refused), Retry_After=str(guards.RETRY_AFTER))
        return guards.unavailable(str(refused))
    if request.method == "HEAD":
        admission.release()
        return response
    response.admission = admission
    # A browser that comes back sends the header, which is newer than what the URL was made with.
    response.last_id = events.parse_id(request.headers.get("Last-Event-ID", request.args.get("last_event_id")))
    return response


class StreamResponse(Response):
    """A response whose connection the hub takes over once the application is done with it."""

    default_mimetype = None
    automatically_set_content_length = False

    def __init__(self, streams: Hub, headers: dict[str, str]) -> None:
        super().__init__(headers=headers, content_type=sse.CONTENT_TYPE)
        self._streams = streams
        self.admission: Admission | None = None
        self.last_id = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Begin the stream: only now are the headers and cookies of the application complete."""
        admission, self.admission = self.admission, None
        if admission is None:
            return super().__call__(environ, start_response)
        if self.status_code != HTTPStatus.OK:  # the application has made another answer of it
            admission.release()
            return super().__call__(environ, start_response)
        adopted = False

        def adopt(sock: socket.socket, head: bytes, chunked: bool) -> None:  # noqa: FBT001 - as wsgi calls it
            nonlocal adopted
            adopted = True
            self._streams.adopt(sock, admission, head=head, chunked=chunked, last_id=self.last_id)

        try:
            headers = list(self.get_wsgi_headers(environ))
            body = wsgi.open_stream(environ, start_response, self.status, headers, adopt)
        except BaseException:
            if not adopted:  # the error's traceback may hold the place for long
                admission.release()
            raise
        self.close()  # what the application wants to do when it is done with the response
        return body


def tasks(user: str) -> ResponseReturnValue:
    """Return all that a stream would say, for those who poll."""
    after = events.parse_id(request.args.get("after"))
    headers = {**guards.PRIVATE, "Cache-Control": "no-cache, private", "Celery-Notify-User": guards.user_tag(user)}
    answer = lookout.answer(_settings(), user, after=after)
    return _conditional(Response(answer, headers=headers, content_type="application/json"))


def remove(user: str, key: str) -> ResponseReturnValue:
    """Remove what has ended from the user's history, in all open tabs."""
    removal = Publication(user=user, event=events.REMOVED, key=key, data=events.encode({"key": key}))
    [answer] = transport.connect(_settings()).publish([removal])
    if isinstance(answer, TransportError):
        raise answer
    if isinstance(answer, Exception):  # Redis itself refuses, which is nothing that a person could mend
        logger.error("An entry cannot be removed: %s", answer)
        return guards.unavailable("the entry cannot be removed now")
    if answer < 0:
        return guards.error(HTTPStatus.NOT_FOUND, "no such task")
    if answer == 0:
        return guards.error(HTTPStatus.CONFLICT, "the task has not ended")
    return Response(status=HTTPStatus.NO_CONTENT, headers=guards.PRIVATE)


class _Task(msgspec.Struct, frozen=True):
    """What decides whether a task can be cancelled."""

    task_id: str
    state: str
    cancellable: bool = False
    cancelling: bool = False
    job_id: str | None = None
    job: events.JobNumbers | None = None

    @property
    def ended(self) -> bool:
        return self.state in events.FINAL_STATES


_task_decoder = msgspec.json.Decoder(_Task)


def cancel(user: str, key: str) -> ResponseReturnValue:
    """Have a task cancelled, or all tasks of a job; those who run them look for it (cancel.py)."""
    if request.method == "DELETE":  # of an entry whose key ends like this path
        return remove(user, f"{key}/cancel")
    source = transport.connect(_settings())
    found = _named(source, user, key)
    if not found:
        return guards.error(HTTPStatus.NOT_FOUND, "no such task")
    # Of a job's tasks that only wait some may have no entry: whether they can be cancelled is seen when they begin.
    numbers = [task.job for _, task in found if task.job is not None and task.job_id == key]
    hidden = bool(numbers) and numbers[-1].hidden > 0
    if all(task.ended for _, task in found) and not hidden:
        return guards.error(HTTPStatus.CONFLICT, "the task has ended")
    if not any(task.cancellable for _, task in found if not task.ended) and not hidden:
        return guards.error(HTTPStatus.CONFLICT, "the task cannot be cancelled")
    source.cancel([key], user)  # first: a person who is told of it must get it, whatever becomes of this process
    for _ in range(ATTEMPTS):
        untold = [entry for entry, task in found if task.cancellable and not (task.cancelling or task.ended)]
        answers = source.publish([events.cancelling(entry) for entry in untold])
        if all(transport.unwrap(answer) for answer in answers):
            break
        found = _named(source, user, key)  # it has moved meanwhile
    return guards.json_response({"state": "cancelling"}, status=HTTPStatus.ACCEPTED, headers=guards.PRIVATE)


def _named(source: Transport, user: str, key: str) -> list[tuple[Entry, _Task]]:
    """Return the entries of the task, or of the tasks of the job, that has this id, with what they say.

    Only this user's history is read, and all of it: another's task costs and says the same as one that is not there.
    """
    found = []
    for entry in history.read(source, user).entries:
        if entry.event in events.OF_TASKS:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):  # what is no task's event is not this one
                task = _task_decoder.decode(entry.data)
                if key in {task.task_id, task.job_id}:
                    found.append((entry, task))
    return found


def client() -> ResponseReturnValue:
    """Return the browser client. Under a URL that says which one is meant a browser need never ask for it again."""
    found = script.load()
    zipped = request.accept_encodings["gzip"] > 0
    headers = {
        "Cache-Control": FOR_EVER if request.args.get("v") == found.tag else "no-cache",
        "Vary": "Accept-Encoding",
        **({"Content-Encoding": "gzip"} if zipped else {}),
    }
    content = found.gzipped if zipped else found.content
    response = Response(content, headers=headers, content_type="text/javascript; charset=utf-8")
    response.set_etag(f"{found.tag}-gzip" if zipped else found.tag)
    return _conditional(response)


def schema() -> ResponseReturnValue:
    """Return the JSON Schema of a task event."""
    content = json.dumps(events.json_schema(), indent=2)
    headers = {"Cache-Control": "no-cache"}
    return _conditional(Response(content, headers=headers, content_type="application/schema+json"))


def _conditional(response: Response) -> Response:
    """Give the response an ETag if it has none; a reader who has it already is told just that."""
    response.add_etag()
    response.make_conditional(request)
    return response
