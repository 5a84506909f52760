"""Celery tasks that people watch in their browser while they run.

Names are imported when they are used: a web process that only streams never imports Celery, a worker never Flask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Here and not below: otherwise the name would be that of the module, which is bound when it is first imported.
from celery_notify.progress import progress

if TYPE_CHECKING:
    from celery_notify.cancel import TaskCancelledError
    from celery_notify.exceptions import ConfigurationError, NotifyError, PublicError, TransportError
    from celery_notify.lookout import tasks
    from celery_notify.marker import notify, notify_user
    from celery_notify.publisher import close_streams, send
    from celery_notify.receivers import init_app

__all__ = [
    "ConfigurationError",
    "NotifyError",
    "PublicError",
    "TaskCancelledError",
    "TransportError",
    "close_streams",
    "init_app",
    "notify",
    "notify_user",
    "progress",
    "send",
    "tasks",
]

_MODULES = {
    "ConfigurationError": "exceptions",
    "NotifyError": "exceptions",
    "PublicError": "exceptions",
    "TaskCancelledError": "cancel",
    "TransportError": "exceptions",
    "close_streams": "publisher",
    "init_app": "receivers",
    "notify": "marker",
    "notify_user": "marker",
    "send": "publisher",
    "tasks": "lookout",
}


def __getattr__(name: str) -> Any:  # https://peps.python.org/pep-0562/
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"celery_notify.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
