"""The commands of ``celery -A proj notify`` (PROTOCOL section 7).

Celery loads this module with each of its commands, so that what a command needs is imported when it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options

from celery_notify import config
from celery_notify.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_notify.diagnosis import Finding


@click.group()
@click.pass_context
@handle_preload_options  # options of the application's own stand before every command of Celery's
def notify(context: click.Context, **options: Any) -> None:
    """Look after the events that people are told in their browsers."""


@notify.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Say what is wrong with the application, its settings and its Redis.

    Exits with 1 if there is a fault, with 0 if there are only warnings.
    """
    app, is_named = context.obj.app, context.find_root().params.get("app") is not None
    faults = 0
    for finding in _findings(app, is_named=is_named):
        click.echo(f"{finding.level:<8} {finding.text}")
        faults += finding.level == "fault"
    context.exit(1 if faults else 0)


def _findings(app: Celery, *, is_named: bool) -> Iterator[Finding]:
    from celery_notify.diagnosis import Finding, diagnose  # noqa: PLC0415 - no other command needs Redis

    if is_named:
        yield from _of_application(app)
    else:
        yield Finding("warning", "no application is named, so only the environment counts: celery -A proj notify check")
    try:
        settings = config.settings()
    except ConfigurationError as error:
        yield Finding("fault", str(error))
        return
    yield from diagnose(settings)


def _of_application(app: Celery) -> Iterator[Finding]:
    """Yield what keeps an application's tasks from being shown."""
    from celery_notify.diagnosis import Finding  # noqa: PLC0415 - as above
    from celery_notify.marked import apps, check_markers, marker_of  # noqa: PLC0415 - as above

    name = app.main or "the application"
    try:
        app.loader.import_default_modules()
        check_markers(app)
    except ConfigurationError as error:
        yield Finding("fault", str(error))
        return
    except Exception as error:  # noqa: BLE001 - the application's own modules may raise anything
        yield Finding("fault", f"the application's tasks cannot be imported: {type(error).__name__}: {error}")
        return
    if app not in apps:
        yield Finding("fault", f"celery_notify.init_app was not called for {name}: none of its tasks is shown")
        return
    shown = sum(marker_of(task) is not None for task in app.tasks.values())
    if shown:
        yield Finding("ok", f"{name} has tasks that are shown: {shown}")
    else:
        yield Finding("warning", f"{name} has no task that is shown: none is marked with @notify")
    if app.conf.task_protocol == 1:
        yield Finding("warning", "task_protocol is 1: messages have no headers, and so no user that is inherited")
