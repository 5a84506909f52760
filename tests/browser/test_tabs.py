"""All tabs of a browser where the same person is logged in have one connection, whichever of them come and go."""

from __future__ import annotations

import contextlib
import re
import uuid
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Error, expect

from tests.browser.conftest import PATIENCE
from tests.browser.pages import until, value
from tests.browser.site import Load, has_all, leader, log_in, open_tab
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import ModuleType

    from playwright.sync_api import BrowserContext, Page, Route

    from tests.browser.conftest import Windows
    from tests.browser.site import Site
    from tests.faults.redis_journal import Journal
    from tests.support.gates import Gates

TABS = 20
DEATHS = 10


def close(tab: Page) -> None:
    tab.close()


def crash(tab: Page) -> None:
    """Have the tab's process die, which tells nobody."""
    with contextlib.suppress(Error):
        tab.goto("chrome://crash")
    tab.close()


def leave(tab: Page) -> None:
    """Go elsewhere; the browser keeps the page, for whoever comes back to it."""
    tab.goto("about:blank")


def come_back(tab: Page) -> None:
    tab.go_back(wait_until="commit")
    assert value(tab, "performance.getEntriesByType('navigation')[0].notRestoredReasons") is None
    assert value(tab, "endings().length > 0"), "expected the page as it was left, not one that was loaded anew"


@pytest.mark.timeout(180)
def test_twenty_tabs_have_one_connection_and_lose_nothing_when_the_one_that_has_it_dies(
    everyday: BrowserContext, site: Site, journal: Journal, user: str
) -> None:
    log_in(everyday, site.url, user)
    tabs = [open_tab(everyday, site.url) for _ in range(TABS)]
    leader(tabs)
    assert site.streams(user) == 1
    assert site.asked("stream") == 1, "nobody but the first tab has asked for one"
    kept = []
    with Load(journal, user) as load:
        for death in range(DEATHS):
            load.wait_for(20)
            dying = leader(tabs)
            tabs.remove(dying)
            [close, crash, leave][death % 3](dying)
            if death % 3 == 2:
                kept.append(dying)
        load.wait_for(20)
        leader(tabs)
        site.wait_for_streams(user, 1)
        before = site.asked("stream")
        new = open_tab(everyday, site.url)
        until(new, "notifications.state", "live")
        assert value(new, "notifications.tasks.size") > 0
        for tab in kept:
            come_back(tab)
        load.wait_for(20)
    has_all([*tabs, *kept, new], load.ended)
    assert site.streams(user) == 1
    assert site.asked("stream") == before, "expected tabs that come to leave the connection where it is"
    assert before == 1 + DEATHS


@pytest.mark.usefixtures("worker")
def test_a_reload_in_the_middle_of_a_job_goes_on_where_it_was(
    everyday: BrowserContext, site: Site, tasks: ModuleType, gates: Gates, user: str
) -> None:
    log_in(everyday, site.url, user)
    gate = uuid.uuid4().hex
    tabs = [open_tab(everyday, site.url) for _ in range(2)]
    task = tasks.slow.delay(user, gate, total=4)
    for step in (1, 2, 3):
        gates.open(gate)
        for tab in tabs:
            tab.bring_to_front()  # what nobody looks at is not drawn
            expect(tab.get_by_role("progressbar")).to_have_attribute("aria-valuenow", str(25 * step), timeout=PATIENCE)
        leader(tabs).reload()
    gates.open(gate, 2)
    for tab in tabs:
        tab.bring_to_front()
        expect(tab.get_by_role("listitem")).to_contain_text("Done", timeout=PATIENCE)
    has_all(tabs, {task.id: "SUCCESS"})
    site.wait_for_streams(user, 1)


def test_two_versions_of_what_tabs_say_to_one_another_do_not_mix(
    windows: Windows, site: Site, journal: Journal, user: str
) -> None:
    context = windows.new()
    log_in(context, site.url, user)
    old = [open_tab(context, site.url) for _ in range(2)]

    def another_version(route: Route) -> None:
        text = route.fetch().text()
        changed = text.replace("celery_notify 1 ", "celery_notify 2 ")
        assert changed != text
        route.fulfill(body=changed, content_type="text/javascript")

    context.route(re.compile("/client.js"), another_version)
    new = [open_tab(context, site.url) for _ in range(2)]
    with Load(journal, user) as load:
        leader(old)
        leader(new)
        load.wait_for(60)
    has_all([*old, *new], load.ended)
    assert site.streams(user) == 2


def test_a_private_window_has_a_connection_of_its_own(
    windows: Windows, site: Site, journal: Journal, user: str
) -> None:
    tabs = []
    for _ in range(2):
        context = windows.new()
        log_in(context, site.url, user)
        tabs.append([open_tab(context, site.url) for _ in range(2)])
    with Load(journal, user) as load:
        for of_window in tabs:
            leader(of_window)
        load.wait_for(40)
    has_all([tab for of_window in tabs for tab in of_window], load.ended)
    assert site.streams(user) == 2


@pytest.mark.parametrize(
    "without", ["Navigator.prototype.locks", "window.BroadcastChannel", "window.EventSource"], ids=lambda name: name
)
def test_a_browser_that_lacks_something_is_served_too(
    windows: Windows, site: Site, journal: Journal, user: str, without: str
) -> None:
    context = windows.new()
    log_in(context, site.url, user)
    context.add_init_script(f"delete {without}")
    tabs = [open_tab(context, site.url) for _ in range(2)]
    polls = "EventSource" in without
    with Load(journal, user) as load:
        for tab in tabs:
            until(tab, "notifications.state", "polling" if polls else "live", timeout=20)
        load.wait_for(40)
    has_all(tabs, load.ended)
    assert site.streams(user) == (0 if polls else 2)


# Who is logged in


def test_a_logout_in_one_tab_is_seen_in_all_and_none_comes_back(windows: Windows, site: Site, user: str) -> None:
    context = windows.new()
    log_in(context, site.url, user)
    tabs = [open_tab(context, site.url) for _ in range(3)]
    leader(tabs)
    tabs[-1].evaluate("() => fetch('/logout', { method: 'POST' })")
    for tab in tabs:
        until(tab, "notifications.state", "refused", timeout=20)
        expect(tab.locator("[part~=connection]")).to_have_text("Signed out")

    def requests() -> int:
        return site.asked("stream") + site.asked("tasks")

    log_in(context, site.url, user)
    before = requests()
    for tab in tabs:
        tab.evaluate(
            """async () => {
                dispatchEvent(new Event("online"));
                document.dispatchEvent(new Event("visibilitychange"));
                document.dispatchEvent(new Event("resume"));
                await new Promise((resolve) => setTimeout(resolve));
                await fetch("/ordinary");
            }"""
        )
        assert value(tab, "notifications.state") == "refused"
    assert requests() == before
    assert site.streams(user) == 0
    tabs[0].reload()
    until(tabs[0], "notifications.state", "live")
    site.wait_for_streams(user, 1)


#: Notes each moment at which a page shows the tasks of more than one person.
WATCHING = """() => {
    window.mixed = [];
    window.seen = new Set(titles());
    notifications.addEventListener("change", () => {
        const people = new Set(titles());
        if (people.size > 1) mixed.push([...people]);
        for (const one of people) seen.add(one);
    });
}"""


def two_people_in_one_browser(context: BrowserContext, site: Site, journal: Journal, query: str = "") -> None:
    """Have somebody log in where another had, whose tabs and stream stay as they are; watch what each tab shows."""
    ada, alan = (f"{name} {uuid.uuid4().hex[:8]}" for name in ("Ada", "Alan"))
    log_in(context, site.url, ada)
    hers = [open_tab(context, site.url, query=query) for _ in range(3)]
    with Load(journal, ada) as of_ada, Load(journal, alan) as of_alan:
        first = leader(hers)
        of_ada.wait_for(20)
        his = context.new_page()
        his.goto(f"{site.url}/login/{alan}?{query}")
        until(his, "notifications.state", "live")
        for tab in (*hers, his):
            tab.evaluate(WATCHING)
        of_alan.wait_for(20)
        hers.remove(first)
        first.close()  # of her other tabs one must now go on, where it is he who is logged in
        wait_until(lambda: site.asked("stream") >= 3, what="a stream for one of the others")
        of_alan.wait_for(60)
    has_all([his], of_alan.ended)
    assert value(his, "[...seen]") == [f"Task of {alan}"]
    for tab in hers:
        assert value(tab, "mixed") == []
    # In the end each page is that of the one who is logged in, or of nobody.
    for tab in hers:
        until(tab, f"titles().every((title) => title === 'Task of {alan}')", True)


@pytest.mark.defends("S11")
def test_who_logs_in_where_another_had_been_shares_nothing_with_him(
    windows: Windows, site: Site, journal: Journal
) -> None:
    two_people_in_one_browser(windows.new(), site, journal)


@pytest.mark.defends("S11")
def test_only_because_a_stream_is_asked_for_with_the_tag_of_its_user(
    windows: Windows, site: Site, journal: Journal
) -> None:
    with pytest.raises(AssertionError, match=r"Task of A.*Task of A"):
        two_people_in_one_browser(windows.new(), site, journal, "careless")
