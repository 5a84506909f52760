"""client.js puts jobs together as jobs.py does, and `<task-list>` and `<task-progress>` show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.pages import until, value
from tests.browser.scripted_server import frame
from tests.support.vectors import JOBS, named
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from playwright.sync_api import BrowserContext, Page

    from tests.browser.conftest import Windows
    from tests.browser.scripted_server import ScriptedServer


@pytest.fixture
def context(windows: Windows) -> BrowserContext:
    return windows.new()


@pytest.fixture
def page(context: BrowserContext, scripted: ScriptedServer) -> Page:
    """Return a page that has caught up."""
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    return page


@pytest.mark.parametrize("name", JOBS)
def test_a_vector(page: Page, scripted: ScriptedServer, name: str) -> None:
    for number, step in enumerate(JOBS[name]["steps"], start=1):
        if "event" in step:
            scripted.say(frame("task-progress", step["event"], number=number))
        else:
            scripted.say(frame("removed", {"key": step["removed"]}, number=number))
        expected = step.get("jobs")
        if expected is not None:
            shown = wait_for(page, expected)
            assert shown == expected, f"step {number}"


def wait_for(page: Page, expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page says of its jobs, as soon as it is what is expected."""

    def shown() -> list[dict[str, Any]]:
        return named(value(page, "notifications.jobs()"), expected)

    wait_until(lambda: shown() == expected, what=lambda: f"{expected}, got {shown()}")
    return shown()
