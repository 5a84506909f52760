"""What one page shows: the rules of the browser client (celery_notify/static/client.js), without a browser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_notify.sse import Event

FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"})
TASK_EVENTS = frozenset({"task-progress", "task-done"})


def moves_on(shown: dict[str, Any], following: dict[str, Any], *, newer: bool) -> bool:
    """Say whether an event moves its task on: `newer` says whether its id is the higher one."""
    attempts = following.get("attempt", 1) - shown.get("attempt", 1)
    if attempts != 0:
        return bool(attempts > 0)
    if shown["state"] in FINAL:
        return False
    if following["state"] in FINAL:
        return True
    if following["state"] == "PENDING" and shown["state"] != "PENDING":
        return False
    was, now = shown.get("current"), following.get("current")
    if was is None or now is None:
        return newer
    return bool(now >= was if newer else now > was)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows under a key: the id of the event that said so, its name and its data."""

    id: int
    event: str
    data: dict[str, Any]


@dataclass
class Page:
    """One page over all its connections. `announced` are the ends it has told as news: (task id, attempt, id)."""

    shown: dict[str, Shown] = field(default_factory=dict)
    announced: list[tuple[str, int, int]] = field(default_factory=list)
    last_event_id: str = ""
    #: The newest id heard of each key; higher than that of what is shown where an event did not move its task on.
    heard: dict[str, int] = field(default_factory=dict)
    applied: int = 0
    _highest: int = 0
    #: Until the first catch-up has ended: what comes before that is no news.
    _history: bool = True

    def opened(self) -> None:
        """Begin a connection: ids count within one."""
        self._highest = 0

    def receive(self, event: Event) -> tuple[int, str, dict[str, Any]] | None:
        """Take in an event; return its id, its key and its data if it has an id, whether it changed anything or not."""
        self.last_event_id = event.id or self.last_event_id
        data = json.loads(event.data)
        if event.event == "ready":
            self._ready(data["keys"])
        if event.event == "degraded":
            self._highest = 0
        if not event.id:
            return None
        number = int(event.id)
        key = data["task_id"] if event.event in TASK_EVENTS else data["key"]
        if number > self._highest:
            self._highest = number
            self._apply(number, event.event, key, data)
        return number, key, data

    def _apply(self, number: int, event: str, key: str, data: dict[str, Any]) -> None:
        self.applied += 1
        if event == "removed":
            self._forget(key)
        elif event in TASK_EVENTS:
            self._task(number, data)
        else:
            self._custom(number, event, data)

    def _custom(self, number: int, event: str, data: dict[str, Any]) -> None:
        """Show a custom event if it is newer; 0 is the id of one from the polling endpoint."""
        key = data["key"]
        if number == 0 or number > self.heard.get(key, 0):
            self.heard[key] = number
            self.shown[key] = Shown(number, event, data)

    def _task(self, number: int, data: dict[str, Any]) -> None:
        """Show a task if the event moves it on."""
        key = data["task_id"]
        shown, known = self.shown.get(key), self.heard.get(key, 0)
        self.heard[key] = max(number, known)
        if shown is not None and not moves_on(shown.data, data, newer=number > known):
            return
        ended = data["state"] in FINAL
        self.shown[key] = Shown(number, "task-done" if ended else "task-progress", data)
        if ended and not self._history:
            self.announced.append((key, data["attempt"], number))

    def _ready(self, keys: Iterable[str]) -> None:
        listed = set(keys)
        for key in self.heard.keys() - listed:
            self._forget(key)
        self.unknown = listed - self.heard.keys() - self._unheard if self.last_event_id else set()
        self._history = False

    #: Keys that the last `ready` listed and the page does not know: it asks the polling endpoint once.
    unknown: set[str] = field(default_factory=set)
    _unheard: set[str] = field(default_factory=set)

    def fill(self, wanted: set[str], answer: dict[str, Any]) -> None:
        """Take in what the polling endpoint says of the unknown keys, as history."""
        self._history = True
        for task in answer["tasks"]:
            if task["task_id"] in wanted:
                self._task(0, task)
        for event in answer["events"]:
            if event["data"]["key"] in wanted:
                self._custom(0, event["event"], event["data"])
        self._history = False
        self._unheard |= wanted - self.heard.keys()

    def _forget(self, key: str) -> None:
        self.heard.pop(key, None)
        self.shown.pop(key, None)
