"""Canvases at random on a real worker: each job ends, and as Celery's result backend says."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import celery
import pytest
from celery.result import GroupResult
from hypothesis import HealthCheck, Phase, assume, given, settings

import celery_notify
from celery_notify.events import FINAL_STATES, decode_entry
from celery_notify.jobs import Jobs, jobs
from tests.faults.redis_journal import channel
from tests.support.canvases import build, canvases
from tests.support.celery_nodes import is_idle
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType
    from typing import Any, Self

    from celery_notify.jobs import Job
    from tests.support.canvases import Canvas
    from tests.support.celery_nodes import Worker
    from tests.support.redis_server import GivenRedis

#: How many are run.
NUMBER = 200
#: A channel on which nobody but the test speaks.
FENCE = b"test:fence"

#: What once went wrong: it was told as two jobs; a task that went on was told to be over.
FOUND: list[Canvas] = [
    ("group", "succeeds", ("chord", "succeeds", ("group", "succeeds", "succeeds"))),
    ("chain", ("replaced by", ("group", "succeeds", "succeeds")), ("chord", "succeeds", "succeeds")),
]


def drawn(number: int) -> list[Canvas]:
    """Return so many different canvases, the same ones each time."""
    found: list[Canvas] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(canvases())
    def draw(canvas: Canvas) -> None:
        assume(canvas not in found)
        found.append(canvas)

    draw()
    return found


class Told(NamedTuple):
    """One event, as it went to the pages."""

    id: int
    event: str
    data: dict[str, Any]


def state_and_fraction(jobs: Iterable[Job]) -> list[tuple[str, float | None]]:
    return [(job["state"], job["fraction"]) for job in jobs]


class Page:
    """All that is told to one person, and what a page shows of it."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._jobs = Jobs()

    def add(self, told: Told) -> None:
        self.told.append(told)
        self._jobs.add(told.data)

    @property
    def shown(self) -> list[tuple[str, float | None]]:
        return state_and_fraction(self._jobs.all())

    @property
    def has_ended(self) -> bool:
        return bool(self.told) and all(state in FINAL_STATES for state, _ in self.shown)


class Pages:
    """The pages of some people, in one connection to Redis."""

    def __init__(self, server: GivenRedis, users: list[str]) -> None:
        self.of = {user: Page() for user in users}
        self._users = {channel(user).encode(): user for user in users}
        self._client = server.client(decode_responses=False)
        self._channels = self._client.pubsub(ignore_subscribe_messages=True)
        self._channels.subscribe(FENCE, *self._users)

    def listen(self) -> Self:
        """Take in all that has been told up to now."""
        self._client.publish(FENCE, b"")
        while (message := self._channels.get_message(timeout=10)) is None or message["channel"] != FENCE:
            if message is not None:
                user = self._users[message["channel"]]
                entry = decode_entry(message["data"], user)
                self.of[user].add(Told(int(entry.id), entry.event, json.loads(bytes(entry.data))))
        return self

    def close(self) -> None:
        self._channels.close()
        self._client.close()


def backend_state(result: Any) -> str:
    """Return how Celery's result backend says that a canvas has ended, PENDING if it does not say."""
    if not isinstance(result, GroupResult):
        return str(result.state)
    states = {backend_state(each) for each in result.results}
    return next((state for state in ("FAILURE", "PENDING", "RETRY") if state in states), "SUCCESS")


#: What the backend may say of a task that was told to have ended so: it knows of no ignored task, and has a failed
#: chain's other tasks fail with it, or knows nothing of them.
BACKEND = {
    "SUCCESS": {"SUCCESS"},
    "FAILURE": {"FAILURE"},
    "IGNORED": {"PENDING"},
    "REVOKED": {"FAILURE", "PENDING"},
}
#: And of one that was retried, whose new run may be over before Celery stores RETRY; or replaced by a group, which is
#: not always failed with it.
BACKEND_OF_LATER_ATTEMPTS = {"SUCCESS": {"SUCCESS", "RETRY"}, "FAILURE": {"FAILURE", "RETRY", "PENDING"}}


def faults_of(page: Page, result: Any, backend: Any) -> Iterator[str]:
    """Yield what is wrong with what was told of a canvas."""
    told, shown = page.told, page.shown
    assert [each.id for each in told] == sorted({each.id for each in told})
    newest = {each.data["task_id"]: each.data for each in told}
    if not page.has_ended or len(shown) != 1:
        yield f"is shown as {shown}, of {Counter(task['state'] for task in newest.values())}"
        return
    [(state, fraction)] = shown
    numbers = [each.data["job"] for each in told if "job" in each.data]
    if numbers and (numbers[-1]["tasks"], numbers[-1]["ended"]) != (len(newest), len(newest)):
        yield f"has {len(newest)} tasks, all ended, and is told to have {numbers[-1]}"
    fractions = [each["fraction"] for each in numbers]
    if fractions != sorted(fractions):
        yield f"goes backwards: {fractions}"
    if state == "SUCCESS" and fraction != 1:
        yield f"is a success of {fraction}"
    ends = Counter(each.data["task_id"] for each in told if each.event == "task-done")
    if ends != Counter(newest.keys()):
        yield f"has tasks that end otherwise than once: {ends}"
    yield from disagreements(state, newest, result, backend)


def disagreements(state: str, newest: dict[str, Any], result: Any, backend: Any) -> Iterator[str]:
    """Yield where the end that was told is not what Celery's result backend says."""
    said = backend_state(result)
    if said in FINAL_STATES:
        agree = state == said
    else:  # Celery never ends what waits for a task that was ignored, or for a chord in a chord that has failed.
        agree = said == "RETRY" or state != "SUCCESS" or any(task["state"] == "IGNORED" for task in newest.values())
    if not agree:
        yield f"is {state}, to Celery {said}"
    for task_id, task in newest.items():
        may_say = BACKEND[task["state"]]
        if task["attempt"] > 1:
            may_say = BACKEND_OF_LATER_ATTEMPTS.get(task["state"], may_say)
        if (said := backend.get_state(task_id)) not in may_say:
            yield f"has a task {task['state']}, to Celery {said}"


@pytest.mark.timeout(180)
@pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="the canvases are those that the newest version of Celery runs")
def test_each_of_many_canvases_ends_as_celery_says(
    worker: Worker, tasks: ModuleType, redis_server: GivenRedis, user: str
) -> None:
    started = {f"{user} {n}": canvas for n, canvas in enumerate([*FOUND, *drawn(NUMBER - len(FOUND))])}
    assert len(started) == NUMBER
    results = {}
    with contextlib.closing(Pages(redis_server, [*started])) as pages:
        for who, canvas in started.items():
            with celery_notify.notify_user(who):
                results[who] = build(canvas, tasks, itertools.count()).apply_async()
        with contextlib.suppress(TimeoutError):  # which of them have not ended is said below
            wait_until(lambda: all(page.has_ended for page in pages.listen().of.values()), timeout=60)
        wait_until(lambda: is_idle(worker, tasks.app, redis_server), timeout=30, what="all tasks to be over")
        pages.listen()

    wrong = [
        f"{canvas} {fault}"
        for who, canvas in started.items()
        for fault in faults_of(pages.of[who], results[who], tasks.app.backend)
    ]
    assert not wrong, "\n".join(sorted(wrong, key=len))
    assert {who: page.shown for who, page in pages.of.items()} == {
        who: state_and_fraction(jobs(celery_notify.tasks(who))) for who in started
    }
