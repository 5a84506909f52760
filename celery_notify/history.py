"""What a user's history says, read in one go: for `tasks()` and for the polling endpoint."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_notify import config, events, transport
from celery_notify.exceptions import InvalidEntryError, TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_notify.events import Entry, TaskDict
    from celery_notify.transport import Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The entries after an id, in the order of their ids; all keys; the last id issued."""

    entries: list[Entry]
    keys: list[str]
    newest: int


def read(source: Transport, user: str, *, after: int = 0) -> Snapshot:
    """Return the history of `user` after an id, as it is at one moment. Raises TransportError."""
    [page] = source.events_after([(user, after)], room=transport.WHOLE)
    if isinstance(page, Exception):
        raise page if isinstance(page, TransportError) else TransportError(str(page)) from page
    return Snapshot([*decode(page.entries, user)], page.keys, page.newest)


def decode(raw: list[bytes], user: str) -> Iterator[Entry]:
    """Yield the entries among `raw`; what is none is logged and left out."""
    for item in raw:
        try:
            yield events.decode_entry(item, user)
        except InvalidEntryError as error:
            logger.warning("The history of a user holds something else than entries: %s", error)


def tasks(user: str | int) -> list[TaskDict]:
    """Return the newest state of each of the user's tasks, the oldest change first.

    Raises ValueError for what is no user's id, TransportError while Redis does not answer.
    """
    found = read(transport.connect(config.settings()), events.check_user(user))
    return [json.loads(bytes(item.data)) for item in found.entries if item.event in (events.PROGRESS, events.DONE)]
