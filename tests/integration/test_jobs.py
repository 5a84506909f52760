"""One job, however many tasks Celery runs for it: on real workers, with prefork."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

import celery_notify
from celery_notify import notify_user
from celery_notify.events import FINAL_STATES
from celery_notify.message import USER
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from tests.support.celery_nodes import Worker

pytestmark = pytest.mark.usefixtures("worker")


def shown(user: str) -> list[dict[str, Any]]:
    return [dict(task) for task in celery_notify.tasks(user)]


def job_at_its_end(user: str, *, tasks: int) -> list[dict[str, Any]]:
    """Wait until a job of so many tasks has ended, and return what is known of them."""

    def ended() -> list[dict[str, Any]]:
        found = shown(user)
        numbers = found[-1].get("job") if found else None
        over = numbers is not None and numbers["tasks"] == numbers["ended"] == tasks and not numbers["hidden"]
        return found if over and all(task["state"] in FINAL_STATES for task in found) else []

    return wait_until(ended, timeout=60, what=f"the end of a job of {tasks} tasks")


def states(found: list[dict[str, Any]]) -> dict[str, str]:
    return {task["task"].rpartition(".")[2]: task["state"] for task in found}


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (lambda tasks: tasks.step.si(1).set(link=tasks.told.si(None, 1)), {"step": 1, "told": 1}),
        (lambda tasks: tasks.failing.si(None, "secret").set(link_error=tasks.step.si(1)), {"failing": 1, "step": 1}),
        (lambda tasks: tasks.failing.si(None, "secret").on_error(tasks.step.si(1)), {"failing": 1, "step": 1}),
        (lambda tasks: tasks.step.chunks([(n,) for n in range(6)], 2).group(), {"step": 3}),
        (lambda tasks: tasks.step.chunks([(n,) for n in range(6)], 2), {"step": 3}),
        (lambda tasks: tasks.step.starmap([(1,), (2,)]), {"step": 1}),
        (lambda tasks: tasks.step.map([1, 2]), {"step": 1}),
        (
            lambda tasks: chord([tasks.step.si(1), tasks.adding.si()], tasks.ok.si(None)),
            {"step": 2, "adding": 1, "ok": 1},
        ),
        (lambda tasks: tasks.retrying.si(None, 1), {"retrying": 1}),
        (lambda tasks: tasks.replaced.si(None), {"step": 1}),
    ],
    ids=[
        "link",
        "link_error",
        "on_error",
        "chunks",
        "chunks alone",
        "starmap",
        "map",
        "add_to_chord",
        "retry",
        "replace",
    ],
)
def test_the_user_and_the_job_travel(
    canvas: Callable[[ModuleType], Any], expected: dict[str, int], tasks: ModuleType, user: str
) -> None:
    with notify_user(user):
        canvas(tasks).delay()

    def all_there() -> list[dict[str, Any]]:
        found = shown(user)
        names = Counter(task["task"].rpartition(".")[2] for task in found)
        return found if names == expected and all(task["state"] in FINAL_STATES for task in found) else []

    found = wait_until(all_there, what=f"the ends of {expected}")
    assert len({task["job_id"] for task in found}) == 1


def test_what_follows_a_lost_child_is_closed_and_its_errback_is_its_users(tasks: ModuleType, user: str) -> None:
    """Both are the doing of the worker's main process, in which no task runs."""
    canvas = chain(tasks.dying.si(user).on_error(tasks.step.si(1)), tasks.ok.si(user), tasks.told.si(user, 1))
    canvas.delay()

    found = job_at_its_end(user, tasks=4)

    assert states(found) == {"dying": "FAILURE", "ok": "REVOKED", "told": "REVOKED", "step": "SUCCESS"}
    assert len({task["job_id"] for task in found}) == 1


def test_what_follows_a_revoked_task_is_closed(tasks: ModuleType, user: str) -> None:
    last = chain(tasks.ok.si(user).set(expires=-1), tasks.ok.si(user)).delay()

    found = job_at_its_end(user, tasks=2)

    assert [task["state"] for task in found] == ["REVOKED", "REVOKED"]
    assert found[-1]["task_id"] == last.id


def test_a_replaced_task_inside_a_chain_goes_on(tasks: ModuleType, user: str) -> None:
    with notify_user(user):
        chain(tasks.ok.si(user), tasks.replaced_by_group.si(user), tasks.told.si(user, 1)).delay()

    [numbers] = wait_until(
        lambda: [
            task["job"]
            for task in shown(user)
            if task["task"].endswith("told") and task["state"] == "SUCCESS" and "job" in task
        ],
        what="the end of the chain",
    )
    assert numbers["tasks"] == numbers["ended"]
    assert not numbers["failed"] + numbers["revoked"]


def test_a_replaced_task_goes_on_also_where_the_result_backend_cannot_count(
    tasks: ModuleType, user: str, make_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """What waits for those that replace it has its end as an argument, under its id."""
    queue = make_worker(result_backend=tmp_path.as_uri(), result_chord_retry_interval=0.1).worker_queue
    result = tasks.replaced_by_group.apply_async((user,), queue=queue)

    found = job_at_its_end(user, tasks=3)

    assert {task["state"] for task in found} == {"SUCCESS"}
    assert found[-1]["task_id"] == result.id


def test_where_nobody_sees_the_task_that_failed_the_next_one_has(tasks: ModuleType, user: str) -> None:
    """A person who is told of a cancel would think that somebody has cancelled it."""
    with notify_user(user):
        chain(tasks.unmarked_failing.si(), tasks.ok.si(user), tasks.told.si(user, 1)).delay()

    found = job_at_its_end(user, tasks=2)

    assert states(found) == {"ok": "FAILURE", "told": "REVOKED"}
    assert found[0]["error"] == "The task failed."


def test_many_tasks_are_one_job_of_few_entries_that_ends_exactly(
    tasks: ModuleType, user: str, make_worker: Callable[..., Worker]
) -> None:
    queue = make_worker(notify_history_size=20, concurrency=2).worker_queue
    tasks.spreading.apply_async((300,), queue=queue, headers={USER: user})

    found = job_at_its_end(user, tasks=301)

    assert 10 <= len(found) <= 20
    assert found[-1]["job"] == {"tasks": 301, "ended": 301, "failed": 0, "revoked": 0, "hidden": 0, "fraction": 1.0}


def test_a_group_in_which_some_fail_ends_with_their_number(tasks: ModuleType, user: str) -> None:
    group(
        [tasks.ok.si(user), tasks.failing.si(user, "secret"), tasks.retrying.si(user, 2), tasks.ignoring.si(user)]
    ).delay()

    found = job_at_its_end(user, tasks=4)

    assert states(found) == {"ok": "SUCCESS", "failing": "FAILURE", "retrying": "SUCCESS", "ignoring": "IGNORED"}
    assert found[-1]["job"]["failed"] == 1
    assert found[-1]["job"]["fraction"] == 1
