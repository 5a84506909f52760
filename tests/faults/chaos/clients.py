"""Pages of many users, each on a stream of its own that comes back as a browser's does; all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import re
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from celery_notify.sse import Parser
from tests.faults.chaos.dice import dice
from tests.faults.chaos.journal import Connection, Polled, Removal, Told, Viewed
from tests.faults.chaos.page import TASK_EVENTS, Page
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from celery_notify.sse import Event
    from tests.faults.chaos.journal import Journal

#: The heartbeat of the web processes under test; a stream that is silent for longer than the second is dead.
HEARTBEAT = 1.0
SILENCE = 2.5 * HEARTBEAT
#: Seconds that a web process has for an answer.
ANSWER = 3.0
#: What all of the server's waits are multiplied by: a run is short.
HASTE = 0.1
#: Seconds that a page waits after a failure, at the most.
LONGEST_WAIT = 0.5
SECRET = re.compile(rb"secret-[0-9a-f]{16}")
LONGEST_SECRET = 23


class BrokenError(Exception):
    """The stream ended otherwise than in the orderly way; the text says how."""


class Client:
    """One page: it stays on its stream, whatever ends it, until it leaves."""

    def __init__(self, name: str, user: str, webs: Sequence[int], journal: Journal, seed: int) -> None:
        self.name, self.user = name, user
        self.page = Page()
        self.ready = False
        self._webs = webs
        self._journal = journal
        self._rng = dice(seed)
        self._reconnection_time = 1.0
        self._reloading = False
        self._staying: asyncio.Task[str]

    async def run(self) -> None:
        """Stay until cancelled."""
        while True:
            web = self._rng.randrange(len(self._webs))
            connection = Connection(self.name, self.user, web, opened=time.time())
            self._staying = asyncio.create_task(self._stay(connection))
            try:
                connection.ending = await self._staying
            except TimeoutError:
                connection.ending = "silent"
            except (OSError, EOFError):
                connection.ending = "broken off"
            except asyncio.CancelledError:
                if not self._reloading:
                    raise
                connection.ending = "reloaded"
            finally:
                connection.closed = time.time()
                self.ready = False
            if not self._reloading:
                await asyncio.sleep(self._reconnection_time)
            self._reloading = False

    def reload(self) -> None:
        """Come back at once, with the last event id."""
        self.ready, self._reloading = False, True
        self._staying.cancel()

    async def _stay(self, connection: Connection) -> str:
        """Read one stream to its end and say how it ended."""
        self._reconnection_time = self._rng.uniform(0, LONGEST_WAIT)
        last = [("Last-Event-ID", self.page.last_event_id)] if self.page.last_event_id else []
        async with _request(self._webs[connection.web], "GET", "/stream", self.user, last) as (status, reader):
            if status != HTTPStatus.OK:
                return f"answered {status}"
            self._journal.connections.append(connection)
            self.page.opened()
            parser, tail = Parser(), b""
            while True:
                async with asyncio.timeout(SILENCE):
                    data = await _chunk(reader)
                if not data:
                    return "ended"
                found = {secret.decode() for secret in SECRET.findall(tail + data)}
                connection.foreign |= found - {self._journal.secrets[self.user]}
                tail = (tail + data)[-LONGEST_SECRET + 1 :]
                for event in parser.feed(data):
                    await self._receive(connection, event)
                if parser.reconnection_time is not None:
                    self._reconnection_time = parser.reconnection_time / 1000 * HASTE

    async def _receive(self, connection: Connection, event: Event) -> None:
        if event.event in {"ready", "degraded"}:
            self.ready = event.event == "ready"
        self._note(connection, event.event, self.page.receive(event))
        if self.page.unknown:
            await self._fill(self._webs[connection.web])

    @staticmethod
    def _note(connection: Connection, name: str, received: tuple[int, str, dict[str, Any]] | None) -> None:
        if received is None:
            return
        number, key, data = received
        if name in TASK_EVENTS:
            told = Told(number, name, key, data["attempt"], data["state"], data.get("current"))
        else:
            token = "" if name == "removed" else str(data["data"]["token"])
            told = Told(number, name, key, token=token)
        connection.told.append(told)

    async def _fill(self, port: int) -> None:
        wanted, self.page.unknown = self.page.unknown, set()
        with contextlib.suppress(OSError, EOFError, BrokenError, ValueError):
            answer = await get_tasks(port, self.user)
            self.page.fill(wanted, answer)

    def view(self, moment: str) -> Viewed:
        """Return what the page shows now."""
        page = self.page
        shown, heard, announced = dict(page.shown), dict(page.heard), list(page.announced)
        return Viewed(self.name, self.user, moment, shown, heard, announced)


@contextlib.asynccontextmanager
async def _request(
    port: int, method: str, path: str, user: str, headers: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Ask a web process; yield the answer's status and its body, still to be read."""
    async with asyncio.timeout(ANSWER):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        fields = [("Host", "127.0.0.1"), ("X-User", quote(user, safe="")), ("Connection", "close"), *headers]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        writer.write(f"{method} {PREFIX}{path} HTTP/1.1\r\n{head}\r\n".encode("ascii"))
        async with asyncio.timeout(ANSWER):
            answer = await reader.readuntil(b"\r\n\r\n")
        yield int(answer.split()[1]), reader
    finally:
        writer.transport.abort()


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """Return the next chunk of a body, b"" for its last one."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    data = await reader.readexactly(size + 2)
    if data[-2:] != b"\r\n":
        raise BrokenError(f"expected a chunk of {size} bytes, got more")
    return data[:-2]


async def get_tasks(port: int, user: str) -> Any:
    """Return what the polling endpoint says."""
    async with _request(port, "GET", "/tasks", user) as (status, reader), asyncio.timeout(ANSWER):
        body = await reader.read()
        if status != HTTPStatus.OK:
            raise BrokenError(f"answered {status}")
        return json.loads(body)


class Clients:
    """All pages, in a thread of their own; its methods may be called from any other."""

    def __init__(self, journal: Journal, webs: Sequence[int], seed: int) -> None:
        self._journal = journal
        self._webs = webs
        self._rng = dice(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-clients")
        self._clients: list[Client] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, streams: Mapping[str, int]) -> None:
        """Open so many pages of each user."""
        self._thread.start()
        self._do(self._open(streams))

    async def _open(self, streams: Mapping[str, int], kind: str = "page") -> None:
        for user, count in streams.items():
            for number in range(count):
                name = f"{kind} {number + 1} of {user}"
                client = Client(name, user, self._webs, self._journal, self._rng.getrandbits(32))
                self._clients.append(client)
                self._tasks.append(asyncio.create_task(client.run()))

    def open_fresh(self) -> None:
        """Open one more page of each user, which knows nothing yet."""
        users = {client.user: 1 for client in self._clients}
        self._do(self._open(users, kind="fresh page"))

    def reload(self) -> None:
        """Have all pages come back with their last event ids."""

        async def reload() -> None:
            for client in self._clients:
                client.reload()

        self._do(reload())

    def views(self, moment: str) -> list[Viewed]:
        """Return what all pages show; a fresh one says so whatever the moment."""

        async def view() -> list[Viewed]:
            return [client.view("fresh" if client.name.startswith("fresh") else moment) for client in self._clients]

        return copy.deepcopy(self._do(view()))

    def all_ready(self) -> bool:
        """Say whether each page is on a stream that has caught up."""
        return all(client.ready for client in self._clients)

    def poll(self) -> list[Polled]:
        """Ask each web process for each user's tasks."""

        async def poll() -> list[Polled]:
            users = sorted({client.user for client in self._clients})
            return [
                Polled(number, user, await get_tasks(port, user))
                for number, port in enumerate(self._webs)
                for user in users
            ]

        return self._do(poll())

    def remove(self, user: str) -> None:
        """Have one of a user's pages ask for the removal of something that has ended, if it shows any."""
        self._do(self._remove(user))

    async def _remove(self, user: str) -> None:
        client = next(client for client in self._clients if client.user == user)
        over = sorted(key for key, shown in client.page.shown.items() if shown.event != "task-progress")
        if not over:
            return
        key, began, status = self._rng.choice(over), time.time(), 0
        with contextlib.suppress(OSError, EOFError, ValueError):
            port = self._rng.choice(self._webs)
            async with _request(port, "DELETE", f"/tasks/{quote(key, safe='')}", user) as (status, _):
                pass
        self._journal.removals.append(Removal(user, key, began, time.time(), status))

    @property
    def applied(self) -> int:
        """How many events all pages have taken in."""
        return sum(client.page.applied for client in self._clients)

    def leave(self) -> None:
        """Close all pages, and the loop."""

        async def leave() -> None:
            for task in self._tasks:
                task.cancel()
            for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(outcome, Exception):  # a page that could not go on: its stream was no stream
                    raise outcome

        if self._thread.is_alive():
            try:
                self._do(leave())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
