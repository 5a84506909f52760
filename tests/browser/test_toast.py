"""Endings reach people who look elsewhere: a corner of the page, its title, and outside of the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.pages import until, value, wait_until_drawn
from tests.browser.scripted_server import frame, task
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

    from tests.browser.scripted_server import ScriptedServer

#: What the browser shows outside of it is noted instead; `permission` is what the person has said to it.
NOTIFICATION = """
    window.notified = [];
    window.asked = 0;
    window.Notification = class {
        static permission = "%s";
        static async requestPermission() { asked += 1; return (Notification.permission = "granted"); }
        constructor(title, { body, tag }) { notified.push([title, body, tag]); }
    };
"""
ADD = """async (attributes) => {
    const toast = document.createElement("task-toast");
    for (const [name, value] of Object.entries(attributes)) toast.setAttribute(name, value);
    document.body.append(toast);
}"""
TURN = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture
def page(page: Page) -> Page:
    """Return a page with a list and toasts."""
    page.evaluate(ADD, {})
    return page


def end(scripted: ScriptedServer, number: int, title: str, state: str = "SUCCESS", **more: Any) -> None:
    scripted.say(frame("task-done", task(f"{number}", state, title=title, **more), number=number))


def toasts(page: Page) -> Locator:
    return page.locator("task-toast").get_by_role("listitem")


def turn(page: Page, *, away: bool) -> None:
    """Let the person look at another tab, or at this one again."""
    page.evaluate(TURN, away)


def open_tab(context: BrowserContext, scripted: ScriptedServer, *, away: bool, permission: str = "granted") -> Page:
    tab = context.new_page()
    tab.add_init_script(NOTIFICATION % permission)
    tab.goto(f"{scripted.url}/page")
    until(tab, "notifications.state", "live")
    tab.evaluate(ADD, {"desktop": ""})
    turn(tab, away=away)
    return tab


def heard(tab: Page, number: int) -> None:
    until(tab, f"notifications.tasks.has('{number}')", True)


def locks(page: Page) -> list[str]:
    found: list[str] = page.evaluate("async () => (await navigator.locks.query()).held.map(({ name }) => name)")
    return found


# In a corner of the page


def test_an_ending_is_shown_with_what_became_of_it(page: Page, scripted: ScriptedServer) -> None:
    scripted.say(frame("task-progress", task("1", "PROGRESS", title="A", current=1, total=2), number=1))
    heard(page, 1)
    expect(toasts(page)).to_have_count(0)
    end(scripted, 2, "Bill", url="/bill.pdf")
    end(scripted, 3, "Report", "FAILURE", error="No paper.")
    expect(toasts(page)).to_have_count(2)
    expect(toasts(page).filter(has_text="Report")).to_contain_text("Failed")
    expect(toasts(page).filter(has_text="Report")).to_contain_text("No paper.")
    link = toasts(page).get_by_role("link", name="Open Bill")
    expect(link).to_have_attribute("href", f"{scripted.url}/bill.pdf")


def test_a_job_is_shown_once_when_all_of_it_has_ended(page: Page, scripted: ScriptedServer) -> None:
    for number in (1, 2):
        counts = {"tasks": 2, "ended": number, "failed": 0, "revoked": 0, "hidden": 0, "fraction": number / 2}
        end(scripted, number, f"Step {number}", job_id="1", job=counts)
    expect(toasts(page)).to_have_count(1)
    expect(toasts(page)).to_contain_text("Step 1")
    expect(page.locator("task-toast details")).to_have_count(0)


def test_what_ended_before_the_page_was_opened_is_not_shown(page: Page, scripted: ScriptedServer) -> None:
    scripted.catch_up = frame("task-done", task("1", "SUCCESS", title="Old"), number=1)
    scripted.catch_up += frame("ready", {"keys": ["1"]}, retry=10)
    page.reload()
    until(page, "notifications.tasks.has('1')", True)
    page.evaluate("() => document.body.replaceChildren()")
    until(page, "notifications.state", "closed")
    page.evaluate(ADD, {})
    wait_until(lambda: len(scripted.asked("stream")) == 3)
    end(scripted, 2, "New")
    expect(toasts(page)).to_have_count(1)
    expect(toasts(page)).to_contain_text("New")


def test_a_toast_goes_by_itself_unless_it_tells_of_a_failure(page: Page, scripted: ScriptedServer) -> None:
    page.clock.install()
    for number, state in enumerate(["SUCCESS", "REVOKED", "FAILURE", "REJECTED"], start=1):
        end(scripted, number, state, state)
    expect(toasts(page)).to_have_count(4)
    page.clock.run_for(7_000)
    expect(toasts(page)).to_have_count(4)
    page.clock.run_for(2_000)
    expect(toasts(page)).to_have_count(2)
    page.clock.run_for(20_000)
    expect(toasts(page).locator("[part=title]")).to_have_text(["REJECTED", "FAILURE"])


@pytest.mark.parametrize("by", ["mouse", "keyboard", "absence"])
def test_a_toast_that_is_looked_at_stays(page: Page, scripted: ScriptedServer, by: str) -> None:
    page.clock.install()
    end(scripted, 1, "A")
    expect(toasts(page)).to_have_count(1)
    if by == "mouse":
        toasts(page).hover()
    elif by == "keyboard":
        page.get_by_role("button", name="Dismiss A").focus()
    else:
        turn(page, away=True)
    page.clock.run_for(20_000)
    expect(toasts(page)).to_have_count(1)
    if by == "mouse":
        page.mouse.move(0, 0)
    elif by == "keyboard":
        page.evaluate("() => document.querySelector('task-toast').shadowRoot.activeElement.blur()")
    else:
        turn(page, away=False)
    page.clock.run_for(9_000)
    expect(toasts(page)).to_have_count(0)


def test_toasts_are_dismissed_by_keyboard_alone(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate("() => document.querySelector('task-list').remove()")
    for number, title in enumerate("AB", start=1):
        end(scripted, number, title, "FAILURE", at=f"2026-01-01T00:00:0{number}Z")
    expect(toasts(page)).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Dismiss B")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Dismiss A")).to_be_focused()
    page.keyboard.press("Enter")
    expect(toasts(page)).to_have_count(0)
    assert not [path for method, path, _ in scripted.requests if method == "DELETE"]  # the job itself stays


def test_a_job_that_ends_differently_after_all_has_one_toast_that_says_so(page: Page, scripted: ScriptedServer) -> None:
    page.clock.install()
    end(scripted, 1, "A")
    expect(toasts(page)).to_contain_text("Done")
    scripted.say(frame("task-done", task("1", "FAILURE", title="A") | {"attempt": 2}, number=2))
    scripted.say(frame("task-progress", task("1", "STARTED", title="A") | {"attempt": 3}, number=3))
    scripted.say(frame("task-done", task("1", "FAILURE", title="A") | {"attempt": 3}, number=4))
    expect(toasts(page)).to_contain_text("Failed")
    expect(toasts(page)).to_have_count(1)
    page.clock.run_for(20_000)
    expect(toasts(page)).to_have_count(1)


def test_the_toasts_of_one_who_has_logged_out_go(page: Page, scripted: ScriptedServer) -> None:
    end(scripted, 1, "Secret", "FAILURE")
    expect(toasts(page)).to_have_count(1)
    scripted.say(frame("ready", {"keys": []}))
    expect(toasts(page)).to_have_count(0)


def test_of_many_endings_at_once_the_newest_are_shown_and_leave_the_page_usable(
    page: Page, scripted: ScriptedServer
) -> None:
    page.set_viewport_size({"width": 320, "height": 568})
    for number in range(1, 51):
        end(scripted, number, f"Task {number}", "FAILURE", error="x" * 300)
    expect(toasts(page)).to_have_count(5)
    expect(toasts(page).first).to_contain_text("Task 50")
    box = page.locator("task-toast").bounding_box()
    assert box is not None
    assert box["y"] >= 0
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 320
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 320


# In its title


def test_what_ends_while_nobody_looks_is_counted_in_the_title(page: Page, scripted: ScriptedServer) -> None:
    turn(page, away=True)
    end(scripted, 1, "A")
    end(scripted, 2, "B", "FAILURE")
    until(page, "document.title", "(2)\u2002A page")
    turn(page, away=False)
    assert page.title() == "A page"
    expect(toasts(page)).to_have_count(2)  # nobody has seen them yet
    end(scripted, 3, "C")
    expect(toasts(page)).to_have_count(3)
    assert page.title() == "A page"


def test_an_application_that_changes_its_title_meanwhile_has_its_way(page: Page, scripted: ScriptedServer) -> None:
    turn(page, away=True)
    end(scripted, 1, "A")
    until(page, "document.title", "(1)\u2002A page")
    page.evaluate("() => { document.title = '(1) letter' }")
    end(scripted, 2, "B")
    until(page, "document.title", "(2)\u2002(1) letter")
    page.evaluate("() => { document.title += '!' }")
    turn(page, away=False)
    assert page.title() == "(1) letter!"
    turn(page, away=True)
    end(scripted, 3, "C")
    until(page, "document.title", "(1)\u2002(1) letter!")
    page.evaluate("() => { document.title = 'Another' }")
    turn(page, away=False)
    assert page.title() == "Another"


def test_a_page_without_toasts_keeps_its_title(context: BrowserContext, scripted: ScriptedServer) -> None:
    page = context.new_page()
    page.goto(f"{scripted.url}/page")
    until(page, "notifications.state", "live")
    turn(page, away=True)
    end(scripted, 1, "A")
    heard(page, 1)
    assert page.title() == "A page"


# Outside of the browser


def test_permission_is_asked_for_by_a_click_and_only_where_something_goes_on(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    page = open_tab(context, scripted, away=False, permission="default")
    button = page.get_by_role("button", name="Notify me")
    expect(button).to_have_count(0)
    scripted.say(frame("task-progress", task("1", "STARTED", title="A"), number=1))
    expect(button).to_be_visible()
    assert value(page, "asked") == 0
    button.press("Enter")
    expect(button).to_have_count(0)
    assert value(page, "asked") == 1


@pytest.mark.parametrize("reason", ["no attribute", "denied", "granted", "no such thing", "insecure"])
def test_nothing_is_offered_where_nothing_can_come_of_it(
    context: BrowserContext, scripted: ScriptedServer, reason: str
) -> None:
    permission = reason if reason in {"denied", "granted"} else "default"
    page = open_tab(context, scripted, away=False, permission=permission)
    page.evaluate(
        """(reason) => {
            const toast = document.querySelector("task-toast");
            if (reason === "no attribute") toast.removeAttribute("desktop");
            if (reason === "no such thing") delete window.Notification;
            if (reason === "insecure") Object.defineProperty(window, "isSecureContext", { value: false });
        }""",
        reason,
    )
    scripted.say(frame("task-progress", task("1", "STARTED", title="A"), number=1))
    heard(page, 1)
    wait_until_drawn(page)
    expect(page.locator("task-toast [part=desktop]")).to_be_hidden()


def test_one_notification_for_all_tabs_where_none_is_looked_at(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    tabs = [open_tab(context, scripted, away=True) for _ in range(4)]
    for number in (1, 2, 3):
        end(scripted, number, f"Task {number}", *(["FAILURE"] if number == 3 else []))
    for tab in tabs:
        heard(tab, 3)
        until(tab, "document.title", "(3)\u2002A page")

    def shown() -> list[list[str]]:
        return sorted(one for tab in tabs for one in value(tab, "notified"))

    expected = [["Task 1", "Done", "1"], ["Task 2", "Done", "2"], ["Task 3", "Failed", "3"]]
    wait_until(lambda: len(shown()) >= 3)
    assert shown() == expected
    assert sorted(name for name in locks(tabs[0]) if name.endswith(("1", "2", "3"))) == [
        f"celery_notify {number}" for number in (1, 2, 3)
    ]
    for tab in tabs:
        turn(tab, away=False)
    wait_until(lambda: locks(tabs[0]) == ["celery_notify visible"] * 4)
    assert shown() == expected


def test_nothing_is_shown_outside_where_one_tab_is_looked_at(context: BrowserContext, scripted: ScriptedServer) -> None:
    hidden, seen = open_tab(context, scripted, away=True), open_tab(context, scripted, away=False)
    end(scripted, 1, "A")
    expect(toasts(seen)).to_have_count(1)
    until(hidden, "document.title", "(1)\u2002A page")
    turn(seen, away=True)
    wait_until(lambda: locks(seen) == [])
    end(scripted, 2, "B")
    wait_until(lambda: value(hidden, "notified") + value(seen, "notified") == [["B", "Done", "2"]])


def test_nobody_who_did_not_ask_for_it_is_shown_anything_outside(
    context: BrowserContext, scripted: ScriptedServer
) -> None:
    page = open_tab(context, scripted, away=True)
    page.evaluate("() => document.querySelector('task-toast').removeAttribute('desktop')")
    end(scripted, 1, "A")
    until(page, "document.title", "(1)\u2002A page")
    assert locks(page) == []
    assert value(page, "notified") == []


@pytest.mark.parametrize(
    "how",
    [
        "delete window.Notification",
        "window.Notification = class { constructor() { throw new TypeError('Illegal constructor') } }",
        "Object.defineProperty(navigator, 'locks', { value: undefined })",
        "navigator.locks.query = async () => { throw new DOMException('', 'SecurityError') }",
        "navigator.locks.request = async () => { throw new DOMException('', 'SecurityError') }",
    ],
    ids=["no notifications", "not by a page", "no locks", "locks refused", "lock refused"],
)
def test_a_browser_that_cannot_show_it_is_left_alone(
    context: BrowserContext, scripted: ScriptedServer, how: str
) -> None:
    page = open_tab(context, scripted, away=True)
    page.evaluate(f"() => {{ {how} }}")
    end(scripted, 1, "A")
    until(page, "document.title", "(1)\u2002A page")
    turn(page, away=False)
    assert page.title() == "A page"
    end(scripted, 2, "B")
    expect(toasts(page)).to_have_count(2)


def test_the_browser_itself_shows_it(context: BrowserContext, scripted: ScriptedServer) -> None:
    """With the browser's own notifications: allowed, and refused."""
    for allowed in (True, False):
        context.grant_permissions(["notifications"] if allowed else [], origin=scripted.url)
        page = context.new_page()
        page.goto(f"{scripted.url}/page")
        until(page, "notifications.state", "live")
        page.evaluate(ADD, {"desktop": ""})
        turn(page, away=True)
        number = 1 if allowed else 2
        end(scripted, number, "A")
        until(page, "document.title", "(1)\u2002A page")
        page.close()
