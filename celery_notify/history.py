"""What a user's history says, read in one go."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_notify import events, transport
from celery_notify.exceptions import InvalidEntryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_notify.events import Entry
    from celery_notify.transport import Running, Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The entries after an id, in the order of their ids; all keys; the last id issued; all tasks that run."""

    entries: list[Entry]
    keys: list[str]
    newest: int
    running: dict[str, Running]


def read(source: Transport, user: str, *, after: int = 0) -> Snapshot:
    """Return the history of `user` after an id, as it is at one moment. Raises TransportError."""
    [answer] = source.events_after([(user, after)], room=transport.WHOLE)
    page = transport.unwrap(answer)
    return Snapshot([*decode(page.entries, user)], page.keys, page.newest, page.running)


def decode(raw: list[bytes], user: str) -> Iterator[Entry]:
    """Yield the entries among `raw`; what is none is left out, with one line in the log for all of it."""
    refused: list[InvalidEntryError] = []
    for item in raw:
        try:
            entry = events.decode_entry(item, user)
        except InvalidEntryError as error:
            refused.append(error)
            continue
        if entry.event == events.CLOSE_STREAMS:  # which is told, never kept
            refused.append(InvalidEntryError(f"expected an entry, got {item[:40]!r}"))
        else:
            yield entry
    if refused:
        logger.warning("The history of a user holds %d things that are no entries: %s", len(refused), refused[0])
