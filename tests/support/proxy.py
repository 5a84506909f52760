"""A TCP proxy in front of a server, which makes it slow."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class SlowProxy:
    """Hands all bytes on, those to the server `delay` seconds late; a context manager.

    With `only` just what contains these bytes is late, and what follows it on its connection. One thread with an event
    loop of its own: what is delayed keeps no other connection waiting.
    """

    def __init__(self, address: tuple[str, int], *, delay: float, only: bytes = b"") -> None:
        self._delay = delay
        self._only = only
        self._target = address
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._hand_on_late(reader, upstream_writer),
                self._hand_on(upstream_reader, writer),
            )
        except (asyncio.CancelledError, ConnectionError):
            pass  # one side has gone, or the test is over
        finally:
            for side in (writer, upstream_writer):
                side.transport.abort()
            self._connections.discard(connection)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self._write(writer, data)
        writer.close()

    async def _hand_on_late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due = self._loop.time()
        while data := await reader.read(65536):
            due = max(due, self._loop.time() + (self._delay if self._only in data else 0.0))
            self._loop.call_at(due, self._write, writer, data)
        self._loop.call_at(due, writer.close)

    @staticmethod
    def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)
