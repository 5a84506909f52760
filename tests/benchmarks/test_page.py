"""What a page costs its reader, with much in its history and much happening: `make bench`.

How long its main thread is busy at one go: what lasts longer than 50 ms is felt by whoever types or scrolls. And how
much of a core that thread has, which is the processor's time as the browser itself counts it. The tests assert that the
page shows what has happened, nothing about time; run as tests they are brief.
"""

from __future__ import annotations

import itertools
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import pytest
from playwright.sync_api import sync_playwright

from celery_notify import events
from celery_notify.events import TaskEvent
from tests.benchmarks.report import OURS, Comparison, at_most
from tests.browser.conftest import Windows, chromium
from tests.browser.pages import until
from tests.browser.site import Load, Site, log_in, missing_in
from tests.faults.redis_journal import Journal
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

    from tests.support.redis_server import GivenRedis

#: Nothing of the test's listens: its work would be counted.
QUERY = urlencode({"elements": "task-list task-progress task-toast", "task-id": "old 7", "deaf": "yes"})
#: Seconds between two events.
PACE = 0.01


class Scale(NamedTuple):
    """Tasks in the history, events that are told of then, and how often; by how much the processor is made slower.

    That is as it is, and about as a telephone's.
    """

    history: int
    events: int
    rounds: int
    slower: tuple[int, ...] = (1, 4)


FULL, QUICK, SMOKE = Scale(2000, 1000, 3), Scale(2000, 300, 1, (1,)), Scale(50, 20, 1, (4,))
#: Of how many tasks each job is: a row for each task, and rows that are all seen and always move.
JOBS = (1, 100)
#: Milliseconds from which on a task of the main thread counts as long.
LONG = 50
#: Of what the browser counts: the processor's time of the main thread, and of all threads of its process.
THREAD, PROCESS = "ThreadTime", "ProcessTime"
#: Among what the browser notes of itself: each task of a thread.
TASK, TRACED = "RunTask", ["disabled-by-default-devtools.timeline", "__metadata"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    with sync_playwright() as playwright, chromium(playwright) as started:
        yield started


def fill(journal: Journal, user: str, number: int) -> None:
    """Have so many tasks in the history that have ended."""
    for n in range(number):
        task = TaskEvent(
            task_id=f"old {n}", task="t", state="SUCCESS", attempt=1, title=f"Invoice {n}", url=f"/{n}.pdf"
        )
        journal.publisher.put([events.publication(user, task)])
    journal.settle(timeout=60)


def shown(element: str, what: str) -> str:
    return f"document.querySelector('{element}').shadowRoot.{what}"


def tasks_of(trace: bytes) -> list[tuple[float, float]]:
    """Return how long the tasks of pages' main threads took, in milliseconds: on the clock, and of the processor."""
    noted = json.loads(trace)["traceEvents"]
    main = {(e["pid"], e["tid"]) for e in noted if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"}
    tasks = [e for e in noted if e["name"] == TASK and "dur" in e and (e["pid"], e["tid"]) in main]
    return [(e["dur"] / 1000, e.get("tdur", 0) / 1000) for e in tasks]


def report(what: str, tasks: list[tuple[float, float]], slower: int) -> None:
    print(f"{what}, processor {slower} times slower: {len(tasks)} tasks")  # noqa: T201 - what a benchmark is for
    for name, lasted in zip(("on the clock", "of the processor"), zip(*tasks, strict=True), strict=True):
        first = ", ".join(f"{each:.0f}" for each in sorted(lasted, reverse=True)[:5])
        long = sum(each >= LONG for each in lasted)
        print(f"  {name:<17}the longest {first} ms, {long} of {LONG} ms or more")  # noqa: T201


@contextmanager
def visited(browser: Browser, server: GivenRedis, folder: Path) -> Iterator[tuple[Site, BrowserContext, Journal]]:
    """Return the site, a browser in which nothing may go wrong, and what publishes to those who visit it."""
    site = Site(server, folder).start()
    windows = Windows(browser)
    try:
        with Journal(server) as journal:
            yield site, windows.new(), journal
    finally:
        windows.close()
        site.process.kill()
    assert windows.faults == []


@contextmanager
def opened(context: BrowserContext, site: Site, user: str) -> Iterator[tuple[Page, Any]]:
    """Return a new page of a user's, empty as yet, and what asks the browser about it."""
    log_in(context, site.url, user)
    page = context.new_page()
    yield page, context.new_cdp_session(page)
    page.close()


def show(page: Page, site: Site, tasks: int, rows: int) -> None:
    """Have a page show a history."""
    page.goto(f"{site.url}/page?{QUERY}")
    until(page, "notifications.tasks.size", tasks, timeout=30)
    until(page, shown("task-list", "querySelectorAll('li').length"), rows, timeout=60)


@pytest.mark.timeout(300)
def test_how_long_the_main_thread_is_busy_at_one_go(
    browser: Browser,
    redis_server: GivenRedis,
    tmp_path: Path,
    user: str,
    choose: Callable[[Scale, Scale, Scale], Scale],
) -> None:
    scale = choose(FULL, QUICK, SMOKE)
    history = scale.history
    with visited(browser, redis_server, tmp_path) as (site, context, journal):
        fill(journal, user, history)
        for slower in scale.slower:
            with opened(context, site, user) as (page, debugger):
                debugger.send("Emulation.setCPUThrottlingRate", {"rate": slower})
                browser.start_tracing(page=page, categories=TRACED)
                show(page, site, history, history)
                report(f"{history} tasks are shown", tasks_of(browser.stop_tracing()), slower)
                browser.start_tracing(page=page, categories=TRACED)
                with Load(journal, user, pace=PACE) as load:
                    load.wait_for(scale.events)
                report(f"{1 / PACE:.0f} events a second", tasks_of(browser.stop_tracing()), slower)
                wait_until(lambda: not missing_in(page, load.ended), what="the endings")
                until(page, shown("task-progress", "textContent.includes('Invoice 7')"), True)
                history += len(load.ended)


def step_of(n: int, step: int, of_a_job: int) -> TaskEvent:
    """Return how far a task is that goes on for long."""
    return TaskEvent(
        task_id=f"old {n}",
        task="t",
        state="PROGRESS",
        attempt=1,
        title=f"Invoice {n}",
        description=f"Page {step}",
        current=step,
        total=100,
        job_id=f"job {n // of_a_job}" if of_a_job > 1 else None,
    )


def publish_all(journal: Journal, user: str, told: list[TaskEvent]) -> None:
    """Publish these at the pace."""
    begun = time.monotonic()
    for number, event in enumerate(told):
        time.sleep(max(0.0, begun + number * PACE - time.monotonic()))
        [answer] = journal.publish([events.publication(user, event)])
        assert isinstance(answer, int), answer


def spent(debugger: Any) -> dict[str, float]:
    """Return the seconds that the browser has counted of a page, by what."""
    return {each["name"]: each["value"] for each in debugger.send("Performance.getMetrics")["metrics"]}


@pytest.mark.timeout(300)
def test_how_much_of_a_core_the_main_thread_has(
    browser: Browser,
    redis_server: GivenRedis,
    tmp_path: Path,
    user: str,
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    history, number, rounds, _ = choose(FULL, QUICK, SMOKE)
    with visited(browser, redis_server, tmp_path) as (site, context, journal):
        for of_a_job in JOBS:
            whose, rows = f"{user} {of_a_job}", -(-history // of_a_job)
            coming = (step_of(n, step, of_a_job) for step in itertools.count() for n in reversed(range(history)))
            journal.publisher.put([events.publication(whose, each) for each in itertools.islice(coming, history)])
            journal.settle(timeout=60)
            what = f"of a core, {1 / PACE:.0f} events a second"
            share = Comparison(f"page, {history} tasks in {rows} rows", what, "%")
            with opened(context, site, whose) as (page, debugger):
                show(page, site, history, rows)
                debugger.send("Performance.enable")
                publish_all(journal, whose, list(itertools.islice(coming, number // 3)))  # by then it is warm
                for _ in range(rounds):
                    before = spent(debugger)
                    told = list(itertools.islice(coming, number))
                    publish_all(journal, whose, told)
                    until(page, f"notifications.tasks.get('{told[-1].task_id}').current", told[-1].current)
                    spread = {name: after - before[name] for name, after in spent(debugger).items()}
                    main, all_threads = (100 * spread[name] / spread["Timestamp"] for name in (THREAD, PROCESS))
                    share.add(OURS, main)
                    share.note(f"with the other threads of its process: {all_threads:.1f} %")
            share.finish({OURS: at_most(10)}, measuring=measuring)
