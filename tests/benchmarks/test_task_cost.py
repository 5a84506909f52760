"""What it costs a worker that a task which does nothing is shown: `make bench`.

The cost is the CPU time of the worker's processes, which others on this machine change least; Redis' own stands beside
it. All tasks of a run wait in the queue before its worker starts, so that the worker is always busy. The test asserts
that the work was done, nothing about time; run as a test it counts to little.
"""

from __future__ import annotations

import statistics
import uuid
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.celery_nodes import configuration, environment
from tests.support.gates import Gates
from tests.support.processes import PYTHON, Process, run_python

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis_server import RedisServer


class Kind(NamedTuple):
    """A task, the application that runs it, and further options of its worker."""

    task: str
    module: str = "tests.benchmarks.noop"
    options: tuple[str, ...] = ()


#: What the runs of one kind have cost for each task, by process.
Found = list[dict[str, float]]

#: What is compared, by the names that the report has for it; the first is what the others are compared with.
KINDS = {
    "plain": Kind("plain"),
    "plain, with init_app": Kind("plain", "tests.benchmarks.noop_shown"),
    "notified": Kind("marked", "tests.benchmarks.noop_shown"),
    "notified, 100 progress()": Kind("reporting", "tests.benchmarks.noop_shown"),
    "plain, with -E": Kind("plain", options=("-E",)),
}
#: How many tasks are run before it counts, how many then, and the runs of each kind, which alternate.
WARM_UP, TASKS, RUNS = 300, 3000, 5
SHORT_WARM_UP, FEW_TASKS, FEW_RUNS = 1, 10, 1
#: What a notified task may cost, as a multiple of a plain one.
GOAL = 1.05


def run(kind: Kind, server: RedisServer, folder: Path, warm_up: int, tasks: int) -> dict[str, float]:
    """Return the microseconds of CPU time for each task, in each process."""
    name = f"{kind.task}-{uuid.uuid4().hex[:8]}"
    settings = environment(
        configuration(
            server,
            task_default_queue=name,
            result_backend=None,
            task_ignore_result=True,
            worker_prefetch_multiplier=4,  # Celery's default, and ours
            notify_history_size=200,
        )
    )
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


def of_the_worker(runs: Found) -> list[float]:
    """Return what each run has cost the worker, in all of its processes."""
    return [each["child"] + each["main"] for each in runs]


def report(found: dict[str, Found], tasks: int) -> None:
    """Print what was found: the worker's time, as a multiple of a plain task's, and what it is made of."""
    plain = statistics.median(of_the_worker(found["plain"]))
    lines = [f"tasks that do nothing: {tasks} a run, {len(found['plain'])} runs each, microseconds of CPU time a task"]
    for name, runs in found.items():
        worker = of_the_worker(runs)
        median = statistics.median(worker)
        parts = (f"{part} {statistics.median(each[part] for each in runs):6.0f}" for part in runs[0])
        lines.append(
            f"  {name:<26}min {min(worker):6.0f}  median {median:6.0f}  max {max(worker):6.0f}  "
            f"ratio {median / plain:.3f}  ({', '.join(parts)})"
        )
    print("\n".join(lines))  # noqa: T201 - what a benchmark is for


def goals(found: dict[str, Found]) -> list[str]:
    """Return what is hoped for, and whether it is so."""
    plain, notified, events = (
        statistics.median(of_the_worker(found[name])) for name in ("plain", "notified", "plain, with -E")
    )
    hopes = {f"at most {GOAL} of a plain one": notified <= GOAL * plain, "below one with -E": notified < events}
    return [f"  goal: a notified task costs {hope}: {'yes' if held else 'NO'}" for hope, held in hopes.items()]


@pytest.mark.timeout(1800)
def test_a_notified_task_beside_a_plain_one_and_events(
    own_redis: RedisServer, tmp_path: Path, *, measuring: bool
) -> None:
    warm_up, tasks, runs = (WARM_UP, TASKS, RUNS) if measuring else (SHORT_WARM_UP, FEW_TASKS, FEW_RUNS)
    found: dict[str, Found] = {}
    for _ in range(runs):
        for name, kind in KINDS.items():
            found.setdefault(name, []).append(run(kind, own_redis, tmp_path, warm_up, tasks))
    report(found, tasks)
    if measuring:
        print(*goals(found), sep="\n")  # noqa: T201
    assert all(each["child"] > 0 for kind in found.values() for each in kind)
