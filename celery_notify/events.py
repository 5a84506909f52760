"""Events and entries: their fields, their JSON, and what may stand in them (PROTOCOL sections 2, 3 and 6)."""

from __future__ import annotations

import json
import logging
import math
import numbers
import re
import reprlib
import uuid
from decimal import Decimal
from typing import Any, Literal, TypedDict

import msgspec

from celery_notify.exceptions import InvalidEntryError

logger = logging.getLogger(__name__)

State = Literal[
    "PENDING",
    "STARTED",
    "PROGRESS",
    "RETRY",
    "STALLED",
    "SUCCESS",
    "FAILURE",
    "REVOKED",
    "REJECTED",
    "IGNORED",
]
#: After one of these nothing follows for the same task id and attempt.
FINAL_STATES: frozenset[State] = frozenset({"SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"})
FAILED_STATES: frozenset[State] = frozenset({"FAILURE", "REJECTED"})
#: In one of these a worker runs the task, or was last known to.
RUNNING_STATES: frozenset[State] = frozenset({"STARTED", "PROGRESS", "STALLED"})

PROGRESS = "task-progress"
DONE = "task-done"
#: The events of tasks; all others that a history holds are custom ones.
OF_TASKS = frozenset({PROGRESS, DONE})
REMOVED = "removed"
READY = "ready"
HEARTBEAT = "heartbeat"
DEGRADED = "degraded"
#: How an event says that its task is being cancelled; in a text of it the quotes are escaped.
CANCELLING = '"cancelling":true'
#: Never shown to a browser: tells the hubs to end a user's streams.
CLOSE_STREAMS = "close-streams"
#: Names that a custom event cannot have: those above, and those that the browser's own objects use.
RESERVED = frozenset(
    {
        PROGRESS,
        DONE,
        REMOVED,
        READY,
        HEARTBEAT,
        DEGRADED,
        CLOSE_STREAMS,
        "change",
        "connection",
        "error",
        "open",
    }
)

MAX_TEXT = 1024
MAX_EVENT = 64 * 1024
#: What a reader takes from Redis at the most: an event, and room for what is put around it.
MAX_ENTRY = MAX_EVENT + 8 * 1024
#: Levels of lists and objects in what is sent: how many a reader bears would else depend on who calls it.
MAX_DEPTH = 100
MAX_KEY = 256
MAX_USER = 256
#: Whole numbers beyond this are not exact in JavaScript.
MAX_SAFE_INTEGER = 2**53 - 1

#: What a transport adds to an event: it knows better than whoever tells it.
ADDED = frozenset({"current", "total", "at", "job"})

_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_ID = re.compile(r"[0-9]{1,16}", re.ASCII)
#: Who runs a task, as liveness.name_of says it: what goes into Redis once more as it stands.
_WORKER = re.compile(r"[\w.~%-]*", re.ASCII)
#: What opens and closes a level in JSON, and the texts in which a bracket means nothing.
_LEVELS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class TaskEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The whole state of one task at one moment; a field that is absent is null (PROTOCOL section 2)."""

    task_id: str
    task: str
    state: State
    attempt: int
    title: str | None = None
    current: int | float | None = None
    total: int | float | None = None
    description: str | None = None
    error: str | None = None
    result: Any = None
    url: str | None = None
    cancellable: bool = False
    cancelling: bool = False
    weight: int | float = 1
    job_id: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    retry_at: str | None = None
    at: str | None = None
    job: JobNumbers | None = None


class JobNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's tasks came to at the moment of an event; it stands in the events of jobs of several tasks.

    `tasks` counts those that are known, steps still to come included, `failed` FAILURE and REJECTED, `hidden` those
    that wait and have no entry of their own. `fraction` is 0 to 1 and never falls.
    """

    tasks: int
    ended: int
    failed: int
    revoked: int
    hidden: int
    fraction: float


class TaskDict(TypedDict, total=False):
    """A task event as :func:`celery_notify.tasks` returns it: the fields of TaskEvent, absent ones left out."""

    task_id: str
    task: str
    state: State
    attempt: int
    title: str
    current: float
    total: float
    description: str
    error: str
    result: Any
    url: str
    cancellable: bool
    cancelling: bool
    weight: float
    job_id: str
    root_id: str
    parent_id: str
    group_id: str
    retry_at: str
    at: str
    job: JobDict


class JobDict(TypedDict):
    """The fields of JobNumbers."""

    tasks: int
    ended: int
    failed: int
    revoked: int
    hidden: int
    fraction: float


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one user's history and channel; `data` is a JSON object that lacks only `at`.

    `task` is set for a task event: the script decides by it whether the task moves forward. `once` says that the key is
    this event's alone, so that publishing it again changes nothing. `worker` says who runs the task. `since` is the id
    that the key's entry must still have, 0 if that does not matter, negative if it must have one older than this: what
    is said of a task by others than those who run it, or once more, counts only while nothing newer is.
    """

    user: str
    event: str
    key: str = ""
    data: str = "{}"
    task: Position | None = None
    once: bool = False
    worker: str = ""
    since: int = 0


class Position(msgspec.Struct, frozen=True):
    """Where in its story a task is, and in which job, of which it is so much.

    `current` and `total` stand here and not in the publication's data.
    """

    attempt: int
    state: State
    current: int | float | None = None
    total: int | float | None = None
    job_id: str | None = None
    weight: int | float = 1


class Entry(msgspec.Struct, frozen=True):
    """What Redis holds and publishes: an event with its id, and whose it is. `data` is JSON as it stands there.

    `worker` says who runs the task, `lost` who ran it when it STALLED (liveness.py).
    """

    id: str
    user: str
    event: str
    data: msgspec.Raw
    worker: str = ""
    lost: str = ""

    @property
    def key(self) -> str:
        """Return the key that the entry stands under, "" if its data does not name it."""
        try:
            keys = _keys_decoder.decode(self.data)
        except msgspec.MsgspecError:
            return ""
        return keys.task_id or keys.key


class _Keys(msgspec.Struct):
    """What names an entry's key: of a task's event, of any other."""

    task_id: str = ""
    key: str = ""


_entry_decoder = msgspec.json.Decoder(Entry)
_keys_decoder = msgspec.json.Decoder(_Keys)


def decode_entry(raw: bytes, user: str) -> Entry:
    """Read an entry of `user`. Raises InvalidEntryError for anything else: nothing in Redis is trusted.

    Data that is not on one line of ASCII is refused since it would break the frame it is put into.
    """
    if len(raw) > MAX_ENTRY:
        raise InvalidEntryError(f"expected at most {MAX_ENTRY} bytes, got {len(raw)}")
    try:
        entry = _entry_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEntryError(f"expected an entry, got {raw[:40]!r}: {error}") from None
    if entry.user != user:
        raise InvalidEntryError("expected an entry of the user whose channel and history it is in, got another's")
    if entry.event == CLOSE_STREAMS:
        return entry
    data = bytes(entry.data)
    if not data.startswith(b"{") or not data.isascii() or b"\n" in data or b"\r" in data:
        raise InvalidEntryError(f"expected an object in ASCII on one line, got {data[:40]!r}")
    if not _WORKER.fullmatch(entry.worker + entry.lost):
        raise InvalidEntryError(f"expected the name of a worker, got {(entry.worker or entry.lost)[:40]!r}")
    if _too_deep(data):
        raise InvalidEntryError(f"expected at most {MAX_DEPTH} levels, got {data[:40]!r}")
    if not _ID.fullmatch(entry.id) or not _NAME.fullmatch(entry.event):
        raise InvalidEntryError(f"expected an id and an event's name, got {entry.id[:40]!r}, {entry.event[:40]!r}")
    return entry


def _too_deep(data: bytes) -> bool:
    """Say whether JSON has more than MAX_DEPTH levels; only what has that many brackets is looked at closely."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _LEVELS.finditer(data):
        depth += (found[0] in b"[{") - (found[0] in b"]}")
        if depth > MAX_DEPTH:
            return True
    return False


def parse_id(text: str | None) -> int:
    """Return a last event id as a number: 0 for none, and for all that is not 1 to 16 digits."""
    return int(text) if text and _ID.fullmatch(text) else 0


def encode(value: object) -> str:
    """Return `value` as JSON in ASCII on one line, readable by every reader of ours.

    Raises ValueError or TypeError for what JSON cannot say: NaN, lone surrogates, objects, endless nesting.
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        if "\\ud" in text:
            msgspec.json.decode(text)  # refuses a lone surrogate
    except (RecursionError, msgspec.DecodeError) as error:
        raise ValueError(f"expected a JSON value, got one that cannot be written: {error}") from None
    if _too_deep(text.encode("ascii")):
        raise ValueError(f"expected a JSON value of at most {MAX_DEPTH} levels, got a deeper one")
    return text


def publication(user: str, event: TaskEvent, *, worker: str = "") -> Publication:
    """Return `event` ready to be published to `user`. Raises ValueError if it is over 64 KiB without a result.

    `worker` says who runs the task, if its state says that somebody does.
    """
    position = Position(event.attempt, event.state, event.current, event.total, event.job_id, event.weight)
    rest = msgspec.structs.replace(event, current=None, total=None)
    data = _encoded(rest)
    if len(data) > MAX_EVENT and event.result is not None:
        logger.error("Task %s: expected a result of at most %d bytes, it is left out", event.task_id, MAX_EVENT)
        data = _encoded(msgspec.structs.replace(rest, result=None))
    if len(data) > MAX_EVENT:
        raise ValueError(f"expected an event of at most {MAX_EVENT} bytes, got {len(data)}")
    name = DONE if event.state in FINAL_STATES else PROGRESS
    worker = worker if event.state in RUNNING_STATES else ""
    return Publication(user=user, event=name, key=event.task_id, data=data, task=position, worker=worker)


def _encoded(event: TaskEvent) -> str:
    """Return `event` as `encode` does, in a tenth of the time where it is ASCII and has no result, as most are."""
    if event.result is None:  # in which msgspec would write what JSON cannot say
        data = msgspec.json.encode(event)
        if data.isascii():
            return data.decode("ascii")
    return encode(msgspec.to_builtins(event))


def turned(entry: Entry, state: Literal["STARTED", "STALLED"]) -> Publication:
    """Return what an entry says of its task, with another state, to be published in its place.

    STARTED stands for PROGRESS where the task has made some. Raises ValueError for what is no task's entry.
    """
    position, data = _read(entry)
    told: State = "PROGRESS" if state == "STARTED" and position.current is not None else state
    return _anew(entry, position, {**data, "state": told})


def cancelling(entry: Entry) -> Publication:
    """Return what an entry says of its task, and that it is being cancelled, to be published in its place.

    Raises ValueError for what is no task's entry.
    """
    position, data = _read(entry)
    return _anew(entry, position, {**data, "cancelling": True})


def _read(entry: Entry) -> tuple[Position, dict[str, Any]]:
    try:
        return msgspec.json.decode(entry.data, type=Position), json.loads(bytes(entry.data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a task's entry, got another: {error}") from None


def _anew(entry: Entry, position: Position, data: dict[str, Any]) -> Publication:
    """Return an entry to be told anew; what is not changed in `data` stays, also what only a newer version knows."""
    kept = {name: value for name, value in data.items() if name not in ADDED}
    return Publication(
        user=entry.user,
        event=PROGRESS,
        key=entry.key,
        data=encode(kept),
        task=msgspec.structs.replace(position, state=data["state"]),
        worker=entry.worker or entry.lost,
        since=int(entry.id),
    )


def custom(user: str, event: str, data: object, *, key: str | None) -> Publication:
    """Return a custom event ready to be published, under a key of its own if none is given.

    Raises ValueError or TypeError for data JSON cannot say.
    """
    once, key = key is None, key or uuid.uuid4().hex
    text = encode({"key": key, "data": data})
    if len(text) > MAX_EVENT:
        raise ValueError(f"expected an event of at most {MAX_EVENT} bytes, got {len(text)}")
    return Publication(user=user, event=event, key=key, data=text, once=once)


def check_name(event: object) -> str:
    """Return the name of a custom event. Raises ValueError if it is none, or one of our own."""
    if isinstance(event, str) and _NAME.fullmatch(event) and event not in RESERVED:
        return event
    taken = ", ".join(sorted(RESERVED))
    raise ValueError(
        f"expected an event's name like [a-z][a-z0-9-]{{0,63}}, none of {taken}; got {reprlib.repr(event)}"
    )


def check_key(key: object) -> str:
    """Return the key of a custom event. Raises ValueError if it is no text of 1 to 256 characters."""
    if isinstance(key, str) and 0 < len(key) <= MAX_KEY and _is_unicode(key) and key not in {".", ".."}:
        return key
    raise ValueError(f"expected a key of 1 to {MAX_KEY} characters that can end a URL's path, got {reprlib.repr(key)}")


def check_user(user: object) -> str:
    """Return a user's id as text: a str of 1 to 256 characters, or an int. Raises ValueError for anything else."""
    if isinstance(user, int) and not isinstance(user, bool):
        return str(user)
    if isinstance(user, str) and 0 < len(user) <= MAX_USER and _is_unicode(user):
        return str(user)
    raise ValueError(f"expected a user's id, a str of 1 to {MAX_USER} characters or an int, got {reprlib.repr(user)}")


def _is_unicode(text: str) -> bool:
    """Say whether `text` can be written in UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_text(value: object) -> str | None:
    """Return text fit to be shown: cut to 1 KiB of UTF-8, lone surrogates replaced. None stays None.

    Raises TypeError for what is no text.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    data = value[: MAX_TEXT + 1].encode(errors="replace")
    if len(data) <= MAX_TEXT:
        return data.decode()
    ellipsis = "…"
    return data[: MAX_TEXT - len(ellipsis.encode())].decode(errors="ignore") + ellipsis


def clean_number(value: object) -> int | float | None:
    """Return a number that JSON and JavaScript can say. None stays None.

    Raises TypeError or ValueError for anything else: text, NaN, infinity.
    """
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        if abs(whole) <= MAX_SAFE_INTEGER:
            return whole
        raise ValueError("expected a number that JavaScript can say, got a larger one")
    if not isinstance(value, numbers.Real | Decimal):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a number, got {number}")
    return number


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a task event's data."""
    schema = msgspec.json.schema(TaskEvent)
    definition: dict[str, Any] = schema["$defs"]["TaskEvent"]
    # In place and not by reference, for readers that know little of JSON Schema.
    definition["properties"]["job"] = {"anyOf": [schema["$defs"]["JobNumbers"], {"type": "null"}], "default": None}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **definition}
