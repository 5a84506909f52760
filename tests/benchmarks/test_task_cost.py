"""What it costs a worker that a task which does nothing is shown, and that it says how far it is: `make bench`.

The cost is the CPU time of the worker's processes, which others on this machine change least; Redis' own stands beside
it. All tasks of a run wait in the queue before its worker starts, so that the worker is always busy. The tests assert
that the work was done, nothing about time; run as tests they count to little.
"""

from __future__ import annotations

import statistics
import uuid
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.report import OURS, Comparison, at_most
from tests.benchmarks.servers import ENVIRONMENT
from tests.support.celery_nodes import configuration, environment
from tests.support.gates import Gates
from tests.support.processes import PYTHON, Process, run_python
from tests.support.waiting import missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.redis_server import RedisServer


class Kind(NamedTuple):
    """A task, the application that runs it, and further options of its worker.

    `recorded` is one that stores its progress as its result: it needs a result backend, and takes ten times as long.
    """

    task: str
    module: str = "tests.benchmarks.noop_shown"
    options: tuple[str, ...] = ()
    recorded: bool = False


class Scale(NamedTuple):
    """How many tasks are run before it counts, how many then, and the runs of each kind, which alternate."""

    warm_up: int
    tasks: int
    runs: int


FULL, QUICK, SMOKE = Scale(300, 3000, 5), Scale(100, 1000, 2), Scale(1, 10, 1)

PLAIN = Kind("plain", "tests.benchmarks.noop")
#: What is compared, by the names that the report has for it.
KINDS = {
    OURS: Kind("marked"),
    "plain": PLAIN,
    "plain, with init_app": Kind("plain"),
    "plain, with -E": PLAIN._replace(options=("-E",)),
}
#: The same for a task that says a hundred times how far it is.
REPORTING = {
    OURS: Kind("reporting"),
    "plain, silent": PLAIN,
    "celery-progress": Kind("recording", "tests.benchmarks.noop_recorded", recorded=True),
}


@pytest.fixture(scope="module")
def scale(choose: Callable[[Scale, Scale, Scale], Scale]) -> Scale:
    return choose(FULL, QUICK, SMOKE)


@pytest.fixture(scope="module")
def recorder() -> str:
    """Return the folder that celery-progress is in."""
    found = [each.parent for each in ENVIRONMENT.glob("lib/python*/site-packages/celery_progress")]
    return str(found[0]) if found else missing("celery-progress in the peers' environment: make bench")


def run(kind: Kind, server: RedisServer, folder: Path, scale: Scale, **more: str) -> dict[str, float]:
    """Return the microseconds of CPU time for each task, in each process; `more` is for the environment."""
    name = f"{kind.task}-{uuid.uuid4().hex[:8]}"
    warm_up, tasks = (max(1, number // (10 if kind.recorded else 1)) for number in (scale.warm_up, scale.tasks))
    settings = environment(
        configuration(
            server,
            task_default_queue=name,
            result_backend=server.admin_url if kind.recorded else None,
            task_ignore_result=True,
            worker_prefetch_multiplier=4,  # Celery's default, and ours
            notify_history_size=200,
        )
    )
    settings |= more
    published = run_python("-m", kind.module, kind.task, name, str(warm_up), str(tasks), name, settings=settings)
    assert published.returncode == 0, published.stderr
    worker = Process(
        *(*PYTHON, "-m", "celery", "--app", kind.module, "worker", "--pool", "prefork", "--concurrency", "1"),
        *("--hostname", f"{name}@%h", "--without-gossip", "--without-mingle", *kind.options),
        folder=folder,
        name=name,
        settings=settings,
    ).start()
    try:
        found, gates = [], Gates(server.admin_url)
        with server.client() as client:
            for _ in ("begun", "ended"):
                spent = gates.read(name, timeout=60)
                cpu = client.info("cpu")
                found.append({**spent, "redis": cpu["used_cpu_user"] + cpu["used_cpu_sys"]})
    finally:
        worker.kill()
    begun, ended = found
    return {each: (ended[each] - begun[each]) / tasks * 1e6 for each in begun}


def compared(row: str, kinds: dict[str, Kind], scale: Scale, measure: Callable[[Kind], dict[str, float]]) -> Comparison:
    """Return what the kinds cost the worker in all its processes, and what that is made of."""
    comparison = Comparison(row, "CPU time of the worker for each task", "us")
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(scale.runs):
        for name, kind in kinds.items():
            spent = measure(kind)
            parts[name].append(spent)
            comparison.add(name, spent["child"] + spent["main"])
    for name, runs in parts.items():
        medians = (f"{part} {statistics.median(each[part] for each in runs):.0f}" for part in runs[0])
        comparison.note(f"{name}: {', '.join(medians)}")
    return comparison


@pytest.mark.timeout(900)
def test_a_notified_task_beside_a_plain_one_and_events(
    own_redis: RedisServer, tmp_path: Path, scale: Scale, *, measuring: bool
) -> None:
    found = compared("a task that does nothing", KINDS, scale, lambda kind: run(kind, own_redis, tmp_path, scale))
    found.finish({"plain": at_most(1.05), "plain, with -E": at_most(0.8)}, measuring=measuring)
    assert all(value > 0 for values in found.values.values() for value in values)


@pytest.mark.timeout(900)
def test_a_hundred_calls_of_progress_beside_celery_progress(
    own_redis: RedisServer, tmp_path: Path, scale: Scale, recorder: str, *, measuring: bool
) -> None:
    def measure(kind: Kind) -> dict[str, float]:
        return run(kind, own_redis, tmp_path, scale, PEERS_PACKAGES=recorder)

    found = compared("a task that reports a hundred times", REPORTING, scale, measure)
    found.finish({"celery-progress": at_most(0.2)}, measuring=measuring)
    assert all(value > 0 for values in found.values.values() for value in values)
