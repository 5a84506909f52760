"""A subscriber to whom a test listens, one thing after another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from celery_notify.transport import Subscriber, Transport


class Listener:
    """A subscriber of a transport, and all that it is told, until its connection is lost."""

    def __init__(self, transport: Transport) -> None:
        self._told: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue()
        self.subscriber: Subscriber = transport.subscriber(lambda *told: self._told.put_nowait(told))

    async def next(self) -> tuple[str, bytes | None]:
        """Return what it is told next; raise what ends the connection before."""
        async with asyncio.timeout(10 * SLOWNESS):
            told, lost = asyncio.create_task(self._told.get()), asyncio.create_task(self.subscriber.until_lost())
            await asyncio.wait({told, lost}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                lost.cancel()
                return told.result()
            told.cancel()
            return lost.result()
