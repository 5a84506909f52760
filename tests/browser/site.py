"""The small site of `site_app` on gunicorn, the browser of one who visits it, and what the tests ask of its tabs."""

from __future__ import annotations

import re
import threading
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from celery_notify import events
from celery_notify.events import TaskEvent
from tests.browser.pages import until, value
from tests.faults.redis_journal import web_settings
from tests.support.names import PREFIX
from tests.support.processes import PYTHON, Process, free_port
from tests.support.waiting import wait_until
from tests.support.web_servers import WebServer, without_control_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from playwright.sync_api import BrowserContext, Page

    from tests.faults.redis_journal import Journal
    from tests.support.redis_server import GivenRedis

#: Seconds between two of the server's heartbeats, and between those that the client expects.
SENT, EXPECTED = 0.4, 1.0
#: Each task of a load tells so much: that it waits, begins, this many steps, and ends.
STEPS = 7
#: Tasks that run at the same time.
AT_ONCE = 4


class Site(WebServer):
    """It comes back on the same port when it is started again."""

    def __init__(self, server: GivenRedis, folder: Path) -> None:
        process = Process(
            *(*PYTHON, "-m", "gunicorn", "tests.browser.site_app:create_app()", "--access-logfile", "-"),
            *("--bind", f"127.0.0.1:{free_port()}", "--worker-class", "gthread", "--threads", "8"),
            *("--keep-alive", "0"),  # what stays open is a stream
            *without_control_socket(),
            folder=folder,
            name="site",
            settings=web_settings(server.url, HEARTBEAT=SENT),
        )
        super().__init__(process, r"Listening at: http://127\.0\.0\.1:(\d+)")

    @property
    def url(self) -> str:
        return url_of(self)

    def streams(self, user: str) -> int:
        """Return how many streams of a user are open."""
        return int(self.get("/streams").json().get(user, 0))

    def wait_for_streams(self, user: str, number: int) -> None:
        """Wait until so many are open."""
        wait_until(
            lambda: self.streams(user) == number,
            timeout=20,
            what=lambda: f"{number} streams of {user}, got {self.streams(user)}",
        )

    def asked(self, path: str, status: int | str = r"\d+") -> int:
        """Return how often a path below the prefix was asked for, with this answer."""
        return len(re.findall(rf'"GET {PREFIX}/{path}(?:\?\S*)? HTTP/1\.1" {status} ', self.log()))


def url_of(web: WebServer) -> str:
    host, port = web.address
    return f"http://{host}:{port}"


def log_in(context: BrowserContext, url: str, user: str) -> None:
    """Have a browser be logged in."""
    context.add_cookies([{"name": "user", "value": quote(user, safe=""), "url": url}])


def open_tab(context: BrowserContext, url: str, *, heartbeat: float | None = None, query: str = "") -> Page:
    """Open a page of the site and wait until its script has run."""
    page = context.new_page()
    page.goto(f"{url}/page?{query}" + (f"&heartbeat={heartbeat}" if heartbeat else ""))
    until(page, "true", True)
    return page


def leader(tabs: Sequence[Page]) -> Page:
    """Return the one tab that has the connection."""

    def leading() -> list[Page]:
        return [tab for tab in tabs if value(tab, "leads() && notifications.connected")]

    wait_until(lambda: len(leading()) == 1, timeout=20, what=lambda: f"one tab that leads, got {len(leading())}")
    return leading()[0]


class Load:
    """Tasks that begin, go on and end, about so many events a second, as long as its block lasts."""

    def __init__(self, journal: Journal, user: str, *, pace: float = 0.02) -> None:
        self._journal = journal
        self._user = user
        self._pace = pace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        #: How many events were published, and the tasks that have ended, by their last state.
        self.published = 0
        self.ended: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until so many more events were published."""
        wanted = self.published + more
        wait_until(lambda: self.published >= wanted, timeout=30, what=f"{more} more events")

    def _run(self) -> None:
        """Go round the tasks that run; a round that is over begins with others."""
        while not self._over.is_set():
            stories = [self._story(uuid.uuid4().hex, "FAILURE" if n == 0 else "SUCCESS") for n in range(AT_ONCE)]
            for step in zip(*stories, strict=True):  # all that has begun ends
                for event in step:
                    self._over.wait(self._pace)
                    [answer] = self._journal.publish([events.publication(self._user, event)])
                    assert isinstance(answer, int), answer
                    self.published += 1
                    if event.state in events.FINAL_STATES:
                        self.ended[event.task_id] = event.state

    def _story(self, task_id: str, end: events.State) -> Iterator[TaskEvent]:
        def event(state: events.State, current: int | None = None) -> TaskEvent:
            total = None if current is None else STEPS
            title = f"Task of {self._user}"
            return TaskEvent(
                task_id=task_id, task="t", state=state, attempt=1, title=title, current=current, total=total
            )

        yield event("PENDING")
        yield event("STARTED")
        for step in range(1, STEPS + 1):
            yield event("PROGRESS", step)
        yield event(end, STEPS)


def has_all(tabs: Sequence[Page], ended: Mapping[str, str]) -> None:
    """Wait until each tab shows how these tasks have ended; then each was told once, and nothing went backwards."""
    ended = dict(ended)  # more may end meanwhile
    for tab in tabs:
        wait_until(
            lambda tab=tab: not missing_in(tab, ended),
            timeout=20,
            what=lambda tab=tab: f"the endings of {len(ended)} tasks, got {missing_in(tab, ended)}",
        )
        told = Counter(value(tab, "endings()"))
        assert {told[task_id] for task_id in ended} == {1}, "expected each ending to be told once"
        assert value(tab, "backwards") == []


def missing_in(tab: Page, ended: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return what a tab shows that is not how it ended."""
    shown = dict(value(tab, "[...notifications.tasks.values()].map(({ task_id, state }) => [task_id, state])"))
    return {key: (state, shown.get(key)) for key, state in ended.items() if shown.get(key) != state}
