"""The tasks that say something at a steady rate, for a worker whose journal tells when they did."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import redis

from celery_notify import notify, progress
from tests.support.tasks import app, gates

if TYPE_CHECKING:
    from collections.abc import Callable


def at_a_pace(tell: Callable[[int], object], calls: int, pace: float) -> list[float]:
    """Call so often, `pace` seconds apart; return when each call began, by the clock that all processes share."""
    times = []
    start = time.monotonic()
    for number in range(1, calls + 1):
        if (left := start + number * pace - time.monotonic()) > 0:
            time.sleep(left)
        times.append(time.monotonic())
        tell(number)
    return times


@app.task(name="telling")
@notify(user="user")
def telling(user: str, journal: str, calls: int, pace: float) -> None:
    """Report progress."""
    gates.note(journal, at_a_pace(lambda number: progress(number, calls, "Rendering"), calls, pace))


@app.task(name="publishing", bind=True)
def publishing(self, url: str, channel: str, journal: str, calls: int, pace: float, size: int) -> None:
    """Publish as many bytes as an event of `telling` has, as plainly as can be."""
    name = self.request.id
    with redis.Redis.from_url(url) as client:
        def publish(number: int) -> None:
            text = f'{{"task_id":"{name}","current":{number},"padding":"'
            client.publish(channel, f'{text}{"x" * (size - len(text) - 2)}"}}')

        gates.note(journal, at_a_pace(publish, calls, pace))
