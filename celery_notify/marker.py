"""What marks a task as shown to people: `@notify`, and for whom: its argument, or `notify_user`."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import string
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from celery_notify.events import check_user, clean_text
from celery_notify.exceptions import ConfigurationError, PublicError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound="Callable[..., Any]")

ATTRIBUTE = "__notify__"
#: All that a browser is told of a failure, unless the task's author says more.
FAILED = "The task failed."

#: Stands for an argument that is not known yet: the result of a task that has not run.
UNKNOWN: Any = object()
#: What `context_user` returns outside of all `notify_user`: None would say that the tasks are nobody's.
UNSET: Any = object()
_user: ContextVar[Any] = ContextVar("celery_notify_user", default=UNSET)


def notify(
    user: str | Callable[..., Any] | None = None,
    *,
    title: str | None = None,
    url: str | None = None,
    result: Callable[[Any], Any] | None = None,
    error: Callable[[Any], str | None] | None = None,
    cancellable: Literal[False, True, "progress"] = False,
    weight: float = 1,
) -> Callable[[Function], Function]:
    """Mark a task's function: its runs are shown to a user. Place it below ``@app.task``; it returns the function.

    `user` names the argument that holds the user's id or ids, or is called with the task's arguments and returns
    them; None leaves it to the message's headers. `title` and `url` are templates of the arguments, such as
    ``"Invoice {order_id}"``; in `url` an argument is percent-encoded. `result` turns the return value into what the
    browser is sent of it, `error` an exception into what is said of it; by default that is nothing, and "The task
    failed.". `weight` is how much of its job the task is, beside others, whose is 1 unless they say otherwise.
    `cancellable` lets the user cancel it: what waits never begins; what runs is ended with its process or, where it has
    none of its own, by its next `progress()`; with "progress" always by that, so that it can clean up.

    Raises ConfigurationError for a user or a template that names no argument of the function.
    """
    marker = Marker(user=user, title=title, url=url, result=result, error=error, cancellable=cancellable, weight=weight)

    def mark(function: Function) -> Function:
        if not inspect.isroutine(function):
            raise ConfigurationError(f"expected a function below the task's decorator, got {function!r}")
        marker.check(function)
        setattr(function, ATTRIBUTE, marker)
        return function

    return mark


@contextmanager
def notify_user(user: object) -> Iterator[None]:
    """Say whose the tasks are that are started inside the ``with`` block: one id, several, or None for nobody's.

    Raises ValueError for what is no user's id.
    """
    users = check_users(user)
    token = _user.set(users or None)
    try:
        yield
    finally:
        _user.reset(token)


def check_users(user: object) -> list[str]:
    """Return one id, or several, as a list without repetition; None gives none. Raises ValueError."""
    if user is None:
        return []
    if isinstance(user, str):
        return [check_user(user)]
    several = user if isinstance(user, list | tuple | set | frozenset) else [user]
    return list(dict.fromkeys(check_user(each) for each in several))


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The arguments of `notify`."""

    user: str | Callable[..., Any] | None = None
    title: str | None = None
    url: str | None = None
    result: Callable[[Any], Any] | None = None
    error: Callable[[Any], str | None] | None = None
    cancellable: Literal[False, True, "progress"] = False
    weight: float = 1

    def __post_init__(self) -> None:
        for name, expected in (
            ("user", "an argument's name or a callable"),
            ("title", "text"),
            ("url", "text"),
        ):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str) or (name == "user" and callable(value))):
                raise ConfigurationError(f"notify({name}=...): expected {expected}, got {value!r}")
        for name in ("result", "error"):
            value = getattr(self, name)
            if not (value is None or callable(value)):
                raise ConfigurationError(f"notify({name}=...): expected a callable, got {value!r}")
        if not isinstance(self.cancellable, bool) and self.cancellable != "progress":
            raise ConfigurationError(
                f"notify(cancellable=...): expected True, False or 'progress', got {self.cancellable!r}"
            )
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not (number and 0 < self.weight < math.inf):
            raise ConfigurationError(f"notify(weight=...): expected a number above 0, got {self.weight!r}")

    @classmethod
    def from_option(cls, option: Mapping[str, Any]) -> Marker:
        """Return the marker that ``@app.task(notify={...})`` means."""
        try:
            return cls(**option)
        except TypeError:
            known = ", ".join(cls.__slots__)
            raise ConfigurationError(f"expected notify={{...}} with any of {known}, got {option!r}") from None

    def check(self, function: Callable[..., Any]) -> None:
        """Raise ConfigurationError if a name in this marker is no argument of `function`."""
        parameters = inspect.signature(function).parameters.values()
        if any(each.kind is each.VAR_KEYWORD for each in parameters):
            return
        names = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
        wanted = {
            "user": [self.user] if isinstance(self.user, str) else [],
            "title": fields("title", self.title),
            "url": fields("url", self.url),
        }
        for option, used in wanted.items():
            for name in used:
                if name not in names:
                    called = getattr(function, "__qualname__", repr(function))
                    raise ConfigurationError(
                        f"notify({option}=...): expected an argument of {called} ({', '.join(names)}), got {name!r}"
                    )

    def users(self, call: Call) -> list[str] | None:
        """Return whose the task is by its arguments; None if they do not say."""
        if self.user is None:
            return None
        found = self.user(*call.args, **call.kwargs) if callable(self.user) else call.arguments().get(self.user)
        return None if found is None else check_users(found)

    def asks(self, call: Call, option: str) -> bool:
        """Say whether what an option says of this call depends on an argument that is not known yet."""
        if UNKNOWN not in call.args:
            return False
        value = getattr(self, option)
        if callable(value):
            return True
        known = call.arguments()
        return any(known.get(name) is UNKNOWN for name in ([value] if option == "user" else fields(option, value)))

    def filled_title(self, call: Call) -> str | None:
        """Return the title for this call; None if it depends on what is not known yet, or if the call does not fit.

        A call that does not fit the function will fail, which is told. Raises ValueError if the title cannot be filled.
        """
        if self.asks(call, "title"):
            return None
        try:
            return clean_text(_fill(string.Formatter(), self.title, call))
        except ValueError:
            if call.fits():
                raise
            return None

    def filled_url(self, call: Call) -> str | None:
        """Return the URL for this call; an argument adds no path, query or fragment unless the URL begins with it.

        Without one that can be told, which is logged, the task is shown all the same.
        """
        try:
            url = _fill(_URL_FORMATTER, self.url, call)
        except ValueError as error:
            logger.error("A URL is left out: %s", error)  # noqa: TRY400
            return None
        if url is None or url == clean_text(url):
            return url
        logger.error("A URL is left out: expected at most 1 KiB, got %d characters", len(url))
        return None  # a part of it would lead nowhere

    def public_error(self, error: BaseException) -> str:
        """Return what the browser is told of this exception."""
        try:
            if self.error is not None:
                return str(self.error(error) or FAILED)
            return str(error) or FAILED if isinstance(error, PublicError) else FAILED
        except Exception:
            logger.exception("What may be said of a failure cannot be told")
            return FAILED


#: Found once for each task, not for each run: it takes longer than what it is found for.
_signature = functools.lru_cache(maxsize=1000)(inspect.signature)


@functools.lru_cache(maxsize=1000)
def _named(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """Return the names of a function's parameters, and their defaults; None if not each can be given either way."""
    parameters = _signature(function).parameters.values()
    if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        return None
    return tuple(each.name for each in parameters), {
        each.name: each.default for each in parameters if each.default is not each.empty
    }


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a task's function."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def fits(self) -> bool:
        """Say whether the function can be called in this way."""
        try:
            inspect.signature(self.function).bind(*self.args, **self.kwargs)
        except TypeError:
            return False
        return True

    def arguments(self) -> dict[str, Any]:
        """Return them by name, defaults included; in a call that does not fit, those that could be told."""
        if (named := _named(self.function)) is not None:  # as with most, and in a fifth of the time
            names, defaults = named
            given = dict(zip(names, self.args, strict=False))
            fits = len(self.args) <= len(names) and self.kwargs.keys() <= {*names} - given.keys()
            return {**defaults, **given, **self.kwargs} if fits else dict(self.kwargs)
        try:
            bound = _signature(self.function).bind_partial(*self.args, **self.kwargs)
        except TypeError:
            return dict(self.kwargs)
        bound.apply_defaults()
        flat: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            is_rest = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            flat.update(value if is_rest else {name: value})
        return flat


class _URLFormatter(string.Formatter):
    """Percent-encodes what it fills in."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return quote(super().format_field(value, format_spec), safe="")


_URL_FORMATTER = _URLFormatter()


def _fill(formatter: string.Formatter, template: str | None, call: Call) -> str | None:
    """Fill a template. Raises ValueError for a call that it cannot be filled from."""
    if template is None:
        return None
    try:
        arguments = call.arguments()
        if formatter is _URL_FORMATTER and template.startswith("{") and not template.startswith("{{"):
            first, _, rest = template.partition("}")
            return string.Formatter().vformat(first + "}", (), arguments) + formatter.vformat(rest, (), arguments)
        return formatter.vformat(template, (), arguments)
    except Exception as error:  # noqa: BLE001 - the arguments' own methods may raise anything
        raise ValueError(f"the template {template!r} cannot be filled: {type(error).__name__}: {error}") from None


def fields(option: str, template: str | None) -> list[str]:
    """Return the names of the arguments that a template uses."""
    if template is None:
        return []
    try:
        parsed = [(field, spec or "") for _, field, spec, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigurationError(f"notify({option}=...): expected a template, got {template!r}: {error}") from None
    names = [field.partition(".")[0].partition("[")[0] for field, _ in parsed]
    return names + [name for _, spec in parsed for name in fields(option, spec)]


def context_user() -> Any:
    """Return the user of the innermost `notify_user`, or `UNSET` outside of all."""
    return _user.get()
