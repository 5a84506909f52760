"""The web application on each WSGI server that celery_notify promises to work with, all with one face."""

from __future__ import annotations

import http.client
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.support.event_stream import ClientStream, SocketStream
from tests.support.names import PREFIX
from tests.support.processes import PYTHON, Process
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any, Self

    from tests.support.event_stream import EventStream

STREAM = f"{PREFIX}/stream"
APPLICATION = "tests.support.webapp:create_app"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Web(ABC):
    """A web application that answers requests and opens streams."""

    @abstractmethod
    def request(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Return the answer to one request on a connection of its own."""

    @abstractmethod
    def stream(
        self,
        user: str | None,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        path: str = STREAM,
    ) -> EventStream:
        """Open a stream; the response's head has come when this returns."""

    def get(self, path: str, *, user: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, user=user, headers=headers)

    def post(self, path: str, data: object) -> Answer:
        """Post `data` as JSON."""
        body = json.dumps(data).encode()
        return self.request("POST", path, headers={"Content-Type": "application/json"}, body=body)

    def tasks(self, user: str, query: str = "") -> Any:
        """Return what the polling endpoint says."""
        answer = self.get(f"{PREFIX}/tasks{query}", user=user)
        assert answer.status == 200, answer
        return answer.json()

    def delete(self, user: str | None, key: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Remove an entry of the user's history."""
        return self.request("DELETE", f"{PREFIX}/tasks/{quote(key, safe='')}", user=user, headers=headers)

    def send(self, user: str, event: str, data: object, *, key: str | None = None) -> int:
        """Have the application send a custom event; return the process that did."""
        answer = self.post("/send", {"user": user, "event": event, "data": data, "key": key})
        assert answer.status == 200, answer
        return int(answer.json()["pid"])

    def close_streams(self, user: str) -> None:
        """Have the application end a user's streams."""
        assert self.post("/close-streams", {"user": user}).status == 204

    def log(self) -> str:
        """Return what the server wrote, its access log included."""
        return ""

    def stop(self) -> None:  # noqa: B027 - where there is no process there is nothing to end
        """End it."""


def user_headers(user: str | None) -> dict[str, str]:
    """Return the header that logs `user` in, in a form that HTTP can carry whatever the id is."""
    return {} if user is None else {"X-User": quote(user, safe="")}


class WebServer(Web):
    """A web server in a process of its own."""

    def __init__(self, process: Process, announcement: str) -> None:
        self.process = process
        self._announcement = re.compile(announcement)

    def start(self) -> Self:
        """Start it, and wait until it has said where it listens and answers there."""
        self.process.start()
        wait_until(
            lambda: self._announcement.search(self.log()) or not self.process.alive,
            what=lambda: f"an address in the log of {self.process.name}, which is\n{self.log()}\n",
        )
        found = self._announcement.search(self.log())
        if found is None:
            raise RuntimeError(f"{self.process.name} did not start:\n{self.log()}")
        self.address = ("127.0.0.1", int(found[1]))
        wait_until(self._answers, what=lambda: f"an answer of {self.process.name}, which wrote\n{self.log()}\n")
        return self

    def _answers(self) -> bool:
        try:
            return self.get("/ordinary").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.address, timeout=10 * SLOWNESS)
        try:
            sent = {"Connection": "close", **user_headers(user), **(headers or {})}
            connection.request(method, path, headers=sent, body=body)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def stream(
        self,
        user: str | None,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        path: str = STREAM,
    ) -> SocketStream:
        sent = {"Accept": "text/event-stream", **user_headers(user), **(headers or {})}
        return SocketStream(self.address, path + query, headers=sent.items())

    def log(self) -> str:
        return self.process.log()

    def worker_pids(self) -> list[int]:
        """Return the processes that answer requests: gunicorn's workers."""
        return self.process.children()

    def stop(self) -> None:
        self.process.stop()


class InProcess(Web):
    """The application without a server: Flask's test client, in this process."""

    def __init__(self, **config: Any) -> None:
        from tests.support import webapp  # noqa: PLC0415 - what only looks at servers needs no Flask

        self.app = webapp.create_app(**config)

    def request(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        sent = {**user_headers(user), **(headers or {})}
        with self.app.test_client() as client:
            response = client.open(path, method=method, headers=sent, data=body)
            names = {name.lower(): value for name, value in response.headers}
            return Answer(response.status_code, names, response.get_data())

    def stream(
        self,
        user: str | None,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        path: str = STREAM,
    ) -> ClientStream:
        sent = {**user_headers(user), **(headers or {})}
        return ClientStream(self.app.test_client().get(path + query, headers=sent, buffered=False))


def server(
    name: str, *command: str, listening: str, folder: Path, settings: Mapping[str, str], lasting: bool = False
) -> WebServer:
    """Return a server, not yet started; `listening` is the expression that finds its port in the log."""
    process = Process(*PYTHON, "-m", *command, folder=folder, name=name, settings=settings, lasting=lasting)
    return WebServer(process, listening)


def gunicorn(
    worker_class: str, *options: str, folder: Path, settings: Mapping[str, str], lasting: bool = False
) -> WebServer:
    """Return gunicorn with one kind of workers; its control socket, which is in the home folder, is off."""
    return server(
        f"gunicorn-{worker_class}",
        *("gunicorn", APPLICATION + "()", "--bind", "127.0.0.1:0", "--worker-class", worker_class),
        *("--access-logfile", "-", "--graceful-timeout", "5", *without_control_socket(), *options),
        listening=r"Listening at: http://127\.0\.0\.1:(\d+)",
        folder=folder,
        settings=settings,
        lasting=lasting,
    )


def without_control_socket() -> tuple[str, ...]:
    """Return the option that newer versions of gunicorn need and older ones do not know."""
    from gunicorn.config import KNOWN_SETTINGS  # noqa: PLC0415 - importing it here keeps it out of other tests

    names = {setting.name for setting in KNOWN_SETTINGS}
    return ("--no-control-socket",) if "control_socket_disable" in names else ()


def gthread(*options: str, workers: int = 1, threads: int = 4, **more: Any) -> WebServer:
    """Return gunicorn as most people run it with threads."""
    return gunicorn("gthread", "--workers", str(workers), "--threads", str(threads), *options, **more)


def sync(**more: Any) -> WebServer:
    """Return gunicorn with its default workers: one request at a time each."""
    return gunicorn("sync", "--workers", "1", **more)


def gevent(**more: Any) -> WebServer:
    """Return gunicorn with greenlets."""
    return gunicorn("gevent", "--workers", "1", **more)


def waitress(**more: Any) -> WebServer:
    """Return waitress, which gives its socket to nobody."""
    command = ("waitress", "--listen=127.0.0.1:0", "--threads=48", "--call", APPLICATION)
    return server("waitress", *command, listening=r"Serving on http://127\.0\.0\.1:(\d+)", **more)


def flask_run(**more: Any) -> WebServer:
    """Return the server of development."""
    command = ("flask", "--app", APPLICATION, "run", "--port", "0")
    return server("flask-run", *command, listening=r"Running on http://127\.0\.0\.1:(\d+)", **more)


def in_process(*, folder: Path, settings: Mapping[str, str], lasting: bool = False) -> InProcess:
    """Return the application in this process; the settings go into Flask's configuration."""
    del folder, lasting  # there is no process
    return InProcess(**{name: _plain(value) for name, value in settings.items()})


def _plain(value: str) -> str | float:
    """Return what a person would write in Flask's configuration where the environment has text."""
    try:
        return float(value)
    except ValueError:
        return value


#: All of them by name; each takes `folder`, `settings`, `lasting`.
SERVERS: dict[str, Callable[..., Web]] = {
    "gunicorn gthread": gthread,
    "gunicorn sync": sync,
    "gunicorn gevent": gevent,
    "waitress": waitress,
    "flask run": flask_run,
    "test_client": in_process,
}
