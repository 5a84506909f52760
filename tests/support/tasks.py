"""The Celery application that the workers under test run; how they wait for the test is in `gates`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import redis
from celery import Celery, chord, group
from celery.canvas import maybe_signature
from celery.exceptions import Ignore, Reject

import celery_notify
from celery_notify import PublicError, notify, progress
from celery_notify.progress import current_run
from tests.support.gates import PATIENCE, Gates
from tests.support.names import CONFIGURATION_VARIABLE, MODULE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

app = Celery("tests")
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ[CONFIGURATION_VARIABLE]))
celery_notify.init_app(app)

gates = Gates(app.conf.broker_url)


# Endings


@app.task
@notify(user="user", title="Task of {user}")
def ok(user: str) -> int:
    return len(user)


@app.task
@notify(user="user", title="Order {number}", url="/files/{number}.pdf", result=lambda value: {"pages": value})
def told(user: str, number: int) -> int:
    return number * 2


@app.task
@notify(user="user")
def failing(user: str, secret: str) -> None:
    raise ValueError(secret)


@app.task
@notify(user="user", error=lambda error: f"Because of {type(error).__name__}")
def explained(user: str, secret: str) -> None:
    raise ValueError(secret)


@app.task
@notify(user="user")
def public(user: str, text: str) -> None:
    raise PublicError(text)


@app.task(bind=True, max_retries=5)
@notify(user="user")
def retrying(self: Any, user: str, times: int, secret: str = "", countdown: float = 0) -> int:
    """Fail `times` times, each time to be tried again."""
    if self.request.retries < times:
        raise self.retry(exc=ValueError(secret), countdown=countdown)
    return int(self.request.retries)


@app.task
@notify(user="user")
def ignoring(user: str) -> None:
    raise Ignore


@app.task(acks_late=True)
@notify(user="user")
def rejecting(user: str) -> None:
    raise Reject("not today", requeue=False)


@app.task(bind=True)
@notify(user="user")
def recording(self: Any, user: str) -> None:
    """Say how far it is as celery-progress does, and know nothing of us otherwise."""
    meta = {"pending": False, "current": 3, "total": 10, "percent": 30.0, "description": "Rendering"}
    self.update_state(state="PROGRESS", meta=meta)


@app.task(bind=True, acks_late=True)
@notify(user="user")
def requeueing(self: Any, user: str) -> None:
    """Go back to the queue once."""
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not yet", requeue=True)


@app.task
@notify(user="user")
def exiting(user: str) -> None:
    sys.exit(3)


@app.task
@notify(user="user")
def dying(user: str) -> None:
    """Have the pool's child killed, as the kernel does that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
@notify(title="Order {order[number]}")
def labelled(order: Any) -> Any:
    """Have a title that only some calls can fill."""
    return order


@app.task
@notify(user="user", result=lambda value: value, title="{text}")
def bulky(user: str, text: str, size: int) -> str:
    """Say and return more than can be told."""
    progress(1, 2, text)
    return "x" * size


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
@notify(user="user")
def dying_once(self: Any, user: str) -> None:
    """Have the pool's child killed, and the message delivered once more."""
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
@notify(user="user", result=lambda value: value)
def unserialisable(user: str) -> Any:
    """Return what JSON cannot say."""
    return object()


@app.task(bind=True)
@notify(user="user")
def replaced(self: Any, user: str) -> None:
    """Have another task do it, under the same id."""
    raise self.replace(step.s(7))


@app.task(bind=True)
@notify(user="user")
def replaced_by_group(self: Any, user: str) -> None:
    """Have several tasks do it; what gathers their results is Celery's own, under the same id."""
    raise self.replace(group(step.s(1), step.s(2)))


@app.task(bind=True)
@notify(user="user")
def nesting(self: Any, user: str) -> None:
    """Call another task in the midst of this one, in the same process."""
    progress(1, 10, "Before")
    step.apply((2,))
    progress(5, 10, "After")


# Canvases


@app.task(bind=True)
@notify(title="{name}")
def acting(
    self: Any, before: Any = None, *, name: str, fate: str = "succeeds", instead: Any = None, child: Any = None
) -> str:
    """Be one step of a canvas, whatever came before, and have this fate.

    `instead` is a canvas that replaces it, `child` one that it starts.
    """
    if instead is not None:
        raise self.replace(maybe_signature(instead, app=self.app))
    if child is not None:
        maybe_signature(child, app=self.app).apply_async()
    if fate == "is retried" and not self.request.retries:
        raise self.retry(exc=ValueError(name), countdown=0)
    if fate in {"fails", "is ignored", "is rejected"}:
        raise {"fails": ValueError(name), "is ignored": Ignore(), "is rejected": Reject(name)}[fate]
    return name


@app.task
@notify(title="a")
def called(fate: str) -> None:
    """Be one of many calls."""
    if fate == "fails":
        raise ValueError(fate)


# Progress


@app.task
@notify(user="user")
def slow(user: str, gate: str, total: int = 2) -> None:
    """Pass a gate before each of `total` steps, and one more at the end."""
    for number in range(1, total + 1):
        gates.wait(gate)
        progress(number, total, f"Step {number}")
    gates.wait(gate)


@app.task
@notify(user="user")
def tracking(user: str, gate: str, total: int) -> None:
    """Iterate over `total` items without waiting, then wait."""
    for _ in progress.track(range(total), description="Counting"):
        pass
    gates.wait(gate)


@app.task
@notify(user="user")
def chatty(user: str, calls: int) -> None:
    for number in range(1, calls + 1):
        progress(number, calls)


@app.task
@notify(user="user")
def chattering(user: str, seconds: float, name: str) -> None:
    """Call progress() without a pause for so long; note the number of calls and the time of the slowest."""
    end, number, slowest = time.monotonic() + seconds, 0, 0.0
    while (before := time.monotonic()) < end:
        number += 1
        progress(number)
        slowest = max(slowest, time.monotonic() - before)
    gates.note(name, {"calls": number, "slowest": slowest})


@app.task
@notify(user="user")
def careless(user: str, name: str) -> str:
    """Give progress() all that it cannot use, and end well."""
    for current, total, description in (
        (float("nan"), 10, None),
        (float("inf"), float("-inf"), None),
        (object(), 10, "an object"),
        ("three", "ten", b"\xff\xfe"),
        (1, 10, "a lone surrogate: \ud800"),
        (1, 10, {"not": "text"}),
        (1, 10, "x" * 100_000),
        (10**400, 10, None),
        (-1, -10, None),
        (None, None, None),
    ):
        progress(current, total, description)  # type: ignore[arg-type]
    gates.note(name, "unharmed")
    return "unharmed"


# Cancelling


@app.task
@notify(user="user", cancellable=True)
def cancellable(user: str, gate: str) -> None:
    """Note that it has begun, then pass a gate, without a word of progress."""
    gates.note(gate, "begun")
    gates.wait(gate)


@app.task(acks_late=True)
@notify(user="user", cancellable=True)
def cancellable_late(user: str, gate: str) -> None:
    cancellable.run(user, gate)


def _tell_until_cancelled(gate: str, tell: Callable[[int], object]) -> None:
    """Note that it has begun, tell of progress until that ends it, and note that it has cleaned up."""
    gates.note(gate, "begun")
    try:
        for number in range(100 * PATIENCE):
            tell(number)
            time.sleep(0.01)
    finally:
        gates.note(gate, "cleaned up")


@app.task
@notify(user="user", cancellable="progress")
def tidy(user: str, gate: str) -> None:
    _tell_until_cancelled(gate, progress)


@app.task
@notify(user="user", cancellable="progress")
def tidy_later(user: str, gate: str) -> None:
    """Pass a gate before it says anything."""
    gates.wait(gate)
    _tell_until_cancelled(gate, progress)


@app.task
@notify(user="user", cancellable=True)
def counting(user: str) -> None:
    """Tell of progress until that ends it; it needs no gate, and no Redis."""
    for number in range(100 * PATIENCE):
        progress(number)
        time.sleep(0.01)


@app.task
@notify(user="user", cancellable=True)
def telling(user: str, gate: str) -> None:
    _tell_until_cancelled(gate, progress)


@app.task
@notify(user="user", cancellable="progress")
def tidy_tracking(user: str, gate: str) -> None:
    counting = progress.track(range(100 * PATIENCE))
    _tell_until_cancelled(gate, lambda _: next(counting))


@app.task(bind=True, autoretry_for=(Exception,), default_retry_delay=0)
@notify(user="user", cancellable="progress")
def tidy_recording(self: Any, user: str, gate: str) -> None:
    _tell_until_cancelled(gate, lambda number: self.update_state(state="PROGRESS", meta={"current": number}))


@app.task
@notify(user="user", cancellable=True)
def napping(user: str, seconds: float) -> None:
    time.sleep(seconds)


@app.task(bind=True, max_retries=5)
@notify(user="user", cancellable=True)
def retrying_cancellable(self: Any, user: str, gate: str, countdown: float) -> None:
    gates.note(gate, "begun")
    raise self.retry(countdown=countdown)


@app.task
@notify(cancellable=True)
def cancellable_step(number: Any, gate: str = "") -> Any:
    """A task of its parent's user that passes a gate, if it is given one."""
    if gate:
        gates.note(gate, "begun")
        gates.wait(gate)
    return number


# Who is told


@app.task
@notify()
def step(number: int) -> int:
    """A task without a user of its own: it has its parent's."""
    progress(number)
    return number


@app.task
@notify()
def gathered(numbers: list[int]) -> int:
    """A chord's body."""
    return sum(numbers)


@app.task
@notify(user="user")
def starting(user: str, name: str) -> None:
    """Start another task the plain way."""
    gates.note(name, step.delay(2).id)


@app.task
@notify(user="user")
def stopping(user: str, name: str) -> None:
    """Start another task that is nobody's."""
    gates.note(name, step.apply_async((3,), headers={"notify_user": None}).id)


@app.task
def unmarked(name: str) -> None:
    """A task that is not shown, whose child is."""
    gates.note(name, step.delay(4).id)


@app.task
def spreading(count: int) -> None:
    """Have so many tasks run, then one more."""
    chord([step.si(number) for number in range(count)], step.si(count)).delay()


@app.task(bind=True)
@notify()
def adding(self: Any) -> None:
    """Have another task gathered with its own chord's."""
    raise self.add_to_chord(step.si(9))


@app.task
def unmarked_failing() -> None:
    """Fail, and nobody sees it."""
    raise ValueError("secret")


@app.task
@notify(user=lambda users: users)
def shared(users: list[str]) -> None:
    """A task of several people."""


# The world as a task sees it


@app.task
@notify(user="user")
def sending(user: str, event: str, data: Any, key: str | None = None) -> None:
    celery_notify.send(user, event, data, key=key)


@app.task
def looking(name: str, url: str, entries: str, task_id: str) -> None:
    """Note what Redis at `url` holds of a task, as JSON, at the moment this one begins."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        gates.note(name, client.hget(entries, task_id))


@app.task
@notify(user="user")
def timing(user: str, name: str) -> None:
    """Note how long ten steps of progress take."""
    start = time.monotonic()
    for number in range(10):
        progress(number, 10)
    gates.note(name, time.monotonic() - start)


# Deaths


class UnpicklableError(Exception):
    """What no pipe and no result backend can carry."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())


def _raise(error: BaseException) -> NoReturn:
    raise error


#: Seconds of a time limit that a task outlasts where its pool has none.
LIMIT = 1.0
#: What a task can do to itself, by the names that ARCHITECTURE.md has for it.
DEATHS: dict[str, Callable[[], Any]] = {
    "child killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "aborted": os.abort,
    "at a null pointer": lambda: ctypes.string_at(0),
    "`os._exit(0)`": lambda: os._exit(0),
    "`os._exit(1)`": lambda: os._exit(1),
    "`sys.exit()`": sys.exit,
    "`MemoryError`": lambda: _raise(MemoryError()),
    "unpicklable result": threading.Lock,
    "unpicklable exception": lambda: _raise(UnpicklableError()),
    "`Ignore`": lambda: _raise(Ignore()),
    "`Reject`": lambda: _raise(Reject("no", requeue=False)),
    "`Reject(requeue=True)`": lambda: _raise(Reject("not yet", requeue=True)),
    "outlasting": lambda: time.sleep(1.5 * LIMIT),
}


def perishing(self: Any, user: str, death: str, gate: str) -> Any:
    """Pass a gate, then die in this way, if it is one; when delivered once more, end well once that is told to run."""
    if self.request.delivery_info["redelivered"]:
        wait_until(lambda: (run := current_run.get()) and run.begun, what="the beginning")
        return "again"
    gates.wait(gate)
    return DEATHS.get(death, str)()


#: The same task by when its message is acknowledged: before it runs, or after; or not if its process is lost.
perishing_early, perishing_late, perishing_lost = (
    app.task(bind=True, name=f"{MODULE}.perishing_{acks}", **options)(
        notify(user="user", title="{gate}", result=lambda value: value)(perishing)
    )
    for acks, options in {
        "early": {},
        "late": {"acks_late": True},
        "lost": {"acks_late": True, "reject_on_worker_lost": True},
    }.items()
)


# Runs that the test steers


@app.task(bind=True, acks_late=True)
@notify(user="user")
def steered(self: Any, user: str, name: str) -> None:
    """Tell of the steps that a journal holds, one after the other, until it says to end or to fail.

    Each delivery of the message has a journal of its own, so that two runs at once are steered apart.
    """
    delivery = "again" if self.request.delivery_info["redelivered"] else "first"
    while (step := gates.read(f"{name} {delivery}")) != "end":
        if step == "fail":
            raise ValueError(step)
        progress(step, 10)


@app.task
@notify(user="user")
def holding(user: str, gate: str, seconds: int) -> None:
    """Pass a gate, hold the GIL for so long, then tell of it and pass another."""
    gates.wait(gate)
    ctypes.PyDLL(None).sleep(seconds)
    progress(1, 2)
    gates.wait(gate)
