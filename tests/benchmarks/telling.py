"""What the benchmarks tell Redis: events of many tasks and users, and the bytes in which they are told, once more.

Redis' own cost is measured with bytes that were written before: who only sends them costs next to nothing beside it.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.transport import RedisTransport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from celery_notify.events import Publication, State
    from tests.support.redis_server import GivenRedis

#: Events in one round trip: as many as the publisher has, too.
BATCH = 200
#: What a task with progress tells, and one without; all that is told of the tasks of a canvas is told of jobs.
REPORTING: tuple[State, ...] = ("PENDING", "STARTED", *["PROGRESS"] * 7, "SUCCESS")  # type: ignore[assignment]
SILENT: tuple[State, ...] = ("PENDING", "STARTED", "SUCCESS")


def story(
    users: int, tasks: int, states: Sequence[State] = REPORTING, *, job: bool = False, name: str = "user"
) -> list[Publication]:
    """Return the events of so many tasks of each of so many users, all of them under way at the same time.

    With `job`, a user's tasks are those of one job.
    """
    return [
        told(f"{name} {user}", f"{task:08x}-0000-4000-8000-{user:012x}", state, step, len(states), job=job)
        for step, state in enumerate(states)
        for task in range(tasks)
        for user in range(users)
    ]


def told(user: str, task_id: str, state: State, step: int, total: int, *, job: bool = False) -> Publication:
    """Return one event of a task as a worker publishes it."""
    event = TaskEvent(
        task_id=task_id,
        task="shop.tasks.make_invoice",
        state=state,
        attempt=1,
        title="Invoice 2024-0017",
        current=step if state == "PROGRESS" else None,
        total=total if state == "PROGRESS" else None,
        description="Gathering the items" if state == "PROGRESS" else None,
        job_id=f"job of {user}" if job else None,
        root_id=task_id,
    )
    return events.publication(user, event, worker=f"0123456789abcdef.{task_id}")


def batches(items: Sequence[Publication]) -> Iterator[Sequence[Publication]]:
    """Return them in as many as go in one round trip."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


class Cost(NamedTuple):
    """Microseconds for each event: of Redis' CPU time, of this process's, and by the clock."""

    redis: float
    process: float
    clock: float


class Costs:
    """What goes on costs, between entering and leaving; a context manager."""

    def __init__(self, server: GivenRedis, count: int) -> None:
        self._server = server
        self._count = count
        self.found = Cost(0, 0, 0)

    def __enter__(self) -> Self:
        self._before = self._spent()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._spent()
        self.found = Cost(*((now - then) / self._count * 1e6 for now, then in zip(after, self._before, strict=True)))

    def _spent(self) -> tuple[float, float, float]:
        with self._server.client() as client:
            cpu = client.info("cpu")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], time.process_time(), time.perf_counter()


@contextmanager
def transport_to(url: str, **settings: float) -> Iterator[RedisTransport]:
    """Yield a transport of its own."""
    made = RedisTransport(Settings(redis_url=url, **settings))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def publish(to: RedisTransport, items: Sequence[Publication]) -> None:
    """Publish these as the publisher does; none may be refused."""
    for batch in batches(items):
        answers = to.publish(batch)
        assert all(isinstance(answer, int) for answer in answers), answers


# Bytes that are written before


@dataclass(frozen=True, slots=True)
class Written:
    """Commands in the bytes in which they go to Redis."""

    commands: list[bytes]

    def with_script(self, sha: str) -> Written:
        """Return the same calls of another script."""
        old = self.commands[0].split(b"\r\n", 5)[4]
        return Written([command.replace(old, sha.encode(), 1) for command in self.commands])


def packed(*arguments: str | bytes | int) -> bytes:
    """Return one command as https://redis.io/docs/latest/develop/reference/protocol-spec/ writes it."""
    parts = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def unpacked(data: bytes) -> Iterator[bytes]:
    """Return the commands that the bytes are made of, each in its own bytes."""
    at = 0
    while at < len(data):
        start, line = at, data.index(b"\r\n", at)
        count, at = int(data[at + 1 : line]), line + 2
        for _ in range(count):
            line = data.index(b"\r\n", at)
            at = line + 2 + int(data[at + 1 : line]) + 2
        yield data[start:at]


def written(server: GivenRedis, items: Sequence[Publication], **settings: float) -> Written:
    """Return what a transport writes to have these published: it is published once, with a listener in between."""
    with transport_to(server.url, **settings) as to:
        publish(to, items[:1])  # Redis knows the script from now on
    with Listener(server) as listener:
        with transport_to(server.url_by_way_of(listener.port), **settings) as to:
            publish(to, items)
        heard = listener.heard()
    calls = [command for command in unpacked(heard) if b"\r\nEVALSHA\r\n" in command[:30]]
    assert len(calls) == len(items)
    return Written(calls)


class Listener:
    """Hands one connection on to Redis, and keeps what goes there; a context manager."""

    def __init__(self, server: GivenRedis) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._heard = bytearray()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listening.close()

    def heard(self) -> bytes:
        """Return all of it, once the connection is over."""
        self._thread.join()
        return bytes(self._heard)

    def _listen(self) -> None:
        with self._listening.accept()[0] as client, socket.create_connection(self._server.address) as redis:
            back = threading.Thread(target=self._hand_back, args=(redis, client))
            back.start()
            while data := client.recv(1 << 16):
                self._heard += data
                redis.sendall(data)
            redis.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def _hand_back(redis: socket.socket, client: socket.socket) -> None:
        while data := redis.recv(1 << 16):
            client.sendall(data)


def send(server: GivenRedis, written_by: Iterable[Written], *, answers: int = 1) -> None:
    """Send all of it, by a connection for each, in batches as the publisher does; each command has so many answers.

    All answers are integers; anything else is an AssertionError.
    """
    failed: list[str] = []
    senders = [threading.Thread(target=_send, args=(server, each, answers, failed)) for each in written_by]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert not failed, failed[0]


def _send(server: GivenRedis, what: Written, answers: int, failed: list[str]) -> None:
    blocks = [what.commands[start : start + BATCH] for start in range(0, len(what.commands), BATCH)]
    with connected(server) as connection:
        for block in [(b"".join(each), len(each) * answers) for each in blocks]:
            connection.sendall(block[0])
            answer = b""
            while answer.count(b"\n") < block[1]:
                answer += connection.recv(1 << 16)
            if answer.count(b":") != block[1] or b"-" in answer:
                failed.append(answer[:200].decode(errors="replace"))
                return


@contextmanager
def connected(server: GivenRedis) -> Iterator[socket.socket]:
    """Yield a connection with the library's rights."""
    parts = urlsplit(server.url)
    with socket.create_connection(server.address) as connection:
        if parts.password:
            connection.sendall(packed("AUTH", parts.username or "default", parts.password))
            assert connection.recv(100) == b"+OK\r\n"
        yield connection
