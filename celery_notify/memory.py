"""The transport of ``memory://``: one process and no Redis, with the same contract, for tests and development."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import msgspec

from celery_notify import events
from celery_notify.events import FINAL_STATES, Position
from celery_notify.tally import Tally
from celery_notify.transport import History, Running

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_notify.config import Settings
    from celery_notify.events import Publication
    from celery_notify.transport import Deliver


#: Jobs of several tasks that are remembered.
MOST_JOBS = 10_000


@dataclass(frozen=True, slots=True)
class Stored:
    """One entry, and what the next event under its key is judged by; `task` is None for a custom event.

    `age` is the id by which the bounds tell how old it is: its own or, of what is to stay, more than another's.
    """

    id: int
    raw: bytes
    task: Position | None
    worker: str
    age: float

    @property
    def ended(self) -> bool:
        """Whether the bounds of the history may remove it."""
        return self.task is None or self.task.state in FINAL_STATES

    @property
    def cancelling(self) -> bool:
        """Whether the entry says that the task's user has asked for a cancel."""
        return events.CANCELLING.encode() in self.raw

    @property
    def stalled(self) -> bool:
        """Whether the process that ran it is lost."""
        return self.task is not None and self.task.state == "STALLED"


def backwards(task: Position, was: Position) -> bool:
    """Say whether an event would move its task backwards; publish.lua says why."""
    if task.attempt != was.attempt:
        return task.attempt < was.attempt
    if was.state in FINAL_STATES:
        return True
    if task.state in FINAL_STATES or task.state in {"RETRY", "STALLED"}:
        return False
    if task.state == "PENDING" or was.state == "RETRY":
        return True
    if task.state == "STARTED":
        return was.state not in {"PENDING", "STALLED"}
    return task.current is not None and was.current is not None and task.current < was.current


def _taken_over(item: Publication, was: Stored) -> bool:
    """Say whether somebody else begins a run that is no news; publish.lua says why."""
    return (
        item.task is not None
        and was.task is not None
        and (item.task.state, item.task.attempt) == ("STARTED", was.task.attempt)
        and was.task.state in {"STARTED", "PROGRESS"}
        and was.worker not in {"", item.worker}
    )


class MemoryTransport:
    """Keeps histories in this process; hubs of this process get what is published."""

    def __init__(self, settings: Settings) -> None:
        self._size, self._ttl = settings.history_size, settings.history_ttl
        self._lock = threading.Lock()
        self._histories: dict[str, dict[str, Stored]] = {}
        self._last: dict[str, int] = {}
        self._jobs: dict[tuple[str, str], Tally] = {}
        self._signs: dict[str, tuple[float, set[str]]] = {}
        self._cancels: dict[str, set[str]] = {}
        self.connections = 1
        self._subscribers: set[MemorySubscriber] = set()

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        """As Transport."""
        with self._lock:
            return [self._publish(item) for item in publications]

    def _publish(self, item: Publication) -> int:
        if item.event == events.CLOSE_STREAMS:
            self._tell(item.user, _entry("", item, "{}"))
            return 1
        kept = self._histories.setdefault(item.user, {})
        was = kept.get(item.key)
        if item.once and was is not None:
            return was.id
        if item.since and (was is None or (was.id != item.since and was.id >= -item.since)):
            return 0
        if item.event == events.REMOVED and was is None:
            return -1
        return self._publish_if_it_moves_on(item, kept, was)

    def _publish_if_it_moves_on(self, item: Publication, kept: dict[str, Stored], was: Stored | None) -> int:
        tally = self._jobs.get((item.user, _job_id(item))) if item.task is not None else None
        before = was.task if was is not None else _remembered(tally, item.key)
        refused = self._refused(item, was, before)
        again = refused and was is not None and _taken_over(item, was)
        if refused and not again:
            return 0
        if item.task is not None and not again:
            tally = self._begin_tally(item, kept) if tally is None else tally
            if tally is not None and tally.hides(item.key, item.task):
                tally.count(item.key, item.task, hidden=True)
                return 0
        return self._store(item, kept, before=before, again=was if again else None, tally=tally)

    def _store(
        self,
        item: Publication,
        kept: dict[str, Stored],
        *,
        before: Position | None,
        again: Stored | None,
        tally: Tally | None,
    ) -> int:
        """Give an event its number, keep it and tell it; `again` is what is told once more in its place."""
        number = self._last[item.user] = max(time.time_ns() // 1000, self._last.get(item.user, 0) + 1)
        task, data = _merged(item.task, before), item.data
        if again is not None:
            task, data = again.task, bytes(events.decode_entry(again.raw, item.user).data).decode()
        elif item.event != events.REMOVED:
            data = _completed(data, task)
            if (was := kept.get(item.key)) is not None and was.cancelling:
                data = _still_cancelling(data, task)
        if tally is not None and task is not None:
            if again is None:
                tally.count(item.key, task)
                kept.pop(tally.gives_up(item.key, task) or "", None)
            data = _with_numbers(data, tally)
        raw = _entry(str(number), item, data)
        kept.pop(item.key, None)
        if item.event != events.REMOVED:
            kept[item.key] = Stored(number, raw, task, item.worker, number)
            if tally is not None and kept[item.key].ended and (failure := kept.get(tally.failure or "")) is not None:
                kept[tally.failure or ""] = dataclasses.replace(failure, age=number + 0.5)
            self._bound(kept, self._size, now=number)
        self._tell(item.user, raw)
        return number

    def _refused(self, item: Publication, was: Stored | None, before: Position | None) -> bool:
        if item.event == events.REMOVED:
            return was is not None and not was.ended and not was.stalled
        if before is None or item.task is None:
            return before is not None
        if was is not None and item.since == was.id and item.task.state == before.state:  # the same entry, told anew
            return was.ended
        return backwards(item.task, before)

    def _begin_tally(self, item: Publication, kept: dict[str, Stored]) -> Tally | None:
        """Return the tally of a job that has none; None while there is but the task that it is named by."""
        job_id = _job_id(item)
        if item.key == job_id:
            return None
        for forgotten in list(self._jobs)[:-MOST_JOBS]:
            del self._jobs[forgotten]
        tally = self._jobs[item.user, job_id] = Tally(max(1, self._size // 2))
        named_by = kept.get(job_id)
        if named_by is not None and named_by.task is not None:
            tally.count(job_id, named_by.task)
        return tally

    def _bound(self, kept: dict[str, Stored], size: int, *, now: int) -> None:
        """Remove the oldest of what has ended while there are more than `size` entries, or it is too old."""
        ended = [key for key, stored in kept.items() if stored.ended and stored.age < now]
        for key in sorted(ended, key=lambda key: kept[key].age):
            if len(kept) <= size and kept[key].age >= now - self._ttl * 1_000_000:
                return
            del kept[key]

    def _tell(self, user: str, raw: bytes) -> None:
        for subscriber in list(self._subscribers):
            subscriber.put(user, raw)

    def events_after(self, wanted: Sequence[tuple[str, int]], *, room: int = 0) -> list[History | Exception]:
        """As Transport; a history is given whole, whatever the room."""
        del room
        with self._lock:
            return [self._events_after(user, after) for user, after in wanted]

    def _events_after(self, user: str, after: int) -> History:
        kept, newest = self._histories.get(user, {}), self._last.get(user, 0)
        self._bound(kept, len(kept), now=time.time_ns() // 1000)
        if after > newest:
            after = 0
        running = {
            key: Running(stored.worker, stored.stalled, stored.id) for key, stored in kept.items() if stored.worker
        }
        after_it = [stored.raw for stored in kept.values() if stored.id > after]
        return History(newest, newest, list(kept), after_it, running)

    def sign(self, worker: str, tasks: Iterable[str], *, lease: float) -> None:
        """As Transport."""
        self._signs[worker] = (time.monotonic() + lease, set(tasks))

    def signs(self, workers: Iterable[str]) -> dict[str, set[str]]:
        """As Transport."""
        now = time.monotonic()
        found = {worker: self._signs[worker] for worker in workers if worker in self._signs}
        return {worker: tasks for worker, (end, tasks) in found.items() if end > now}

    def cancel(self, ids: Iterable[str], user: str) -> None:
        """As Transport; kept as long as the process."""
        with self._lock:
            for each in ids:
                self._cancels.setdefault(each, set()).add(user)

    def cancelled(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """As Transport."""
        with self._lock:
            return {each: set(self._cancels[each]) for each in ids if each in self._cancels}

    def subscriber(self, deliver: Deliver) -> MemorySubscriber:
        """As Transport."""
        return MemorySubscriber(self._subscribers, deliver)

    def abandon(self) -> None:
        """As Transport."""

    def close(self) -> None:
        """As Transport."""
        self._subscribers.clear()


class MemorySubscriber:
    """Passes on what is published in this process, from whatever thread."""

    def __init__(self, subscribers: set[MemorySubscriber], deliver: Deliver) -> None:
        self._subscribers = subscribers
        self._deliver = deliver
        self._users: set[str] = set()

    async def connect(self) -> None:
        """As Subscriber."""
        self._loop = asyncio.get_running_loop()
        self._subscribers.add(self)

    def subscribe(self, users: Iterable[str]) -> None:
        """As Subscriber."""
        for user in users:
            self._users.add(user)
            self._loop.call_soon(self._deliver, user, None)

    def unsubscribe(self, user: str) -> None:
        """As Subscriber."""
        self._users.discard(user)

    def ping(self) -> None:
        """As Subscriber."""
        self._loop.call_soon(self._deliver, "", None)

    def put(self, user: str, raw: bytes) -> None:
        """Pass on an entry, from any thread."""
        if user in self._users and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, user, raw)

    async def until_lost(self) -> NoReturn:
        """As Subscriber."""
        raise await asyncio.get_running_loop().create_future()  # never

    def abandon(self) -> None:
        """As Subscriber."""

    def close(self) -> None:
        """As Subscriber."""
        self._subscribers.discard(self)


def _merged(task: Position | None, was: Position | None) -> Position | None:
    """Return where the task is: `current` does not fall within an attempt."""
    if task is None or was is None or was.current is None or task.attempt != was.attempt:
        return task
    if task.current is not None and task.current >= was.current:
        return task
    return msgspec.structs.replace(task, current=was.current, total=was.total)


def _job_id(item: Publication) -> str:
    return (item.task.job_id if item.task is not None else None) or item.key


def _remembered(tally: Tally | None, key: str) -> Position | None:
    """Return what a job remembers of a task that has no entry."""
    known = tally.member(key) if tally is not None else None
    return Position(known.attempt, known.state) if known is not None else None


def _with_numbers(data: str, tally: Tally) -> str:
    told = {name: value for name, value in json.loads(data).items() if name != "job"}
    return events.encode({**told, "job": tally.numbers()})


def _completed(data: str, task: Position | None) -> str:
    """Add what the transport knows: how far the task is, and what time it is."""
    added = {"current": task.current, "total": task.total} if task else {}
    added = {name: value for name, value in added.items() if value is not None}
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{data[:-1]},{events.encode({**added, 'at': now})[1:]}"


def _still_cancelling(data: str, task: Position | None) -> str:
    """Add to an event that its task is being cancelled, which whoever runs it need not know, unless it ends with it."""
    if task is None or task.state in FINAL_STATES or events.CANCELLING in data:
        return data
    return f"{data[:-1]},{events.CANCELLING}}}"


def _entry(number: str, item: Publication, data: str) -> bytes:
    worker = {("lost" if item.task and item.task.state == "STALLED" else "worker"): item.worker} if item.worker else {}
    head = events.encode({"id": number, **worker, "user": item.user, "event": item.event})
    return f'{head[:-1]},"data":{data}}}'.encode("ascii")
