"""All that Redis sees: keys, channels, scripts, connections (PROTOCOL section 6).

A transport's contract: `publish` is atomic for each event and issues ids that rise for each user; `events_after` is the
one way to read a history, and complete; a subscriber gets what is published while it is subscribed, at most once.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - connecting imports it, in a thread: what is forked meanwhile would have half of it
import hashlib
import itertools
import json
import logging
import math
import os
import re
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeVar
from urllib.parse import quote, unquote

import hiredis
import redis
import redis.asyncio

from celery_notify import sockets
from celery_notify.commands import Commands, command
from celery_notify.config import redact
from celery_notify.events import CLOSE_STREAMS, REMOVED
from celery_notify.exceptions import ConfigurationError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery_notify.config import Settings
    from celery_notify.events import Publication

    #: Takes what a subscriber is told.
    Deliver = Callable[[str, bytes | None], None]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds that Redis has for an answer.
TIMEOUT = 2.0
#: Seconds that a history with a task that never ended is kept after its last event, and a cancel that nobody heeded.
ABANDONED = 30 * 86400
#: Bytes of entries that one read returns, about; a longer history is read in several.
PAGE = 128 * 1024
#: Room for any history, read at once.
WHOLE = 2**53
#: Channels in one SUBSCRIBE.
BATCH = 500

#: Events that no history holds.
_NOT_STORED = frozenset({REMOVED, CLOSE_STREAMS})

#: Users and jobs whose names in Redis are remembered: to make them takes as long as to publish.
KNOWN = 1000

#: Answers that say "not now": the same command may succeed later.
_TEMPORARY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ReadOnlyError,
    OSError,
)
#: The same by their codes, at the beginning of an answer; in that of a script Redis 6.2 puts them at its end.
_TEMPORARY_CODES = re.compile(
    r"(?:^|: -)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOAUTH|NOPERM|NOREPLICAS|OOM|READONLY|TRYAGAIN"
    r"|WRONGPASS)\b"
    r"|can't run this command"  # as a script is told that its user may not
)


@dataclass(frozen=True, slots=True)
class History:
    """What one read found.

    `newest` is the last id issued. `entries` holds all entries after the id asked for, up to the id `complete`; there
    are more if that is less than `newest`. `keys` are those of the whole history, `running` its tasks that run, by key;
    both are there if `whole` says so, as it does with the last page.
    """

    newest: int
    complete: int
    keys: list[str]
    entries: list[bytes]
    running: dict[str, Running] = field(default_factory=dict)
    whole: bool = True


class Running(NamedTuple):
    """Who runs a task, whether the task is STALLED since they are lost, and the id of the entry that says so."""

    worker: str
    lost: bool
    id: int = 0


class Names(NamedTuple):
    """What a user is called: the channel, the keys of the history, and the id as a JSON string."""

    channel: str
    keys: tuple[str, ...]
    user: str


class Subscriber(Protocol):
    """One pub/sub connection of an event loop. Its errors are TransportError; it is then of no more use."""

    async def connect(self) -> None:
        """Connect."""

    def subscribe(self, users: Iterable[str]) -> None:
        """Ask for what is published to `users`; it is confirmed for each."""

    def unsubscribe(self, user: str) -> None:
        """Ask for no more of it."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    async def until_lost(self) -> NoReturn:
        """Wait until the connection is lost, and raise why; or what `deliver` has raised, which ends it too."""

    def abandon(self) -> None:
        """Close this process's copy of a connection that it has from its parent."""

    def close(self) -> None:
        """Close the connection."""


class Transport(Protocol):
    """Publishes events, keeps each user's history, and tells subscribers. Thread-safe."""

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        """Publish in order; return for each its id, 0 if it was refused, -1 if what it removes does not exist.

        An exception stands in the place of what failed: TransportError if it may succeed later.
        """

    def events_after(self, wanted: Sequence[tuple[str, int]], *, room: int = PAGE) -> list[History | Exception]:
        """Return each user's history after an id, or in its place an exception, as `publish` does.

        Entries are given until they fill `room` bytes, one at least.
        """

    @property
    def connections(self) -> int:
        """How often a connection for commands was made: what was told by an earlier one, Redis may have lost."""

    def sign(self, worker: str, tasks: Iterable[str], *, lease: float) -> None:
        """Have a worker show for `lease` seconds that it runs these tasks. Raises TransportError."""

    def signs(self, workers: Iterable[str]) -> dict[str, set[str]]:
        """Return what those of these workers that show a sign say that they run. Raises TransportError."""

    def cancel(self, ids: Iterable[str], user: str) -> None:
        """Note that `user` wants these tasks and jobs cancelled, for as long as they may wait.

        Raises TransportError.
        """

    def cancelled(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """Return who wants which of these tasks and jobs cancelled, only those that somebody does.

        Raises TransportError.
        """

    def subscriber(self, deliver: Deliver) -> Subscriber:
        """Return a new subscriber, not yet connected.

        It calls `deliver`, in the event loop, with (user, entry) for what was published, (user, None) for a
        confirmation, ("", None) for a sign of life.
        """

    def abandon(self) -> None:
        """Close this process's copies of the connections that it has from its parent."""

    def close(self) -> None:
        """Close all connections."""


class RedisTransport:
    """The transport over a Redis server, 6.2 or later, with one connection for commands."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url
        self._prefix = settings.key_prefix
        self._bounds = (settings.history_size, settings.history_ttl, ABANDONED)
        self._commands = Commands(
            self._url,
            patience=2 * TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            client_name="celery-notify",
            **without_setinfo(),
        )
        self._publish = _script("repair", "tally", "publish")
        self._history = _script("repair", "history")
        self._names = lru_cache(maxsize=KNOWN)(self._make_names)

    @property
    def connections(self) -> int:
        """As Transport."""
        return self._commands.connections

    def channel(self, user: str) -> str:
        """Return the user's channel, which is also what the user's keys begin with.

        Percent-encoding makes any text a name of its own; the braces put all of a user's keys into one cluster slot.
        """
        return f"{self._prefix}:{{{quote(user, safe='')}}}"

    def user_of(self, channel: bytes) -> str:
        """Return whose channel this is: the inverse of `channel`."""
        return unquote(channel[len(self._prefix) + 2 : -1].decode("ascii"))

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        """As Transport."""
        return self._run(self._publish, self._publish_call, publications)

    def _publish_call(self, item: Publication) -> bytes:
        names, task = self._names(item.user), item.task
        what = task.state if task else item.event if item.event in _NOT_STORED else "once" if item.once else ""
        worker = f',"{"lost" if what == "STALLED" else "worker"}":"{item.worker}"' if item.worker else ""
        text = f'{worker},"user":{names.user},"event":"{item.event}","data":{item.data[:-1]}'
        told = (names.channel, *self._bounds, item.key, what, text, item.since)
        if task is None:
            return command("EVALSHA", self._publish.sha, 3, *names.keys, *told)
        job = task.job_id or item.key
        keys = (*names.keys, _job_key(names.channel, job))
        more = (task.attempt, _number(task.current), _number(task.total), job, _number(task.weight))
        return command("EVALSHA", self._publish.sha, 4, *keys, *told, *more)

    def _make_names(self, user: str) -> Names:
        channel = self.channel(user)
        return Names(channel, tuple(f"{channel}:{name}" for name in ("order", "entries", "ended")), json.dumps(user))

    def events_after(self, wanted: Sequence[tuple[str, int]], *, room: int = PAGE) -> list[History | Exception]:
        """As Transport."""
        _, *lifetimes = self._bounds

        def call(asked: tuple[str, int]) -> bytes:
            user, after = asked
            return command("EVALSHA", self._history.sha, 3, *self._names(user).keys, after, room, *lifetimes)

        return [_read_history(answer) for answer in self._run(self._history, call, wanted)]

    def _run(self, script: Script, call: Callable[[Any], bytes], items: Sequence[Any]) -> list[Any]:
        """Have a script run once for each item, in one round trip; load it first where Redis does not know it."""
        commands = [_written(call, item) for item in items]
        answers = self._ask(commands)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            [loaded] = self._ask([command("SCRIPT", "LOAD", script.text)])
            if isinstance(loaded, Exception):
                logger.debug("A script cannot be loaded: %s", loaded)  # the command it is for will say so too
            for n, answer in zip(unknown, self._ask([commands[n] for n in unknown]), strict=True):
                answers[n] = answer
        return [_error(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def _ask(self, commands: Sequence[bytes | Exception]) -> list[Any]:
        """Run commands in one round trip; what has failed, or could not be written, is an exception in its place."""
        try:
            answers = iter(self._commands.run([each for each in commands if isinstance(each, bytes)]))
        except (redis.RedisError, OSError) as error:
            answers = itertools.repeat(error)
        return [next(answers) if isinstance(each, bytes) else each for each in commands]

    def _answers(self, commands: Sequence[bytes]) -> list[Any]:
        """Run commands in one round trip. Raises TransportError for whatever is against one of them."""
        answers = self._ask(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise TransportError(str(answer)) from answer
        return answers

    def sign(self, worker: str, tasks: Iterable[str], *, lease: float) -> None:
        """As Transport."""
        self._answers([command("SET", self._sign_of(worker), " ".join(tasks), "PX", math.ceil(lease * 1000))])

    def signs(self, workers: Iterable[str]) -> dict[str, set[str]]:
        """As Transport."""
        asked = list(workers)
        found = self._answers([command("GET", self._sign_of(worker)) for worker in asked])
        return {name: {*_text(sign).split()} for name, sign in zip(asked, found, strict=True) if sign is not None}

    def cancel(self, ids: Iterable[str], user: str) -> None:
        """As Transport."""
        commands = []
        for key in map(self._cancel_of, ids):
            commands += [command("HSET", key, user, int(time.time())), command("PEXPIRE", key, ABANDONED * 1000)]
        self._answers(commands)

    def cancelled(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """As Transport."""
        asked = list(ids)
        answers = self._ask([command("HGETALL", self._cancel_of(each)) for each in asked])
        for answer in answers:
            if isinstance(answer, Exception) and isinstance(error := _error(answer), TransportError):
                raise error
        # Whatever else Redis has against a key: it is none of ours.
        found = zip(asked, answers, strict=True)
        return {each: {*map(_text, users[::2])} for each, users in found if users and isinstance(users, list)}

    def _cancel_of(self, task_or_job: str) -> str:
        return f"{self._prefix}:cancel:{quote(task_or_job, safe='', errors='surrogatepass')}"

    def _sign_of(self, worker: str) -> str:
        return f"{self._prefix}:worker:{worker}"

    def subscriber(self, deliver: Deliver) -> RedisSubscriber:
        """As Transport."""
        return RedisSubscriber(self, deliver)

    def connection(self) -> redis.asyncio.Connection:
        """Return a new connection for a subscriber: it never comes back by itself, so that no gap goes unseen."""
        pool = redis.asyncio.ConnectionPool.from_url(
            self._url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=TIMEOUT,
            health_check_interval=0,
            client_name="celery-notify",
            **without_setinfo(),
        )
        connection: redis.asyncio.Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    def abandon(self) -> None:
        """As Transport."""
        self._commands.close()

    def close(self) -> None:
        """As Transport."""
        self._commands.close()


class RedisSubscriber(asyncio.Protocol):
    """A subscriber on a Redis connection of its own.

    redis-py connects and greets; then this takes the connection's place at the socket. So what Redis sends is passed on
    in the turn of the loop in which it comes: to wake a coroutine for each message costs more than all that is done
    with it.
    """

    def __init__(self, transport: RedisTransport, deliver: Deliver) -> None:
        self._redis = transport
        self._deliver = deliver
        self._connection = transport.connection()
        self._parser = hiredis.Reader()
        self._wire: asyncio.WriteTransport | None = None
        self._lost = asyncio.Event()
        self._why: Exception | None = None

    async def connect(self) -> None:
        """As Subscriber."""
        try:
            async with asyncio.timeout(2 * TIMEOUT):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as error:
            raise _error(error) from error
        self._wire = self._connection._writer.transport  # type: ignore[union-attr]  # noqa: SLF001 - nothing shows it
        self._wire.set_protocol(self)

    def subscribe(self, users: Iterable[str]) -> None:
        """As Subscriber."""
        names = [self._redis.channel(user) for user in users]
        for start in range(0, len(names), BATCH):
            self._send("SUBSCRIBE", *names[start : start + BATCH])

    def unsubscribe(self, user: str) -> None:
        """As Subscriber."""
        self._send("UNSUBSCRIBE", self._redis.channel(user))

    def ping(self) -> None:
        """As Subscriber."""
        self._send("PING")

    def _send(self, *command: str) -> None:
        if self._wire is None or self._wire.is_closing():  # the latter if it was lost before it was taken over
            raise TransportError("expected an open connection, it is closed")
        self._wire.write(b"".join(self._connection.pack_command(*command)))

    async def until_lost(self) -> NoReturn:
        """As Subscriber."""
        await self._lost.wait()
        raise self._why or TransportError("the connection is lost")

    def data_received(self, data: bytes) -> None:
        """Pass on what has come, as the event loop calls it."""
        try:
            self._parser.feed(data)
            while (answer := self._parser.gets()) is not False:
                self._pass_on(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody but until_lost() can tell it
            self._end(_error(error))
            self.close()

    def _pass_on(self, answer: Any) -> None:
        if isinstance(answer, hiredis.ReplyError):
            raise redis.ResponseError(str(answer))
        kind, channel, *rest = answer if isinstance(answer, list) else (b"pong", b"")
        if kind == b"message":
            self._deliver(self._redis.user_of(channel), rest[0])
        elif kind == b"subscribe":
            self._deliver(self._redis.user_of(channel), None)
        elif kind == b"pong":
            self._deliver("", None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why, as the event loop calls it."""
        self._wire = None
        self._end(TransportError(f"the connection is closed: {exc}" if exc else "the connection is closed"))

    def _end(self, why: Exception) -> None:
        self._why = self._why or why
        self._lost.set()

    def abandon(self) -> None:
        """As Subscriber."""
        sock = self._wire.get_extra_info("socket") if self._wire is not None else None
        if sock is not None:  # TLS lets go of it a moment before it says so
            sockets.let_go(sock.fileno())

    def close(self) -> None:
        """As Subscriber."""
        writer = self._connection._writer  # noqa: SLF001 - redis-py closes only in the orderly way
        if writer is not None:
            writer.transport.abort()  # with what is unwritten: a Redis that takes nothing would never end it
        self._connection._reader = self._connection._writer = self._wire = None  # noqa: SLF001


def without_setinfo() -> dict[str, Any]:
    """Return the options with which redis-py does not send CLIENT SETINFO when it connects.

    No ACL rule for all versions of Redis can allow it: before 7.2 there is no such subcommand, and 7.0 refuses a rule
    that names it. redis-py overlooks the refusal, but each connection would leave it in the ACL LOG.
    """
    if hasattr(redis, "DriverInfo"):  # since redis-py 7.2, which warns of the older names and, until 8.0, ignores None
        return {"driver_info": redis.DriverInfo(name="", lib_version="")}
    return {"lib_name": None, "lib_version": None}


class Script(NamedTuple):
    """A script, and the name by which Redis calls it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return the script with this text."""
        return cls(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - no secret, it is Redis' own way


def _script(*names: str) -> Script:
    """Return a script, which may stand in several files."""
    folder = resources.files("celery_notify")
    return Script.of("".join(folder.joinpath(f"{each}.lua").read_text(encoding="utf-8") for each in names))


def _written(call: Callable[[Any], bytes], item: Any) -> bytes | Exception:
    """Return a command, or why it cannot be written: that must not take the others with it."""
    try:
        return call(item)
    except UnicodeEncodeError as error:
        return error


@lru_cache(maxsize=KNOWN)
def _job_key(channel: str, job: str) -> str:
    return f"{channel}:job:{quote(job, safe='', errors='surrogatepass')}"


def _number(value: float | None) -> str:
    return "" if value is None else str(value)


def _read_history(answer: Any) -> History | Exception:
    if isinstance(answer, Exception):
        return answer
    newest, complete, whole, keys, entries, running = answer
    return History(
        int(newest),
        int(complete),
        [_text(key) for key in keys],
        entries,
        {
            _text(key): Running(_text(worker), lost=what == b"lost", id=int(number))
            for key, what, worker, number in zip(*[iter(running)] * 4, strict=True)
        },
        whole=bool(whole),
    )


def unwrap(answer: Answer | Exception) -> Answer:
    """Return an answer of `publish` or `events_after`; raise TransportError for what stands in its place."""
    if isinstance(answer, TransportError):
        raise answer
    if isinstance(answer, Exception):
        raise TransportError(str(answer)) from answer
    return answer


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _error(error: Exception) -> Exception:
    """Return a TransportError for what may succeed later, anything else as it is."""
    if isinstance(error, _TEMPORARY) or _TEMPORARY_CODES.search(str(error)):
        return TransportError(str(error))
    return error


_transports: dict[tuple[object, ...], Transport] = {}
_making = threading.Lock()


def connect(settings: Settings) -> Transport:
    """Return the process's transport for these settings: one, whoever asks, so that it has one connection.

    Applications that differ only in what a transport does not know, such as the heartbeat, share it.
    """
    known = (*world(settings), settings.history_size, settings.history_ttl)
    with _making:
        if known not in _transports:
            _transports[known] = _make(settings)
        return _transports[known]


def world(settings: Settings) -> tuple[str, str]:
    """Return what separates users of the same id from each other: where the keys are, and what they begin with."""
    return settings.redis_url, settings.key_prefix


def check(settings: Settings) -> None:
    """Raise ConfigurationError for a URL with an option that redis-py does not know. Nothing is connected."""
    if settings.redis_url == "memory://":
        return
    try:
        redis.ConnectionPool.from_url(settings.redis_url).make_connection()
    except (TypeError, ValueError, redis.RedisError) as error:
        shown = redact(settings.redis_url)
        raise ConfigurationError(f"redis_url: expected options that redis-py knows, got {shown!r}: {error}") from None


def _make(settings: Settings) -> Transport:
    if settings.redis_url != "memory://":
        return RedisTransport(settings)
    from celery_notify.memory import MemoryTransport  # noqa: PLC0415 - few need it

    return MemoryTransport(settings)


def forget() -> None:
    """Forget all transports without a word to their servers: in a forked child they are the parent's.

    The child's copies of their sockets are closed, else a connection that the parent ends would stay open.
    """
    global _making  # noqa: PLW0603 - the lock may have been held by a thread that is not here
    for each in _transports.values():
        each.abandon()
    _transports.clear()
    _making = threading.Lock()


def reset() -> None:
    """Close and forget all transports."""
    while _transports:
        _transports.popitem()[1].close()


os.register_at_fork(after_in_child=forget)
