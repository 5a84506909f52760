"""What a Redis that is frozen, lost or full costs a task which reports its progress: `make bench`.

The task is one of a second that reports a hundred times, in a real worker whose broker is another Redis. The test
asserts that the work was done and its end told, nothing about time; run as a test it counts to little.
"""

from __future__ import annotations

import statistics
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.redis_server import RedisServer

#: How often a task reports, the seconds between, and the runs of each kind under each Redis, which alternate.
CALLS, STEP, RUNS = 100, 0.01, 7
FEW_CALLS, SHORT_STEP, FEW_RUNS = 10, 0.001, 1
#: What becomes of Redis, how it is brought about, and what ends it.
FAULTS: dict[str, tuple[Callable[[RedisServer], object], Callable[[RedisServer], object]]] = {
    "healthy": (lambda _: None, lambda _: None),
    "frozen": (lambda server: server.pause(), lambda server: server.resume()),
    "lost": (lambda server: server.kill(), lambda server: server.start()),
    "full": (lambda server: limit(server, 1), lambda server: limit(server, 0)),
}


def limit(server: RedisServer, size: int) -> None:
    """Set the memory that Redis may have; none is no limit."""
    with server.client() as client:
        client.config_set("maxmemory", size)


@contextmanager
def fault(name: str, server: RedisServer) -> Iterator[None]:
    begin, end = FAULTS[name]
    begin(server)
    try:
        yield
    finally:
        end(server)


def rounds_of(seconds: float) -> int:
    """Return how many rounds of computing last so long."""
    rounds = 100_000
    times = []
    for _ in range(20):
        before = time.process_time()
        sum(range(rounds))
        times.append(time.process_time() - before)
    return int(rounds * seconds / statistics.median(times))


def has_ended(server: RedisServer, user: str, task_id: str) -> bool:
    """Say whether Redis was told of a task's end."""
    with server.client() as client:
        entry = client.hget(f"celery-notify:{{{quote(user, safe='')}}}:entries", task_id)
    return entry is not None and '"SUCCESS"' in str(entry)


def report(found: dict[tuple[str, str], list[dict[str, float]]], calls: int) -> None:
    """Print what was found: a run's seconds, and how they compare with the healthy run of the same round.

    The fastest are compared too, which other work on this machine changes least. Beside them stand the slowest call of
    progress(), and how long after the run the child began another task.
    """
    lines = [f"a task that reports {calls} times, {len(next(iter(found.values())))} runs each, seconds"]
    for (kind, name), runs in found.items():
        seconds, healthy = ([run["seconds"] for run in found[kind, each]] for each in (name, "healthy"))
        ratio = statistics.median(one / other for one, other in zip(seconds, healthy, strict=True))
        fastest = min(seconds) / min(healthy)
        slowest = max(run["slowest"] for run in runs) * 1e6
        after = statistics.median(run["until_next"] for run in runs)
        lines.append(
            f"  {kind:<10}{name:<8} min {min(seconds):.4f}  median {statistics.median(seconds):.4f}  "
            f"max {max(seconds):.4f}  ratio {ratio:.4f}, of the fastest {fastest:.4f}  "
            f"slowest call {slowest:7.1f} us  next task after {after:.3f}"
        )
    print("\n".join(lines))  # noqa: T201 - what a benchmark is for


@pytest.mark.timeout(900)
@pytest.mark.defends("F5", "F6", "F7")
def test_a_task_takes_as_long_whatever_becomes_of_redis(
    own_redis: RedisServer,
    tasks: ModuleType,
    gates: Gates,
    user: str,
    make_worker: Callable[..., Worker],
    *,
    measuring: bool,
) -> None:
    calls, step, runs = (CALLS, STEP, RUNS) if measuring else (FEW_CALLS, SHORT_STEP, FEW_RUNS)
    kinds = {"waiting": step, "computing": rounds_of(step)} if measuring else {"waiting": step}
    queue = make_worker("--include", "tests.benchmarks.measured", notify_redis_url=own_redis.url).worker_queue

    def run(kind: str, name: str) -> dict[str, float]:
        journal = uuid.uuid4().hex
        with fault(name, own_redis):
            arguments = (user, journal, kind, kinds[kind], calls)
            result = tasks.app.send_task("measured", arguments, queue=queue)
            tasks.app.send_task("next", (journal,), queue=queue)
            noted: dict[str, Any] = gates.read(journal)
            began_next = gates.read(journal)
        wait_until(lambda: has_ended(own_redis, user, result.id), timeout=30, what="the task's end to be told")
        return {**noted, "until_next": began_next - noted["end"]}

    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for kind in kinds:
        run(kind, "healthy")  # what is only needed once is there then
        for _ in range(runs):
            for name in FAULTS:
                found.setdefault((kind, name), []).append(run(kind, name))
    report(found, calls)
    assert all(len(each) == runs for each in found.values())
