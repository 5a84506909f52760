"""Who runs a task, and the sign of life that a worker gives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from celery_notify import liveness
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.memory import MemoryTransport
from celery_notify.progress import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def no_worker() -> Iterator[None]:
    """Let each test begin in a process that belongs to no worker."""
    liveness.reset()
    yield
    liveness.reset()


@pytest.fixture
def source() -> MemoryTransport:
    return MemoryTransport(Settings(redis_url="memory://"))


def run(task_id: str, previous: Run | None = None) -> Run:
    event = TaskEvent(task_id=task_id, task="shop.bill", state="STARTED", attempt=1)
    return Run(event, ["ada"], shown=True, previous=previous)


def in_a_child(tell: Callable[[], str]) -> str:
    """Return what `tell` returns in a forked child of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, tell().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        answer = told.read()
    os.waitpid(pid, 0)
    return answer


def test_who_runs_a_task_is_named_by_the_worker_and_the_task() -> None:
    assert liveness.name_of(run("t1")) == f"{liveness.worker().id}.t1"


def test_what_a_task_calls_within_itself_is_run_by_whoever_runs_that_task() -> None:
    outer = run("outer")

    assert liveness.name_of(run("inner", previous=run("middle", previous=outer))) == liveness.name_of(outer)


@pytest.mark.parametrize("task_id", ['a "quoted" one', "two words", "w.1", "\u00e9\u2028", "%2E", "a" * 255])
def test_any_task_id_is_signed_for_under_the_name_it_has(task_id: str, source: MemoryTransport) -> None:
    liveness.begin(lambda: [task_id, "another"])
    worker = liveness.worker()

    worker.sign(source, [], 20)

    name, dot, task = liveness.name_of(run(task_id)).partition(".")
    assert (name, dot) == (worker.id, ".")
    assert source.signs([worker.id]) == {worker.id: {task, "another"}}
    assert not {*' ".'} & {*task}


def test_a_process_without_a_pool_signs_for_its_own_runs(source: MemoryTransport) -> None:
    worker = liveness.worker()

    worker.sign(source, [run("t1"), run("inner", previous=run("t2"))], 20)

    assert source.signs([worker.id, "another"]) == {worker.id: {"t1", "t2"}}
    assert not worker.has_pool


def test_a_sign_is_renewed_several_times_before_it_ends(source: MemoryTransport) -> None:
    pause = liveness.Worker().sign(source, [], 20)

    assert pause * 3 <= 20 * liveness.LEASE


def test_a_pools_child_belongs_to_its_worker_and_does_not_sign() -> None:
    liveness.begin(list)
    name = liveness.name_of(run("t1"))

    child, here = in_a_child(lambda: f"{liveness.name_of(run('t1'))} {liveness.worker().is_here}").split()

    assert child == name
    assert here == "False"
    assert liveness.worker().is_here


def test_a_process_forked_from_one_that_is_no_worker_is_on_its_own() -> None:
    name = liveness.name_of(run("t1"))

    child, here = in_a_child(lambda: f"{liveness.name_of(run('t1'))} {liveness.worker().is_here}").split()

    assert child != name
    assert here == "True"
