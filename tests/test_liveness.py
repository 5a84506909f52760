"""Who runs a task, and the sign of life that a worker gives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from celery_notify import config, liveness
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.lookout import MISSING
from celery_notify.memory import MemoryTransport
from celery_notify.progress import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


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


def test_what_a_task_in_a_pool_calls_within_itself_has_the_name_of_the_task_that_the_pool_was_given() -> None:
    """A worker knows only that one. The call may be in another thread, which knows of no run before it."""
    liveness.begin(list)

    def tell() -> str:
        liveness.begin_task("given")
        return f"{liveness.name_of(run('inner', previous=run('given')))} {liveness.name_of(run('in a thread'))}"

    assert in_a_child(tell).split() == [f"{liveness.worker().id}.given"] * 2


def test_what_a_task_calls_within_itself_has_its_own_name_where_the_process_signs_for_it() -> None:
    """In a pool of threads no one task was begun last."""
    liveness.begin(list)
    liveness.begin_task("another")

    assert liveness.name_of(run("inner", previous=run("outer"))) == f"{liveness.worker().id}.inner"


def test_the_next_task_of_a_pools_child_has_its_own_name() -> None:
    liveness.begin(list)

    def tell() -> str:
        names = []
        for task_id in ("t1", "t2"):
            liveness.begin_task(task_id)
            names.append(liveness.name_of(run(task_id)))
        return " ".join(names)

    assert in_a_child(tell).split() == [f"{liveness.worker().id}.t1", f"{liveness.worker().id}.t2"]


@pytest.mark.parametrize(
    "task_id", ['a "quoted" one', "two words", "w.1", "\u00e9\u2028", "%2E", "a" * 255, "\ud800", "a\udfff.b"]
)
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

    assert source.signs([worker.id, "another"]) == {worker.id: {"t1", "inner"}}
    assert not worker.has_pool


def test_a_task_id_that_is_no_text_hides_no_other_task(source: MemoryTransport) -> None:
    """Anybody who may enqueue a task chooses its id: it must not keep the worker from signing for the rest."""
    liveness.begin(lambda: ["\ud800", "t1"])
    worker = liveness.worker()

    worker.sign(source, [run("\udfff")], 20)

    [signed] = source.signs([worker.id]).values()
    assert "t1" in signed
    assert len(signed) == 3
    assert all(name.isascii() for name in signed)


def test_a_sign_lasts_for_a_part_of_the_time_after_which_a_worker_counts_as_lost() -> None:
    leases: list[float] = []

    class Signed:
        def sign(self, worker: str, tasks: Iterable[str], *, lease: float) -> None:
            del worker, tasks
            leases.append(lease)

    liveness.Worker().sign(Signed(), [], 20)  # type: ignore[arg-type]

    assert leases == [20 * config.LEASE]
    assert config.LEASE + MISSING <= 1


def test_a_pools_child_belongs_to_its_worker_and_does_not_sign() -> None:
    liveness.begin(list)
    name = liveness.name_of(run("t1"))

    def tell() -> str:
        liveness.begin_task("t1")
        return f"{liveness.name_of(run('t1'))} {liveness.worker().is_here}"

    child, here = in_a_child(tell).split()

    assert child == name
    assert here == "False"
    assert liveness.worker().is_here


def test_a_process_forked_from_one_that_is_no_worker_is_on_its_own() -> None:
    name = liveness.name_of(run("t1"))

    child, here = in_a_child(lambda: f"{liveness.name_of(run('t1'))} {liveness.worker().is_here}").split()

    assert child != name
    assert here == "True"
