"""Celery applications within the test's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from celery import Celery


def named(app: Celery, function: Callable[..., Any], **options: Any) -> Any:
    """Make a task of a function, under a name that no other application has."""
    return app.task(name=f"{app.main}.{function.__name__}", shared=False, **options)(function)
