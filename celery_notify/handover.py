"""What a pool's child could not publish before it ends, left to its worker's main process, which lives on.

A child that is replaced cannot wait for a Redis that is away: it would hold up its worker. So it hands over what it
has, through a pair of sockets made before the pool is forked: the one thing of ours that is meant to cross a fork.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import msgspec

from celery_notify import events
from celery_notify.events import MAX_ENTRY, Publication

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Publication)


class Handover:
    """A pair of sockets: children give, the main process takes."""

    def __init__(self) -> None:
        # Datagrams, so that what several children give does not mix.
        self._giving, self._taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._giving.setblocking(False)
        self._taking.setblocking(False)

    def give(self, publications: Iterable[Publication]) -> None:
        """Leave these to the main process, ends first, since there is little room.

        What there is none for is lost, with a line in the log.
        """
        lost = 0
        for item in sorted(publications, key=lambda item: item.event != events.DONE):
            try:
                self._giving.send(msgspec.json.encode(item))
            except OSError:
                lost += 1
        if lost:
            logger.warning("A process of the pool ends with %d events that Redis has not taken", lost)

    def take(self) -> Iterator[Publication]:
        """Yield what was given."""
        while True:
            try:
                yield _decoder.decode(self._taking.recv(2 * MAX_ENTRY))
            except BlockingIOError:
                return

    def close(self) -> None:
        """Close both ends."""
        self._giving.close()
        self._taking.close()
