"""Fixtures for what is seen in a browser: Debian's Chromium, in test_firefox.py its Firefox, driven by Playwright."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from playwright.sync_api import sync_playwright

from tests.browser import from_npm
from tests.browser.accessibility import Axe
from tests.browser.demo import Demo
from tests.browser.pages import until
from tests.browser.scripted_server import PAGE, SCRIPT, ScriptedServer
from tests.browser.site import Site
from tests.faults.redis_journal import Journal
from tests.support.processes import PYTHON, ROOT, Process
from tests.support.waiting import SLOWNESS, missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Playwright, Route

    from tests.support.redis_server import GivenRedis

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Milliseconds that Playwright waits for what a test expects.
PATIENCE = 10_000 * SLOWNESS
#: Seconds that a call of the demo's tasks may take: after five they try again.
LONGEST_LATENCY = 4.0
#: Where screenshots go.
SCREENSHOTS = ROOT / "tests" / "browser" / "screenshots"


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Start Chromium."""
    executable = shutil.which("chromium") or missing("chromium, for example Debian's package of that name")
    started = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
    yield started
    started.close()


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """Start Playwright for all tests of this folder; not for longer, since it occupies the event loop."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Return Chromium, except in tests that say otherwise."""
    with chromium(playwright) as started:
        yield started


@pytest.fixture(scope="package")
def firefox(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return Firefox, which is started by the program that stands between it and Playwright."""
    executable = shutil.which("firefox-esr") or missing("firefox-esr, for example Debian's package of that name")
    program = tmp_path_factory.mktemp("firefox") / "firefox"
    command = shlex.join((*PYTHON, "-m", "tests.browser.firefox", executable))
    program.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {command} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    started = playwright.firefox.launch(channel="moz-firefox", executable_path=program, timeout=3 * PATIENCE)
    yield started
    started.close()


class Windows:
    """Browser contexts, each with cookies of its own, whose pages report what goes wrong in them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._open: list[BrowserContext] = []
        #: Exceptions and breaches of the content security policy, in all pages.
        self.faults: list[str] = []

    def new(self, *, user: str | None = None, **options: Any) -> BrowserContext:
        """Return a context; with `user` each request says, as the test application wants it, who asks."""
        headers = {} if user is None else {"X-User": quote(user, safe="")}
        context = self._browser.new_context(extra_http_headers=headers, **options)
        self.watch(context)
        self._open.append(context)
        return context

    def watch(self, context: BrowserContext) -> None:
        """Note what goes wrong in the pages of a context that was opened elsewhere."""
        context.set_default_timeout(PATIENCE)
        context.on("weberror", lambda error: self._note(error.error))
        context.on("console", self._listen)

    def _note(self, error: Error) -> None:
        self.faults.append(str(error))

    def _listen(self, message: ConsoleMessage) -> None:
        # The browser itself notes each request that fails; that a page makes such requests is no fault.
        if message.type == "error" and not message.text.startswith(("Failed to load", "EventSource's response")):
            self.faults.append(message.text)

    def close(self) -> None:
        for context in self._open:
            context.close()


@pytest.fixture
def windows(browser: Browser) -> Iterator[Windows]:
    """Return what opens windows; a fault in any of their pages fails the test."""
    windows = Windows(browser)
    yield windows
    windows.close()
    assert windows.faults == []


@pytest.fixture
def everyday(browser: Browser, windows: Windows, tmp_path: Path) -> Iterator[BrowserContext]:
    """Return the one window of a Chromium as people have it, with tabs of which all but the foremost are hidden.

    What Playwright starts is another: each page is visible and cannot be frozen, and none is kept when it is left.
    """
    executable = shutil.which("chromium") or missing("chromium, for example Debian's package of that name")
    options = ("--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", "about:blank")
    process = Process(executable, *ARGUMENTS, *options, folder=tmp_path, name="chromium").start()
    try:
        address = re.compile(r"DevTools listening on (ws://\S+)")
        wait_until(lambda: address.search(process.log()), timeout=20, what="Chromium's address")
        found = address.search(process.log())
        assert found is not None
        connected = browser.browser_type.connect_over_cdp(found[1], no_defaults=True)
        [context] = connected.contexts
        windows.watch(context)
        yield context
        connected.close()
    finally:
        process.kill()


@pytest.fixture
def site(redis_server: GivenRedis, tmp_path: Path) -> Iterator[Site]:
    """Return the site where people log in, for one test, which may kill it."""
    site = Site(redis_server, tmp_path).start()
    yield site
    site.process.kill()  # quicker than the orderly way


@pytest.fixture
def journal(redis_server: GivenRedis) -> Iterator[Journal]:
    """Return what publishes to all who visit the site."""
    with Journal(redis_server) as journal:
        yield journal


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """Return a server that does what the test says, right or wrong."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def open_page(windows: Windows) -> Callable[..., Page]:
    """Return what opens a page with a `<task-list>` on a web server's origin: `open_page(url, user=...)`.

    `context` opens it in the same browser as another page, a second tab.
    """

    def serve(route: Route) -> None:
        page = route.request.url.endswith("/page")
        body, content_type, headers = PAGE if page else SCRIPT
        route.fulfill(body=body, content_type=content_type, headers=headers)

    def open_one(url: str, *, user: str | None = None, context: BrowserContext | None = None) -> Page:
        if context is None:
            context = windows.new(user=user)
            context.route(f"{url}/page", serve)
            context.route(f"{url}/page.js", serve)
        page = context.new_page()
        page.goto(f"{url}/page")
        return page

    return open_one


@pytest.fixture
def screenshot() -> Callable[..., Path]:
    """Return what keeps a picture of a page, to be looked at; with `whole=False` of no more than the window shows."""

    def take(page: Page, name: str, *, whole: bool = True) -> Path:
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(page.screenshot(full_page=whole))  # Playwright itself would leave a thread behind
        return path

    return take


@pytest.fixture
def context(windows: Windows) -> BrowserContext:
    """Return a browser without history, closed after the test."""
    return windows.new()


@pytest.fixture
def page(context: BrowserContext, scripted: ScriptedServer) -> Page:
    """Return a page that has caught up."""
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    return page


@pytest.fixture(scope="session")
def axe() -> Axe:
    """Return what says which rules of accessibility a page breaks: `assert axe(page) == []`."""
    return Axe(from_npm.package("axe-core"))


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Start the demo for all tests of its page."""
    running = Demo(tmp_path_factory.mktemp("demo"))
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def slowly(demo: Demo) -> Iterator[Callable[[float], None]]:
    """Return what makes the service of the customers slow until the test is over, but not too slow for a task."""
    yield lambda seconds: demo.control("user", latency=min(seconds * SLOWNESS, LONGEST_LATENCY))
    demo.control("user")
