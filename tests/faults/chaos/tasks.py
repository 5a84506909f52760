"""The tasks of a chaos run: they report progress, end in different ways, and write down when they began and ended."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from celery import Celery
from celery.exceptions import Ignore, Reject

import celery_notify
from celery_notify import PublicError, notify, progress
from tests.faults.chaos import lines
from tests.support.names import CONFIGURATION_VARIABLE

if TYPE_CHECKING:
    from typing import Any

app = Celery("chaos")
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ[CONFIGURATION_VARIABLE]))
celery_notify.init_app(app)


def work(task: Any, secret: str, end: str, steps: int, pause: float) -> str:
    """Do some steps with pauses, then end as told; the last line of the journal is the last thing that is done."""
    attempt = task.request.retries + 1
    about = {"task_id": task.request.id, "attempt": attempt, "child": os.getpid(), "worker": os.getppid()}
    lines.write(fact="began", at=time.time(), **about)
    for step in range(1, steps + 1):
        time.sleep(pause)
        progress(step, steps, f"Step {step} of {secret}")
    how = "retry" if end == "retry" and attempt == 1 else "success" if end == "retry" else end
    lines.write(fact="ended", at=time.time(), how=how, **about)
    if how == "retry":
        raise task.retry(countdown=0.2)
    if how == "failure":
        raise PublicError(f"No good for {secret}")
    if how == "ignore":
        raise Ignore
    if how == "reject":
        raise Reject(f"not for {secret}", requeue=False)
    return secret


@app.task(bind=True)
@notify(user="user", title="{secret}", url="/files/{secret}.pdf", result=lambda value: {"secret": value})
def early(self: Any, user: str, secret: str, end: str, steps: int, pause: float) -> str:
    """Is acknowledged when it begins: whoever kills its worker ends it for good."""
    return work(self, secret, end, steps, pause)


@app.task(bind=True, acks_late=True)
@notify(user="user", title="{secret}", result=lambda value: {"secret": value})
def late(self: Any, user: str, secret: str, end: str, steps: int, pause: float) -> str:
    """Is acknowledged at its end: it runs again where its worker was killed, and fails where its child was."""
    return work(self, secret, end, steps, pause)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
@notify(user="user", title="{secret}")
def stubborn(self: Any, user: str, secret: str, end: str, steps: int, pause: float) -> str:
    """Runs again whatever was killed."""
    return work(self, secret, end, steps, pause)
