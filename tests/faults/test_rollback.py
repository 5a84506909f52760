"""Redis comes back older than it was: what had ended is told again by whoever told it (FAULTS: F2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from celery_notify import events, history
from celery_notify.config import Settings
from celery_notify.events import Publication, TaskEvent
from celery_notify.publisher import Publisher
from celery_notify.transport import RedisTransport
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_notify.events import State


@pytest.fixture
def keeping_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis that has a file, and comes back from it."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture
def source(keeping_redis: RedisServer) -> Iterator[RedisTransport]:
    made = RedisTransport(Settings(redis_url=keeping_redis.url))
    yield made
    made.close()


@pytest.fixture
def publisher(keeping_redis: RedisServer) -> Iterator[Publisher]:
    """Return a publisher as a pool's child has it, with a connection of its own."""
    over = RedisTransport(Settings(redis_url=keeping_redis.url))
    made = Publisher(over, min_interval=0.02, worker_ttl=0.5)
    yield made
    made.stop()
    over.close()


def task(user: str, state: State, key: str = "t1", attempt: int = 1) -> Publication:
    return events.publication(user, TaskEvent(task_id=key, task="shop.bill", state=state, attempt=attempt))


def told(source: RedisTransport, user: str) -> dict[str, str]:
    entries = history.read(source, user).entries
    return {entry.key: json.loads(bytes(entry.data))["state"] for entry in entries}


def roll_back(server: RedisServer) -> None:
    """Kill it, and let it come back from its file."""
    server.kill()
    server.start()


def publish(publisher: Publisher, *items: Publication) -> None:
    publisher.put(items)
    assert publisher.flush(5)


@pytest.mark.defends("F2")
def test_an_end_that_redis_has_forgotten_is_told_again_without_another_word(
    keeping_redis: RedisServer, source: RedisTransport, publisher: Publisher, user: str
) -> None:
    publish(publisher, task(user, "STARTED"), task(user, "RETRY", "t2"))
    with keeping_redis.client() as client:
        client.save()
    publish(publisher, task(user, "SUCCESS"), task(user, "FAILURE", "t2", attempt=2))

    roll_back(keeping_redis)

    assert told(source, user) == {"t1": "STARTED", "t2": "RETRY"}
    wait_until(lambda: told(source, user) == {"t1": "SUCCESS", "t2": "FAILURE"}, what="the ends")


@pytest.mark.defends("F1")
def test_what_redis_does_not_know_at_all_stays_forgotten(
    keeping_redis: RedisServer, source: RedisTransport, publisher: Publisher, user: str
) -> None:
    """It may have been removed by its user."""
    publish(publisher, task(user, "STARTED"), task(user, "SUCCESS"))
    roll_back(keeping_redis)

    publish(publisher, task(user, "STARTED", "t2"))
    publish(publisher, task(user, "SUCCESS", "t2"))

    assert told(source, user) == {"t2": "SUCCESS"}


@pytest.mark.defends("F2")
def test_a_newer_run_of_the_same_id_is_not_ended_by_the_end_of_one_that_was_removed(
    keeping_redis: RedisServer, source: RedisTransport, publisher: Publisher, user: str
) -> None:
    """Some tasks have the same id each night. That the other end was told again shows that this one was too."""
    publish(publisher, task(user, "STARTED"), task(user, "SUCCESS"))
    assert source.publish([Publication(user=user, event=events.REMOVED, key="t1", data='{"key":"t1"}')]) != [0]
    publish(publisher, task(user, "STARTED"), task(user, "STARTED", "t2"))
    with keeping_redis.client() as client:
        client.save()
    publish(publisher, task(user, "SUCCESS", "t2"))

    roll_back(keeping_redis)

    wait_until(lambda: told(source, user).get("t2") == "SUCCESS", what="the other end")
    assert told(source, user) == {"t1": "STARTED", "t2": "SUCCESS"}


def test_what_went_on_since_is_not_ended_by_the_end_of_an_earlier_attempt(
    keeping_redis: RedisServer, source: RedisTransport, publisher: Publisher, user: str
) -> None:
    publish(publisher, task(user, "FAILURE"), task(user, "STARTED", attempt=2))
    with keeping_redis.client() as client:
        client.save()
    roll_back(keeping_redis)

    publish(publisher, task(user, "STARTED", "t2"))
    publish(publisher, task(user, "SUCCESS", "t2"))

    assert told(source, user) == {"t1": "STARTED", "t2": "SUCCESS"}
