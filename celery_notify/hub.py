"""All open streams of one process: one thread with an event loop, one pub/sub connection, one reader of histories.

A stream is told the truth in three steps: subscribe, then read the history, then pass on what is live and newer. Each
confirmation of a subscription, the first or one after a lost connection, begins anew with the second step.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import importlib.util
import logging
import os
import random
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from celery_notify import events, lookout, sockets, sse, transport, wsgi
from celery_notify.admission import Admissions
from celery_notify.catch_up import CatchUp, Feed, framed, reconnection_time
from celery_notify.connection import Connection, Frame
from celery_notify.exceptions import InvalidEntryError, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from celery_notify.admission import Admission
    from celery_notify.config import Settings
    from celery_notify.transport import Subscriber, Transport

logger = logging.getLogger(__name__)

#: Seconds between two pings, and the silence after which Redis counts as lost: within 5 s together with a connect.
PING_INTERVAL, LOST_AFTER = 1.0, 4.0
#: Seconds until Redis is tried again, about: when it comes back, not all web processes do at once.
PAUSE = 0.5
#: Seconds that a new hub has to reach Redis before streams are refused.
REACHED_WITHIN = 2.0
#: Seconds that a reader has to take the rest of a stream that has ended; at the process's end it is half of it.
DRAIN = 2.0
#: Seconds between two looks whether the server has begun to stop.
LOOK = 0.2
#: Seconds over which the streams are ended at the process's end, if there are many, and streams that are ended at once.
SPREAD, SLICE = 3.0, 50
#: Heartbeats that a reader may leave unacknowledged, and the seconds that a network may pause in any case.
PATIENCE, LEAST_PATIENCE = 2, 5.0
#: Users whose tasks are looked after in one go of the reading thread.
BATCH = 100
#: Seconds in which new streams gather after the first: when many come they share a wake, a SUBSCRIBE and a read.
GATHER = 0.02


class Arrival(NamedTuple):
    """A stream that has come: its socket, and what `adopt` was told with it."""

    sock: socket.socket
    admission: Admission
    head: bytes
    chunked: bool
    last_id: int

    def turn_away(self) -> None:
        """Close the connection: there is nobody any more to write to it."""
        self.sock.close()
        self.admission.release()


class Hub:
    """Writes what is published to a user to all of the user's connections.

    `admissions`, `adopt` and what stands beside them may be used from any thread; all else happens in the loop's.
    """

    def __init__(self, source: Transport, settings: Settings) -> None:
        self._transport = source
        self._settings = settings
        self.admissions = Admissions(per_user=settings.max_streams_per_user, in_all=_room(settings.max_streams))
        self._feeds: dict[str, Feed] = {}
        self._subscriber: Subscriber | None = None
        self._catch_up = CatchUp(source, self._feeds)
        self._lookout = lookout.of(source)
        self._left = asyncio.Event()
        self._ending = asyncio.Event()
        self._ended = threading.Event()
        #: How many streams there were when the end began, None before that.
        self._seen_off: int | None = None
        self._heard = 0.0
        self._degraded = False
        self._complained = False
        self._reached = threading.Event()
        self._begun = time.monotonic()
        #: New streams, None when nobody will look for them any more; those of them that begin now; and whether the loop
        #: is about to look for more.
        self._arrivals: list[Arrival] | None = []
        self._beginning: list[Arrival] = []
        self._gathering = False
        self._arriving = threading.Lock()
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="celery-notify-hub", daemon=True)
        self._thread.start()

    # --- from any thread --------------------------------------------------------------------------------------------

    def wait_until_reached(self) -> None:
        """Wait until Redis was reached once, shortly, and only while the hub is new. Raises TransportError."""
        if not self._reached.wait(max(0.0, self._begun + REACHED_WITHIN - time.monotonic())):
            raise TransportError("expected Redis to be reached, it was not yet")

    def adopt(self, sock: socket.socket, admission: Admission, *, head: bytes, chunked: bool, last_id: int) -> None:
        """Take over a connected socket: write `head`, then the user's stream, until either side ends it."""
        arrival = Arrival(sock, admission, head, chunked, last_id)
        with self._arriving:
            over, expected = self._arrivals is None, self._gathering
            if self._arrivals is not None:
                self._arrivals.append(arrival)
                self._gathering = True
        if over:
            arrival.turn_away()
        elif not expected:
            with contextlib.suppress(RuntimeError):  # the loop is closed, which turns away whoever has come
                # In a context of its own: that of the request holds the request, which a stream would keep for hours.
                self._loop.call_soon_threadsafe(self._welcome, context=contextvars.Context())

    def stop(self, timeout: float = SPREAD + DRAIN) -> None:
        """End all streams in an orderly way, and the thread."""
        self.end()
        self.wait(timeout)

    def end(self) -> None:
        """Begin to end all streams, and then the thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ending.set)

    def wait(self, timeout: float) -> None:
        """Wait for the end of the thread.

        A signal does not cut it short: the handler of gunicorn's workers raises SystemExit at each SIGINT, at a second
        Ctrl-C for example. The process is ending already.
        """
        until = time.monotonic() + timeout
        while not self._ended.is_set() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(SystemExit):
                self._ended.wait(left)  # an interrupted join() takes the thread for ended, before Python 3.13
        self._thread.join(max(0.0, until - time.monotonic()))

    def abandon(self) -> None:
        """Close the copies, in a forked child, of what is connected: else nothing that the parent closes would end."""
        for connection in self._connections():
            connection.abandon()
        for arrival in (*(self._arrivals or ()), *self._beginning):
            sockets.let_go(arrival.sock.fileno())
        if self._subscriber is not None:
            self._subscriber.abandon()
        for own in ("_ssock", "_csock"):  # asyncio's loop wakes itself by a pair of sockets, uvloop's does not
            if (sock := getattr(self._loop, own, None)) is not None:
                sockets.let_go(sock.fileno())

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        finally:
            with self._arriving:
                arrivals, self._arrivals = self._arrivals, None
            for arrival in arrivals or ():
                arrival.turn_away()
            self._ended.set()

    async def _main(self) -> None:
        reading = [asyncio.create_task(self._forever(each)) for each in (self._catch_up.work, self._look_out)]
        others = [asyncio.create_task(self._forever(each)) for each in (self._listen, self._watch, self._keep_time)]
        await self._until_the_end_begins()
        for task in reading:  # its thread is gone when the interpreter ends
            task.cancel()
        await self._drain()
        await self._ending.wait()
        self._welcome()  # who has come meanwhile is seen off, too
        if self._feeds:
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), DRAIN / 2)
        for task in others:
            task.cancel()
        await asyncio.gather(*reading, *others, return_exceptions=True)
        for connection in self._connections():
            connection.close()
        self._catch_up.close()

    async def _until_the_end_begins(self) -> None:
        """Wait for `stop`, or until the server begins to stop.

        That may be long before `stop`, which is called when the interpreter ends: first the server waits for requests,
        then the interpreter for threads; whoever is still not through then is killed.
        """
        while not wsgi.stopping():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK)
                return

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin anew after an error that nobody foresaw: ten thousand streams hang on this loop."""
        while True:
            try:
                await work()
            except Exception:
                logger.exception("The hub begins anew after an error")
                await asyncio.sleep(PAUSE)

    async def _drain(self) -> None:
        """See all readers off; many of them not all at once. Those who come later are seen off at once."""
        connections = self._connections()
        self._seen_off = of = len(connections)
        random.shuffle(connections)
        begun, spread = self._loop.time(), min(SPREAD, of / 1000)
        for start in range(0, of, SLICE):
            await asyncio.sleep(begun + spread * start / of - self._loop.time())
            for connection in connections[start : start + SLICE]:
                self._see_off(connection)

    def _see_off(self, connection: Connection) -> None:
        """Tell a reader when to come back, a time of its own, and end its stream."""
        connection.send(Frame(sse.reconnection_time(reconnection_time(of=self._seen_off or 1))))
        connection.end()

    def _connections(self) -> list[Connection]:
        return [connection for feed in self._feeds.values() for connection in feed.connections]

    # --- connections come and go ------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        """Begin the streams that have come, and look again shortly, until none has."""
        with self._arriving:
            arrivals = self._beginning = self._arrivals or []
            self._arrivals, self._gathering = [], bool(arrivals)
        if not arrivals:
            return
        self._loop.call_later(GATHER, self._welcome)
        new = {arrival.admission.user for arrival in arrivals} - self._feeds.keys()
        for arrival in arrivals:
            try:
                self._begin(arrival)
            except Exception:
                logger.exception("A stream could not begin")
                arrival.turn_away()
        if new := new & self._feeds.keys():  # not whose only reader has left already
            self._command(lambda subscriber: subscriber.subscribe(new))

    def _begin(self, arrival: Arrival) -> None:
        user = arrival.admission.user
        connection = Connection(
            arrival.sock,
            loop=self._loop,
            user=user,
            last_id=arrival.last_id,
            chunked=arrival.chunked,
            patience=max(LEAST_PATIENCE, PATIENCE * self._settings.heartbeat),
            closed=self._forget,
            drained=self._catch_up.go_on,
        )
        feed = self._feeds.setdefault(user, Feed())
        feed.connections[connection] = arrival.admission
        feed.begin(connection)
        self._catch_up.wake(user)
        if arrival.head:
            connection.send_head(arrival.head)
        if self._seen_off is not None:
            self._see_off(connection)
        elif self._degraded:
            connection.degrade()

    def _forget(self, connection: Connection) -> None:
        user = connection.user
        feed = self._feeds[user]
        feed.connections.pop(connection).release()
        feed.behind.discard(connection)
        if not feed.connections:
            del self._feeds[user]
            if not self._feeds:
                self._left.set()
            self._command(lambda subscriber: subscriber.unsubscribe(user))

    def _command(self, command: Callable[[Subscriber], None]) -> None:
        """Give a command to the pub/sub connection, if there is one: a new one subscribes to all users anyway."""
        if self._subscriber is not None:
            try:
                command(self._subscriber)
            except TransportError as error:
                logger.debug("A command failed, the connection will be found lost: %s", error)

    # --- subscribing, and noticing that Redis is lost ---------------------------------------------------------------

    async def _listen(self) -> None:
        """Stay subscribed for all users that have connections."""
        while True:
            subscriber = self._transport.subscriber(self._received)
            try:
                await subscriber.connect()
                self._heard = self._loop.time()
                self._reached.set()
                self._subscriber = subscriber
                subscriber.subscribe(list(self._feeds))
                subscriber.ping()
                await subscriber.until_lost()
            except TransportError as error:
                self._degrade(error)
            finally:
                self._subscriber = None
                subscriber.close()
            await asyncio.sleep(random.uniform(PAUSE / 2, 2 * PAUSE))  # noqa: S311 - no secret

    async def _watch(self) -> None:
        """Ping, and drop a connection on which nothing comes back: a frozen Redis raises no error."""
        while True:
            await asyncio.sleep(PING_INTERVAL)
            subscriber = self._subscriber
            if subscriber is None:
                continue
            if self._loop.time() - self._heard >= LOST_AFTER - PING_INTERVAL:
                self._degrade(TransportError(f"no answer within {LOST_AFTER - PING_INTERVAL} s"))
                subscriber.close()
            else:
                self._command(lambda subscriber: subscriber.ping())

    def _degrade(self, error: Exception) -> None:
        """Tell all readers that what they see may be old; each gets a new catch-up when Redis is back."""
        for feed in self._feeds.values():
            feed.confirmed = False
        if self._degraded:
            return
        self._degraded = True
        logger.warning("Redis is lost, streams stay open: %s", error)
        for connection in self._connections():
            connection.degrade()

    def _received(self, user: str, entry: bytes | None) -> None:
        """Take what the subscriber is told: an entry, a confirmation if it is None, of no user if Redis but lives."""
        self._heard = self._loop.time()
        if self._degraded:
            self._degraded = False
            logger.warning("Redis is back")
        feed = self._feeds.get(user)
        if feed is None:  # a sign of life, or what was on its way when the last reader left
            return
        if entry is not None:
            self._dispatch(user, feed, entry)
            return
        feed.confirmed = True
        for connection in feed.connections:
            feed.begin(connection)
        self._catch_up.wake(user)

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
        feed.follow(entry)
        number, frame = framed(entry)
        for connection in list(feed.connections):
            connection.dispatch(number, frame)

    # --- time -------------------------------------------------------------------------------------------------------

    async def _look_out(self) -> None:
        """Have told what nobody else will say: that the process which ran a task is lost."""
        worker_ttl = self._settings.worker_ttl
        while True:
            await asyncio.sleep(max(0.1, min(2.0, worker_ttl / 10)))
            running = [(user, dict(feed.running)) for user, feed in self._feeds.items() if feed.running]
            for start in range(0, len(running), BATCH):
                if self._degraded:
                    break
                some = dict(running[start : start + BATCH])
                look = functools.partial(self._lookout.look, some, worker_ttl=worker_ttl)
                try:
                    told = await self._catch_up.in_thread(look)
                except TransportError as error:
                    logger.debug("Whether workers live cannot be read: %s", error)
                    break
                for user, keys in told.items():
                    if (feed := self._feeds.get(user)) is not None:
                        feed.unlearn({key: some[user][key] for key in keys})

    async def _keep_time(self) -> None:
        """Say a word on silent streams, end old ones."""
        heartbeat, max_age = self._settings.heartbeat, self._settings.max_stream_age
        while True:
            await asyncio.sleep(min(1.0, heartbeat / 4, max_age / 4))
            now = self._loop.time()
            for connection in self._connections():
                if connection.ended is not None:
                    if now - connection.ended >= DRAIN:
                        connection.close()
                elif now - connection.born >= connection.share * max_age:
                    connection.end()
                elif now - connection.written >= heartbeat:
                    connection.send(_HEARTBEAT)


def _room(streams: int) -> int:
    """Return how many streams this process has descriptors for, at most so many.

    A quarter of them is left to the server and the application: gunicorn's workers end, with all their streams, when
    they cannot accept a connection. What keeps its socket takes three for a stream.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or streams <= soft * 3 // 4:
        return streams
    logger.warning("The process may open %d files: %d streams instead of %d", soft, soft * 3 // 4, streams)
    return soft * 3 // 4


_HEARTBEAT = Frame(sse.frame(events.HEARTBEAT, b"{}"))


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
    """End all streams and hubs of this process, in an orderly way, the hubs side by side."""
    ending = list(_hubs.values())
    _hubs.clear()
    for each in ending:
        each.end()
    until = time.monotonic() + SPREAD + DRAIN
    for each in ending:
        each.wait(until - time.monotonic())


def _forget_after_fork() -> None:
    """In a forked child: the threads and the streams are the parent's."""
    global _making  # noqa: PLW0603
    for each in _hubs.values():
        each.abandon()
    _hubs.clear()
    _making = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(reset)
