"""Catch-up: what a connection has missed, read from the history; then it goes live."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from celery_notify import events, history, sse
from celery_notify.connection import MAX_BUFFER, Frame
from celery_notify.transport import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_notify.admission import Admission
    from celery_notify.connection import Connection
    from celery_notify.transport import History, Transport

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds until a history that could not be read is tried again.
PAUSE = 0.5
#: Users whose histories are read in one round trip.
BATCH = 100
#: Bytes that may wait for a reader during its catch-up, which goes on only when they are written.
ROOM = 4 * MAX_BUFFER
#: Milliseconds after which a browser comes back, chosen for each, so that not all come at once: a thousand a second.
RECONNECTION_TIME = (1000, 3000)


class Feed:
    """What the loop knows of one user: the open connections, those of them that wait for a read, the tasks that run."""

    __slots__ = ("behind", "confirmed", "connections", "running")

    def __init__(self) -> None:
        self.connections: dict[Connection, Admission] = {}
        self.behind: set[Connection] = set()
        self.confirmed = False
        self.running: dict[str, Running] = {}

    def follow(self, entry: events.Entry) -> None:
        """Note from a live entry whether its task runs, and where."""
        worker = entry.worker or entry.lost
        if worker:
            self.running[entry.key] = Running(worker, lost=bool(entry.lost), id=int(entry.id))
        elif self.running:
            self.running.pop(entry.key, None)

    def learn(self, page: History) -> None:
        """Note which tasks run, by a read of the history; what was told since then is newer."""
        newer = {key: each for key, each in self.running.items() if each.id > page.newest}
        self.running = {**page.running, **newer}

    def unlearn(self, told: dict[str, Running]) -> None:
        """Forget of these tasks what was known, unless it is newer: it was wrong, and what is right was published."""
        self.running = {key: each for key, each in self.running.items() if told.get(key) is not each}

    def begin(self, connection: Connection) -> None:
        """Have a connection caught up, anew if it is live already."""
        if connection.live:
            connection.hold()
        self.behind.add(connection)

    def take(self) -> set[Connection]:
        """Return the connections that wait for a read; none waits any more."""
        taken, self.behind = self.behind, set()
        return taken

    def put_back(self, connections: set[Connection]) -> None:
        """Have these, as far as they are still open, wait for the next read."""
        self.behind |= connections & self.connections.keys()


class CatchUp:
    """Reads histories for the connections that are behind; all in the loop of the hub, the reading in a thread."""

    def __init__(self, source: Transport, feeds: dict[str, Feed]) -> None:
        self._transport = source
        self._feeds = feeds
        #: Users some of whose connections may be behind, those who have waited longest first.
        self._waiting: dict[str, None] = {}
        self._wanted = asyncio.Event()
        #: Whether the last read failed, which is logged once.
        self._failing = False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="celery-notify-reader")

    def wake(self, user: str) -> None:
        """Look for connections of this user that are behind; until they are subscribed for, in vain."""
        self._waiting[user] = None
        self._wanted.set()

    def go_on(self, connection: Connection) -> None:
        """Go on with a connection whose reader has taken all so far, if it is not live yet."""
        if not connection.live:
            self._want(connection)

    def close(self) -> None:
        """Read no more."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _want(self, connection: Connection) -> None:
        feed = self._feeds.get(connection.user)
        if feed is not None and connection in feed.connections:
            feed.behind.add(connection)
            self.wake(connection.user)

    async def work(self) -> None:
        """Read histories for those who wait for them: all who wait, in one round trip, one read for each user."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                if not await self._read_some(self._take()):
                    await asyncio.sleep(PAUSE)

    def _take(self) -> list[tuple[str, Feed]]:
        """Return the feeds of some users who wait, as far as they can be read."""
        users = list(itertools.islice(self._waiting, BATCH))
        for user in users:
            del self._waiting[user]
        found = [(user, feed) for user in users if (feed := self._feeds.get(user)) is not None]
        return [(user, feed) for user, feed in found if feed.confirmed and feed.behind]

    async def in_thread(self, call: Callable[[], Answer]) -> Answer:
        """Have the reading thread do something that waits for Redis."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, call)

    async def _read_some(self, waiting: list[tuple[str, Feed]]) -> bool:
        """Read the histories of some users, and write them; return whether Redis answered."""
        readers = [(user, feed, feed.take()) for user, feed in waiting]
        wanted = [(user, min(connection.last_id for connection in behind)) for user, _, behind in readers]
        if not wanted:
            return True
        try:
            found = await self.in_thread(functools.partial(self._transport.events_after, wanted))
        except Exception:
            for user, feed, behind in readers:
                feed.put_back(behind)
                self.wake(user)
            raise
        failed: list[Exception] = []
        for (user, feed, behind), (_, after), page in zip(readers, wanted, found, strict=True):
            # Those that were begun anew during the read wait for the next one: this one may have come too early.
            behind -= feed.behind  # noqa: PLW2901
            if isinstance(page, Exception):
                failed.append(page)
                self.wake(user)
                for connection in behind:
                    connection.degrade()
            if isinstance(page, Exception) or not feed.confirmed:
                feed.put_back(behind)
            else:
                self._write(user, feed, behind, after=after, page=page)
        if failed and not self._failing:
            logger.warning("%d histories cannot be read, they will be tried again: %s", len(failed), failed[0])
        self._failing = bool(failed)
        return not failed

    def _write(self, user: str, feed: Feed, behind: set[Connection], *, after: int, page: History) -> None:
        """Write what one read has found of a user to those who waited for it."""
        try:
            if page.whole:
                feed.learn(page)
            frames = [framed(entry) for entry in history.decode(page.entries, user)]
            ready = Frame(_ready(page.keys))
            for connection in behind:
                self._catch_up(connection, after, page, frames, ready)
        except Exception:  # nobody foresaw it: the users who were read for with this one have no part in it
            logger.exception("A history cannot be told, its readers are sent away")
            for connection in behind:
                connection.end()

    def _catch_up(
        self,
        connection: Connection,
        after: int,
        page: History,
        frames: Iterable[tuple[int, Frame]],
        ready: Frame,
    ) -> None:
        """Write what the history holds after the connection's last id; at its end go live."""
        if not connection.open:
            return
        if connection.fresh and connection.last_id > page.newest:
            connection.last_id = 0  # an id that was never issued, or by a Redis that has lost it since
            if 0 < after <= page.newest:
                self._want(connection)
                return
        connection.fresh = False
        # A Redis that came back with less than this reader was told holds nothing new for it yet.
        complete = page.complete if connection.last_id <= page.newest else page.newest
        for number, frame in frames:
            connection.tell(number, frame, room=ROOM)
        connection.last_id = max(connection.last_id, complete)
        if not connection.open:
            return
        if complete < page.newest or not page.whole or not connection.holds_all:
            connection.hold()
            if not connection.backlog:
                self._want(connection)
            return
        # However many keys there are, they are told: cut for it, the reader would come back to the same.
        connection.send(ready, room=ROOM + len(ready.chunk))
        connection.go_live()


def framed(entry: events.Entry) -> tuple[int, Frame]:
    """Return an entry's id and its frame."""
    return int(entry.id), Frame(sse.frame(entry.event, bytes(entry.data), id=entry.id))


def _ready(keys: list[str]) -> bytes:
    data = json.dumps({"keys": keys}).encode("ascii")
    return sse.frame(events.READY, data, retry=reconnection_time())


def reconnection_time(*, of: int = 1) -> int:
    """Return a reconnection time in milliseconds for one of so many readers who come back at about the same time."""
    shortest, longest = RECONNECTION_TIME
    return random.randint(shortest, max(longest, of))  # noqa: S311 - no secret
