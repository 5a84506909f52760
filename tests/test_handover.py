"""What a pool's child could not publish is published by its worker's main process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from celery_notify import events
from celery_notify.events import TaskEvent
from celery_notify.handover import Handover
from tests.support.event_stream import data_of, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from celery_notify.events import Publication
    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import Web


@pytest.fixture
def handover() -> Iterator[Handover]:
    made = Handover()
    yield made
    made.close()


def end(key: str, result: object = None) -> Publication:
    event = TaskEvent(task_id=key, task="shop.bill", state="SUCCESS", attempt=2, current=3, total=4.5, result=result)
    return events.publication("ada", event)


def test_what_a_child_gives_the_parent_takes_ends_first_and_else_in_order(handover: Handover) -> None:
    note, other = (events.custom("ada", "note", {"a": ["\u2028", number]}, key=None) for number in range(2))
    given = [note, end("t2"), other, end("t1")]
    pid = os.fork()
    if pid == 0:
        handover.give(given)
        os._exit(0)
    os.waitpid(pid, 0)

    assert list(handover.take()) == [end("t2"), end("t1"), note, other]
    assert list(handover.take()) == []


def test_the_largest_event_is_handed_over(handover: Handover) -> None:
    largest = end("t1", result="x" * 64_000)

    handover.give([largest])

    assert list(handover.take()) == [largest]


def test_what_there_is_no_room_for_is_lost_with_a_line_in_the_log(
    handover: Handover, caplog: pytest.LogCaptureFixture
) -> None:
    given = [end(str(number), result="x" * 60_000) for number in range(100)]

    handover.give(given)

    taken = list(handover.take())
    assert taken == given[: len(taken)]
    assert 0 < len(taken) < 100
    assert f"{100 - len(taken)} events" in caplog.text


def test_where_there_is_no_room_for_all_the_ends_are_not_lost(handover: Handover) -> None:
    notes = [events.custom("ada", "note", "x" * 60_000, key=None) for _ in range(100)]

    handover.give([*notes, end("t1"), end("t2")])

    assert [item.key for item in handover.take()][:2] == ["t1", "t2"]


@pytest.mark.defends("F6")
def test_the_end_of_a_task_outlives_the_child_that_could_not_tell_it(
    own_redis: RedisServer,
    make_worker: Callable[..., Worker],
    make_web: Callable[..., Web],
    tasks: ModuleType,
    gates: Gates,
    user: str,
) -> None:
    """Redis is away from before the end of the task until after the end of its process, and comes back empty."""
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    worker = make_worker("--max-tasks-per-child", "1", notify_redis_url=own_redis.url, notify_worker_ttl=4)
    stream = web.stream(user)
    result = tasks.slow.apply_async((user, user, 1), queue=worker.worker_queue)
    gates.open(user)
    stream.state("PROGRESS")

    own_redis.kill()
    gates.open(user)
    [child] = worker.process.children()
    result.get(timeout=20)
    worker.process.wait_for_children_without(child)
    own_redis.start()

    stream.until(lambda event: data_of(event).get("state") == "SUCCESS", timeout=20)
    assert states(stream.events, result.id)[-1] == "SUCCESS"
    stream.close()
