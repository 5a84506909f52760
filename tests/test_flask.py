"""The blueprint's views, through Flask's test client, with everything in memory.

What depends on a server is tested on each of them, in integration/.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import re
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from flask import Blueprint, Flask, Response, render_template_string, request
from werkzeug.serving import WSGIRequestHandler, make_server

import celery_notify
from celery_notify import events, publisher, script, transport
from celery_notify import flask as flask_module
from celery_notify.config import DEFAULT_REDIS_URL, Settings, announce
from celery_notify.events import Publication, TaskEvent
from celery_notify.exceptions import ConfigurationError
from celery_notify.flask import create_blueprint
from tests.support.event_stream import ClientStream, SocketStream, data_of
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from celery_notify.events import Entry

PREFIX = "/notifications"
MEMORY = {"CELERY_NOTIFY_REDIS_URL": "memory://"}


def make_app(load_user: Callable[[], Any] | None = None, **config: Any) -> Flask:
    app = Flask("tests")
    app.config.update({**MEMORY, **config})
    app.register_blueprint(create_blueprint(load_user or (lambda: request.headers.get("X-User"))), url_prefix=PREFIX)
    return app


class Web:
    """An application, and short ways to ask it."""

    def __init__(self, app: Flask, user: str) -> None:
        self.app = app
        self.user = user

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def ask(
        self, method: str, path: str, *, user: str | None = "", headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Ask as the test's user; `user=None` asks as nobody."""
        named = self.user if user == "" else user
        sent = {**({"X-User": named} if named is not None else {}), **(headers or {})}
        return self.client.open(PREFIX + path, method=method, headers=sent)

    def get(self, path: str, **more: Any) -> TestResponse:
        return self.ask("GET", path, **more)

    def delete(self, key: str, **more: Any) -> TestResponse:
        return self.ask("DELETE", f"/tasks/{quote(key, safe='')}", **more)

    def cancel(self, key: str, **more: Any) -> TestResponse:
        return self.ask("POST", f"/tasks/{quote(key, safe='')}/cancel", **more)

    @contextlib.contextmanager
    def stream(self, path: str = "/stream", *, user: str = "", **headers: str) -> Iterator[ClientStream]:
        sent = {"X-User": user or self.user, **headers}
        stream = ClientStream(self.client.get(PREFIX + path, headers=sent, buffered=False))
        try:
            yield stream
        finally:
            stream.close()

    def publish(self, *publications: Publication) -> list[Any]:
        """Publish into the history that the application reads."""
        config = {name: value for name, value in self.app.config.items() if name.startswith("CELERY_NOTIFY_")}
        found = Settings(**{name.removeprefix("CELERY_NOTIFY_").lower(): value for name, value in config.items()})
        return transport.connect(found).publish(publications)

    def task(self, key: str, state: str, user: str = "", **fields: Any) -> list[Any]:
        event = TaskEvent(task_id=key, task="shop.bill", state=state, attempt=1, **fields)  # type: ignore[arg-type]
        return self.publish(events.publication(user or self.user, event))

    def note(self, key: str, data: object = None, user: str = "") -> list[Any]:
        return self.publish(events.custom(user or self.user, "note", data, key=key))


@pytest.fixture
def web(user: str) -> Web:
    return Web(make_app(), user)


class KeepingAlive(WSGIRequestHandler):
    """Werkzeug's handler, as `flask run` uses it, with HTTP/1.1."""

    protocol_version = "HTTP/1.1"


@contextlib.contextmanager
def served(app: Flask) -> Iterator[tuple[str, int]]:
    """Serve an application by a server that gives its sockets away, with one thread; give its address."""
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=KeepingAlive)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ("127.0.0.1", server.port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def open_stream(address: tuple[str, int], user: str) -> SocketStream:
    return SocketStream(address, f"{PREFIX}/stream", headers=[("X-User", user)])


def ask_all(address: tuple[str, int], user: str, path: str) -> bytes:
    """Return all bytes of the answer. Raises TimeoutError if they do not end."""
    with socket.create_connection(address, timeout=10 * SLOWNESS) as connection:
        head = f"GET {PREFIX}{path} HTTP/1.1\r\nHost: h\r\nX-User: {user}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


# Making and registering it


@pytest.mark.parametrize("load_user", [None, "ada", 7])
def test_without_a_way_to_load_the_user_there_is_no_blueprint(load_user: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"create_blueprint\(load_user\): expected a callable"):
        create_blueprint(load_user)


def test_what_the_application_does_when_a_response_is_done_is_done_for_a_stream(web: Web) -> None:
    done = []

    @web.app.after_request
    def remember(response: Response) -> Response:
        response.call_on_close(lambda: done.append(request.path))
        return response

    with web.stream() as stream:
        stream.ready()
        assert done == [f"{PREFIX}/stream"]


@pytest.mark.parametrize("nobody", [None, False, ""])
def test_nobody_is_whoever_is_not_logged_in(nobody: object) -> None:
    answer = make_app(lambda: nobody).test_client().get(f"{PREFIX}/tasks")

    assert (answer.status_code, answer.json) == (401, {"error": "not logged in"})


def test_a_celery_application_that_is_known_later_is_known_all_the_same() -> None:
    """Such as one whose module is imported in a view, to break a circle."""
    app = make_app(CELERY_NOTIFY_REDIS_URL=None, CELERY_NOTIFY_MAX_STREAMS=7)
    app.config["CELERY_NOTIFY_REDIS_URL"] = None
    with app.app_context():
        assert flask_module._settings().redis_url == DEFAULT_REDIS_URL  # noqa: SLF001
        announce("celery", lambda: ({}, "redis://broker/5"))
        assert flask_module._settings().redis_url == "redis://broker/5"  # noqa: SLF001
        assert flask_module._settings().max_streams == 7  # noqa: SLF001


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"CELERY_NOTIFY_HEARTBEAT": "soon"}, "CELERY_NOTIFY_HEARTBEAT: expected a number of seconds above 0"),
        ({"CELERY_NOTIFY_HARTBEAT": 3}, "CELERY_NOTIFY_HARTBEAT"),
        ({"CELERY_NOTIFY_REDIS_URL": "redis://:s3cret@h/0?option=1"}, r"redis://\*\*\*@h/0\?option=1.*option"),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error_at_registration(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make_app(**config)


def test_settings_that_are_made_after_registration_count(user: str) -> None:
    app = make_app()
    app.config["CELERY_NOTIFY_HISTORY_SIZE"] = 2
    web = Web(app, user)
    for key in "abc":
        web.note(key)

    assert web.get("/tasks").json["keys"] == ["b", "c"]  # type: ignore[index]


def test_an_application_takes_over_nothing_of_another_one(caplog: pytest.LogCaptureFixture) -> None:
    """What separates two applications on one Redis may be the prefix alone, which only one of them sets."""
    one = make_app()
    assert not caplog.records
    make_app(CELERY_NOTIFY_KEY_PREFIX="other", CELERY_NOTIFY_MAX_STREAMS=1)
    assert "follow the one that was registered last" in caplog.text

    with one.app_context():
        found = flask_module._settings()  # noqa: SLF001

    assert (found.key_prefix, found.max_streams) == ("celery-notify", 10000)


def test_two_applications_have_settings_of_their_own(user: str) -> None:
    one, two = Web(make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1), user), Web(make_app(), user)
    with one.stream() as first, two.stream() as second, two.stream() as third:
        for stream in (first, second, third):
            stream.ready()

        assert one.get("/stream").status_code == 429


def test_the_library_uses_the_applications_settings_too(user: str) -> None:
    web = Web(make_app(), user)
    celery_notify.send(user, "note", 7, key="k")
    assert publisher.current().flush(10)

    assert [event["data"]["data"] for event in web.get("/tasks").json["events"]] == [7]  # type: ignore[index]


# Who may ask


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/stream"), ("GET", "/tasks"), ("DELETE", "/tasks/k"), ("POST", "/tasks/k/cancel")]
)
def test_nobody_gets_401_in_json(method: str, path: str, web: Web) -> None:
    web.note("k")

    answer = web.ask(method, path, user=None)

    assert (answer.status_code, answer.json) == (401, {"error": "not logged in"})
    assert answer.headers["Cache-Control"] == "no-store, private"


@pytest.mark.defends("S11")
def test_the_user_is_asked_for_in_each_request(user: str) -> None:
    logged_in = [user]
    web = Web(make_app(lambda: logged_in[0] if logged_in else None), user)
    assert web.get("/tasks").status_code == 200

    logged_in.clear()

    assert web.get("/tasks").status_code == 401
    assert web.get("/stream").status_code == 401


@pytest.mark.defends("S8")
@pytest.mark.parametrize("parameter", ["user", "user_id", "channel", "token"])
def test_no_parameter_says_whose_stream_it_is(parameter: str, web: Web, user: str) -> None:
    web.note("k")

    answer = web.get(f"/tasks?{parameter}={user}", user="somebody else")

    assert answer.json["keys"] == []  # type: ignore[index]


def test_a_user_may_be_a_number(user: str) -> None:
    number = int(user.rpartition(" ")[2], 16)
    web = Web(make_app(lambda: number), str(number))
    web.note("k")

    assert web.get("/tasks").json["keys"] == ["k"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/stream", "GET, HEAD"),
        ("/tasks", "GET, HEAD"),
        ("/tasks/k", "DELETE"),
        ("/tasks/k/cancel", "DELETE, POST"),  # the first for an entry whose key ends so
        ("/client.js", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET"])
def test_other_methods_are_refused_in_json(method: str, path: str, allowed: str, web: Web) -> None:
    if method in allowed:
        return
    answer = web.ask(method, path)

    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    assert answer.json == {"error": f"expected {allowed}, got {method}"}


@pytest.mark.defends("S9")
@pytest.mark.parametrize("path", ["/tasks", "/client.js", "/schema.json"])
def test_no_answer_is_for_other_origins(path: str, web: Web) -> None:
    answer = web.get(path, headers={"Origin": "https://evil.example"})

    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


# The stream


def test_the_stream_is_told_as_the_protocol_says(web: Web) -> None:
    web.task("t1", "STARTED")
    web.note("k", 1)
    with web.stream() as stream:
        caught_up = stream.ready()
        ready = stream.events[-1]
        web.task("t1", "SUCCESS")
        done = stream.until("task-done")[-1]

    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-store, private"
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["vary"] == "Cookie"
    assert not {"content-length", "etag"} & stream.headers.keys()
    assert [event.event for event in caught_up] == ["task-progress", "note"]
    assert data_of(ready) == {"keys": ["t1", "k"]}
    assert data_of(done)["state"] == "SUCCESS"


def test_a_reader_who_was_here_gets_what_is_new(web: Web) -> None:
    [first], _, [third] = web.note("a"), web.note("b"), web.note("c")

    for path, header, expected in (
        ("/stream", {"Last-Event-ID": str(first)}, ["b", "c"]),
        (f"/stream?last_event_id={first}", {}, ["b", "c"]),
        (f"/stream?last_event_id={first}", {"Last-Event-ID": str(third)}, []),
        ("/stream", {"Last-Event-ID": str(third + 1)}, ["a", "b", "c"]),
        ("/stream", {"Last-Event-ID": "1 OR 1"}, ["a", "b", "c"]),
        ("/stream?last_event_id=-1", {}, ["a", "b", "c"]),
    ):
        with web.stream(path, **header) as stream:
            assert [data_of(event)["key"] for event in stream.ready()] == expected, (path, header)


@pytest.mark.defends("S11")
def test_a_stream_that_is_asked_for_another_user_is_refused_and_takes_no_place(user: str) -> None:
    """A tab that another person has left open; it may only be refused, the tag opens nothing."""
    web = Web(make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1), user)
    web.note("k", user=f"{user} too")
    mine, theirs = (web.get("/tasks", user=name).headers["Celery-Notify-User"] for name in (user, f"{user} too"))
    for tag in (theirs, "", "x", mine.upper()):
        for method in ("GET", "HEAD"):
            answer = web.ask(method, f"/stream?user_tag={tag}")
            assert answer.status_code == 403, tag
            assert answer.headers["Cache-Control"] == "no-store, private"
        assert web.get(f"/stream?user_tag={tag}").json == {"error": "another user is logged in"}
    assert web.ask("GET", f"/stream?user_tag={mine}", user=None).status_code == 401

    with web.stream(f"/stream?user_tag={mine}") as stream:
        stream.ready()
        assert data_of(stream.events[-1]) == {"keys": []}
        assert web.get(f"/stream?user_tag={theirs}").status_code == 403  # not 429


def test_head_says_what_get_would_and_opens_no_stream(web: Web) -> None:
    for _ in range(30):
        answer = web.ask("HEAD", "/stream")
        assert (answer.status_code, answer.data) == (200, b"")
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"


@pytest.mark.defends("S12")
def test_more_streams_than_a_user_may_have_are_429(user: str) -> None:
    web = Web(make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=2), user)
    with web.stream() as one, web.stream() as two:
        one.ready()
        two.ready()
        answer = web.get("/stream")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        assert set(answer.json or ()) == {"error"}
        with web.stream(user=f"{user} too") as other:
            other.ready()


@pytest.mark.defends("S12")
def test_more_streams_than_the_process_may_have_are_503(user: str) -> None:
    web = Web(make_app(CELERY_NOTIFY_MAX_STREAMS=1), user)
    with web.stream() as one:
        one.ready()
        for name in (user, f"{user} too"):
            answer = web.get("/stream", user=name)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_stream_that_the_application_replaced_takes_no_place(user: str) -> None:
    app = make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1)
    web = Web(app, user)

    @app.after_request
    def refuse(response: Response) -> Response:
        return Response(status=418) if "refuse" in request.args else response

    for _ in range(5):
        assert web.get("/stream?refuse").status_code == 418
    with web.stream() as stream:
        stream.ready()


@pytest.mark.defends("S12")
@pytest.mark.parametrize("status", [204, 304, 500, 503])
def test_what_the_application_made_another_answer_of_is_no_stream_and_takes_no_place(status: int, user: str) -> None:
    """A body that never ends after such a status would be taken for the next answers."""
    app = make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1)

    @app.after_request
    def turn(response: Response) -> Response:
        response.status_code = status if "turn" in request.args else 200
        return response

    with served(app) as address:
        for _ in range(3):
            answer = ask_all(address, user, "/stream?turn")
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert answer.endswith(b"\r\n\r\n")
            assert (b"chunked" in answer) == (status >= 500), "expected only the server's own body, which is empty"
        with open_stream(address, user) as stream:
            stream.ready()


@pytest.mark.defends("S14")
def test_what_the_application_says_of_the_connection_is_not_told(user: str) -> None:
    app = make_app()

    @app.after_request
    def promise(response: Response) -> Response:
        response.headers.update({"Content-Length": "5", "Connection": "keep-alive", "X-Application": "tests"})
        return response

    with served(app) as address, open_stream(address, user) as stream:
        stream.ready()
        assert "content-length" not in stream.headers
        assert (stream.headers["connection"], stream.headers["transfer-encoding"]) == ("close", "chunked")
        assert stream.headers["x-application"] == "tests"


@pytest.mark.defends("S12")
def test_a_header_that_http_cannot_carry_is_an_error_that_takes_no_place(user: str) -> None:
    app = make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1)

    @app.after_request
    def name(response: Response) -> Response:
        if "name" in request.args:
            response.headers["X-Name"] = "наталья"
        return response

    web = Web(app, user)
    with pytest.raises(UnicodeEncodeError) as error:
        web.get("/stream?name")
    with web.stream() as stream:
        stream.ready()
    assert error.traceback, "expected what holds the traceback, as a log may, not to hold the place"

    with served(app) as address:
        for _ in range(3):
            assert ask_all(address, f"{user} too", "/stream?name").startswith(b"HTTP/1.1 500 ")
        with open_stream(address, f"{user} too") as stream:
            stream.ready()


@pytest.mark.defends("S12", "S14")
@pytest.mark.parametrize(
    "more", [{"CONTENT_LENGTH": "1"}, {"HTTP_TRANSFER_ENCODING": "chunked"}, {"HTTP_UPGRADE": "h2c"}]
)
def test_a_get_that_would_hold_a_thread_is_400_and_takes_no_place(more: dict[str, str], user: str) -> None:
    web = Web(make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1), user)
    ours, theirs = socket.socketpair()
    with ours, theirs, web.stream() as stream:
        stream.ready()
        environ = {"werkzeug.socket": ours, **more}
        answer = web.client.get(f"{PREFIX}/stream", headers={"X-User": user}, environ_overrides=environ)
        assert (answer.status_code, answer.headers["Connection"]) == (400, "close")
        assert set(answer.json or ()) == {"error"}


@pytest.mark.parametrize("more", [{"CONTENT_LENGTH": "1"}, {"HTTP_UPGRADE": "h2c"}])
def test_a_get_that_holds_a_thread_as_all_do_on_its_server_is_served(more: dict[str, str], web: Web) -> None:
    path, sent = f"{PREFIX}/stream", {"X-User": web.user}
    stream = ClientStream(web.client.get(path, headers=sent, environ_overrides=more, buffered=False))
    with stream:
        stream.ready()
        assert stream.status == 200


def test_before_redis_was_reached_a_stream_is_503(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_notify.hub.REACHED_WITHIN", 0.05)
    web = Web(make_app(CELERY_NOTIFY_REDIS_URL="redis://127.0.0.1:1/0"), user)

    for path in ("/stream", "/tasks"):
        answer = web.get(path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json == {"error": "notifications are not available now"}
    assert web.delete("k").status_code == 503
    assert web.cancel("k").status_code == 503


# The tasks


def test_the_tasks_say_all_that_a_stream_would(web: Web) -> None:
    web.task("t1", "STARTED", title="Bill")
    [second] = web.note("k", {"sum": 1})
    [third] = web.task("t1", "SUCCESS", title="Bill", result=[1])
    web.note("theirs", user=f"{web.user} too")

    answer = web.get("/tasks")

    found = answer.json or {}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-cache, private"
    assert answer.headers["Vary"] == "Cookie"
    assert found.keys() == {"tasks", "events", "keys", "last_event_id"}
    assert [(task["task_id"], task["state"], task["result"]) for task in found["tasks"]] == [("t1", "SUCCESS", [1])]
    [note] = found["events"]
    assert (note["id"], note["event"]) == (str(second), "note")
    assert (note["data"]["key"], note["data"]["data"]) == ("k", {"sum": 1})
    assert (found["keys"], found["last_event_id"]) == (["k", "t1"], str(third))


@pytest.mark.defends("S17")
def test_what_is_stored_is_told_as_it_stands(web: Web) -> None:
    """Python's own JSON refuses the long numbers, and writes the one after them as what is no JSON."""
    stored = ("[" * 90 + "]" * 90, "9" * 5000, "-" + "9" * 5000, "1e999", '"\\u2028"', "null")
    for number, text in enumerate(stored):
        web.publish(Publication(user=web.user, event="note", key=str(number), data=f'{{"data":{text}}}'))

    answer = web.get("/tasks")

    assert answer.status_code == 200
    assert answer.data.isascii()
    for text in stored:
        assert f'"data":{text},'.encode() in answer.data


def test_only_what_is_after_an_id_is_told_but_all_keys(web: Web) -> None:
    [first], [second] = web.note("a"), web.note("b")

    def told(after: object) -> list[str]:
        found = web.get(f"/tasks?after={after}").json or {}
        assert found["keys"] == ["a", "b"]
        return [event["data"]["key"] for event in found["events"]]

    assert told(first) == ["b"]
    assert told(second) == []
    assert told(second + 1) == told("x") == told("") == told(-1) == told(0) == ["a", "b"]


def test_what_has_not_changed_is_304(web: Web) -> None:
    web.note("a")
    tag = web.get("/tasks").headers["ETag"]

    unchanged = web.get("/tasks", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.data) == (304, b"")

    web.note("b")
    changed = web.get("/tasks", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


def test_each_answer_says_whose_it_is(web: Web) -> None:
    """Lists of two users may be the same, and have the same ETag."""
    names = (web.user, web.user, f"{web.user} too")
    answers = [web.get("/tasks", user=name) for name in names]
    tags = [answer.headers["Celery-Notify-User"] for answer in answers]
    assert tags[0] == tags[1] != tags[2]
    assert web.user not in str(answers[0].headers)

    for name, answer, tag in zip(names, answers, tags, strict=True):
        unchanged = web.get("/tasks", user=name, headers={"If-None-Match": answer.headers["ETag"]})
        assert (unchanged.status_code, unchanged.headers["Celery-Notify-User"]) == (304, tag)
        assert web.ask("HEAD", "/tasks", user=name).headers["Celery-Notify-User"] == tag
    assert "Celery-Notify-User" not in web.get("/tasks", user=None).headers


def test_a_tag_is_the_same_in_each_process_of_an_application_and_in_no_other_one(user: str) -> None:
    def tag(secret: str | None) -> str:
        return Web(make_app(SECRET_KEY=secret), user).get("/tasks").headers["Celery-Notify-User"]

    assert tag("a") == tag("a")
    assert len({tag(None), tag("a"), tag("b")}) == 3


# Removal


def test_what_has_ended_is_removed_in_all_open_tabs(web: Web) -> None:
    web.task("t1", "SUCCESS")
    web.note("k")
    with web.stream() as stream:
        stream.ready()
        for key in ("t1", "k"):
            answer = web.delete(key)
            assert (answer.status_code, answer.data) == (204, b"")
            removed = stream.until("removed")[-1]
            assert data_of(removed) == {"key": key}
            assert removed.id is not None
    assert web.get("/tasks").json["keys"] == []  # type: ignore[index]


@pytest.mark.defends("S23")
def test_what_runs_is_409_and_what_is_not_there_is_404(web: Web) -> None:
    web.task("t1", "STARTED")
    web.task("t2", "SUCCESS", user=f"{web.user} too")

    assert web.delete("t1").status_code == 409
    foreign, absent = web.delete("t2"), web.delete("t3")
    assert (foreign.status_code, foreign.json) == (absent.status_code, absent.json) == (404, {"error": "no such task"})
    assert web.get("/tasks", user=f"{web.user} too").json["keys"] == ["t2"]  # type: ignore[index]


@pytest.mark.parametrize(
    "key", ["a b", "a/b", "/a", "//a", "a//b", "a/", "a\nb", "é", "%2F", "a?b#c", "...", "a/../b", "a;b", "x" * 256]
)
def test_an_entry_is_removed_whatever_its_key_and_no_other(key: str, web: Web) -> None:
    neighbours = [other for other in ("a", "b", "ab", "a/b", "/", "a%2Fb") if other != key]
    for each in (key, *neighbours):
        web.note(each)

    assert web.delete(key).status_code == 204

    assert web.get("/tasks").json["keys"] == neighbours  # type: ignore[index]


#: Headers of requests, and whether those who send them are our own pages, or no browsers.
SITES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": ""}, False),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, True),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False),
    ({"Origin": "http://localhost"}, True),
    ({"Origin": "http://evil.example"}, False),
    ({"Origin": "http://localhost.evil.example"}, False),
    ({"Origin": "http://localhost:8000"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://localhost@evil.example"}, False),
    ({"Origin": "http://["}, False),
    ({"Referer": "http://evil.example/"}, True),
]


@pytest.mark.defends("S10")
@pytest.mark.parametrize(("headers", "ours"), SITES, ids=str)
def test_only_our_own_pages_may_remove(headers: dict[str, str], ours: bool, web: Web) -> None:  # noqa: FBT001
    web.note("k")

    answer = web.delete("k", headers=headers)

    assert answer.status_code == (204 if ours else 403)
    assert web.get("/tasks").json["keys"] == ([] if ours else ["k"])  # type: ignore[index]


# Cancelling


@pytest.mark.defends("S10")
@pytest.mark.parametrize(("headers", "ours"), SITES, ids=str)
def test_only_our_own_pages_may_cancel(headers: dict[str, str], ours: bool, web: Web) -> None:  # noqa: FBT001
    web.task("t", "STARTED")

    answer = web.cancel("t", headers=headers)

    assert answer.status_code == (409 if ours else 403)
    assert set(answer.json or ()) == {"error"}


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED"])
def test_a_task_that_cannot_be_cancelled_is_409(state: str, web: Web) -> None:
    web.task("t", state)

    answer = web.cancel("t")

    assert (answer.status_code, answer.json) == (409, {"error": "the task cannot be cancelled"})
    assert web.get("/tasks").json["tasks"][0]["state"] == state  # type: ignore[index]


@pytest.mark.parametrize("state", sorted(events.FINAL_STATES))
def test_a_task_that_has_ended_is_409(state: str, web: Web) -> None:
    web.task("t", state, cancellable=True)

    answer = web.cancel("t")

    assert (answer.status_code, answer.json) == (409, {"error": "the task has ended"})


def wanted(web: Web, *ids: str) -> dict[str, set[str]]:
    """Return what a worker is told of these ids."""
    return transport.connect(Settings(redis_url=web.app.config["CELERY_NOTIFY_REDIS_URL"])).cancelled(ids)


def listed(web: Web) -> dict[str, dict[str, Any]]:
    return {task["task_id"]: task for task in web.get("/tasks").json["tasks"]}  # type: ignore[index]


@pytest.mark.parametrize("state", ["PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED"])
def test_a_cancel_is_noted_for_the_workers_and_told_in_all_tabs(state: str, web: Web) -> None:
    more = {"current": 3, "total": 10} if state == "PROGRESS" else {}
    web.task("t", state, cancellable=True, title="Bill", **more)
    with web.stream() as stream:
        stream.ready()

        answer = web.cancel("t")

        said = data_of(stream.next())
    assert (answer.status_code, answer.json) == (202, {"state": "cancelling"})
    assert wanted(web, "t", "other") == {"t": {web.user}}
    assert said == listed(web)["t"]
    assert {**said, "at": ""} == {
        "task_id": "t",
        "task": "shop.bill",
        "state": state,
        "attempt": 1,
        "title": "Bill",
        "cancellable": True,
        "cancelling": True,
        "at": "",
        **more,
    }


def test_a_cancel_may_be_repeated_and_is_told_once(web: Web) -> None:
    web.task("t", "STARTED", cancellable=True)
    assert web.cancel("t").status_code == 202
    before = web.get("/tasks").json

    assert web.cancel("t").status_code == 202

    assert web.get("/tasks").json == before


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS", "RETRY", "STALLED"])
def test_who_does_not_know_of_the_cancel_does_not_unsay_it(state: str, web: Web) -> None:
    web.task("t", "PENDING", cancellable=True)
    web.cancel("t")

    web.task("t", state, cancellable=True)

    assert listed(web)["t"] == {**listed(web)["t"], "state": state, "cancelling": True}


@pytest.mark.parametrize("state", sorted(events.FINAL_STATES))
def test_what_has_ended_is_not_being_cancelled_any_more(state: str, web: Web) -> None:
    web.task("t", "STARTED", cancellable=True)
    web.cancel("t")

    web.task("t", state)

    assert not {"cancellable", "cancelling"} & listed(web)["t"].keys()


def test_a_job_is_cancelled_with_what_of_it_has_not_ended(web: Web) -> None:
    web.task("ended", "SUCCESS", job_id="j")
    web.task("runs", "STARTED", job_id="j", cancellable=True)
    web.task("waits", "PENDING", job_id="j", cancellable=True)
    web.task("cannot", "STARTED", job_id="j")
    web.task("other", "STARTED", job_id="k", cancellable=True)

    assert web.cancel("j").status_code == 202

    assert wanted(web, "j", "ended", "runs", "waits", "cannot", "other") == {"j": {web.user}}
    cancelling = {key for key, task in listed(web).items() if task.get("cancelling")}
    assert cancelling == {"runs", "waits"}


def test_a_job_whose_tasks_that_wait_have_no_entry_is_cancelled(web: Web) -> None:
    """They find it out when they begin; that those before them have ended says nothing of them."""
    everyone = [f"t{n}" for n in range(150)]
    for key in everyone:
        web.task(key, "PENDING", job_id="j", cancellable=True)
    shown = [*listed(web)]
    assert len(shown) < len(everyone)
    for key in shown:
        web.task(key, "SUCCESS", job_id="j")

    assert web.cancel(shown[-1]).status_code == 409
    assert web.cancel("j").status_code == 202
    assert wanted(web, "j") == {"j": {web.user}}


def test_a_job_of_which_nothing_is_left_to_cancel_is_409(web: Web) -> None:
    web.task("a", "SUCCESS", job_id="j")
    assert web.cancel("j").json == {"error": "the task has ended"}
    web.task("b", "STARTED", job_id="j")

    answer = web.cancel("j")

    assert (answer.status_code, answer.json) == (409, {"error": "the task cannot be cancelled"})
    assert wanted(web, "j") == {}


def test_a_task_that_moves_meanwhile_is_told_all_the_same(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.task("t", "PROGRESS", current=1, cancellable=True)
    moves = iter((2, 3))

    def cancelling(entry: Entry) -> Publication:
        if (current := next(moves, None)) is not None:
            web.task("t", "PROGRESS", current=current, cancellable=True)
        return tell(entry)

    tell = events.cancelling
    monkeypatch.setattr(events, "cancelling", cancelling)

    assert web.cancel("t").status_code == 202

    assert (listed(web)["t"]["current"], listed(web)["t"]["cancelling"]) == (3, True)


def test_a_task_that_ends_meanwhile_has_ended(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.task("t", "STARTED", cancellable=True)
    tell = events.cancelling

    def cancelling(entry: Entry) -> Publication:
        web.task("t", "SUCCESS")
        return tell(entry)

    monkeypatch.setattr(events, "cancelling", cancelling)

    assert web.cancel("t").status_code == 202

    assert listed(web)["t"]["state"] == "SUCCESS"
    assert "cancelling" not in listed(web)["t"]


def test_the_workers_know_before_the_tabs_do(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies in between has promised nothing that nobody does."""
    web.task("t", "STARTED", cancellable=True)

    def die(_: Entry) -> Publication:
        raise RuntimeError("killed")

    monkeypatch.setattr(events, "cancelling", die)
    web.app.config["PROPAGATE_EXCEPTIONS"] = False

    assert web.cancel("t").status_code == 500

    assert wanted(web, "t") == {"t": {web.user}}


@pytest.mark.defends("S23")
def test_a_task_of_another_user_is_404_as_one_that_is_not_there(web: Web) -> None:
    web.task("t", "STARTED", user=f"{web.user} too", cancellable=True)

    foreign, absent = web.cancel("t"), web.cancel("nothing")

    assert (foreign.status_code, foreign.json) == (absent.status_code, absent.json) == (404, {"error": "no such task"})
    assert foreign.headers == absent.headers


def test_a_custom_entry_is_no_task_to_be_cancelled(web: Web) -> None:
    web.note("k", {"task_id": "k", "state": "STARTED"})
    web.publish(events.custom(web.user, "note", None, key="other"))

    assert web.cancel("k").status_code == 404


def test_a_task_is_found_among_others_whatever_its_id(web: Web) -> None:
    ids = ["a", "a b", "a/b", "/a", "a//b", "a/", "a\nb", "é", "%2F", "cancel", "a/cancel", "x" * 256]
    for task_id in ids:
        web.task(task_id, "STARTED")
        assert web.cancel(task_id).status_code == 409, task_id
    assert web.cancel("b").status_code == 404


def test_an_entry_whose_key_ends_like_the_path_is_removed(web: Web) -> None:
    for key in ("a", "a/cancel", "a/cancel/cancel"):
        web.note(key)

    assert web.delete("a/cancel").status_code == 204

    assert web.get("/tasks").json["keys"] == ["a", "a/cancel/cancel"]  # type: ignore[index]


@pytest.mark.parametrize("path", ["/tasks/cancel", "/tasks/a", "/tasks//cancel"])
def test_where_no_task_is_named_nothing_is_cancelled(path: str, web: Web) -> None:
    answer = web.ask("POST", path)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE")


# What is the same for all


def test_the_client_is_a_module_that_is_asked_for_again_only_when_it_has_changed(web: Web) -> None:
    answer = web.get("/client.js", user=None)

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["ETag"] == f'"{script.load().tag}"'
    assert answer.data == script.load().content
    again = web.get("/client.js", user=None, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == answer.headers["ETag"]


FOR_EVER = "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("query", "kept"),
    [("?v={}", True), ("?v={}0", False), ("?v=", False), ("", False), ("?v=other&v={}", False), ("?w={}", False)],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_only_the_content_that_the_url_names_is_kept(
    query: str,
    kept: bool,  # noqa: FBT001
    method: str,
    encoding: str,
    web: Web,
) -> None:
    """An older page may ask a newer server, or the other way round, while both run."""
    path = "/client.js" + query.format(script.load().tag)
    headers = {"Accept-Encoding": encoding}

    answer = web.ask(method, path, user=None, headers=headers)
    unchanged = web.ask(method, path, user=None, headers={**headers, "If-None-Match": answer.headers["ETag"]})

    assert (answer.status_code, unchanged.status_code) == (200, 304)
    for each in (answer, unchanged):
        assert each.headers["Cache-Control"] == (FOR_EVER if kept else "no-cache")
        assert each.headers["Vary"] == "Accept-Encoding"
        assert each.headers["ETag"] == answer.headers["ETag"]


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.2", True),
        ("gzip, deflate, br, zstd", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip; q=0.0, br", False),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("br, deflate", False),
        ("identity", False),
        ("gzipped", False),
    ],
)
def test_the_client_is_compressed_for_those_who_take_it(accepted: str | None, zipped: bool, web: Web) -> None:  # noqa: FBT001
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    answer, head = (web.ask(method, "/client.js", user=None, headers=headers) for method in ("GET", "HEAD"))

    assert answer.headers.get("Content-Encoding") == ("gzip" if zipped else None)
    assert (gzip.decompress(answer.data) if zipped else answer.data) == script.load().content
    assert answer.headers["Content-Length"] == str(len(answer.data))
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert (head.data, dict(head.headers)) == (b"", dict(answer.headers))


def test_each_form_of_the_client_has_a_tag_of_its_own(web: Web) -> None:
    def ask(encoding: str, tag: str = "") -> TestResponse:
        return web.get("/client.js", user=None, headers={"Accept-Encoding": encoding, "If-None-Match": tag})

    plain, zipped = (ask(encoding).headers["ETag"] for encoding in ("identity", "gzip"))
    assert (plain, zipped) == (f'"{script.load().tag}"', f'"{script.load().tag}-gzip"')
    for encoding, own, other in (("identity", plain, zipped), ("gzip", zipped, plain)):
        assert ask(encoding, own).status_code == 304
        assert ask(encoding, f"W/{own}").status_code == 304  # as a proxy on the way may write it
        assert ask(encoding, f'"x", {own}').status_code == 304
        assert ask(encoding, other).status_code == 200
        assert "Content-Encoding" not in ask(encoding, own).headers


def test_the_schema_is_that_of_the_events(web: Web) -> None:
    answer = web.get("/schema.json", user=None)

    assert answer.headers["Content-Type"] == "application/schema+json"
    assert json.loads(answer.data) == events.json_schema()


def test_a_stream_that_was_closed_gives_its_place_back(user: str) -> None:
    web = Web(make_app(CELERY_NOTIFY_MAX_STREAMS_PER_USER=1, CELERY_NOTIFY_HEARTBEAT=0.05), user)
    for _ in range(3):
        with web.stream() as stream:
            stream.ready()
        wait_until(lambda: web.ask("HEAD", "/stream").status_code == 200, what="a place")


# What pages get from it


STATE = "{{ task_notifications(state=True) }}"


def add_page(app: Flask, template: str = STATE) -> None:
    app.add_url_rule("/page", view_func=lambda: render_template_string(template))


def page_of(web: Web, user: str | None) -> str:
    return web.client.get("/page", headers={} if user is None else {"X-User": user}).text


def state_in(page: str) -> tuple[str, str, bytes]:
    """Return the stream, the tag and the tasks that the block in a page says."""
    [(stream, tag, text)] = re.findall(
        r'<script type="application/json" data-stream="([^"]+)" data-user="([^"]+)">(.*?)</script>', page
    )
    return html.unescape(stream), tag, text.encode()


def test_a_template_writes_the_tag_of_what_is_served(web: Web) -> None:
    add_page(web.app, "{{ task_notifications() }}")

    page = page_of(web, None)

    [address] = re.findall(r'^<script type="module" src="([^"]+)"></script>$', page)
    answer = web.client.get(address)
    assert (answer.data, answer.headers["Cache-Control"]) == (script.load().content, FOR_EVER)


def test_the_state_in_a_page_is_the_very_answer_of_the_tasks(web: Web) -> None:
    add_page(web.app)
    web.task("t1", "PROGRESS", title="</script>&\u2028é", current=1, total=3)
    web.note("k", {"<!--": "<script>"})

    stream, tag, text = state_in(page_of(web, web.user))

    answer = web.get("/tasks")
    assert json.loads(text) == answer.json
    assert (stream, tag) == (f"{PREFIX}/stream", answer.headers["Celery-Notify-User"])
    assert not set(b"<>&") & set(text)


@pytest.mark.defends("S8", "S15")
def test_no_page_holds_anothers_state(web: Web) -> None:
    """The template is compiled once, the script made once; of the users nothing is kept."""
    add_page(web.app)
    others = f"{web.user} too"
    web.note("mine")
    web.note("theirs", user=others)

    for _ in range(2):
        for user, key in ((web.user, "mine"), (others, "theirs")):
            _, tag, text = state_in(page_of(web, user))
            assert json.loads(text)["keys"] == [key]
            assert tag == web.get("/tasks", user=user).headers["Celery-Notify-User"]
        assert "application/json" not in page_of(web, None)
        assert 'blocking="render"' not in page_of(web, None)


def test_while_redis_is_away_a_page_has_the_tag_alone(user: str) -> None:
    web = Web(make_app(CELERY_NOTIFY_REDIS_URL="redis://127.0.0.1:1/0"), user)
    add_page(web.app)
    tag = f'<script type="module" src="{PREFIX}/client.js?v={script.load().tag}"></script>'

    assert page_of(web, user) == tag


def test_what_the_application_says_of_its_templates_after_registration_counts(web: Web) -> None:
    web.app.jinja_options = {"variable_start_string": "[[", "variable_end_string": "]]"}
    add_page(web.app, "[[ task_notifications_url() ]]")

    assert page_of(web, None).startswith(f"{PREFIX}/client.js")


def test_of_several_registrations_templates_name_the_last_one(user: str) -> None:
    """Each is complete for itself; a page that is to have the other one's state has to be of another application."""
    app = make_app()
    app.register_blueprint(create_blueprint(lambda: "admin"), url_prefix="/admin/notifications", name="admin")
    web = Web(app, user)
    add_page(app)
    web.note("mine")
    web.note("theirs", user="admin")

    page = page_of(web, user)

    stream, tag, text = state_in(page)
    assert f'src="/admin/notifications/client.js?v={script.load().tag}"' in page
    assert stream == "/admin/notifications/stream"
    assert (json.loads(text)["keys"], tag) == (
        ["theirs"],
        web.client.get("/admin/notifications/tasks").headers["Celery-Notify-User"],
    )


def test_one_blueprint_may_be_registered_in_another_and_in_two_applications(user: str) -> None:
    blueprint = create_blueprint(lambda: request.headers.get("X-User"))
    outer = Blueprint("outer", __name__)
    outer.register_blueprint(blueprint, url_prefix="/inner")
    for prefix in ("/one", "/two"):
        app = Flask("tests")
        app.config.update(MEMORY)
        app.register_blueprint(outer, url_prefix=prefix)
        add_page(app)
        stream, _, _ = state_in(page_of(Web(app, user), user))
        assert stream == f"{prefix}/inner/stream"


def test_a_page_of_a_user_who_is_none_says_so_as_the_endpoints_do() -> None:
    app = make_app(lambda: True)
    add_page(app)

    with pytest.raises(ValueError, match="expected a user's id"), app.test_request_context():
        render_template_string(STATE)
