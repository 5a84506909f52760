"""One message that is run twice: at once, or by a second worker while the first one is frozen (FAULTS: F17, F19)."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest
from celery.utils.nodenames import gethostname

import celery_notify
from celery_notify.events import FINAL_STATES
from tests.support.event_stream import data_of, states
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.event_stream import EventStream
    from tests.support.gates import Gates
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

#: Seconds after which a worker counts as lost.
TTL = 2 * SLOWNESS


@pytest.fixture
def stream(make_web: Callable[..., Web], redis_server: GivenRedis, user: str) -> Iterator[EventStream]:
    settings = {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_WORKER_TTL": str(TTL)}
    with make_web("gunicorn gthread", settings).stream(user) as stream:
        stream.ready()
        yield stream


class Twice:
    """A task whose message is delivered to one worker and, while that runs it, to another one."""

    def __init__(self, make_worker: Callable[..., Worker], tasks: ModuleType, gates: Gates, user: str) -> None:
        self._tasks = tasks
        self._gates = gates
        self._user = user
        self._name = uuid.uuid4().hex
        # What the broker remembers as not acknowledged, apart from that of other tests.
        self._unacked = {
            key: f"{self._name} {key}" for key in ("unacked_key", "unacked_index_key", "unacked_mutex_key")
        }
        self._make = partial(make_worker, notify_worker_ttl=TTL, broker_transport_options=self._unacked)
        self.first = self._make()
        self.task_id = tasks.steered.apply_async((user, self._name), queue=self.first.worker_queue).id

    def deliver_again(self) -> None:
        """Have a second worker run it too: to the broker its visibility timeout is over."""
        self.again = self._make("--queues", self.first.worker_queue)
        with self._tasks.app.connection_for_read() as connection:
            connection.transport_options.update(self._unacked, visibility_timeout=0)
            connection.default_channel.qos.restore_visible(interval=1)
        self.again.process.wait_for_log(f"{self.task_id}] received")

    def step(self, delivery: str, *steps: int | str) -> None:
        """Let a run take steps: progress, or its end."""
        for step in steps:
            self._gates.note(f"{self._name} {delivery}", step)

    def wait_for_the_end(self, delivery: str) -> None:
        """Wait until the run is over, and all is told that it said."""
        worker = self.first if delivery == "first" else self.again
        inspect = self._tasks.app.control.inspect(destination=[f"{worker.worker_queue}@{gethostname()}"], limit=1)
        wait_until(
            lambda: [*(inspect.active() or {}).values()] == [[]], what=f"the end of the run that came {delivery}"
        )

    def states(self, stream: EventStream) -> list[str]:
        """Return the states that the task was told to have, up to now."""
        key = uuid.uuid4().hex
        celery_notify.send(self._user, "fence", None, key=key)
        stream.until(lambda event: data_of(event).get("key") == key)
        return states(stream.events, self.task_id)


@pytest.fixture
def twice(make_worker: Callable[..., Worker], tasks: ModuleType, gates: Gates, user: str) -> Twice:
    return Twice(make_worker, tasks, gates, user)


def progress_of(stream: EventStream, task_id: str) -> list[float]:
    """Return how far the task was told to be, by each event that says so."""
    told = [data_of(event) for event in stream.events if event.event.startswith("task-")]
    return [data["current"] for data in told if data["task_id"] == task_id and "current" in data]


@pytest.mark.defends("F19")
@pytest.mark.parametrize(
    ("sooner", "later", "state"),
    [(("first", "end"), ("again", "fail"), "SUCCESS"), (("again", "fail"), ("first", "end"), "FAILURE")],
    ids=["the first run ends first", "the second run ends first"],
)
def test_a_message_that_is_run_twice_at_once_moves_forward_and_ends_once(
    sooner: tuple[str, str], later: tuple[str, str], state: str, twice: Twice, stream: EventStream
) -> None:
    twice.step("first", 3)
    stream.state("PROGRESS")
    twice.deliver_again()
    for delivery, *steps in (("again", 1, 5), ("first", 4, 6), ("again", 2, 6, 8)):
        twice.step(delivery, *steps)
        stream.until(lambda event: data_of(event).get("current") == steps[-1])  # noqa: B023 - called at once

    for delivery, end in (sooner, later):
        twice.step(delivery, end)
        twice.wait_for_the_end(delivery)

    told = twice.states(stream)
    assert [each for each in told if each in FINAL_STATES] == told[-1:] == [state]
    assert told.count("STARTED") == 1
    currents = progress_of(stream, twice.task_id)
    assert currents == sorted(currents)
    assert {3, 5, 6, 8} <= {*currents}


@pytest.mark.defends("F17")
@pytest.mark.parametrize(("end", "state"), [("end", "SUCCESS"), ("fail", "FAILURE")])
def test_a_frozen_worker_that_wakes_when_another_has_ended_its_task_changes_nothing(
    end: str, state: str, twice: Twice, stream: EventStream
) -> None:
    twice.step("first", 3)
    stream.state("PROGRESS")
    twice.first.process.pause()
    stream.state("STALLED", timeout=20)
    twice.deliver_again()
    assert stream.state("STARTED")["current"] == 3
    twice.step("again", 5, end)
    stream.state(state)

    twice.first.process.resume()
    twice.step("first", 7, "fail" if end == "end" else "end")
    twice.wait_for_the_end("first")

    told = twice.states(stream)
    assert told[-1] == state
    assert [each for each in told if each in FINAL_STATES or each == "STALLED"] == ["STALLED", state]
    assert max(progress_of(stream, twice.task_id)) == 5


@pytest.mark.defends("F17")
def test_a_frozen_worker_that_wakes_goes_on_beside_the_one_that_took_over(twice: Twice, stream: EventStream) -> None:
    twice.step("first", 3)
    stream.state("PROGRESS")
    twice.first.process.pause()
    stream.state("STALLED", timeout=20)
    twice.deliver_again()
    stream.state("STARTED")

    twice.first.process.resume()
    twice.step("first", 7, "end")
    twice.wait_for_the_end("first")
    twice.step("again", 8, "end")
    twice.wait_for_the_end("again")

    told = twice.states(stream)
    assert [each for each in told if each in FINAL_STATES or each == "STALLED"] == ["STALLED", "SUCCESS"]
    assert max(progress_of(stream, twice.task_id)) == 7
