"""One open stream: a socket that only the hub's event loop touches, and what still has to go through it."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
from typing import TYPE_CHECKING

from celery_notify import events, sockets, sse

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Bytes that wait for a slow reader; one that is slower is cut, comes back and gets the newest states.
MAX_BUFFER = 256 * 1024
#: What ends a chunked body. https://www.rfc-editor.org/rfc/rfc9112#section-7.1
LAST_CHUNK = b"0\r\n\r\n"


class Frame:
    """Bytes for many connections, encoded once: as they are, and as one chunk of a chunked body."""

    __slots__ = ("chunk", "plain")

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self.chunk = b"%x\r\n%b\r\n" % (len(plain), plain)


#: Tells a reader that what it sees may be old.
DEGRADED = Frame(sse.frame(events.DEGRADED, b"{}"))


class Connection:
    """Writes frames to one socket at once as far as it takes them, the rest when it can.

    `chunked` says whether the body is: ours are where the socket came from an HTTP/1.1 server, not where a server
    frames the body itself. A reader who acknowledges nothing for `patience` seconds is gone. `closed` is called once,
    whatever ended the connection.
    """

    __slots__ = (
        "_buffer",
        "_chunked",
        "_closed",
        "_degraded",
        "_granted",
        "_held",
        "_held_size",
        "_loop",
        "_socket",
        "born",
        "drained",
        "ended",
        "fresh",
        "last_id",
        "live",
        "share",
        "user",
        "written",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        user: str,
        last_id: int,
        chunked: bool,
        patience: float,
        closed: Callable[[Connection], None],
        drained: Callable[[Connection], None],
    ) -> None:
        self.user = user
        #: The id up to which the reader has been told all; `fresh` until the first catch-up has judged it.
        self.last_id = last_id
        self.fresh = True
        #: Whether live frames are written at once; during a catch-up they are held. Nothing that has ended is live.
        self.live = False
        self._held: list[tuple[int, Frame]] = []
        self._held_size = 0
        self._degraded = False
        self.born = self.written = loop.time()
        #: Of the greatest age: what came together after a deploy does not end together.
        self.share = random.uniform(0.9, 1.0)  # noqa: S311 - no secret
        self.drained = drained
        self._socket = sock
        self._loop = loop
        self._chunked = chunked
        self._closed: Callable[[Connection], None] | None = closed
        self._buffer = bytearray()
        #: Of what waits, the bytes that its catch-up has left: they say nothing of how quickly it reads.
        self._granted = 0
        #: When its orderly end began, None before that.
        self.ended: float | None = None
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a socket of the Unix kind has no such options
            _notice_who_vanishes(sock, patience)
        loop.add_reader(sock, self._on_readable)

    @property
    def open(self) -> bool:
        """Whether anything may still be written."""
        return self._closed is not None and self.ended is None

    @property
    def backlog(self) -> int:
        """Bytes that wait for the reader."""
        return len(self._buffer)

    def tell(self, number: int, frame: Frame, *, room: int = MAX_BUFFER) -> None:
        """Write the frame of an entry, unless the reader was told as much already."""
        if number > self.last_id:
            self.last_id = number
            self.send(frame, room=room)

    def dispatch(self, number: int, frame: Frame) -> None:
        """Write the frame of a live entry, or hold it while the connection is being caught up."""
        if self.live:  # this runs for each event and connection: no more calls than it needs
            if number > self.last_id:
                self.last_id = number
                self._write(frame.chunk if self._chunked else frame.plain)
            return
        if not self.open:
            return
        self._held_size += len(frame.plain)
        if self.holds_all:
            self._held.append((number, frame))
        else:
            self._held.clear()

    @property
    def holds_all(self) -> bool:
        """Whether all live frames since `hold` are held; if not, the history must be read once more."""
        return self._held_size <= MAX_BUFFER

    def hold(self) -> None:
        """Hold live frames from now on: a catch-up begins, or begins anew."""
        self.live = False
        self._held, self._held_size = [], 0

    def go_live(self) -> None:
        """Write what was held, and live frames at once from now on."""
        if not self.open:
            return
        held, self._held, self.live = self._held, [], True
        self._granted = len(self._buffer)
        self._degraded = False
        for number, frame in held:
            self.tell(number, frame)

    def send(self, frame: Frame, *, room: int = MAX_BUFFER) -> None:
        """Write a frame. A reader for whom more than `room` bytes would wait is cut."""
        if self.open:
            self._write(frame.chunk if self._chunked else frame.plain, room=room)

    def degrade(self) -> None:
        """Tell the reader, once until it is live again, that what it sees may be old."""
        if not self._degraded:
            self._degraded = True
            self.send(DEGRADED)

    def send_head(self, head: bytes) -> None:
        """Write the response's head."""
        self._write(head)

    def end(self) -> None:
        """End the stream in an orderly way: what waits is still written, the body is complete."""
        if self.open:
            if self._chunked:
                self._write(LAST_CHUNK)
            self.ended, self.live = self._loop.time(), False
            if not self._buffer:
                self.close()

    def abandon(self) -> None:
        """Let go of the socket, in a forked child, and do nothing to it: the parent goes on with it."""
        sockets.let_go(self._socket.fileno())

    def close(self) -> None:
        """Leave at once."""
        closed, self._closed = self._closed, None
        if closed is None:
            return
        self.live = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._buffer.clear()
        closed(self)

    def _write(self, data: bytes, *, room: int = MAX_BUFFER) -> None:
        self.written = self._loop.time()
        sent = 0
        if not self._buffer:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
        if len(self._buffer) + len(data) - sent > max(room, MAX_BUFFER + self._granted):
            logger.info("A stream's reader is too slow, its connection is cut")
            # What the kernel still holds for it, megabytes perhaps, is old: it is dropped, the reader hears at once.
            sockets.drop_what_is_unsent(self._socket)
            self.close()
            return
        if not self._buffer:
            self._loop.add_writer(self._socket, self._on_writable)
        self._buffer += memoryview(data)[sent:]

    def _on_writable(self) -> None:
        try:
            sent = self._socket.send(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._buffer[:sent]
        self._granted = max(0, self._granted - sent)
        if self._buffer:
            return
        self._loop.remove_writer(self._socket)
        if self.ended is not None:
            self.close()
        else:
            self.drained(self)

    def _on_readable(self) -> None:
        """End the stream when its reader has left; also when it says more, which is no part of this request."""
        try:
            data = self._socket.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            logger.debug("A stream's reader sent more than its request, its connection is cut")
        self.close()


def _notice_who_vanishes(sock: socket.socket, patience: float) -> None:
    """Have the kernel end the connection to a reader whose host or network is gone: nobody says goodbye then.

    What is written must be acknowledged in time; where nothing is written, probes must. On Linux the first also bounds
    the second, and a reader that takes nothing at all. https://datatracker.ietf.org/doc/html/rfc5482
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, math.ceil(patience / 2))
    for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", seconds), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(patience * 1000))
