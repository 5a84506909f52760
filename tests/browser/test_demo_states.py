"""What the demo's page looks like in each state, whether axe-core finds fault with it, and the keyboard alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.demo import NAMES, card, make_invoice, row
from tests.support.proxy import Proxy
from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import BrowserContext, Locator, Page

    from tests.browser.conftest import Windows
    from tests.browser.demo import Demo

#: How wide, in which light, how large.
LOOKS = {
    "desktop": ("light", {"width": 1280, "height": 800}),
    "dark": ("dark", {"width": 1280, "height": 800}),
    # As narrow as WCAG 2.2 wants pages to work (1.4.10, Reflow).
    "phone": ("light", {"width": 320, "height": 640}),
    "phone-dark": ("dark", {"width": 320, "height": 640}),
}
#: Both widths and both lights, which is all that axe-core finds to be different; it takes longer than all else.
CHECKED = {"desktop", "phone-dark"}
#: No page of the demo has as many places for the focus.
MANY = 100

Look = "Callable[[Page, str], None]"


@pytest.fixture
def look(axe: Callable[[Page], list[str]], screenshot: Callable[..., Path]) -> Look:
    """Return what looks at a page in each way: nothing is wider than the window, and axe-core finds nothing.

    A picture of each is kept, to be looked at by people.
    """

    def look_at(page: Page, state: str) -> None:
        page.mouse.move(0, 0)
        for name, (scheme, size) in LOOKS.items():
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.set_viewport_size(size)
            if name in CHECKED:
                assert axe(page) == []
            width, height = page.evaluate(
                "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
            )
            assert width <= size["width"]
            if name.startswith("phone"):  # rows out of sight are not drawn, and so would not be in the picture
                page.set_viewport_size({"width": width, "height": height})
            screenshot(page, f"demo-{state}-{name}")

    return look_at


@pytest.fixture
def opened(demo: Demo, windows: Windows) -> Callable[[str], Page]:
    """Return what opens the page of a user who has not started anything yet: `opened("ada")`."""

    def open_one(user_id: str) -> Page:
        demo.forget(user_id)
        page = demo.log_in(windows.new(), NAMES[user_id])
        expect(page.locator("li.order").first).to_be_visible()
        return page

    return open_one


def test_nobody_has_logged_in(demo: Demo, context: BrowserContext, look: Look) -> None:
    page = context.new_page()
    page.goto(demo.url)
    expect(page.get_by_role("heading", name="Who is there?")).to_be_visible()
    look(page, "logged-out")


def test_nothing_has_been_started(opened: Callable[[str], Page], look: Look) -> None:
    page = opened("grace")
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    look(page, "empty")


def test_invoices_are_made_and_then_are_done(
    demo: Demo, opened: Callable[[str], Page], look: Look, screenshot: Callable[..., Path]
) -> None:
    page = opened("ada")
    make_invoice(page, "A-1002")
    page.locator("task-toast").get_by_role("button", name="Dismiss Invoice A-1002").click()
    with demo.busy():
        page.get_by_role("button", name="Statement of all invoices").click()
        row(page, "Statement").locator("summary").click()
        for order_id in ("A-1001", "A-1002", "A-1003", "A-1004"):
            expect(card(page, order_id).get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
        page.emulate_media(reduced_motion="reduce")  # the bars are where they are on their way to
        page.set_viewport_size(LOOKS["desktop"][1])
        screenshot(page, "readme", whole=False)  # example_invoice/screenshot.png is a copy of it
        look(page, "running")
    expect(row(page, "Statement")).to_contain_text("Done", timeout=30_000 * SLOWNESS)
    expect(card(page, "A-1003").get_by_role("progressbar")).to_have_count(0)
    look(page, "done")


def test_an_invoice_cannot_be_made(demo: Demo, opened: Callable[[str], Page], look: Look) -> None:
    page = opened("grace")
    with demo.bad_payment("G-2002"):
        make_invoice(page, "G-2002")
        for place in (row(page, "G-2002"), card(page, "G-2002")):
            expect(place).to_contain_text("The payment service gave an answer that makes no sense.")
    look(page, "failed")


def test_many_things_are_being_made_and_have_been(demo: Demo, opened: Callable[[str], Page], look: Look) -> None:
    page = opened("alan")
    jobs = page.locator("task-list [part=list] > li")
    with demo.visitor("alan") as client:
        for number in range(16):
            assert client.post("/invoices", json={"order_id": ("T-3001", "T-3003")[number % 2]}).status_code == 202
        expect(jobs.filter(has_text="Done")).to_have_count(16, timeout=30_000 * SLOWNESS)
        with demo.bad_payment("T-3001"):
            assert client.post("/invoices", json={"order_id": "T-3001"}).status_code == 202
            expect(jobs.filter(has_text="Failed")).to_have_count(1)
        with demo.busy():
            cancelled = client.post("/invoices", json={"order_id": "T-3002"}).json()["task_id"]
            assert client.post(f"/notifications/tasks/{cancelled}/cancel").status_code == 202
            expect(jobs.filter(has_text="Cancelled")).to_have_count(1)
            assert client.post("/invoices", json={"order_id": "T-3004"}).status_code == 202
            assert client.post("/statements").status_code == 202
            row(page, "Statement").locator("summary").click()
            expect(jobs).to_have_count(20)
            expect(row(page, "Statement").get_by_role("progressbar")).to_have_count(6)
            look(page, "many")


def test_the_connection_is_lost(demo: Demo, windows: Windows, look: Look) -> None:
    with Proxy(demo.address) as proxy:
        page = demo.log_in(windows.new(), url=f"http://127.0.0.1:{proxy.port}")
        expect(page.locator("task-list [part~=connection]")).to_have_text("Live")
        expect(page.locator("li.order").first).to_be_visible()
        proxy.refuse()
        proxy.cut()
        expect(page.locator("task-list [part~=connection]")).to_contain_text("Connection lost")
        look(page, "connection-lost")


def test_it_works_from_right_to_left(opened: Callable[[str], Page], look: Look) -> None:
    page = opened("ada")
    make_invoice(page, "A-1004")
    expect(row(page, "A-1004")).to_contain_text("Done")
    page.evaluate("() => { document.documentElement.dir = 'rtl'; }")
    look(page, "right-to-left")


def test_the_keyboard_is_enough(demo: Demo, context: BrowserContext) -> None:
    demo.forget("grace")
    page = context.new_page()
    page.goto(demo.url)
    press(page, page.get_by_role("button", name="Grâce"))
    press(page, page.get_by_role("button", name="Make invoice for order G-2002"))
    expect(row(page, "G-2002")).to_contain_text("Done")
    move(page, page.get_by_role("link", name="Open PDF of order G-2002"))
    move(page, row(page, "G-2002").get_by_role("link", name="Open"))
    with demo.busy():
        press(page, page.get_by_role("button", name="Statement of all invoices"))
        statement = row(page, "Statement")
        press(page, statement.locator("summary"))
        expect(statement.get_by_role("progressbar")).to_have_count(5)
        press(page, statement.get_by_role("button", name="Cancel Statement"))
        expect(statement).to_contain_text("Cancelled")
    press(page, statement.get_by_role("button", name="Remove Statement"))
    expect(statement).to_have_count(0)
    press(page, row(page, "G-2002").get_by_role("button", name="Remove"))
    expect(page.get_by_text("Nothing here yet")).to_be_visible()
    press(page, page.get_by_role("button", name="Log out"))
    expect(page.get_by_role("heading", name="Who is there?")).to_be_visible()


def press(page: Page, place: Locator) -> None:
    """Move the focus there by Tab, then press Enter."""
    move(page, place)
    page.keyboard.press("Enter")


def move(page: Page, place: Locator) -> None:
    """Move the focus there by Tab, from wherever it is; it must be seen where it is."""
    expect(place).to_be_visible()
    for _ in range(MANY):
        if place.evaluate("element => element.matches(':focus-visible')"):
            break
        page.keyboard.press("Tab")
    assert place.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
