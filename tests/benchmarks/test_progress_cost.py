"""What progress() costs a task, beside the progress bar that many use: `make bench`.

The tests assert that the work was done, nothing about time; run as tests they count to little.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import pytest
from tqdm import tqdm

from celery_notify.config import Settings
from celery_notify.events import TaskEvent, publication
from celery_notify.progress import Run, current_run, progress
from celery_notify.publisher import Publisher
from celery_notify.transport import RedisTransport
from tests.benchmarks.report import OURS, Comparison, at_most
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from tests.support.redis_server import GivenRedis


class Scale(NamedTuple):
    """How many calls, and how many runs of each kind, which alternate so that a busy machine slows all of them."""

    calls: int
    runs: int


FULL, QUICK, SMOKE = Scale(1_000_000, 7), Scale(200_000, 5), Scale(1_000, 2)
#: What progress may cost, as a part of what the bar costs.
GOAL = at_most(0.6)


@pytest.fixture(scope="module")
def scale(choose: Callable[[Scale, Scale, Scale], Scale]) -> Scale:
    return choose(FULL, QUICK, SMOKE)


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


def measured(row: str, scale: Scale, kinds: dict[str, Callable[[int], object]]) -> Comparison:
    """Return the nanoseconds that a call takes, of each kind and run; the kinds alternate."""
    comparison = Comparison(row, "time of a call", "ns")
    for _ in range(scale.runs):
        for name, work in kinds.items():
            before = time.perf_counter_ns()
            work(scale.calls)
            comparison.add(name, (time.perf_counter_ns() - before) / scale.calls)
    return comparison


def nothing(count: int) -> None:
    """Loop as the others do."""
    for _ in range(count):
        pass


def test_a_call_beside_an_update_of_a_bar(
    redis_server: GivenRedis, user: str, screen: TextIO, scale: Scale, *, measuring: bool
) -> None:
    bars: list[tqdm[None]] = []

    def ours(count: int) -> None:
        for number in range(1, count + 1):
            progress(number, count)

    def theirs(count: int) -> None:
        with tqdm(total=count, file=screen) as bar:
            for _ in range(count):
                bar.update()
        bars.append(bar)

    with running(redis_server, user) as (run, _):
        found = measured("progress()", scale, {OURS: ours, "tqdm.update()": theirs, "an empty loop": nothing})
        assert run.said()[:2] == (scale.calls, scale.calls)

    found.finish({"tqdm.update()": GOAL}, measuring=measuring)
    assert [bar.n for bar in bars] == [scale.calls] * scale.runs


def test_iterating_beside_iterating_over_a_bar(
    redis_server: GivenRedis, user: str, screen: TextIO, scale: Scale, *, measuring: bool
) -> None:
    bars: list[tqdm[int]] = []

    def ours(count: int) -> None:
        for _ in progress.track(range(count)):
            pass

    def theirs(count: int) -> None:
        bars.append(tqdm(range(count), file=screen))
        for _ in bars[-1]:
            pass

    with running(redis_server, user) as (run, _):
        found = measured(
            "progress.track()", scale, {OURS: ours, "iterating over tqdm": theirs, "an empty loop": nothing}
        )
        assert run.said()[:2] == (scale.calls, scale.calls)

    found.finish({"iterating over tqdm": GOAL}, measuring=measuring)
    assert [bar.n for bar in bars] == [scale.calls] * scale.runs


def test_outside_of_a_task_it_costs_next_to_nothing(scale: Scale, *, measuring: bool) -> None:
    def ours(count: int) -> None:
        for number in range(count):
            progress(number, count)

    found = measured("progress() in no task", scale, {OURS: ours, "an empty loop": nothing})
    found.finish(measuring=measuring)
    assert current_run.get() is None


def test_a_million_calls_are_published_as_a_few_events(
    redis_server: GivenRedis, user: str, scale: Scale, *, measuring: bool
) -> None:
    calls = scale.calls
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

    comparison = Comparison(f"{calls} calls of progress()", "events that are published", "events")
    comparison.add(OURS, len(told))
    comparison.note(f"the calls took {spent:.3f} s")
    comparison.finish(measuring=measuring)
    assert (told[-1]["current"], told[-1]["total"]) == (calls, calls)
    assert len(told) < calls
