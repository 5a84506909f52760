"""Many browsers in one thread: each keeps a stream open and comes back as an EventSource does, when it was told to.

h11 judges the HTTP: a body that broke off is told from one that is complete. celery_notify.sse parses the events.
"""

from __future__ import annotations

import asyncio
import re
import resource
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from celery_notify.sse import Parser
from tests.support.event_stream import data_of
from tests.support.waiting import missing, wait_until
from tests.support.web_servers import STREAM, user_headers

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from celery_notify.sse import Event
    from tests.faults.redis_journal import Journal

#: Milliseconds after which a browser comes back that was told nothing.
#: https://html.spec.whatwg.org/multipage/server-sent-events.html#concept-event-stream-reconnection-time
UNTOLD = 1000
#: Browsers that connect at the same moment when the crowd comes in.
AT_ONCE = 100
#: Users that a crowd has, unless the test says which.
USERS = 40
#: What a stream says last where its process ends.
_FAREWELL = re.compile(rb"(?:\A|\n\n)retry: (\d+)\n\n\Z")


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended: when, whether its body was complete, and the `retry:` that was its last word."""

    at: float
    complete: bool
    retry: int | None


@dataclass(eq=False, slots=True)
class Visitor:
    """One browser's tab: all that it was told, and what became of its streams."""

    user: str
    last_id: str = ""
    reconnection_time: int = UNTOLD
    live: bool = False
    opened: int = 0
    #: Answers that were no stream, and connections that came to nothing.
    refused: list[object] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    #: Ids and keys of all events that have an id, in the order in which they came.
    told: list[tuple[int, str]] = field(default_factory=list)
    #: Names of all events.
    names: Counter[str] = field(default_factory=Counter)
    _newest: int = 0

    def begin(self) -> None:
        """Note that a stream has begun."""
        self.opened += 1
        self._newest = 0

    def take(self, event: Event) -> None:
        """Note an event."""
        self.names[event.event] += 1
        if event.event == "ready":
            self.live = True
        if event.id is None:
            return
        number, data = int(event.id), data_of(event)
        assert number > self._newest, f"expected ids to rise, got {number} after {self._newest}"
        self._newest, self.last_id = number, event.id
        self.told.append((number, str(data.get("task_id") or data["key"])))

    def end(self, *, complete: bool, last: bytes) -> None:
        """Note that a stream is over, and what it said last."""
        farewell = _FAREWELL.search(last)
        self.ends.append(End(time.monotonic(), complete, int(farewell[1]) if farewell else None))


def some_users(visitors: int) -> list[str]:
    """Return the users of so many visitors, several of each."""
    return [f"user {number % USERS}" for number in range(visitors)]


class Crowd:
    """The visitors, one for each user named; a context manager: they come in, and leave at its end.

    Those who `stay_away` do not come back when their stream has ended. With `tls` they speak HTTPS.
    """

    def __init__(
        self,
        address: tuple[str, int],
        users: Iterable[str],
        *,
        stay_away: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.visitors = [Visitor(user) for user in users]
        self._address = address
        self._stay_away = stay_away
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._leaving = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="crowd")
        self._failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()
        if kind is None:
            assert not self._failures, self._failures[0]

    # --- from the test's thread -------------------------------------------------------------------------------------

    def all_live(self, *, timeout: float = 20.0) -> None:
        """Wait until each visitor has an open stream that has caught up."""
        self.until(lambda: all(each.live for each in self.visitors), timeout=timeout, what="open streams for all")

    def all_told(self, sent: Mapping[str, list[tuple[int, str]]], *, timeout: float = 20.0) -> None:
        """Wait until each visitor was told as many events as there are; then see that it was each of them, once.

        `sent` are the ids and keys of each user's events, in the order of the ids.
        """
        self.until(
            lambda: all(len(each.told) >= len(sent[each.user]) for each in self.visitors),
            timeout=timeout,
            what="all events at all visitors",
        )
        for each in self.visitors:
            assert each.told == sent[each.user]

    def all_seen_off(self, *, timeout: float = 20.0) -> None:
        """Wait until all streams have ended; see that it was the orderly way, and each was told when to come back."""
        streams = len(self.visitors)
        self.until(lambda: len(self.ends) >= streams, timeout=timeout, what="the end of all streams")
        told = [end.retry for end in self.ends if end.complete and end.retry is not None]
        assert len(told) == streams, self.summary()
        longest = max(3000, streams)
        assert all(1000 <= retry <= longest for retry in told)
        # A time of its own for each: numbers drawn at random, some of which are the same.
        assert len(set(told)) > streams / 2

    def until(self, condition: Callable[[], object], *, timeout: float = 20.0, what: str = "the condition") -> None:
        """Wait until the condition holds, or a visitor has found something that must never be."""
        wait_until(lambda: self._failures or condition(), timeout=timeout, what=lambda: f"{what}: {self.summary()}")
        assert not self._failures, self._failures[0]

    @property
    def ends(self) -> list[End]:
        """All ends of streams so far, in the order of time."""
        return sorted((end for each in self.visitors for end in each.ends), key=lambda end: end.at)

    @property
    def opened(self) -> int:
        """How many streams were opened so far."""
        return sum(each.opened for each in self.visitors)

    @property
    def refused(self) -> Counter[object]:
        """What came in the place of a stream, and how often."""
        return Counter(answer for each in self.visitors for answer in each.refused)

    def summary(self) -> str:
        """Say in a line how it stands."""
        ends = self.ends
        return (
            f"{len(self.visitors)} visitors, {sum(each.live for each in self.visitors)} live, {self.opened} streams "
            f"opened, {sum(end.complete for end in ends)} complete and {sum(not end.complete for end in ends)} broken "
            f"off, refused {dict(self.refused)}"
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        door = asyncio.Semaphore(AT_ONCE)
        tasks = [asyncio.create_task(self._visit(each, door)) for each in self.visitors]
        await self._leaving.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _visit(self, visitor: Visitor, door: asyncio.Semaphore) -> None:
        try:
            while not (self._stay_away and visitor.ends):
                await self._stream(visitor, door)
                visitor.live = False
                await asyncio.sleep(visitor.reconnection_time / 1000)
        except Exception as error:  # noqa: BLE001 - the test's thread raises it
            self._failures.append(error)

    async def _stream(self, visitor: Visitor, door: asyncio.Semaphore) -> None:
        """Open a stream and read it to its end."""
        writer = None
        parser, last = Parser(), b""
        try:
            async with door:
                reader, writer = await asyncio.open_connection(*self._address, ssl=self._tls)
                http = h11.Connection(h11.CLIENT)
                writer.write(http.send(self._request(visitor)))
                response = await _next(http, reader)
            if response.status_code != 200:
                visitor.refused.append(response.status_code)
                return
            visitor.begin()
            while isinstance(part := await _next(http, reader), h11.Data):
                last = last[-100:] + part.data
                for event in parser.feed(bytes(part.data)):
                    visitor.take(event)
                if parser.reconnection_time is not None:
                    visitor.reconnection_time = parser.reconnection_time
            visitor.end(complete=True, last=last)
        except (OSError, h11.RemoteProtocolError) as error:
            if last:
                visitor.end(complete=False, last=last)
            else:
                visitor.refused.append(type(error).__name__)
        finally:
            if writer is not None:
                writer.transport.abort()

    def _request(self, visitor: Visitor) -> h11.Request:
        headers = {"Host": "{}:{}".format(*self._address), "Accept": "text/event-stream", **user_headers(visitor.user)}
        if visitor.last_id:
            headers["Last-Event-ID"] = visitor.last_id
        return h11.Request(method="GET", target=STREAM, headers=list(headers.items()))


async def _next(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Response | h11.Data | h11.EndOfMessage:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(65536))
    return event  # type: ignore[return-value]


def acknowledged(journal: Journal, keys: Mapping[str, Iterable[str]]) -> dict[str, list[tuple[int, str]]]:
    """Return the ids and keys of each user's events as Redis has acknowledged them, in the order of the ids."""
    ids = {key: number for number, key in journal.acknowledged}
    return {user: sorted((ids[key], key) for key in of_user) for user, of_user in keys.items()}


@contextmanager
def many_descriptors(streams: int) -> Iterator[None]:
    """Let this process, and those that it starts, have so many streams open."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * streams + 1000
    if most != resource.RLIM_INFINITY and most < wanted:
        missing(f"a limit of {wanted} open files, it is {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, wanted), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def histogram(values: Iterable[float], width: float) -> str:
    """Return how many of the values lie in each stretch of this width, one line each."""
    counts = Counter(int(value // width) for value in values)
    if not counts:
        return "none"
    return "\n".join(
        f"{number * width:8g} {counts[number]:5} {'#' * (60 * counts[number] // max(counts.values()))}"
        for number in range(min(counts), max(counts) + 1)
    )
