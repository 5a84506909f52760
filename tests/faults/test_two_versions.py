"""Two versions side by side on one Redis under one key prefix: each passes on what only the other knows (F15)."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from celery_notify import events
from celery_notify.events import TaskEvent
from tests.faults.crowd import Crowd
from tests.faults.redis_journal import history
from tests.faults.versions import HINT, TASK, Versions
from tests.support.event_stream import data_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_notify.sse import Event
    from tests.faults.redis_journal import Journal
    from tests.support.redis_server import RedisServer
    from tests.support.web_servers import WebServer

USERS = [f"user {number}" for number in range(6)]
VISITORS = USERS * 5


@pytest.fixture
def versions(own_redis: RedisServer, tmp_path: Path) -> Iterator[Versions]:
    with Versions(own_redis, tmp_path) as both:
        yield both


def said(told: list[Event]) -> dict[str, object]:
    """Return what was told, by the events' names; without the time, which is Redis' own."""
    return {event.event: {name: value for name, value in data_of(event).items() if name != "at"} for event in told}


@pytest.mark.defends("F15")
def test_what_only_a_newer_version_knows_is_passed_on_by_an_older_one(versions: Versions, user: str) -> None:
    blue = versions.blue()
    with blue.stream(user) as live:
        live.ready()
        versions.speak(user, "SUCCESS")

        told = live.until("task-hint")
        assert said(told) == {"task-done": {**TASK, "state": "SUCCESS"}, "task-hint": HINT}
        assert b"north" not in live.raw  # that is the entry's own, not the event's

    with blue.stream(user) as later:
        assert later.ready() == told
    polled = blue.tasks(user)
    assert [task["mood"] for task in polled["tasks"]] == ["merry"]
    assert [each["event"] for each in polled["events"]] == ["task-hint"]


@pytest.mark.defends("F15")
def test_an_older_version_that_tells_of_a_lost_worker_keeps_what_only_the_newer_one_knows(
    versions: Versions, user: str
) -> None:
    with versions.blue().stream(user) as stream:
        stream.ready()
        versions.speak(user, "STARTED", "gone.1")

        stalled = stream.state("STALLED")

    assert stalled == {**TASK, "state": "STALLED", "at": stalled["at"]}


@pytest.mark.defends("F15")
def test_a_newer_version_understands_an_older_one(versions: Versions, journal: Journal, user: str) -> None:
    """A history that both have written is told in order; the older one ends the newer one's task."""
    old = TaskEvent(task_id="old task", task="shop.old", state="STARTED", attempt=1)
    journal.publish([events.publication(user, old)])
    versions.speak(user, "STARTED")
    with versions.green().stream(user) as stream:
        caught_up = stream.ready()
        ended = TaskEvent(task_id="new task", task="shop.new", state="FAILURE", attempt=1, error="The task failed.")
        journal.publish([events.publication(user, ended)])
        live = stream.until("task-done")

    assert [event.event for event in caught_up] == ["task-progress", "task-progress", "task-hint"]
    assert [data_of(event).get("task_id") for event in caught_up] == ["old task", "new task", None]
    assert [data_of(event)["state"] for event in live] == ["FAILURE"]


@contextmanager
def sending(web: WebServer) -> Iterator[None]:
    """Have a web process send words to all users meanwhile."""
    over = threading.Event()

    def work() -> None:
        while True:
            for user in USERS:
                if over.wait(0.005):
                    return
                web.send(user, "word", web.process.name)

    thread = threading.Thread(target=work, name="sending")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def leave(web: WebServer, crowd: Crowd, *, times: int) -> None:
    """End a web process, and wait until all have come back elsewhere, from so many streams that ended."""
    web.process.popen.send_signal(signal.SIGTERM)
    assert web.process.wait() == 0
    crowd.until(lambda: all(len(each.ends) >= times for each in crowd.visitors), what=f"the end of {web.process.name}")
    crowd.all_live()


@pytest.mark.defends("F15")
def test_a_flip_to_the_newer_version_and_back_loses_nothing(
    versions: Versions, journal: Journal, own_redis: RedisServer
) -> None:
    """Both publish all the while, each in its own way."""
    blue, green = versions.blue(), versions.green()
    front = versions.front(blue)
    with Crowd(front.address, VISITORS) as crowd:
        crowd.all_live()
        with journal.load_all(USERS):
            with sending(green):
                crowd.until(lambda: all(each.names["word"] for each in crowd.visitors), what="words of the newer one")
                front.lead_to(green)
                leave(blue, crowd, times=1)
            blue.start()
            front.lead_to(blue)
            leave(green, crowd, times=2)
        stored = {user: history(own_redis, user) for user in USERS}
        crowd.all_told({user: sorted((number, key) for key, number in held.items()) for user, held in stored.items()})

    assert all(end.complete and end.retry for end in crowd.ends)
    assert not crowd.refused
    with own_redis.client() as client:
        entries = [json.loads(entry) for key in client.scan_iter(match="*:entries") for entry in client.hvals(key)]
    assert {entry.get("region") for entry in entries} == {None, "north"}
