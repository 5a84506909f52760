"""Progress that existing tasks tell Celery by `update_state`, told to people too, without a change in the task.

https://docs.celeryq.dev/en/stable/userguide/tasks.html#custom-states
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from celery_notify.cancel import TaskCancelledError
from celery_notify.progress import current_run, progress

logger = logging.getLogger(__name__)

#: The state's name by Celery's own guide, which celery-progress and jobtastic use as well.
PROGRESS = "PROGRESS"


def heed(task: Any) -> None:
    """Have ``task.update_state(state="PROGRESS", meta={...})`` count as progress of the run it is called in.

    `meta` holds "current", "total" and "description" as celery-progress writes them, or "progress_percent" as
    jobtastic does. What the task stores in its result backend stays as it is, also if it has none.
    """
    update_state = task.update_state

    @functools.wraps(update_state)
    def heeded(*args: Any, **kwargs: Any) -> Any:
        try:
            _heed(task, *args, **kwargs)
        except TaskCancelledError:
            raise
        except Exception:  # a call that does not fit included: Celery itself says so below
            logger.debug("celery_notify: an update_state of %s is no progress", task.name, exc_info=True)
        return update_state(*args, **kwargs)

    task.update_state = heeded


def _heed(task: Any, task_id: object = None, state: object = None, meta: object = None, **_: Any) -> None:
    run = current_run.get()
    if run is None or state != PROGRESS or not isinstance(meta, Mapping):
        return
    if task_id is None:
        task_id = task.request.id
    if task_id is not None and str(task_id) != run.event.task_id:  # said of another task
        return
    if "progress_percent" in meta:
        progress(meta["progress_percent"], 100)
    elif meta.keys() & {"current", "total", "description"}:
        progress(meta.get("current", run.said()[0]), meta.get("total"), meta.get("description"))
