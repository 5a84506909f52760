"""What progress() costs a task, beside the progress bar that many use: `make bench`.

The tests assert that the work was done, nothing about time; run as tests they count to little.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tqdm import tqdm

from celery_notify.config import Settings
from celery_notify.events import TaskEvent, publication
from celery_notify.progress import Run, current_run, progress
from celery_notify.publisher import Publisher
from celery_notify.transport import RedisTransport
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from tests.support.redis_server import GivenRedis

#: How many calls, and how many runs of each kind, which alternate so that a busy machine slows all of them.
CALLS, RUNS = 1_000_000, 7
FEW_CALLS, FEW_RUNS = 1_000, 2


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """Return where the bars are drawn; they start no thread that watches them."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    with Path("/dev/null").open("w", encoding="utf-8") as screen:
        yield screen


@contextmanager
def running(server: GivenRedis, user: str) -> Iterator[tuple[Run, Publisher]]:
    """Run as a notified task does, looked after by a publisher with a real Redis."""
    settings = Settings(redis_url=server.url)
    to = RedisTransport(settings)
    publisher = Publisher(to, min_interval=settings.min_interval, worker_ttl=settings.worker_ttl)
    run = Run(TaskEvent(task_id="t1", task="bench", state="STARTED", attempt=1), [user], shown=True)
    token = current_run.set(run)
    publisher.look_after(run)
    try:
        yield run, publisher
    finally:
        publisher.leave(run)
        current_run.reset(token)
        publisher.stop()
        to.close()


def measure(kinds: dict[str, Callable[[int], object]], calls: int, runs: int) -> dict[str, list[float]]:
    """Return the nanoseconds a call takes, for each kind and run; the kinds alternate."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(runs):
        for name, work in kinds.items():
            before = time.perf_counter_ns()
            work(calls)
            found[name].append((time.perf_counter_ns() - before) / calls)
    return found


def report(found: dict[str, list[float]], calls: int) -> None:
    """Print what was found; the first kind is ours, the second what it is compared with."""
    lines = [f"{calls} calls, {len(next(iter(found.values())))} runs, nanoseconds a call"]
    for name, times in found.items():
        lines.append(
            f"  {name:<24} min {min(times):7.1f}  median {statistics.median(times):7.1f}  max {max(times):7.1f}"
        )
    ours, theirs = list(found)[:2]
    ratios = [one / other for one, other in zip(found[ours], found[theirs], strict=True)]
    lines.append(
        f"  {ours} / {theirs}: min {min(ratios):.2f}  median {statistics.median(ratios):.2f}  max {max(ratios):.2f}"
    )
    print("\n".join(lines))  # noqa: T201 - what a benchmark is for


def test_a_call_beside_an_update_of_a_bar(
    redis_server: GivenRedis, user: str, screen: TextIO, *, measuring: bool
) -> None:
    calls, runs = (CALLS, RUNS) if measuring else (FEW_CALLS, FEW_RUNS)
    bars: list[tqdm[None]] = []

    def ours(count: int) -> None:
        for number in range(1, count + 1):
            progress(number, count)

    def theirs(count: int) -> None:
        with tqdm(total=count, file=screen) as bar:
            for _ in range(count):
                bar.update()
        bars.append(bar)

    def nothing(count: int) -> None:
        for _ in range(count):
            pass

    with running(redis_server, user) as (run, _):
        found = measure({"progress()": ours, "tqdm.update()": theirs, "an empty loop": nothing}, calls, runs)
        assert run.newest[:2] == (calls, calls)

    report(found, calls)
    assert [bar.n for bar in bars] == [calls] * runs


def test_iterating_beside_iterating_over_a_bar(
    redis_server: GivenRedis, user: str, screen: TextIO, *, measuring: bool
) -> None:
    calls, runs = (CALLS, RUNS) if measuring else (FEW_CALLS, FEW_RUNS)
    bars: list[tqdm[int]] = []

    def ours(count: int) -> None:
        for _ in progress.track(range(count)):
            pass

    def theirs(count: int) -> None:
        bars.append(tqdm(range(count), file=screen))
        for _ in bars[-1]:
            pass

    def nothing(count: int) -> None:
        for _ in range(count):
            pass

    with running(redis_server, user) as (run, _):
        found = measure(
            {"progress.track()": ours, "iterating over tqdm": theirs, "an empty loop": nothing}, calls, runs
        )
        assert run.newest[:2] == (calls, calls)

    report(found, calls)
    assert [bar.n for bar in bars] == [calls] * runs


def test_outside_of_a_task_it_costs_next_to_nothing(*, measuring: bool) -> None:
    calls, runs = (CALLS, RUNS) if measuring else (FEW_CALLS, FEW_RUNS)

    def ours(count: int) -> None:
        for number in range(count):
            progress(number, count)

    def nothing(count: int) -> None:
        for _ in range(count):
            pass

    report(measure({"progress() in no task": ours, "an empty loop": nothing}, calls, runs), calls)
    assert current_run.get() is None


def test_a_million_calls_are_published_as_a_few_events(redis_server: GivenRedis, user: str, *, measuring: bool) -> None:
    calls = CALLS if measuring else FEW_CALLS
    with redis_server.client() as client, client.pubsub() as channel:
        channel.subscribe(f"celery-notify:{{{quote(user, safe='')}}}")
        wait_until(lambda: channel.get_message(timeout=0.1), what="a confirmation")
        with running(redis_server, user) as (run, publisher):
            before = time.perf_counter()
            for number in range(1, calls + 1):
                progress(number, calls)
            spent = time.perf_counter() - before
            publisher.leave(run)
            publisher.put([publication(user, run.state("SUCCESS"))])
            told: list[dict[str, object]] = []

            def has_ended() -> bool:
                while (message := channel.get_message(timeout=0.01)) is not None:
                    told.append(json.loads(message["data"])["data"])
                return bool(told) and told[-1]["state"] == "SUCCESS"

            wait_until(has_ended, what="the end of the task")

    print(f"{calls} calls in {spent:.3f} s: {len(told) - 1} progress events, and the end")  # noqa: T201
    assert (told[-1]["current"], told[-1]["total"]) == (calls, calls)
    assert len(told) < calls
