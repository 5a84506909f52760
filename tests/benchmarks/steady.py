"""What a soak's worker runs, and who starts it: tasks that come at a steady rate, each of which reports.

    python -m tests.benchmarks.steady USERS TASKS PACE STEPS

starts so many, `PACE` seconds apart, for so many users in turn, and stays until it is ended.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time

from celery_notify import notify, progress
from tests.support.tasks import app

#: Seconds that each step of a task takes.
STEP = 0.025


@app.task(name="steady")
@notify(user="user", title="Invoice {number}", url="/invoices/{number}.pdf")
def steady(user: str, number: int, steps: int) -> None:
    """Work for a while, step by step."""
    for step in range(1, steps + 1):
        progress(step, steps, f"Page {step}")
        time.sleep(STEP)


def main() -> None:
    """Start them."""
    users, tasks, pace, steps = sys.argv[1:]
    begun = time.monotonic()
    for number, user in zip(range(int(tasks)), itertools.cycle(range(int(users))), strict=False):
        time.sleep(max(0.0, begun + number * float(pace) - time.monotonic()))
        steady.delay(f"user {user}", number, int(steps))
    signal.pause()


if __name__ == "__main__":
    main()
