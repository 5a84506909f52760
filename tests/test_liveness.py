"""Which process runs a task, and the sign of life that a worker gives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from celery_notify import liveness
from celery_notify.config import Settings
from celery_notify.memory import MemoryTransport

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


def test_a_process_is_named_by_its_worker_and_its_number() -> None:
    assert liveness.process() == f"{liveness.worker().id}.{os.getpid()}"
    assert liveness.process() == liveness.process()


def test_a_worker_signs_for_itself_and_its_children(source: MemoryTransport) -> None:
    liveness.begin(lambda: [7, 8])
    worker = liveness.worker()

    worker.sign(source, 20)

    assert source.signs([worker.id, "another"]) == {worker.id: {os.getpid(), 7, 8}}


def test_a_sign_is_renewed_several_times_before_it_ends(source: MemoryTransport) -> None:
    pause = liveness.Worker().sign(source, 20)

    assert pause * 3 <= 20 * liveness.LEASE


def test_a_pools_child_belongs_to_its_worker_and_does_not_sign() -> None:
    liveness.begin(list)
    name = liveness.worker().id

    child, here = in_a_child(lambda: f"{liveness.process()} {liveness.worker().is_here}").split()

    assert child.partition(".")[0] == name
    assert child != liveness.process()
    assert here == "False"
    assert liveness.worker().is_here


def test_a_process_forked_from_one_that_is_no_worker_is_on_its_own() -> None:
    name = liveness.worker().id

    child, here = in_a_child(lambda: f"{liveness.process()} {liveness.worker().is_here}").split()

    assert child.partition(".")[0] != name
    assert here == "True"
