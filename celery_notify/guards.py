"""Who may ask, and how: what stands before the blueprint's views, and the answers of those that are refused."""

from __future__ import annotations

import functools
import json
from hashlib import blake2b
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, request

from celery_notify import events
from celery_notify.exceptions import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask.typing import ResponseReturnValue

    View = Callable[..., ResponseReturnValue]

#: Seconds after which one who was refused may come again.
RETRY_AFTER = 5
#: Sent with all that is one user's own.
PRIVATE = {"Cache-Control": "no-store, private", "Vary": "Cookie"}


def error(status: HTTPStatus, text: str, **headers: str) -> Response:
    """Return an answer that says what is wrong, and nothing of our insides."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return json_response({"error": text}, status=status, headers={**PRIVATE, **named})


def unavailable(text: str) -> Response:
    """Return the answer to one who may come again soon."""
    return error(HTTPStatus.SERVICE_UNAVAILABLE, text, Retry_After=str(RETRY_AFTER))


def json_response(value: object, *, status: int = HTTPStatus.OK, headers: dict[str, str]) -> Response:
    """Return an answer in JSON."""
    return Response(json.dumps(value), status, headers, content_type="application/json")


def only(methods: Iterable[str], view: View) -> View:
    """Refuse other methods than these."""
    allowed = ", ".join(methods)

    @functools.wraps(view)
    def checked(**arguments: Any) -> ResponseReturnValue:
        if request.method in methods:
            return view(**arguments)
        return error(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {allowed}, got {request.method}", Allow=allowed)

    return checked


def who(load_user: Callable[[], Any]) -> str | None:
    """Return the user who is logged in, None for nobody. Raises ValueError for what is no user's id."""
    user = load_user()
    if user is None or user is False or user == "":  # the last two: `current_user.is_authenticated and ...`
        return None
    return events.check_user(user)


def for_user(load_user: Callable[[], Any], view: View) -> View:
    """Call `view` with the user who is logged in, and answer what every view of a user's own must."""

    @functools.wraps(view)
    def checked(**arguments: Any) -> ResponseReturnValue:
        user = who(load_user)
        if user is None:
            return error(HTTPStatus.UNAUTHORIZED, "not logged in")
        try:
            return view(user=user, **arguments)
        except TransportError:
            return unavailable("notifications are not available now")

    return checked


def user_tag(user: str) -> str:
    """Return a text that says whether two answers are of the same user, and nothing else of that user.

    It opens nothing. It is keyed by the application's secret, if there is one, so that whoever reads it in a log cannot
    try out ids.
    """
    secret = current_app.secret_key or b""
    key = blake2b(secret if isinstance(secret, bytes) else secret.encode()).digest()
    return blake2b(user.encode(), digest_size=12, key=key, person=b"celery_notify").hexdigest()


def same_user(view: View) -> View:
    """Refuse what a page asks that was made for another user, where it says so by that one's tag.

    Somebody else has logged in in that browser: their events must not reach the tabs that are still open.
    """

    @functools.wraps(view)
    def checked(user: str, **arguments: Any) -> ResponseReturnValue:
        tag = user_tag(user)
        if request.args.get("user_tag", tag) != tag:
            return error(HTTPStatus.FORBIDDEN, "another user is logged in")
        return view(user=user, **arguments)

    return checked


def same_site(view: View) -> View:
    """Refuse what another site makes a browser ask; a request that names no site is not a browser's."""

    @functools.wraps(view)
    def checked(**arguments: Any) -> ResponseReturnValue:
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is not None:
            same = site in {"same-origin", "none"}
        else:
            # The scheme is left out: behind a proxy that ends TLS the application sees another one than the browser.
            same = origin is None or origin.partition("://")[2] == request.host
        return view(**arguments) if same else error(HTTPStatus.FORBIDDEN, "refused for another site")

    return checked
