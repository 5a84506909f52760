"""The essentials once more in Firefox, whose streams, locks, channels and shadow trees are others than Chromium's."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until
from tests.browser.scripted_server import frame, task
from tests.browser.site import Load, has_all, leader, log_in, open_tab
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from playwright.sync_api import Browser, Page

    from tests.browser.conftest import Windows
    from tests.browser.scripted_server import ScriptedServer
    from tests.browser.site import Site
    from tests.faults.redis_journal import Journal
    from tests.support.gates import Gates

pytestmark = pytest.mark.timeout(60 * max(1, SLOWNESS))  # it starts more slowly than Chromium


@pytest.fixture(scope="module")
def browser(firefox: Browser) -> Browser:
    """Have all fixtures of this folder open their windows in Firefox."""
    return firefox


@pytest.fixture
def open_tabs(windows: Windows, site: Site, user: str) -> Callable[[int], list[Page]]:
    """Return what opens so many tabs of a window where `user` has logged in."""

    def open_some(number: int) -> list[Page]:
        context = windows.new()
        log_in(context, site.url, user)
        return [open_tab(context, site.url) for _ in range(number)]

    return open_some


def test_the_strictest_policy_is_kept(page: Page, scripted: ScriptedServer) -> None:
    assert "Firefox/" in page.evaluate("navigator.userAgent")
    scripted.say(frame("task-progress", task("1", "PROGRESS", title="<b>One</b>", current=1, total=2), number=1))
    expect(page.get_by_role("progressbar", name="<b>One</b>")).to_have_attribute("aria-valuenow", "50")


def test_a_breach_of_the_policy_and_an_error_are_noted(page: Page, windows: Windows) -> None:
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate("setTimeout(() => { throw new Error('an error') })")
    # What Playwright was told of meanwhile it tells while it is asked something.
    wait_until(lambda: page.title() and len(windows.faults) == 2, what=lambda: f"two faults, got {windows.faults}")
    breach, error = windows.faults
    assert "style-src" in breach
    assert "an error" in error
    windows.faults.clear()


@pytest.mark.usefixtures("worker")
def test_a_task_is_watched_from_its_start_over_a_reload_to_its_end(
    open_tabs: Callable[[int], list[Page]], tasks: ModuleType, gates: Gates, user: str
) -> None:
    tasks.ok.delay(user).get()
    [tab] = open_tabs(1)
    rows = tab.get_by_role("listitem")
    expect(rows).to_contain_text(["Done"])
    gate = uuid.uuid4().hex
    slow = tasks.slow.delay(user, gate, total=4)
    bar = tab.get_by_role("progressbar")
    for step in (1, 2):
        gates.open(gate)
        expect(bar).to_have_attribute("aria-valuenow", str(25 * step))
    tab.reload()
    expect(bar).to_have_attribute("aria-valuenow", "50")
    gates.open(gate, 3)
    expect(rows).to_contain_text(["Done", "Done"])
    has_all([tab], {slow.id: "SUCCESS"})


@pytest.mark.usefixtures("worker")
def test_what_is_cancelled_and_removed_in_one_tab_is_so_in_the_other(
    open_tabs: Callable[[int], list[Page]], tasks: ModuleType, gates: Gates, user: str
) -> None:
    tabs = open_tabs(2)
    gate = uuid.uuid4().hex
    (tasks.cancellable.si(user, gate) | tasks.cancellable.si(user, gate) | tasks.ok.si(user)).delay()
    for tab in tabs:
        expect(tab.get_by_text("0 of 3")).to_be_visible()
    tabs[0].get_by_role("button", name="Cancel").click()
    for tab in tabs:
        expect(tab.locator("[part=state]")).to_have_text("Cancelled")
        until(tab, "endings().length", 3)
    tabs[1].get_by_role("button", name="Remove").click()
    for tab in tabs:
        expect(tab.get_by_role("listitem")).to_have_count(0)


def test_tabs_have_one_connection_and_lose_nothing_when_the_one_that_has_it_goes(
    open_tabs: Callable[[int], list[Page]], site: Site, journal: Journal, user: str
) -> None:
    tabs = open_tabs(4)
    leader(tabs)
    assert site.streams(user) == 1
    with Load(journal, user) as load:
        load.wait_for(20)
        closed = leader(tabs)
        tabs.remove(closed)
        closed.close()
        load.wait_for(20)
        left = leader(tabs)
        left.goto("about:blank")
        tabs.remove(left)
        load.wait_for(20)
        leader(tabs)
        left.go_back(wait_until="commit")
        tabs.append(left)
        load.wait_for(20)
    has_all(tabs, load.ended)
    site.wait_for_streams(user, 1)


def test_a_server_that_is_killed_and_comes_back_is_found_again(
    open_tabs: Callable[[int], list[Page]], site: Site, journal: Journal, user: str
) -> None:
    tabs = open_tabs(2)
    with Load(journal, user) as load:
        leader(tabs)
        load.wait_for(20)
        site.process.kill()
        for tab in tabs:
            until(tab, "notifications.state", "waiting", timeout=20)
        load.wait_for(20)
        site.start()
        for tab in tabs:
            until(tab, "notifications.connected", True, timeout=40)
        load.wait_for(20)
    has_all(tabs, load.ended)
    leader(tabs)
    site.wait_for_streams(user, 1)
