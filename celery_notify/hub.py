"""All open streams of one process: one thread with an event loop, one pub/sub connection, one reader of histories.

A stream is told the truth in three steps: subscribe, then read the history, then pass on what is live and newer. Each
confirmation of a subscription, the first or one after a lost connection, begins anew with the second step.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import json
import logging
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from celery_notify import events, history, sse, transport
from celery_notify.connection import MAX_BUFFER, Connection, Frame
from celery_notify.exceptions import InvalidEntryError, TooManyStreamsError, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from celery_notify.config import Settings
    from celery_notify.transport import History, Subscriber, Transport

logger = logging.getLogger(__name__)

#: Seconds between two pings, and the silence after which Redis counts as lost: within 5 s together with a connect.
PING_INTERVAL, LOST_AFTER = 1.0, 4.0
#: Seconds until Redis is tried again.
PAUSE = 0.5
#: Users whose histories are read in one round trip.
BATCH = 100
#: Milliseconds after which a browser comes back, chosen for each, so that not all come at once.
RECONNECTION_TIME = (1000, 3000)
#: Seconds that a new hub has to reach Redis before streams are refused.
REACHED_WITHIN = 2.0
#: Bytes that may wait for a reader during its catch-up, which goes on only when they are written.
CATCH_UP_ROOM = 4 * MAX_BUFFER
#: Seconds that the process's end waits for streams to be ended.
DRAIN = 2.0


class Admission:
    """A place for one stream, free again when it is released or forgotten."""

    __slots__ = ("_hub", "user")

    def __init__(self, hub: Hub, user: str) -> None:
        self._hub: Hub | None = hub
        self.user = user

    def release(self) -> None:
        """Give the place back, once."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.release(self.user)

    def __del__(self) -> None:
        self.release()


class Feed:
    """What the loop knows of one user: the open connections, and those of them that wait for a read."""

    __slots__ = ("behind", "confirmed", "connections")

    def __init__(self) -> None:
        self.connections: dict[Connection, Admission] = {}
        self.behind: set[Connection] = set()
        self.confirmed = False


class Hub:
    """Writes what is published to a user to all of the user's connections.

    `admit` and `adopt` may be called from any thread; all else happens in the loop's.
    """

    def __init__(self, source: Transport, settings: Settings) -> None:
        self._transport = source
        self._settings = settings
        self._lock = threading.RLock()  # a forgotten Admission may be collected while it is held
        self._open: dict[str, int] = {}
        self._total = 0
        self._feeds: dict[str, Feed] = {}
        self._subscriber: Subscriber | None = None
        self._wanted = asyncio.Event()
        self._heard = 0.0
        self._degraded = False
        self._complained = False
        self._reached = threading.Event()
        self._begun = time.monotonic()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="celery-notify-reader")
        self._loop = _new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._serve, name="celery-notify-hub", daemon=True)
        self._thread.start()

    # --- from any thread --------------------------------------------------------------------------------------------

    def admit(self, user: str) -> Admission:
        """Return a place for one more stream. Raises TooManyStreamsError: `args` say whose limit it is."""
        with self._lock:
            if self._total >= self._settings.max_streams:
                raise TooManyStreamsError("process")
            if self._open.get(user, 0) >= self._settings.max_streams_per_user:
                raise TooManyStreamsError("user")
            self._total += 1
            self._open[user] = self._open.get(user, 0) + 1
        return Admission(self, user)

    def wait_until_reached(self) -> None:
        """Wait until Redis was reached once, shortly, and only while the hub is new. Raises TransportError."""
        if not self._reached.wait(max(0.0, self._begun + REACHED_WITHIN - time.monotonic())):
            raise TransportError("expected Redis to be reached, it was not yet")

    def release(self, user: str) -> None:
        """Take a place back; an Admission calls it."""
        with self._lock:
            self._total -= 1
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]

    def adopt(self, sock: socket.socket, admission: Admission, *, head: bytes, chunked: bool, last_id: int) -> None:
        """Take over a connected socket: write `head`, then the user's stream, until either side ends it."""
        try:
            self._loop.call_soon_threadsafe(self._begin, sock, admission, head, chunked, last_id)
        except RuntimeError:  # the loop is closed: the process ends
            sock.close()
            admission.release()

    def stop(self, timeout: float = DRAIN) -> None:
        """End all streams in an orderly way, and the thread."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._drain)
            self._thread.join(timeout)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        work = (self._listen, self._watch, self._read, self._keep_time)
        self._tasks = [asyncio.create_task(self._forever(each)) for each in work]
        try:
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            logger.debug("The hub ends")
        finally:
            for connection in self._connections():
                connection.close()
            self._reader.shutdown(wait=False, cancel_futures=True)

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin anew after an error that nobody foresaw: ten thousand streams hang on this loop."""
        while True:
            try:
                await work()
            except Exception:
                logger.exception("The hub begins anew after an error")
                await asyncio.sleep(PAUSE)

    def _drain(self) -> None:
        """Tell each reader when to come back, a time of its own, and end its stream."""
        for connection in self._connections():
            connection.send(Frame(sse.reconnection_time(random.randint(*RECONNECTION_TIME))))  # noqa: S311 - no secret
            connection.end()
        for task in self._tasks:
            task.cancel()

    def _connections(self) -> list[Connection]:
        return [connection for feed in self._feeds.values() for connection in feed.connections]

    # --- connections come and go ------------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket, admission: Admission, head: bytes, chunked: bool, last_id: int) -> None:
        user = admission.user
        connection = Connection(
            sock,
            loop=self._loop,
            user=user,
            last_id=last_id,
            chunked=chunked,
            closed=self._forget,
            drained=self._on_drained,
        )
        feed = self._feeds.get(user)
        if feed is None:
            feed = self._feeds[user] = Feed()
            self._command(lambda subscriber: subscriber.subscribe([user]))
        feed.connections[connection] = admission
        feed.behind.add(connection)
        if head:
            connection.send_head(head)
        if self._degraded:
            connection.send(_DEGRADED)
        self._wanted.set()

    def _forget(self, connection: Connection) -> None:
        user = connection.user
        feed = self._feeds[user]
        feed.connections.pop(connection).release()
        feed.behind.discard(connection)
        if not feed.connections:
            del self._feeds[user]
            self._command(lambda subscriber: subscriber.unsubscribe(user))

    def _on_drained(self, connection: Connection) -> None:
        """Go on with a catch-up that its reader was too slow for."""
        if connection.pending is not None:
            self._want(connection)

    def _want(self, connection: Connection) -> None:
        feed = self._feeds.get(connection.user)
        if feed is not None and connection in feed.connections:
            feed.behind.add(connection)
            self._wanted.set()

    def _command(self, command: Callable[[Subscriber], Awaitable[None]]) -> None:
        """Write a command to the pub/sub connection, if there is one: a new one subscribes to all users anyway."""
        if self._subscriber is not None:
            asyncio.ensure_future(self._attempt(command(self._subscriber)))  # noqa: RUF006 - it ends by itself

    async def _attempt(self, command: Awaitable[None]) -> None:
        try:
            await command
        except TransportError as error:
            logger.debug("A command failed, the connection will be found lost: %s", error)

    # --- subscribing, and noticing that Redis is lost ---------------------------------------------------------------

    async def _listen(self) -> None:
        """Stay subscribed for all users that have connections."""
        while True:
            subscriber = self._transport.subscriber()
            try:
                await subscriber.connect()
                self._heard = self._loop.time()
                self._reached.set()
                self._subscriber = subscriber
                await subscriber.subscribe(list(self._feeds))
                await subscriber.ping()
                async for user, entry in subscriber.receive():
                    self._heard = self._loop.time()
                    self._received(user, entry)
            except TransportError as error:
                self._degrade(error)
            finally:
                self._subscriber = None
                await subscriber.close()
            await asyncio.sleep(PAUSE)

    async def _watch(self) -> None:
        """Ping, and drop a connection on which nothing comes back: a frozen Redis raises no error."""
        while True:
            await asyncio.sleep(PING_INTERVAL)
            subscriber = self._subscriber
            if subscriber is None:
                continue
            if self._loop.time() - self._heard >= LOST_AFTER - PING_INTERVAL:
                self._degrade(TransportError(f"no answer within {LOST_AFTER - PING_INTERVAL} s"))
                await subscriber.close()
            else:
                await self._attempt(subscriber.ping())

    def _degrade(self, error: Exception) -> None:
        """Tell all readers that what they see may be old; each gets a new catch-up when Redis is back."""
        for feed in self._feeds.values():
            feed.confirmed = False
        if self._degraded:
            return
        self._degraded = True
        logger.warning("Redis is lost, streams stay open: %s", error)
        for connection in self._connections():
            connection.send(_DEGRADED)

    def _received(self, user: str, entry: bytes | None) -> None:
        if self._degraded:
            self._degraded = False
            logger.warning("Redis is back")
        feed = self._feeds.get(user)
        if feed is None:
            return
        if entry is not None:
            self._dispatch(user, feed, entry)
            return
        feed.confirmed = True
        for connection in feed.connections:
            if connection.pending is None:
                connection.pending, connection.pending_size = [], 0
        feed.behind.update(feed.connections)
        self._wanted.set()

    def _dispatch(self, user: str, feed: Feed, raw: bytes) -> None:
        """Write what was published to a user to all of the user's connections."""
        try:
            entry = events.decode_entry(raw, user)
        except InvalidEntryError as error:
            if not self._complained:
                self._complained = True
                logger.warning("A channel carries something else than entries, it is skipped: %s", error)
            return
        if entry.event == events.CLOSE_STREAMS:
            for connection in list(feed.connections):
                connection.end()
            return
        number, frame = _framed(entry)
        for connection in list(feed.connections):
            if connection.pending is not None:
                connection.pending.append((number, frame))
                connection.pending_size += len(frame.plain)
            elif number > connection.last_id:
                connection.last_id = number
                connection.send(frame)

    # --- catching up ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read histories for those who wait for them: all who wait, in one round trip, one read for each user."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting = [(user, feed) for user, feed in self._feeds.items() if feed.confirmed and feed.behind]
            for start in range(0, len(waiting), BATCH):
                if not await self._read_some(waiting[start : start + BATCH]):
                    await asyncio.sleep(PAUSE)
                    self._wanted.set()
                    break

    async def _read_some(self, waiting: list[tuple[str, Feed]]) -> bool:
        """Read the histories of some users, and write them; return whether Redis answered."""
        readers = [(user, feed, set(feed.behind)) for user, feed in waiting if feed.behind]
        wanted = [(user, min(connection.last_id for connection in behind)) for user, _, behind in readers]
        if not wanted:
            return True
        try:
            found = await self._loop.run_in_executor(self._reader, self._transport.events_after, wanted)
        except TransportError as error:
            logger.info("A history cannot be read, it will be tried again: %s", error)
            return False
        for (user, feed, behind), (_, after), page in zip(readers, wanted, found, strict=True):
            feed.behind -= behind
            frames = [_framed(entry) for entry in history.decode(page.entries, user)]
            ready = Frame(_ready(page.keys))
            for connection in behind:
                if connection.open and feed.confirmed:
                    self._catch_up(connection, after, page, frames, ready)
                elif connection.open:
                    feed.behind.add(connection)
        return True

    def _catch_up(
        self,
        connection: Connection,
        after: int,
        page: History,
        frames: Iterable[tuple[int, Frame]],
        ready: Frame,
    ) -> None:
        """Write what the history holds after the connection's last id; at its end go live."""
        if connection.fresh and connection.last_id > page.newest:
            connection.last_id = 0  # an id that was never issued, or by a Redis that has lost it since
            if 0 < after <= page.newest:
                self._want(connection)
                return
        connection.fresh = False
        # A Redis that came back with less than this reader was told holds nothing new for it yet.
        complete = page.complete if connection.last_id <= page.newest else page.newest
        for number, frame in frames:
            if number > connection.last_id:
                connection.send(frame, room=CATCH_UP_ROOM)
        connection.last_id = max(connection.last_id, complete)
        if not connection.open:
            return
        if complete < page.newest or connection.pending is None or connection.pending_size > MAX_BUFFER:
            connection.pending, connection.pending_size = [], 0
            if not connection.backlog:
                self._want(connection)
            return
        connection.send(ready, room=CATCH_UP_ROOM)
        pending, connection.pending = connection.pending, None
        for number, frame in pending:
            if number > connection.last_id:
                connection.last_id = number
                connection.send(frame)

    # --- time -------------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Say a word on silent streams, end old ones."""
        heartbeat, max_age = self._settings.heartbeat, self._settings.max_stream_age
        while True:
            await asyncio.sleep(min(1.0, heartbeat / 4, max_age / 4))
            now = self._loop.time()
            for connection in self._connections():
                if now - connection.born >= max_age:
                    connection.end()
                elif now - connection.written >= heartbeat:
                    connection.send(_HEARTBEAT)


_HEARTBEAT = Frame(sse.frame(events.HEARTBEAT, b"{}"))
_DEGRADED = Frame(sse.frame(events.DEGRADED, b"{}"))


def _framed(entry: events.Entry) -> tuple[int, Frame]:
    return int(entry.id), Frame(sse.frame(entry.event, bytes(entry.data), id=entry.id))


def _ready(keys: list[str]) -> bytes:
    data = json.dumps({"keys": keys}).encode("ascii")
    return sse.frame(events.READY, data, retry=random.randint(*RECONNECTION_TIME))  # noqa: S311 - no secret


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop: uvloop's where it is installed, which is an extra."""
    patched = socket.socket.__module__ != "socket"  # by gevent: a loop that waits in C would stop all greenlets
    if patched or importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]


_hubs: dict[Settings, Hub] = {}
_making = threading.Lock()


def of(settings: Settings) -> Hub:
    """Return the process's hub for these settings; it starts at the first call in the process that makes it."""
    with _making:
        if settings not in _hubs:
            _hubs[settings] = Hub(transport.connect(settings), settings)
        return _hubs[settings]


def reset() -> None:
    """End all streams and hubs of this process, in an orderly way."""
    while _hubs:
        _hubs.popitem()[1].stop()


def _forget_after_fork() -> None:
    """In a forked child: the threads and the streams are the parent's."""
    global _making  # noqa: PLW0603
    _hubs.clear()
    _making = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(reset)
