"""Redis has no room: it takes nothing more, or it throws single keys away (F7, F8)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from celery_notify.events import TaskEvent
from celery_notify.publisher import publications
from celery_notify.transport import Script
from tests.faults.redis_journal import Journal, Page, agree, channel, entries, history, once, web_settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import redis

    from tests.support.web_servers import WebServer


def redis_7() -> str:
    """Return the path of a Redis server of version 7 or later."""
    found = shutil.which("redis-server") or missing("a redis-server of version 7 or later, there is none")
    text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", text)
    return found if version and int(version[1]) >= 7 else missing(f"a redis-server of version 7 or later, not {text}")


@pytest.fixture(params=["the usual one", "7"])
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Return Redis in two versions: what a script may do when there is no memory is decided in another way in each."""
    server = RedisServer(tmp_path, binary=redis_7() if request.param == "7" else None).start()
    yield server
    server.stop()
    server.check_acl()


@pytest.fixture
def web(own_redis: RedisServer, make_web: Callable[..., WebServer]) -> WebServer:
    return make_web("gunicorn gthread", web_settings(own_redis.url))


def put(journal: Journal, user: str, task_id: str, state: str, current: int | None = None) -> None:
    """Have a task's event published as a worker does."""
    event = TaskEvent(task_id=task_id, task="tests.task", state=state, attempt=1, current=current)  # type: ignore[arg-type]
    journal.publisher.put(publications([user], event))


def fill_up(client: redis.Redis) -> None:
    """Have Redis refuse all that needs memory."""
    client.config_set("maxmemory", 1)


def make_room(client: redis.Redis) -> None:
    client.config_set("maxmemory", 0)


class Wire:
    """What is published to a user, as it goes over the wire."""

    def __init__(self, client: redis.Redis, user: str) -> None:
        self._channel = client.pubsub()
        self._channel.subscribe(channel(user))
        self.ids: list[int] = []
        wait_until(lambda: self._channel.get_message(timeout=0.1), what="a confirmation")

    def read(self) -> list[int]:
        """Return the ids of all that has come so far."""
        while (message := self._channel.get_message(timeout=0.2)) is not None:
            self.ids.append(int(json.loads(message["data"])["id"]))
        return self.ids

    def close(self) -> None:
        self._channel.close()


@pytest.mark.defends("F7")
def test_a_full_redis_neither_tells_what_it_does_not_keep_nor_keeps_what_it_does_not_tell(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    """PUBLISH needs no memory and works when no write does. Redis is full again and again while events come."""
    with Page(web, user) as page, own_redis.client() as client:
        page.ready()
        wire = Wire(client, user)
        with journal.load(user) as keys:
            for _ in range(5):
                fill_up(client)
                wait_until(lambda: journal.publisher.failing, what="a refusal")
                make_room(client)
                before = len(page.told)
                page.until(lambda: len(page.told) >= before + 10)  # noqa: B023 - called at once
        page.shows(keys)

        stored = entries(own_redis, user)
        assert wire.read() == [number for number, _ in page.told] == sorted(stored.values())
        assert stored == history(own_redis, user)
        assert set(stored) == set(keys)
        once(page)
        wire.close()


def test_half_an_event_would_be_found(own_redis: RedisServer, journal: Journal, user: str) -> None:
    """The control to the one above: here the script publishes before it stores."""
    last = "redis.call('PUBLISH', channel, entry)\n"
    script = journal._publish.text.replace(last, "")  # noqa: SLF001 - there is no other way to have a wrong one
    script = script.replace(first := "  redis.call('ZADD', order, id, key)\n", last + first)
    with own_redis.client() as client:
        journal._publish = Script.of(script)  # noqa: SLF001
        wire = Wire(client, user)
        journal.send(user, "stored and told")
        journal.settle()
        fill_up(client)
        journal.send(user, "only told")
        wait_until(lambda: journal.publisher.failing, what="a refusal")

        assert len(set(wire.read())) > len(entries(own_redis, user)) == 1
        wire.close()


@pytest.mark.defends("F7")
def test_the_ends_of_tasks_wait_for_room_and_are_told_in_order(
    own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    names = [f"task {number}" for number in range(50)]
    with Page(web, user) as page, own_redis.client() as client:
        page.ready()
        wire = Wire(client, user)
        for name in names:
            put(journal, user, name, "STARTED")
        page.shows(names)
        begun = history(own_redis, user)

        fill_up(client)
        for name in names:
            put(journal, user, name, "SUCCESS")
        wait_until(lambda: journal.publisher.failing, what="a refusal")
        assert len(wire.read()) == 50
        assert history(own_redis, user) == entries(own_redis, user) == begun
        client.script_flush()
        with Page(web, user) as new:
            new.ready()
            assert new.shown == begun

        make_room(client)
        page.until(lambda: len(page.ended) == 50)
        assert page.ended == names
        agree(page, own_redis, user)
        assert wire.read() == [number for number, _ in page.told]
        wire.close()


# Keys are thrown away one by one


@pytest.mark.defends("F8")
@pytest.mark.parametrize("own_redis", ["the usual one"], indirect=True)
@pytest.mark.parametrize("name", ["order", "entries", "ended"])
def test_an_evicted_key_is_mended_by_the_next_event(
    name: str, own_redis: RedisServer, journal: Journal, web: WebServer, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the entries still say is told to who comes new; what runs stays, what has ended may go."""
    with Page(web, user) as page, own_redis.client() as client:
        put(journal, user, "running", "STARTED")
        put(journal, user, "done", "SUCCESS")
        page.shows(["running", "done"])
        with journal.load(user) as keys:
            for _ in range(10):
                before = len(page.told)
                client.delete(f"{channel(user)}:{name}")
                page.until(lambda: len(page.told) >= before + 5)  # noqa: B023 - called at once
        page.shows(keys)
        assert page.told == journal.acknowledged

        client.delete(f"{channel(user)}:{name}")
        put(journal, user, "running", "PROGRESS", 1)
        put(journal, user, "done too", "SUCCESS")
        page.shows(["done too"])
        kept = history(own_redis, user)
        assert kept == entries(own_redis, user)
        assert set(kept) == ({"running", "done too"} if name == "entries" else {*keys, "running", "done", "done too"})
        with Page(web, user) as new:
            new.ready()
            assert new.shown == kept
            assert new.keys == set(kept)

        assert web.delete(user, "running").status == 409
        assert web.delete(user, "done too").status == 204
        with Journal(own_redis, history_size=2) as bounded:
            bounded.send(user, "the last", key="last")
            bounded.settle()
        assert set(history(own_redis, user)) == {"running", "last"}
    assert "anew after an error" not in web.log()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.defends("F8")
@pytest.mark.parametrize("own_redis", ["the usual one"], indirect=True)
@pytest.mark.parametrize("name", ["order", "entries", "ended"])
def test_an_evicted_key_is_mended_by_the_next_reader(
    name: str, own_redis: RedisServer, journal: Journal, web: WebServer, user: str
) -> None:
    """Nothing need be published: who comes sees what is left, and so does who was there at the next `ready`."""
    keys = journal.send(user, *range(5))
    with Page(web, user) as page, own_redis.client() as client:
        page.shows(keys)
        client.delete(f"{channel(user)}:{name}")
        left = set() if name == "entries" else set(keys)
        with Page(web, user) as new:
            new.ready()
            assert set(new.shown) == new.keys == left
        page.close()
        page.open().ready()
        assert set(page.shown) == page.keys == left
        assert set(web.tasks(user)["keys"]) == left
        page.shows(journal.send(user, "live"))
        agree(page, own_redis, user)
        assert history(own_redis, user) == entries(own_redis, user)
    assert "anew after an error" not in web.log()
