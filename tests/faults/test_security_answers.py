"""Keys that are not ours, and answers of Redis that are another's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import uuid
from typing import TYPE_CHECKING

import pytest

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.exceptions import TransportError
from celery_notify.transport import RedisTransport
from tests.faults.test_security_redis import KEYS, names_of, told_of
from tests.support.names import PREFIX
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import Web


# Keys of another type


def spoil(redis_server: GivenRedis, user: str, name: str) -> None:
    key = names_of(redis_server.url, user)[name]
    with redis_server.client() as client:
        client.delete(key)
        client.rpush(key, "a list")


@pytest.mark.defends("S17")
@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_another_type_harms_nobody_else_and_is_no_crash(
    name: str, user: str, web: Web, redis_server: GivenRedis
) -> None:
    others, since = f"{user} too", len(web.log())
    spoil(redis_server, user, name)
    with web.stream(user) as stream, web.stream(others) as theirs:
        theirs.ready()
        for _ in range(2):
            web.send(user, "note", "mine")
            web.send(others, "note", "theirs")
            theirs.until("note")
        assert web.get(f"{PREFIX}/tasks", user=user).status in {200, 503}
        assert web.delete(user, "k").status in {404, 503}
        assert web.request("POST", f"{PREFIX}/tasks/k/cancel", user=user).status in {404, 503}
        web.close_streams(user)
        stream.rest()  # it was open, and the hub still has it in hand
    assert "Traceback" not in web.log()[since:]


@pytest.mark.defends("S17")
@pytest.mark.parametrize("name", KEYS)
def test_the_next_event_mends_a_key_of_another_type(name: str, user: str, web: Web, redis_server: GivenRedis) -> None:
    """Otherwise a single write would end a user's notifications for good."""
    web.send(user, "note", "before", key="a")
    wait_until(lambda: web.tasks(user)["keys"] == ["a"])
    with web.stream(user) as stream:
        stream.ready()
        spoil(redis_server, user, name)
        web.send(user, "note", "after", key="b")
        stream.until(lambda event: '"after"' in event.data, timeout=3)
        with web.stream(user) as another:
            assert told_of(another.ready())[-1] == "b"
    assert web.tasks(user)["keys"][-1] == "b"


@pytest.mark.defends("S17")
def test_a_history_that_cannot_be_read_does_not_fill_the_log(
    user: str, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url, "CELERY_NOTIFY_HEARTBEAT": "0.2"})
    spoil(redis_server, user, "order")
    with web.stream(user) as stream:
        for _ in range(10):
            stream.until("heartbeat")

    assert len(re.findall(r"^\w+ celery_notify.*", web.log(), re.MULTILINE)) <= 2


# Answers and messages that are another's


@pytest.mark.defends("S7")
def test_an_entry_of_another_user_is_not_written_though_it_lies_here(
    web: Web, user: str, redis_server: GivenRedis
) -> None:
    """As after an answer that was meant for another, a restore into the wrong place, or a hand in the keys."""
    other, secret = f"{user} too", uuid.uuid4().hex
    source = RedisTransport(Settings(redis_url=redis_server.url))
    mine, theirs = source.channel(user), source.channel(other)
    web.send(other, "note", secret, key="theirs")
    web.send(user, "note", "mine", key="mine")
    with web.stream(other) as stream, redis_server.client() as client:
        stream.until(lambda event: "theirs" in event.data)
        [(_, number)] = client.zrange(f"{theirs}:order", 0, -1, withscores=True)
        entry = client.hget(f"{theirs}:entries", "theirs")
        client.zadd(f"{mine}:order", {"theirs": number})
        client.hset(f"{mine}:entries", "theirs", entry)
        with web.stream(user) as own:
            caught_up = own.ready()
            assert client.publish(mine, entry) >= 1
            web.send(user, "last", None)
            live = own.until("last")
        listed = web.get(f"{PREFIX}/tasks", user=user).body
    source.close()

    assert secret in entry
    assert [event.event for event in caught_up] == ["note"]
    assert {event.event for event in live} <= {"last", "heartbeat"}
    assert secret.encode() not in own.raw + listed


class GivenUp(BaseException):
    """Comes out of the midst of a call, as gunicorn's and gevent's time-outs do."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], AbstractContextManager[None]]]:
    """Return what interrupts the main thread so many seconds after its block began."""

    def raise_it(*_: object) -> None:
        raise GivenUp

    before = signal.signal(signal.SIGUSR1, raise_it)

    @contextlib.contextmanager
    def start(seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            yield
        finally:
            timer.join()

    yield start
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.defends("S7")
@pytest.mark.parametrize("how", ["time-out", "interrupted"])
def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(
    how: str,
    user: str,
    own_redis: RedisServer,
    interrupt: Callable[[float], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis that is frozen while it is asked answers later: on a connection that must be no one's then."""
    monkeypatch.setattr("celery_notify.transport.TIMEOUT", 0.3 if how == "time-out" else 30)
    source = RedisTransport(Settings(redis_url=own_redis.url))
    users = [f"{user} {n}" for n in range(2)]
    for each in users:
        source.publish([events.custom(each, "note", each, key=f"key of {each}")])
    for n in range(6):
        asked, next_one = users[n % 2], users[(n + 1) % 2]
        own_redis.pause()
        if how == "time-out":
            assert isinstance(source.events_after([(asked, 0)])[0], TransportError)
        else:
            with pytest.raises(GivenUp), interrupt(0.1):
                source.events_after([(asked, 0)])
        own_redis.resume()

        [found] = source.events_after([(next_one, 0)])

        assert not isinstance(found, Exception)
        assert found.keys == [f"key of {next_one}"]
    source.close()
