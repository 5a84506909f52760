"""What happens to tabs: servers die, networks break, laptops sleep, browsers freeze what nobody looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.pages import until, value
from tests.browser.site import EXPECTED, Load, has_all, leader, log_in, open_tab
from tests.support.proxies import documented, nginx
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from playwright.sync_api import BrowserContext, Page

    from tests.browser.conftest import Windows
    from tests.browser.site import Site
    from tests.faults.redis_journal import Journal

#: Milliseconds for which a laptop sleeps.
NIGHT = 8 * 3600 * 1000


@pytest.fixture
def network(site: Site) -> Iterator[Proxy]:
    """Return what leads to the site, and can break."""
    with Proxy(site.address) as proxy:
        yield proxy


def state(tab: Page) -> str:
    return str(value(tab, "notifications.state"))


def wait_for_state(tabs: Sequence[Page], *wanted: str) -> None:
    for tab in tabs:
        wait_until(lambda tab=tab: state(tab) in wanted, timeout=30, what=lambda tab=tab: f"{wanted}, got {state(tab)}")


def three_tabs(context: BrowserContext, url: str, user: str, *, heartbeat: float | None = None) -> list[Page]:
    log_in(context, url, user)
    return [open_tab(context, url, heartbeat=heartbeat) for _ in range(3)]


def have_all_from_one(tabs: list[Page], load: Load, site: Site, user: str) -> None:
    """Wait until the tabs know how each task has ended, and one connection serves them all."""
    has_all(tabs, load.ended)
    leader(tabs)
    site.wait_for_streams(user, 1)


def test_a_server_that_is_killed_and_comes_back_is_found_by_one_tab_for_all(
    windows: Windows, site: Site, journal: Journal, user: str
) -> None:
    tabs = three_tabs(windows.new(), site.url, user)
    with Load(journal, user) as load:
        leader(tabs)
        load.wait_for(20)
        site.process.kill()
        wait_for_state(tabs, "waiting")
        load.wait_for(20)
        site.start()
        wait_for_state(tabs, "live", "polling")
        load.wait_for(20)
    have_all_from_one(tabs, load, site, user)


def test_a_proxy_whose_server_is_away_is_asked_until_it_is_back(
    windows: Windows, site: Site, journal: Journal, user: str, tmp_path: Path
) -> None:
    log = tmp_path / "requests.log"
    proxy = nginx(site, tmp_path, location=f"access_log {log}; {documented('nginx')}")
    proxy.start()
    try:
        url = "http://{}:{}".format(*proxy.address)
        tabs = three_tabs(windows.new(), url, user)
        with Load(journal, user) as load:
            leader(tabs)
            load.wait_for(20)
            site.process.kill()
            wait_until(lambda: log.read_text().count('" 502 ') >= 4, timeout=30, what="four answers 502")
            wait_for_state(tabs, "waiting")
            site.start()
            wait_for_state(tabs, "live", "polling")
            load.wait_for(20)
        have_all_from_one(tabs, load, site, user)
    finally:
        proxy.stop()


def test_what_came_while_the_browser_was_offline_is_told_when_it_is_online(
    windows: Windows, site: Site, journal: Journal, network: Proxy, user: str
) -> None:
    context = windows.new()
    url = f"http://127.0.0.1:{network.port}"
    tabs = three_tabs(context, url, user)
    with Load(journal, user) as load:
        leader(tabs)
        load.wait_for(20)
        context.set_offline(offline=True)
        network.cut()
        wait_for_state(tabs, "waiting")
        load.wait_for(20)
        context.set_offline(offline=False)
        wait_for_state(tabs, "live")
        load.wait_for(20)
    have_all_from_one(tabs, load, site, user)


@pytest.mark.parametrize("heartbeat", [EXPECTED, None], ids=["for many heartbeats", "for less than one"])
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_frozen_tab_keeps_no_other_from_going_on_and_is_itself_up_to_date_when_it_wakes(
    everyday: BrowserContext, site: Site, journal: Journal, user: str, role: str, heartbeat: float | None
) -> None:
    tabs = three_tabs(everyday, site.url, user, heartbeat=heartbeat)
    with Load(journal, user) as load:
        leading = leader(tabs)
        frozen = leading if role == "leader" else next(tab for tab in tabs if tab is not leading)
        others = [tab for tab in tabs if tab is not frozen]
        others[0].bring_to_front()
        debugger = everyday.new_cdp_session(frozen)
        until(frozen, "document.hidden", True)
        debugger.send("Page.setWebLifecycleState", {"state": "frozen"})
        told = len(value(frozen, "told"))
        leader(others)
        load.wait_for(150)
        has_all(others, load.ended)
        assert len(value(frozen, "told")) <= told + 1, "expected a tab that is frozen to be told nothing"
        debugger.send("Page.setWebLifecycleState", {"state": "active"})
        load.wait_for(20)
    have_all_from_one(tabs, load, site, user)


def test_a_tab_that_hangs_is_left_by_the_others(windows: Windows, site: Site, journal: Journal, user: str) -> None:
    """It holds the lock, says nothing, and was told nothing that it could have heeded."""
    tabs = three_tabs(windows.new(), site.url, user, heartbeat=EXPECTED)
    with Load(journal, user) as load:
        hanging = leader(tabs)
        others = [tab for tab in tabs if tab is not hanging]
        hanging.evaluate(
            """() => void setTimeout(() => {
                const busy = new XMLHttpRequest();
                busy.open("GET", "/busy", false);
                busy.send();
            })"""
        )
        leader(others)
        load.wait_for(20)
        has_all(others, load.ended)
        site.get("/idle")
        load.wait_for(20)
    have_all_from_one(tabs, load, site, user)


def test_after_a_night_of_sleep_the_tabs_are_up_to_date(
    windows: Windows, site: Site, journal: Journal, network: Proxy, user: str
) -> None:
    """Its connection is half open then, and its clocks jump."""
    context = windows.new()
    context.clock.install()
    url = f"http://127.0.0.1:{network.port}"
    tabs = three_tabs(context, url, user)
    with Load(journal, user) as load:
        leader(tabs)
        load.wait_for(20)
        network.lose_what_is_open()
        load.wait_for(60)
        context.clock.fast_forward(NIGHT)
        load.wait_for(20)
    has_all(tabs, load.ended)
    leader(tabs)
    assert site.asked("stream") == 2
