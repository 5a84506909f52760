"""A look at a user's tasks as they are: where whoever ran one is lost, nobody else will ever say so."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

import msgspec

from celery_notify import config, events, history, transport
from celery_notify.exceptions import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from celery_notify.config import Settings
    from celery_notify.events import Entry, Publication, TaskDict
    from celery_notify.history import Snapshot
    from celery_notify.transport import Running, Transport

logger = logging.getLogger(__name__)

#: The part of WORKER_TTL for which a sign must have been missing; for the rest of it the last one was good.
MISSING = 1 - config.LEASE
#: How many are remembered whose sign is missing.
MOST = 10_000


class Lookout:
    """Tells STALLED where nobody runs a task any more, and the state before it where somebody does. Thread-safe.

    A sign that is missing once says little: the task may have begun after it was given, or Redis has come back empty,
    and the worker signs again in a moment. It counts when this process has seen it missing for long enough.
    """

    def __init__(self, source: Transport) -> None:
        self._transport = weakref.proxy(source)
        self._lock = threading.Lock()
        self._missing: dict[Running, float] = {}

    def look(self, running: Mapping[str, Mapping[str, Running]], *, worker_ttl: float) -> dict[str, set[str]]:
        """Look after the running tasks of some users, by key; return by user the keys of which something was told.

        Raises TransportError while Redis does not answer.
        """
        wrong = self._wrong({each for tasks in running.values() for each in tasks.values()}, worker_ttl)
        told = {}
        for user, tasks in running.items():
            if keys := {key for key, each in tasks.items() if each in wrong}:
                self._tell(user, {key: tasks[key] for key in keys})
                told[user] = keys
        return told

    def _wrong(self, running: Iterable[Running], worker_ttl: float) -> set[Running]:
        """Return those who run and are said to be lost, or the other way round. Whose sign is missing only now may run.

        A task that has said anything since the last look lives: it is another Running, and waited for anew.
        """
        asked = {each: each.worker.partition(".") for each in running}
        wrong: set[Running] = set()
        if not asked:
            return wrong
        try:
            signs = self._transport.signs({worker for worker, _, _ in asked.values()})
        except TransportError:
            with self._lock:
                self._missing.clear()  # a Redis that comes back may have lost the signs
            raise
        now = time.monotonic()
        with self._lock:
            if len(self._missing) > MOST:  # most of them have ended since
                self._missing = {each: since for each, since in self._missing.items() if now - since < worker_ttl}
            for each, (worker, _, task) in asked.items():
                if task in signs.get(worker, ()):
                    self._missing.pop(each, None)
                    if each.lost:
                        wrong.add(each)
                elif not each.lost and now - self._missing.setdefault(each, now) >= MISSING * worker_ttl:
                    wrong.add(each)
        return wrong

    def _tell(self, user: str, wrong: Mapping[str, Running]) -> None:
        """Read what the tasks said last, and tell it anew with the state that is right."""
        entries = history.read(self._transport, user).entries
        told = [
            item
            for entry in entries
            if (each := wrong.get(entry.key)) is not None and (item := _righted(entry, each)) is not None
        ]
        for item, answer in zip(told, self._transport.publish(told), strict=True):
            if transport.unwrap(answer) and item.task is not None:
                logger.warning("Task %r is %s, by what is known of its worker", item.key, item.task.state)


def _righted(entry: Entry, seen: Running) -> Publication | None:
    """Return what is to be told in place of an entry; None if it is another one by now, or no task's."""
    try:
        if int(entry.id) == seen.id:
            return events.turned(entry, "STARTED" if seen.lost else "STALLED")
    except ValueError as error:
        logger.warning("The history of a user holds something else than entries: %s", error)
    return None


_lookouts: weakref.WeakKeyDictionary[Transport, Lookout] = weakref.WeakKeyDictionary()


def of(source: Transport) -> Lookout:
    """Return the process's lookout over this transport: one, so that all who ask know what any of them has seen."""
    return _lookouts.setdefault(source, Lookout(source))


def read(settings: Settings, user: str, *, after: int = 0) -> Snapshot:
    """Return the history of `user` after an id, once what has stalled is told. Raises TransportError."""
    source = transport.connect(settings)
    found = history.read(source, user, after=after)
    if of(source).look({user: found.running}, worker_ttl=settings.worker_ttl):
        found = history.read(source, user, after=after)
    return found


def answer(settings: Settings, user: str, *, after: int = 0) -> bytes:
    """Return all that a stream would say after an id, as JSON (PROTOCOL section 4). Raises TransportError."""
    found = read(settings, user, after=after)
    told, custom = [], []
    for entry in found.entries:
        # What is stored goes out as it stands: nothing in it, however deep or long, is a fault of the whole answer.
        if entry.event in events.OF_TASKS:
            told.append(entry.data)
        else:
            custom.append({"id": entry.id, "event": entry.event, "data": entry.data})
    keys = msgspec.Raw(json.dumps(found.keys).encode("ascii"))
    return msgspec.json.encode({"tasks": told, "events": custom, "keys": keys, "last_event_id": str(found.newest)})


def tasks(user: str | int) -> list[TaskDict]:
    """Return the newest state of each of the user's tasks, the oldest change first.

    Raises ValueError for what is no user's id, TransportError while Redis does not answer.
    """
    found = read(config.settings(), events.check_user(user))
    told = []
    for item in found.entries:
        if item.event in events.OF_TASKS:
            # JSON may hold more digits than Python reads: the fault of that entry alone, whoever has written it.
            with contextlib.suppress(ValueError):
                told.append(json.loads(bytes(item.data)))
    return told
