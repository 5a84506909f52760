"""What waits to be published, bounded; and what was published of ends, for a Redis that forgets them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from celery_notify import events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_notify.events import Publication

#: Events that wait; beyond it some are given up.
MAX_WAITING = 10_000
#: Ends that are remembered, and the bytes of their data.
MAX_ENDS, MAX_ENDS_SIZE = 1000, 1024 * 1024


class Outbox:
    """Events in the order they are to be published in. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque()
        #: How many were added since it was last looked for those that others replace.
        self._added = 0
        #: The ends that are remembered, to be told again.
        self.ends: deque[Publication] = deque()
        self._ends_size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, items: Iterable[Publication]) -> int:
        """Have these wait; return how many were given up for them."""
        before = len(self._waiting)
        self._waiting.extend(items)
        after = len(self._waiting)
        self._added += after - before
        if after > MAX_WAITING:
            self._make_room()
        return after - len(self._waiting)

    def take(self, most: int) -> list[Publication]:
        """Take out those that wait longest."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def put_back(self, items: list[Publication]) -> None:
        """Have these wait again, before all others."""
        self._waiting.extendleft(reversed(items))

    def _make_room(self) -> None:
        """Give up what says least: first what a later event of its key replaces, then beginnings, the oldest ends last.

        To look for the first takes long, so that it is done once for many events.
        """
        if self._added >= MAX_WAITING // 10:
            self._added = 0
            newest = {(item.user, item.key): item for item in self._waiting}
            kept = [item for item in self._waiting if not item.key or newest[item.user, item.key] is item]
            much = max(0, len(kept) - MAX_WAITING * 9 // 10)  # room for those that come before the next time
            passing = [item for item in kept if item.event == events.PROGRESS][:much]
            given_up = {id(item) for item in passing}
            self._waiting = deque(item for item in kept if id(item) not in given_up)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()

    def keep(self, published: Iterable[tuple[Publication, int]]) -> None:
        """Remember the ends among what was published, each with its id."""
        for item, number in published:
            if item.event == events.DONE and not item.since:
                # Told again, it counts only for what is older: it may have been removed, and its id be in use again.
                self.ends.append(msgspec.structs.replace(item, since=-number))
                self._ends_size += len(item.data)
        while len(self.ends) > MAX_ENDS or self._ends_size > MAX_ENDS_SIZE:
            self._ends_size -= len(self.ends.popleft().data)
