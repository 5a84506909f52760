"""A TCP proxy in front of a server, whose faults are switched while it runs."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from celery_notify.sockets import drop_what_is_unsent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any, Self

#: The two directions, and both.
TO_SERVER, FROM_SERVER = "to the server", "from the server"
BOTH = (TO_SERVER, FROM_SERVER)
#: Bytes that are handed on in one piece, and how many pieces wait in one direction of a connection: then it reads no
#: more, as a peer does whose window is full.
PIECE, WAITING = 65536, 8
#: The same of a narrow proxy, and the most bytes of a segment to it: as over an Ethernet.
NARROW, SEGMENT = 4096, 1400
#: What begins a command of Redis' protocol.
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n([A-Z]+)\r\n")
#: TCP_CLOSE, the state of a connection that was reset: socket has no name for it.
_CLOSED = 7

_Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class _Fault:
    """What happens in one direction to what contains the bytes `only`, on connections that said the command `of`.

    What follows on its connection waits too. `late` are seconds; `held` waits until all is healed; `lost` vanishes.
    """

    late: float = 0.0
    held: bool = False
    lost: bool = False
    only: bytes = b""
    of: bytes = b""


@dataclass(eq=False, slots=True)
class _Connection:
    """One connection: the commands of Redis that its client has said, and the directions in which it stands or is dead.

    It is dead where bytes were lost: after a hole TCP hands on nothing more.
    """

    commands: set[bytes] = field(default_factory=set)
    stands: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)

    def meets(self, fault: _Fault, data: bytes) -> bool:
        return fault.only in data and (not fault.of or fault.of in self.commands)


class Proxy:
    """Hands all bytes on; a context manager. Its faults may be switched from any thread and are in force at once.

    One thread with an event loop of its own: what one connection waits for keeps no other waiting. To a `narrow` one no
    more is on its way than in a network: on the loopback that is megabytes.
    """

    def __init__(self, address: tuple[str, int], *, narrow: bool = False) -> None:
        self._target = address
        self._narrow = narrow
        self._piece = NARROW if narrow else PIECE
        self._faults: dict[str, _Fault] = {direction: _Fault() for direction in BOTH}
        self._refusing = False
        #: How many connections were refused.
        self.refused = 0
        self._loop = asyncio.new_event_loop()
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._held = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    # --- faults -----------------------------------------------------------------------------------------------------

    def slow(self, seconds: float, *directions: str, only: bytes = b"", of: bytes = b"") -> None:
        """Have bytes be late, those to the server unless said: what contains `only`, on connections that said `of`."""
        self._set(directions or (TO_SERVER,), _Fault(late=seconds, only=only, of=of))

    def hold(self, *directions: str, only: bytes = b"", of: bytes = b"") -> None:
        """Keep bytes until `heal`, as a network does that is broken for a while: connections stay open."""
        self._set(directions or BOTH, _Fault(held=True, only=only, of=of))

    def lose(self, *directions: str, only: bytes = b"", of: bytes = b"") -> None:
        """Have bytes vanish; a connection that lost some is dead for good, though it stays open."""
        self._set(directions or BOTH, _Fault(lost=True, only=only, of=of))

    def heal(self) -> None:
        """End all faults; what was held goes on."""
        self._do(self._refuse, False)
        self._do(lambda: [each.stands.clear() for each in self._connections.values()])
        self._set(BOTH, _Fault())

    def hold_what_is_open(self, *directions: str) -> None:
        """Keep the bytes of the connections that are open now, until `heal`; new ones are sound."""
        self._do(lambda: [each.stands.update(directions or BOTH) for each in self._connections.values()])

    def lose_what_is_open(self) -> None:
        """Leave the connections that are open now half open: neither side hears of the other. New ones are sound."""
        self._do(lambda: [each.dead.update(BOTH) for each in self._connections.values()])

    def cut(self) -> None:
        """Reset all connections."""
        self._do(lambda: [task.cancel() for task in self._connections])

    def refuse(self) -> None:
        """Reset new connections at once."""
        self._do(self._refuse, True)

    @property
    def held(self) -> int:
        """How many directions of connections have something that is held."""
        return self._held

    def _set(self, directions: tuple[str, ...], fault: _Fault) -> None:
        async def switch() -> None:
            for direction in directions:
                self._faults[direction] = fault
            async with self._switched:
                self._switched.notify_all()

        self._wait_for(switch())

    def _refuse(self, whether: bool) -> None:  # noqa: FBT001 - handed on by `_do`
        self._refusing = whether

    def _do(self, action: Callable[..., object], *arguments: object) -> None:
        async def do() -> None:
            action(*arguments)

        self._wait_for(do())

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped, self._switched = asyncio.Event(), asyncio.Condition()
        listening = socket.create_server(("127.0.0.1", 0))
        if self._narrow:
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        server = await asyncio.start_server(self._accept, sock=listening, limit=self._piece)
        self.port: int = listening.getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.refused += 1
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        connection = self._connections[task] = _Connection()
        sides = [writer]
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            sides.append(upstream_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hand_on(connection, TO_SERVER, (reader, writer), upstream_writer))
                group.create_task(self._hand_on(connection, FROM_SERVER, (upstream_reader, upstream_writer), writer))
        except* (asyncio.CancelledError, OSError):
            pass  # one side has gone, or is not there, or the test is over
        finally:
            for side in sides:
                _reset(side)
            del self._connections[task]

    async def _hand_on(
        self, connection: _Connection, direction: str, source: _Side, writer: asyncio.StreamWriter
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING)
        reader, back = source
        writing = asyncio.create_task(self._write(connection, direction, pieces, writer, back))
        try:
            while data := await reader.read(self._piece):
                if direction == TO_SERVER:
                    connection.commands.update(_COMMAND.findall(data))
                await pieces.put((time.monotonic(), data))
            await pieces.put((time.monotonic(), b""))
            await writing
        finally:
            writing.cancel()

    async def _write(
        self,
        connection: _Connection,
        direction: str,
        pieces: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        """Write what comes out of the queue, each piece when its time has come; an empty one is the end.

        What its sender has given up is not handed on: with a reset (`back` leads to the sender) it is sent no more.
        """
        while True:
            came, data = await pieces.get()
            fault = self._faults[direction]
            if direction in connection.stands or (fault.held and connection.meets(fault, data)):
                await self._healed(connection, direction)
                if _was_reset(back):
                    raise ConnectionResetError
            elif fault.late and connection.meets(fault, data):
                await asyncio.sleep(came + fault.late - time.monotonic())
            if fault.lost and connection.meets(fault, data):
                connection.dead.add(direction)
            if direction in connection.dead:
                await asyncio.Event().wait()  # until the test is over: nothing more is acknowledged either
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    async def _healed(self, connection: _Connection, direction: str) -> None:
        """Wait until nothing is held in this direction."""
        self._held += 1
        try:
            async with self._switched:
                await self._switched.wait_for(
                    lambda: not self._faults[direction].held and direction not in connection.stands
                )
        finally:
            self._held -= 1


class SlowProxy(Proxy):
    """Hands all bytes on, those to the server `delay` seconds late: what contains `only`, and what follows it."""

    def __init__(self, address: tuple[str, int], *, delay: float, only: bytes = b"") -> None:
        super().__init__(address)
        self._faults[TO_SERVER] = _Fault(late=delay, only=only)


def _was_reset(writer: asyncio.StreamWriter) -> bool:
    """Say whether the other side has reset a connection, also if its orderly end was read before."""
    sock = writer.transport.get_extra_info("socket")
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == _CLOSED


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection at once."""
    sock = writer.transport.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        drop_what_is_unsent(sock)
    writer.transport.abort()
