"""A process that starts tasks and sends custom events, as a web application does, until it is told to stop.

It writes down each event when send() has returned, and at its end whether all were taken by Redis.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING

import redis

import celery_notify
from celery_notify import publisher
from tests.faults.chaos import lines, tasks
from tests.faults.chaos.dice import dice

if TYPE_CHECKING:
    import random
    from typing import Any

ENDS = ("success", "success", "success", "failure", "retry", "ignore", "reject")
KINDS = (tasks.early, tasks.late, tasks.stubborn)
#: Keys that a user's events replace each other under; half of the events have one of their own.
KEYS = ("sent-a", "sent-b")
#: Tasks that may wait for a worker: where one is often killed, more would wait for ever longer.
MOST_WAITING = 20
#: Seconds that the end waits for Redis, which is sound by then.
PATIENCE = 30.0


def main(*, name: str, seed: int, secrets: dict[str, str], events: float, started: float) -> None:
    """Send so many events and start so many tasks a second, on average."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    rng = dice(seed)
    broker = redis.Redis.from_url(tasks.app.conf.broker_url)
    sys.stdout.write("sending\n")
    for number in itertools.count(1):
        if stop.wait(rng.expovariate(events + started)):
            break
        user = rng.choice(sorted(secrets))
        if rng.random() < started / (events + started):
            if broker.llen(tasks.app.conf.task_default_queue) < MOST_WAITING:
                start(rng, user, secrets[user])
        else:
            send(name, number, rng, user, secrets[user])
    flushed = publisher.current().flush(PATIENCE, patient=True)
    lines.write(fact="flushed", publisher=name, at=time.time(), whole=flushed)
    sys.exit(not flushed)


def start(rng: random.Random, user: str, secret: str) -> None:
    """Start a task; it is written down when the broker has it."""
    end, task = rng.choice(ENDS), rng.choice(KINDS)
    if end == "reject" and not task.acks_late:
        end = "success"  # an early acknowledged message cannot be rejected any more
    steps, pause = rng.randint(1, 8), rng.uniform(0.02, 0.25)
    answer = task.apply_async(kwargs={"user": user, "secret": secret, "end": end, "steps": steps, "pause": pause})
    lines.write(fact="enqueued", task_id=answer.id, user=user, end=end, late=bool(task.acks_late), at=time.time())


def send(name: str, number: int, rng: random.Random, user: str, secret: str) -> None:
    """Send an event, and write down that it was sent."""
    key = rng.choice((*KEYS, *[None] * len(KEYS)))
    key = None if key is None else f"{name}-{key}"
    token = uuid.uuid4().hex
    fact: dict[str, Any] = {"publisher": name, "number": number, "user": user, "key": key or "", "token": token}
    began = time.time()
    celery_notify.send(user, "sent", {"token": token, "number": number, "secret": secret}, key=key)
    lines.write(fact="sent", began=began, took=time.time() - began, **fact)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
