"""What the application's own pages get from the blueprint: the client's script tag, and the state as it is now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flask import after_this_request, url_for
from markupsafe import Markup

from celery_notify import guards, script
from celery_notify.exceptions import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from flask import Response

#: In JSON these stand in strings only; as they are they would end the element, or the line, that the JSON is in.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def _keep_private(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response


class Page:
    """The globals of templates, for a blueprint that is registered under a name.

    `state` returns the tag and the tasks, as the endpoint answers them, of the user who is logged in; None for nobody.
    """

    def __init__(self, name: str, state: Callable[[], tuple[str, bytes] | None]) -> None:
        self._name = name
        self._state = state
        self._away_until = 0.0

    def globals(self) -> dict[str, Any]:
        """Return what templates may call, by name."""
        return {"task_notifications": self.task_notifications, "task_notifications_url": self.task_notifications_url}

    def task_notifications_url(self) -> str:
        """Return the client's URL, which changes with its content: a browser may keep what it gets from there."""
        return url_for(f"{self._name}.client", v=script.load().tag)

    def task_notifications(self, *, state: bool = False, nonce: str | None = None) -> Markup:
        """Return the script tag of the client.

        With `state` the tasks of the user who is logged in stand before it, and the page is first painted when the
        client has shown them. Such a page is that user's alone: no part of it may be cached, and unless the application
        says something else it is answered with ``Cache-Control: private, no-store``. Without a user, or while Redis
        does not answer, there is the tag alone. `nonce` is the attribute of that name, for a content security policy.
        """
        block = self._block() if state else Markup()
        more = Markup(' nonce="{}"').format(nonce) if nonce else Markup()
        if block:
            more += Markup(' blocking="render"')
        tag = Markup('<script type="module" src="{}"{}></script>').format(self.task_notifications_url(), more)
        return block + tag

    def _block(self) -> Markup:
        if time.monotonic() < self._away_until:
            return Markup()
        try:
            found = self._state()
        except TransportError:
            # A Redis that is frozen would cost each page of the application seconds.
            self._away_until = time.monotonic() + guards.RETRY_AFTER
            return Markup()
        if found is None:
            return Markup()
        after_this_request(_keep_private)
        tag, tasks = found
        block = Markup('<script type="application/json" data-stream="{}" data-user="{}">{}</script>\n')
        data = Markup(tasks.decode().translate(_ESCAPES))  # noqa: S704 - escaped for where it stands
        return block.format(url_for(f"{self._name}.stream"), tag, data)
