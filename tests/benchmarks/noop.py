"""The tasks that do nothing, for workers that show them (`noop_shown`) and for others; run, it publishes them.

    python -m tests.benchmarks.noop_shown TASK USER WARM_UP COUNT JOURNAL

publishes so many of one kind before the tasks that note what the worker has spent so far, and between them.
"""

from __future__ import annotations

import json
import os
import sys
import time

import psutil
from celery import Celery

from celery_notify import notify, progress
from tests.support.gates import Gates
from tests.support.names import CONFIGURATION_VARIABLE

app = Celery("noop")
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ[CONFIGURATION_VARIABLE]))


@app.task(name="plain")
def plain(user: str) -> None:
    """Do nothing."""


@app.task(name="marked")
@notify(user="user")
def marked(user: str) -> None:
    """Do nothing, and have it shown."""


@app.task(name="reporting")
@notify(user="user")
def reporting(user: str) -> None:
    """Do nothing but say how far that is."""
    for number in range(1, 101):
        progress(number, 100)


@app.task(name="spent")
def spent(journal: str) -> None:
    """Note the seconds of CPU time that the pool's child and the worker's main process have had."""
    main = psutil.Process(os.getppid()).cpu_times()
    Gates(app.conf.broker_url).note(journal, {"child": time.process_time(), "main": main.user + main.system})


def publish(name: str, user: str, warm_up: int, count: int, journal: str) -> None:
    """Publish the tasks of one run, all before a worker is there to take them."""
    for number in (warm_up, count):
        for _ in range(number):
            app.send_task(name, (user,))
        app.send_task("spent", (journal,))


def main() -> None:
    """Publish what the command line says."""
    name, user, warm_up, count, journal = sys.argv[1:]
    publish(name, user, int(warm_up), int(count), journal)


if __name__ == "__main__":
    main()
