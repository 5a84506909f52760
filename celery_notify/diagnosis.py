"""What is wrong with a Redis, as far as it concerns events: its version, its settings, and whether an event goes round.

It asks by redis-py's methods and names neither a command nor a key; the event goes the way that all events go.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_notify import events, history, transport
from celery_notify.config import redact
from celery_notify.events import Publication
from celery_notify.exceptions import ConfigurationError, InvalidEntryError, TransportError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from celery_notify.config import Settings
    from celery_notify.transport import Answer, Transport

#: The oldest version that has all that is used.
OLDEST = (6, 2)
#: A use-after-free in Lua: who may run a script may run code on the server.
#: https://github.com/redis/redis/security/advisories/GHSA-4789-qfc9-5f9q
LUA_FAULT = "CVE-2025-49844"
#: The first versions without it, by name of the server; a line that is not here and older than the newest has it.
FIXED: dict[str, dict[tuple[int, int], int]] = {
    "Redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "Valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
#: Seconds that the history of the event that goes round is kept, should it not be removed.
KEPT = 60.0
#: Seconds that it may take.
ROUND_TRIP = 3 * transport.TIMEOUT


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis: with a fault it does not work, with a warning it may not or not always."""

    level: Literal["ok", "warning", "fault"]
    text: str


def diagnose(settings: Settings) -> list[Finding]:
    """Return what is found with these settings. It takes seconds if Redis does not answer, and raises nothing."""
    shown = redact(settings.redis_url)
    if settings.redis_url == "memory://":
        return [Finding("warning", f"{shown} is one process: what a worker publishes no web server ever hears")]
    try:
        transport.check(settings)
        info = _ask(settings)
    except ConfigurationError as error:
        return [Finding("fault", str(error))]
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        return [Finding("fault", f"{shown} cannot be reached: {error}")]
    except redis.RedisError as error:  # such as a user whose ACL leaves it out, or a command that was renamed
        found = [Finding("warning", f"{shown} does not let its version and settings be looked at: {error}")]
    else:
        found = [Finding("ok", f"{shown} answers; all keys begin with {settings.key_prefix}"), *judge(info)]
    return [*found, _go_round(settings)]


def _ask(settings: Settings) -> Mapping[str, Any]:
    """Return what Redis says of itself."""
    client = redis.Redis.from_url(
        settings.redis_url,
        protocol=2,
        socket_timeout=transport.TIMEOUT,
        socket_connect_timeout=transport.TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        client_name="celery-notify",
        **transport.without_setinfo(),
    )
    with client:
        answer: Mapping[str, Any] = client.info()
        return answer


def judge(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Say what follows from what a Redis says of itself."""
    server = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get(f"{server.lower()}_version"))
    version = tuple(int(number) for number in re.findall(r"[0-9]+", text)[:3])
    if version < OLDEST:
        yield Finding("fault", f"expected Redis {'.'.join(map(str, OLDEST))} or later, got {text}")
    else:
        yield Finding("ok", f"{server} {text}")
    if is_vulnerable(server, version):
        fixed = ", ".join(f"{major}.{minor}.{patch}" for (major, minor), patch in FIXED[server].items())
        yield Finding(
            "warning",
            f"{server} {text} has {LUA_FAULT}: who may run a script may run code on the server. It is fixed in {fixed} "
            "and later, and in older ones only where a distribution has put the correction into them",
        )
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        yield Finding("ok", "maxmemory-policy is noeviction")
    else:
        yield Finding("warning", f"expected maxmemory-policy noeviction, got {policy}: a full Redis forgets events")
    if info.get("role", "master") != "master":
        yield Finding("fault", f"expected a master, got a {info['role']}: nothing can be written to it")


def is_vulnerable(server: str, version: tuple[int, ...]) -> bool:
    """Say whether a server of this version has the fault, unless its distribution has mended it."""
    fixed = FIXED[server]
    line = version[:2]
    return version[2:3] < (fixed[line],) if line in fixed else line < max(fixed)


def _go_round(settings: Settings) -> Finding:
    """Publish an event to a user nobody has, hear it, read it, remove it."""
    begun = time.monotonic()
    source = transport.connect(dataclasses.replace(settings, history_ttl=KEPT))
    try:
        asyncio.run(asyncio.wait_for(_round_trip(source, f"check {uuid.uuid4()}"), ROUND_TRIP))
    except TimeoutError:
        return Finding("fault", f"an event did not go round: it was not heard within {ROUND_TRIP:g} s")
    except (TransportError, InvalidEntryError, redis.RedisError, OSError) as error:
        return Finding("fault", f"an event did not go round: {error}")
    return Finding("ok", f"an event went round in {(time.monotonic() - begun) * 1000:.0f} ms")


async def _round_trip(source: Transport, user: str) -> None:
    event = events.custom(user, "check", None, key="check")
    removal = Publication(user=user, event=events.REMOVED, key=event.key, data=events.encode({"key": event.key}))
    heard: asyncio.Queue[bytes | None] = asyncio.Queue()
    subscriber = source.subscriber(lambda _, raw: heard.put_nowait(raw))
    lost = asyncio.create_task(subscriber.until_lost())
    try:
        await subscriber.connect()
        subscriber.subscribe([user])
        while (raw := await _unless(lost, heard.get())) is None or events.decode_entry(raw, user).event != event.event:
            if raw is None:  # subscribed
                await asyncio.to_thread(_publish, source, event)
        found = await asyncio.to_thread(history.read, source, user)
        if found.keys != [event.key]:
            raise TransportError(f"expected the history to hold it, got {len(found.keys)} other entries")
        await asyncio.to_thread(_publish, source, removal)
    finally:
        lost.cancel()
        subscriber.close()


async def _unless(lost: asyncio.Task[NoReturn], awaitable: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what is awaited, unless the connection is lost before; raise that then."""
    awaited = asyncio.create_task(awaitable)
    await asyncio.wait({awaited, lost}, return_when=asyncio.FIRST_COMPLETED)
    if lost.done():
        awaited.cancel()
        lost.result()
    return awaited.result()


def _publish(source: Transport, publication: Publication) -> None:
    [answer] = source.publish([publication])
    if isinstance(answer, Exception):
        raise answer
