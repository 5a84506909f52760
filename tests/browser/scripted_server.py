"""A web server that says what a test has it say: the one fault after the other that no well-made server commits."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from celery_notify import script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

Answer = tuple[bytes, str, dict[str, str]]

POLICY = "default-src 'self'; require-trusted-types-for 'script'"
#: A page with one list on it, under the strictest policy; what the client tells is noted in `window.told`.
PAGE: Answer = (
    b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
    <script type="module" src="/page.js"></script></head>
    <body><task-list src="/notifications/stream"></task-list></body></html>""",
    "text/html; charset=utf-8",
    {"Content-Security-Policy": POLICY},
)
SCRIPT: Answer = (
    b"""
    import { TaskNotifications } from "/notifications/client.js";
    const list = document.querySelector("task-list");
    const told = [];
    const note = ({ type, detail }) => told.push([type, structuredClone(detail)]);
    const names = ["task-progress", "task-done", "connection", "note"];
    for (const name of names) list.notifications.addEventListener(name, note);
    Object.assign(window, { TaskNotifications, notifications: list.notifications, told });
    """,
    "text/javascript; charset=utf-8",
    {},
)


def frame(event: str, data: object, *, number: int | None = None, retry: int | None = None) -> str:
    """Return one block of a stream; text as data is sent as it is."""
    lines = [] if number is None else [f"id: {number}"]
    lines += [f"event: {event}", *([] if retry is None else [f"retry: {retry}"])]
    return "\n".join([*lines, f"data: {data if isinstance(data, str) else json.dumps(data)}", "", ""])


def task(task_id: str, state: str, **more: object) -> dict[str, object]:
    """Return a task event's data."""
    return {"task_id": task_id, "task": "tests.task", "state": state, "attempt": 1, **more}


def answer(
    number: int, *tasks: dict[str, object], user: str = "ada", events: Sequence[dict[str, Any]] = ()
) -> tuple[int, dict[str, str], str]:
    """Return what a user is answered of whom these tasks and custom events, up to this id, are all there is."""
    keys = [*(each["task_id"] for each in tasks), *(each["data"]["key"] for each in events)]
    body = json.dumps({"tasks": tasks, "events": events, "keys": keys, "last_event_id": str(number)})
    tag = hashlib.sha256(body.encode()).hexdigest()
    return 200, {"Celery-Notify-User": user, "ETag": f'"{tag}"'}, body


class ScriptedServer:
    """Serves the page, the client, and a stream and a list of tasks that are whatever the test has set."""

    def __init__(self) -> None:
        #: What a new stream begins with.
        self.catch_up = frame("ready", {"keys": []}, retry=10)
        #: Instead of a stream: (status, headers, body).
        self.refusal: tuple[int, dict[str, str], str] | None = None
        #: Answer to a request for the tasks: (status, headers, body). By default the stream alone tells them.
        self.tasks: tuple[int, dict[str, str], str] = (404, {}, "{}")
        #: Each request for the stream, the tasks or a change, as ("GET", path with query, last event id).
        self.requests: list[tuple[str, str, str | None]] = []
        self._streams: list[queue.SimpleQueue[str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"script": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="scripted server")
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.end_streams()
        self._thread.join()
        self._server.server_close()

    def say(self, *frames: str) -> None:
        """Write to all open streams."""
        for stream in list(self._streams):
            for text in frames:
                stream.put(text)

    def end_streams(self) -> None:
        """End all open streams in the orderly way."""
        for stream in list(self._streams):
            stream.put(None)

    def asked(self, path: str) -> list[tuple[str, str, str | None]]:
        """Return the requests for a path below the prefix."""
        return [each for each in self.requests if urlsplit(each[1]).path == f"/notifications/{path}"]

    def connect(self) -> queue.SimpleQueue[str | None]:
        stream: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        stream.put(self.catch_up)
        self._streams.append(stream)
        return stream

    def disconnect(self, stream: queue.SimpleQueue[str | None]) -> None:
        self._streams.remove(stream)


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer
    files: ClassVar[dict[str, Answer]] = {
        "/page": PAGE,
        "/page.js": SCRIPT,
        "/notifications/client.js": (script.load().content, "text/javascript", {}),
    }

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in self.files:
            body, content_type, headers = self.files[path]
            self._answer(HTTPStatus.OK, {"Content-Type": content_type, **headers}, body)
            return
        self.script.requests.append((self.command, self.path, self.headers.get("Last-Event-ID")))
        if path == "/notifications/tasks":
            self._say(*self.script.tasks)
        elif path == "/notifications/stream":
            self._stream()
        else:
            self._answer(HTTPStatus.NOT_FOUND, {}, b"")

    do_POST = do_DELETE = do_GET  # noqa: N815 - the names the base class looks for

    def _stream(self) -> None:
        if self.script.refusal is not None:
            self._say(*self.script.refusal)
            return
        stream = self.script.connect()
        try:
            self._answer(HTTPStatus.OK, {"Content-Type": "text/event-stream"}, b": hello\n\n")
            while (text := stream.get()) is not None:
                self.wfile.write(text.encode())
        except OSError:
            pass  # the browser has left
        finally:
            self.script.disconnect(stream)

    def _say(self, status: int, headers: dict[str, str], body: str) -> None:
        if "ETag" in headers and self.headers.get("If-None-Match") == headers["ETag"]:
            self._answer(HTTPStatus.NOT_MODIFIED, headers, b"")
            return
        self._answer(status, {"Content-Type": "application/json", **headers}, body.encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name the base class gives it
        """Say nothing."""
