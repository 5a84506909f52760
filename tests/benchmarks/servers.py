"""The programs under test, ours and its peers, with one face: started, given events, and asked what they have cost.

Each is run as its own manual says it runs best, with one worker process, and says nothing of single requests in a log.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from celery_notify import events, sse
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.transport import RedisTransport
from tests.benchmarks import cpu
from tests.support.event_stream import SocketStream
from tests.support.processes import ROOT, Process, clean_environment, free_port
from tests.support.waiting import missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.load import Programs
    from tests.support.redis_server import GivenRedis

#: The environment that has the peers, made by `make bench`, and the library again with the same uvloop and hiredis.
ENVIRONMENT = Path(sys.prefix) / "peers"
APPLICATIONS = "tests.benchmarks.peers"
#: Where Debian's packages of nginx and nchan are: unpacked there, which needs no rights, or installed.
DEBIAN = (ENVIRONMENT / "debian", Path("/"))
NGINX, NCHAN = "usr/sbin/nginx", "usr/lib/nginx/modules/ngx_nchan_module.so"
#: What every event is called.
EVENT = "task-done"
#: Streams that a program is asked for at the most: this many sockets are open here too, and of a few programs twice.
MANY = 20_000
#: Waits for a worker process, below the 4096 that Linux grants.
BACKLOG = 4096
#: A user with whom nothing is measured.
WARM_UP = 65_535


def data_of(serial: int) -> bytes:
    """Return an event's data as a browser gets it: a task of its own has ended, and carries the serial number.

    All programs deliver these bytes; ours is given them as its event and adds `at` itself.
    """
    return (
        b'{"task_id":"7b0c6d0e-%012d","task":"shop.tasks.make_invoice","state":"SUCCESS","attempt":1,'
        b'"title":"Invoice #%08d#","description":"Ready to be sent","url":"/invoices/%08d.pdf",'
        b'"at":"2026-11-26T12:00:00.000Z"}' % (serial, serial, serial)
    )


class Server:
    """A program under test. Events are told to a user, a number; None is the first, who is 0."""

    name: ClassVar[str]
    #: What a line of a stream begins with when all that is published from then on reaches it.
    ready: ClassVar[str | None]
    #: Where a stream is, with %d for the user.
    path: ClassVar[str] = "/events?user=%d"
    #: Whether it tells a reader who comes back what was missed.
    keeps_history: ClassVar[bool] = True
    #: Descriptors that it needs for a stream.
    descriptors: ClassVar[int] = 1

    def __init__(self, redis: GivenRedis, folder: Path, workers: int, programs: Programs | None) -> None:
        self._redis = redis
        self._folder = folder
        self._workers = workers
        self._programs = programs
        self.address = ("127.0.0.1", 0)
        self.process = self.make()

    # --- what each says of itself -----------------------------------------------------------------------------------

    def make(self) -> Process:
        """Return the process, not yet started."""
        raise NotImplementedError

    def port(self) -> int:
        """Return where it listens, 0 if that is not known yet."""
        raise NotImplementedError

    def publish(self, user: int | None, data: bytes) -> None:
        """Give it an event, as it is given one by those who use it; return when it has taken it."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what `publish` has opened."""

    # --- the same for all -------------------------------------------------------------------------------------------

    def request(self, *, users: bool = True) -> bytes:
        """Return the head of a reader's request, for load.c: %d is the user, %s the line of a last event id."""
        path = self.path if users else self.path % 0
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n%s\r\n".encode()

    def start(self) -> None:
        """Start it, and have it deliver an event: what is made when it is first needed is there."""
        self.process.start()
        wait_until(
            lambda: self.port() or not self.process.alive, timeout=30, what=lambda: f"a port in\n{self.process.log()}"
        )
        self.address = ("127.0.0.1", self.port())
        with contextlib.closing(wait_until(self._first_stream, timeout=30, what=self.process.log)) as stream:
            self.use(stream)

    def use(self, stream: SocketStream) -> None:
        """Have it deliver an event to a stream of the user WARM_UP."""
        self.publish(WARM_UP, data_of(0))
        stream.until(EVENT)

    def _first_stream(self) -> SocketStream | None:
        with contextlib.suppress(OSError):
            return self.stream(WARM_UP)
        return None

    def stream(self, user: int) -> SocketStream:
        """Open a stream that is live, for those who look at its events and not at what it costs."""
        stream = SocketStream(self.address, self.path % user, headers=[("Accept", "text/event-stream")])
        name, _, event = (self.ready or "").partition(":")
        if name == "event":
            stream.until(event.strip())
        return stream

    def stop(self) -> None:
        """End it."""
        self.close()
        self.process.kill()

    def cpu(self) -> float:
        """Return the CPU seconds that its processes have had so far, without those of Redis."""
        return cpu.seconds(self.process.pid)

    def pss(self) -> int:
        """Return the bytes of memory that its processes have now, without those of Redis."""
        return cpu.proportional(self.process.pid)

    def beside(self) -> float:
        """Return the CPU seconds that Redis has had so far; 0 for a program that has none."""
        with self._redis.client() as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


class _Python(Server):
    """A program of the peers' environment, which says in its log where it listens."""

    command: ClassVar[tuple[str, ...]]
    announcement: ClassVar[str]
    settings: ClassVar[dict[str, str]] = {}

    def make(self) -> Process:
        settings = {"PEER_REDIS_URL": self._redis.admin_url, **self.settings}
        command = (each.format(workers=self._workers) for each in self.command)
        return Process(str(python()), "-m", *command, folder=self._folder, name="server", settings=settings)

    def port(self) -> int:
        found = re.search(self.announcement, self.process.log())
        return int(found[1]) if found else 0


class _Gunicorn(_Python):
    command = ("gunicorn", "--bind", "127.0.0.1:0", "--workers", "{workers}", "--backlog", str(BACKLOG))
    command += ("--no-control-socket",)
    announcement = r"Listening at: http://127\.0\.0\.1:(\d+)"


class _Uvicorn(_Python):
    command = ("uvicorn", "--port", "0", "--workers", "{workers}", "--backlog", str(BACKLOG), "--no-access-log")
    command += ("--loop", "uvloop", "--http", "httptools")
    announcement = r"running on http://127\.0\.0\.1:(\d+)"


class Ours(_Gunicorn):
    """celery_notify under gunicorn with threads, with uvloop and hiredis."""

    name = "ours"
    ready = "event: ready"
    path = "/notifications/stream?user=%d"
    command = (*_Gunicorn.command, "--worker-class", "gthread", "--threads", "8", f"{APPLICATIONS}.ours:app")

    def make(self) -> Process:
        self.settings = {  # of this one only
            "CELERY_NOTIFY_REDIS_URL": self._redis.url,
            "CELERY_NOTIFY_MAX_STREAMS": str(MANY),
            "CELERY_NOTIFY_MAX_STREAMS_PER_USER": str(MANY),
            "CELERY_NOTIFY_MAX_STREAM_AGE": "86400",  # else a stream ends, and a browser comes back
        }
        self._transport = RedisTransport(Settings(redis_url=self._redis.url))
        return super().make()

    def publish(self, user: int | None, data: bytes) -> None:
        event = msgspec.json.decode(data, type=TaskEvent)
        event = msgspec.structs.replace(event, at=None)
        [answer] = self._transport.publish([events.publication(str(user or 0), event)])
        assert isinstance(answer, int), answer
        assert answer > 0

    def close(self) -> None:
        self._transport.close()


class FlaskAlone(Ours):
    """A view of the same application that only answers; what it was asked by stays open, as a stream does."""

    name = "Flask alone"
    path = "/answer?user=%d"
    keeps_history = False
    command = (*Ours.command, "--keep-alive", "300", "--worker-connections", str(MANY))

    def use(self, stream: SocketStream) -> None:
        """It delivers nothing."""


class SseStarlette(_Uvicorn):
    """sse-starlette under uvicorn, with redis.asyncio."""

    name = "sse-starlette"
    ready = "event: ready"
    keeps_history = False
    descriptors = 2
    command = (*_Uvicorn.command, f"{APPLICATIONS}.starlette_app:app")

    def make(self) -> Process:
        self._client = self._redis.client()
        return super().make()

    def publish(self, user: int | None, data: bytes) -> None:
        self._client.publish(str(user or 0), data)

    def close(self) -> None:
        self._client.close()


class _Publishing(_Python):
    """A program whose events are published by what only the peers' environment has, in a process of its own."""

    application: ClassVar[str]

    def start(self) -> None:
        self._publisher = subprocess.Popen(
            [python(), "-m", self.application],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment({"PEER_REDIS_URL": self._redis.admin_url}),
        )
        super().start()

    def publish(self, user: int | None, data: bytes) -> None:
        assert self._publisher.stdin is not None
        assert self._publisher.stdout is not None
        self._publisher.stdin.write(json.dumps([str(user or 0), data.decode()]).encode() + b"\n")
        self._publisher.stdin.flush()
        assert self._publisher.stdout.readline() == b"\n"

    def close(self) -> None:
        with self._publisher:
            self._publisher.terminate()


class FlaskSse(_Publishing, _Gunicorn):
    """flask-sse under gunicorn with gevent."""

    name = "flask-sse"
    ready = "event:ready"
    path = "/events?channel=%d"
    keeps_history = False
    descriptors = 2
    application = f"{APPLICATIONS}.flask_sse_app"
    command = (*_Gunicorn.command, "--worker-class", "gevent", "--worker-connections", str(MANY), f"{application}:app")


class DjangoEventstream(_Publishing, _Uvicorn):
    """django-eventstream under uvicorn, its events and their history in Redis."""

    name = "django-eventstream"
    ready = "event: stream-open"
    path = "/events?channel=%d"
    application = f"{APPLICATIONS}.django_app"
    command = (*_Uvicorn.command, f"{application}:app")


class Nchan(Server):
    """nginx with nchan, which keeps its history in its own memory."""

    name = "nchan"
    ready = ": hi"

    def make(self) -> Process:
        root = next((each for each in DEBIAN if (each / NCHAN).exists()), None) or missing("libnginx-mod-nchan")
        self._port = free_port()
        user = pwd.getpwuid(os.getuid()).pw_name
        values = {"module": root / NCHAN, "user": user, "port": self._port, "workers": self._workers}
        text = (Path(__file__).parent / "peers" / "nginx.conf").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        configuration = self._folder / "nginx.conf"
        configuration.write_text(text)
        self._publisher = http.client.HTTPConnection("127.0.0.1", self._port)
        command = (str(root / NGINX), "-p", str(self._folder), "-c", str(configuration), "-e", "stderr")
        return Process(*command, folder=self._folder, name="server")

    def port(self) -> int:
        return self._port

    def publish(self, user: int | None, data: bytes) -> None:
        headers = {"X-EventSource-Event": EVENT}
        self._publisher.request("POST", f"/publish?user={user or 0}", body=data, headers=headers)
        answer = self._publisher.getresponse()
        answer.read()
        assert answer.status in {201, 202}, answer.status

    def close(self) -> None:
        self._publisher.close()

    def beside(self) -> float:
        return 0.0


class Broadcast(Server):
    """What the kernel allows: our own C program that calls send() for each stream, and nothing else."""

    name = "send()"
    ready = None
    path = "/%d"
    keeps_history = False

    def make(self) -> Process:
        assert self._programs is not None, "expected the compiled programs"
        command = str(self._programs.broadcast)
        return Process(command, folder=self._folder, name="server", stdin=subprocess.PIPE)

    def port(self) -> int:
        return int(self.process.log() or 0)

    def publish(self, user: int | None, data: bytes) -> None:
        frame = sse.frame(EVENT, data, id=str(time.time_ns() // 1000))
        stdin = self.process.popen.stdin
        assert stdin is not None
        stdin.write(f"{user or 0} {len(frame)}".encode().ljust(16) + frame)
        stdin.flush()

    def close(self) -> None:
        stdin = self.process.popen.stdin
        assert stdin is not None
        stdin.close()

    def beside(self) -> float:
        return 0.0


SERVERS: dict[str, type[Server]] = {
    each.name: each for each in (Ours, Broadcast, Nchan, SseStarlette, FlaskSse, DjangoEventstream)
}
#: The same, and what has no streams.
PROGRAMS = {**SERVERS, FlaskAlone.name: FlaskAlone}


def python() -> Path:
    """Return the Python of the peers' environment."""
    if not (ENVIRONMENT / ".installed").exists():
        missing(f"the peers' environment {ENVIRONMENT}, which `make bench` makes")
    return ENVIRONMENT / "bin" / "python"


@contextlib.contextmanager
def started(name: str, redis: GivenRedis, *, workers: int = 1, programs: Programs | None = None) -> Iterator[Server]:
    """Start a program for a while, with a Redis that nobody else uses: it is emptied first.

    `programs` are needed for "send()" only.
    """
    with redis.client() as client:
        client.flushall()
    with tempfile.TemporaryDirectory() as folder:
        server = PROGRAMS[name](redis, Path(folder), workers, programs)
        try:
            server.start()
            yield server
        finally:
            server.stop()
