"""The tasks that say something at a steady rate, and note when they did, by the clock that all processes share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import redis

from celery_notify import notify, progress
from tests.support.tasks import app, gates

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def at_a_pace(tell: Callable[[int], object], calls: int, pace: float) -> list[float]:
    """Call so often, `pace` seconds apart; return when each call began."""
    times = []
    start = time.monotonic()
    for number in range(1, calls + 1):
        if (left := start + number * pace - time.monotonic()) > 0:
            time.sleep(left)
        times.append(time.monotonic())
        tell(number)
    return times


@app.task(name="telling", bind=True)
@notify(user="user")
def telling(self: Any, user: str, journal: str, calls: int, pace: float) -> None:
    """Say how far it is."""
    times = at_a_pace(lambda number: progress(number, calls, "Rendering"), calls, pace)
    gates.note(journal, [self.request.id, times])


@app.task(name="publishing", bind=True)
def publishing(self: Any, url: str, channel: str, journal: str, calls: int, pace: float, size: int) -> None:
    """Publish as many bytes as an entry of `telling` has, as plainly as redis-py can."""
    with redis.Redis.from_url(url) as client:

        def publish(number: int) -> None:
            text = f'{{"task_id":"{self.request.id}","current":{number},"rest":"'
            client.publish(channel, f'{text:x<{size - 2}}"}}')

        times = at_a_pace(publish, calls, pace)
    gates.note(journal, [self.request.id, times])
