"""How long a page's main thread is busy at one go, with much in its history and much happening: `make bench`.

What lasts longer than 50 ms is felt by whoever types or scrolls. The test asserts that the page shows what has
happened, nothing about time; run as a test it is brief.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import sync_playwright

from celery_notify import events
from celery_notify.events import TaskEvent
from tests.browser.conftest import Windows, chromium
from tests.browser.pages import until
from tests.browser.site import Load, Site, log_in, missing_in
from tests.faults.redis_journal import Journal
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.support.redis_server import GivenRedis

#: Nothing of the test's listens: its work would be counted.
QUERY = urlencode({"elements": "task-list task-progress task-toast", "task-id": "old 7", "deaf": "yes"})
#: Tasks in the history, seconds between two events, and how many there are.
HISTORY, PACE, EVENTS = 2000, 0.01, 1000
SHORT_HISTORY, FEW_EVENTS = 50, 50
#: By how much the processor is made slower: as it is, and about as a telephone's.
SLOWER = (1, 4)
#: Milliseconds from which on a task of the main thread counts as long.
LONG = 50
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("slower", SLOWER)
def test_how_long_the_main_thread_is_busy_at_one_go(
    browser: Browser, redis_server: GivenRedis, tmp_path: Path, user: str, slower: int, *, measuring: bool
) -> None:
    history, number = (HISTORY, EVENTS) if measuring else (SHORT_HISTORY, FEW_EVENTS)
    site = Site(redis_server, tmp_path).start()
    windows = Windows(browser)
    context = windows.new()
    log_in(context, site.url, user)
    try:
        with Journal(redis_server) as journal:
            fill(journal, user, history)
            page = context.new_page()
            debugger: Any = context.new_cdp_session(page)
            debugger.send("Emulation.setCPUThrottlingRate", {"rate": slower})
            browser.start_tracing(page=page, categories=TRACED)
            page.goto(f"{site.url}/page?{QUERY}")
            until(page, "notifications.tasks.size", history, timeout=30)
            until(page, shown("task-list", "querySelectorAll('li').length"), history, timeout=60)
            report(f"{history} tasks are shown", tasks_of(browser.stop_tracing()), slower)
            browser.start_tracing(page=page, categories=TRACED)
            with Load(journal, user, pace=PACE) as load:
                load.wait_for(number)
            report(f"{1 / PACE:.0f} events a second", tasks_of(browser.stop_tracing()), slower)
            wait_until(lambda: not missing_in(page, load.ended), what="the endings")
            until(page, shown("task-progress", "textContent.includes('Invoice 7')"), True)
    finally:
        windows.close()
        site.process.kill()
    assert windows.faults == []
