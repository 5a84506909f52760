"""Settings: one name in Celery's configuration, in Flask's and in the environment (PROTOCOL section 1)."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from celery_notify.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What a setting's name begins with in Flask's configuration and in the environment, and in Celery's configuration.
PREFIX, CELERY_PREFIX = "CELERY_NOTIFY_", "notify_"
#: The part of WORKER_TTL for which a worker's sign of life lasts. Who looks for it waits for the rest: Redis may have
#: lost the sign, not the worker its life.
LEASE = 0.5
DEFAULT_REDIS_URL = "redis://localhost:6379/0"
REDIS_URL_FORMS = "redis://, rediss://, unix:// or memory://"


def redact(url: str) -> str:
    """Return `url` without its password, for logs and errors; it may be a URL only in part."""
    return re.sub(r"^(\w*:/*)?.*@", r"\1***@", re.sub(r"(?i)(password=)[^&]*", r"\1***", url), flags=re.DOTALL)


def _redis_url(value: object) -> str:
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        database = parts.path.strip("/")
        network = parts.scheme in {"redis", "rediss"} and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError(REDIS_URL_FORMS) from None
    if network and (not database or database.isdecimal()):
        return str(value)
    if parts.scheme == "unix" and database:
        return str(value)
    if value == "memory://":
        return "memory://"
    raise ValueError(REDIS_URL_FORMS)


def _key_prefix(value: object) -> str:
    """Accept what is the same in a key, in a channel and in an ACL's pattern."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._:/-]{1,64}", value):
        return value
    raise ValueError("1 to 64 letters, digits or any of ._:/-")


def _number(expected: str, fits: Callable[[float], bool], kind: type[float] = float) -> Callable[[object], float]:
    """Return what reads a number that `fits`, also from the text that an environment variable is."""

    def read(value: object) -> float:
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (OverflowError, ValueError):
            number = math.nan
        if math.isfinite(number) and fits(number):
            return kind(number)
        raise ValueError(expected)

    return read


_seconds = _number("a number of seconds above 0", lambda number: number > 0)
_interval = _number("a number of seconds, 0 or above", lambda number: number >= 0)
_count = _number("a whole number, 1 or above", lambda number: number >= 1 and number.is_integer(), int)


def _setting(default: Any, read: Callable[[object], object]) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; durations are seconds. Immutable, so that what depends on them can be shared by them."""

    redis_url: str = _setting(DEFAULT_REDIS_URL, _redis_url)
    #: What all keys and channels begin with.
    key_prefix: str = _setting("celery-notify", _key_prefix)
    #: The least time between two progress events of one task.
    min_interval: float = _setting(0.1, _interval)
    #: The number of entries a user's history keeps; running tasks are kept beyond it.
    history_size: int = _setting(200, _count)
    #: How long the history keeps what has ended.
    history_ttl: float = _setting(86400.0, _seconds)
    #: The silence after which a stream says that it is alive.
    heartbeat: float = _setting(15.0, _seconds)
    #: The age at which a stream is ended, so that its user is asked for again.
    max_stream_age: float = _setting(900.0, _seconds)
    #: How long after its last sign a worker counts as lost.
    worker_ttl: float = _setting(20.0, _seconds)
    max_streams_per_user: int = _setting(10, _count)
    #: The most streams of one process.
    max_streams: int = _setting(10000, _count)


_READERS: dict[str, Callable[[object], object]] = {
    item.name: item.metadata["read"] for item in dataclasses.fields(Settings)
}


def load(*configurations: Mapping[str, object], default_url: str | None = None) -> Settings:
    """Return the settings that `configurations` give, the first one that has a value; then the environment.

    Names may be in either form, ``notify_heartbeat`` or ``CELERY_NOTIFY_HEARTBEAT``. Raises ConfigurationError for a
    value that cannot be used and for a name that begins as ours do and is unknown.
    """
    values: dict[str, object] = {} if default_url is None else {"redis_url": _read("redis_url", default_url)}
    for configuration in (os.environ, *reversed(configurations)):
        values.update(_ours(configuration))
    return Settings(**values)  # type: ignore[arg-type]


def _ours(configuration: Mapping[str, object]) -> dict[str, object]:
    """Return what `configuration` says of our settings, checked."""
    found = {}
    for name in list(configuration):
        if name.startswith(PREFIX):
            short = name.removeprefix(PREFIX).lower()
        elif name.startswith(CELERY_PREFIX):
            short = name.removeprefix(CELERY_PREFIX)
        else:  # such as systemd's NOTIFY_SOCKET
            continue
        if short not in _READERS:
            known = ", ".join(sorted(_READERS))
            raise ConfigurationError(f"expected a setting of celery_notify ({known}), got {name}")
        if configuration[name] is not None:
            found[short] = _read(short, configuration[name], name=name)
    return found


def _read(short: str, value: object, *, name: str | None = None) -> object:
    try:
        return _READERS[short](value)
    except ValueError as error:
        shown = repr(redact(value)) if isinstance(value, str) else redact(repr(value))
        raise ConfigurationError(f"{name or short}: expected {error}, got {shown}") from None


#: Where this process's configuration is: by kind ("celery", "flask") the last one that was announced.
_sources: dict[str, Callable[[], tuple[Mapping[str, object], str | None]]] = {}
_announced = 0


def announce(kind: str, source: Callable[[], tuple[Mapping[str, object], str | None]]) -> None:
    """Make a configuration known to the whole process: a callable that returns it and its default for the URL.

    It is called anew each time, since applications go on configuring themselves after they were made.
    """
    global _announced  # noqa: PLW0603 - counts what happens in this process
    _sources[kind] = source
    _announced += 1


def is_announced(kind: str) -> bool:
    """Say whether a configuration of this kind was announced."""
    return kind in _sources


def announced() -> int:
    """Return how often a configuration was announced: settings that were read before that may be old."""
    return _announced


def settings(*, flask: Mapping[str, object] | None = None) -> Settings:
    """Return the process's settings: Celery's, then Flask's, then the environment.

    With `flask`, those of that application: its configuration comes first, and no other Flask application's counts.
    """
    kinds = ("celery", "flask") if flask is None else ("celery",)
    known = [_sources[kind]() for kind in kinds if kind in _sources]
    default_url = next((url for _, url in known if url), None)
    return load(flask or {}, *(mapping for mapping, _ in known), default_url=default_url)


def reset() -> None:
    """Forget all that was announced, for tests."""
    _sources.clear()
