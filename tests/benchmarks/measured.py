"""The tasks that a benchmark's worker runs beside those of the tests: they measure themselves."""

from __future__ import annotations

import time

from celery_notify import notify, progress
from tests.support.tasks import app, gates

#: What stands for a hundredth of a task's work, waiting for something or computing, and the clock that measures it: to
#: compute takes as long as others on this machine let it, so that what counts is the time that the process had, the
#: library's own thread included.
WORK = {"waiting": time.sleep, "computing": lambda rounds: sum(range(int(rounds)))}
CLOCKS = {"waiting": time.perf_counter, "computing": time.process_time}


@app.task(name="measured")
@notify(user="user")
def measured(user: str, name: str, kind: str, amount: float, calls: int) -> None:
    """Work and report so many times; note the seconds of all of it, and of the slowest call of progress()."""
    work, clock, slowest = WORK[kind], CLOCKS[kind], 0.0
    start = clock()
    for number in range(1, calls + 1):
        work(amount)
        before = time.perf_counter()
        progress(number, calls, f"Step {number}")
        slowest = max(slowest, time.perf_counter() - before)
    seconds = clock() - start
    gates.note(name, {"seconds": seconds, "slowest": slowest, "end": time.perf_counter()})


@app.task(name="next")
def following(name: str) -> None:
    """Note when the child is free for it."""
    gates.note(name, time.perf_counter())
