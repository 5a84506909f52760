"""The demo as a person uses it: everything is real, from the click to the PDF."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect
from pypdf import PdfReader

from tests.browser.demo import bar, card, make_invoice, row
from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Windows
    from tests.browser.demo import Demo


def test_an_invoice_is_ordered_watched_and_opened(
    demo: Demo, windows: Windows, slowly: Callable[[float], None]
) -> None:
    page = demo.log_in(windows.new())
    slowly(1)
    make_invoice(page, "A-1003")
    running = bar(page, "Invoice A-1003")
    expect(running).to_have_attribute("aria-valuenow", "40")
    expect(row(page, "A-1003")).to_contain_text("Gathered")
    expect(card(page, "A-1003").get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
    link = row(page, "A-1003").get_by_role("link")
    expect(link).to_have_attribute("href", f"{demo.url}/invoices/A-1003.pdf")
    expect(running).to_have_count(0)
    expect(card(page, "A-1003").get_by_role("progressbar")).to_have_count(0)
    expect(page.locator("task-list").get_by_role("status")).to_have_text("Invoice A-1003: Done")
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value).to_have_url(f"{demo.url}/invoices/A-1003.pdf")
    answer = page.request.get(opened.value.url)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pdf")
    assert answer.body().startswith(b"%PDF-")
    expect(page.get_by_role("link", name="Open PDF of order A-1003")).to_be_visible()


def test_a_reload_in_the_middle_and_a_second_tab_show_the_present_state(
    demo: Demo, windows: Windows, slowly: Callable[[float], None]
) -> None:
    page = demo.log_in(windows.new())
    slowly(3)
    make_invoice(page, "A-1001")
    expect(bar(page, "Invoice A-1001")).to_have_attribute("aria-valuenow", "40")
    page.reload()
    expect(bar(page, "Invoice A-1001")).to_have_attribute("aria-valuenow", "40")
    second = page.context.new_page()
    second.goto(demo.url)
    expect(bar(second, "Invoice A-1001")).to_have_attribute("aria-valuenow", "40")
    for tab in (page, second):
        expect(row(tab, "A-1001")).to_contain_text("Done", timeout=20_000)
    assert page.locator("task-list").inner_text() == second.locator("task-list").inner_text()
    row(second, "A-1001").get_by_role("button", name="Remove").click()
    for tab in (page, second):
        expect(row(tab, "A-1001")).to_have_count(0)


def test_a_statement_is_ordered_by_keyboard_and_opened(demo: Demo, windows: Windows) -> None:
    page = demo.log_in(windows.new(), "Alan")
    button = page.get_by_role("button", name="Statement of all invoices")
    expect(page.get_by_role("link", name="Folio")).to_be_visible()
    page.get_by_role("button", name="Log out").focus()
    page.keyboard.press("Tab")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    link = page.locator("task-list a[href*='/statements/']")
    expect(link).to_have_count(1, timeout=30_000 * SLOWNESS)
    expect(button).to_be_enabled()
    expect(button).to_be_focused()
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value).to_have_url(re.compile(rf"^{demo.url}/statements/[0-9a-f-]{{36}}\.pdf$"))
    answer = page.request.get(opened.value.url)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pdf")
    orders = page.request.get(f"{demo.url}/orders").json()
    assert len(PdfReader(io.BytesIO(answer.body())).outline) == len(orders) == 4
    expect(page.get_by_role("link", name="Open PDF of order")).to_have_count(4)  # its invoices have been made, too
    stranger = demo.log_in(windows.new())
    assert stranger.request.get(opened.value.url).status == 404


def test_why_no_statement_is_made_is_said(demo: Demo, windows: Windows) -> None:
    page = demo.log_in(windows.new(), "Alan")
    expect(page.get_by_role("button", name="Make invoice").first).to_be_visible()
    demo.control("order", failures=1)
    page.get_by_role("button", name="Statement of all invoices").click()
    expect(page.get_by_role("alert")).to_contain_text("The order service is out of order")
    expect(page.get_by_role("button", name="Statement of all invoices")).to_be_enabled()


def test_another_user_sees_nothing(demo: Demo, windows: Windows) -> None:
    ada, grace = demo.log_in(windows.new()), demo.log_in(windows.new(), "Grâce")
    make_invoice(ada, "A-1002")
    expect(row(ada, "A-1002")).to_contain_text("Done")
    expect(grace.get_by_text("Nothing here yet")).to_be_visible()
    assert grace.request.get(f"{demo.url}/notifications/tasks").json()["keys"] == []
    assert grace.request.get(f"{demo.url}/invoices/A-1002.pdf").status == 404
    assert grace.request.post(f"{demo.url}/invoices", data={"order_id": "A-1002"}).status == 404


def test_logging_out_ends_the_streams_of_all_tabs(demo: Demo, windows: Windows) -> None:
    page = demo.log_in(windows.new(), "Alan")
    second = page.context.new_page()
    second.goto(demo.url)
    expect(second.locator("[part~=connection]")).to_have_text("Live")
    page.get_by_role("button", name="Log out").click()
    for tab in (page, second):
        expect(tab.get_by_role("heading", name="Who is there?")).to_be_visible()
    assert page.request.get(f"{demo.url}/notifications/stream").status == 401


def test_a_failure_is_told_in_words_for_people(demo: Demo, windows: Windows) -> None:
    page = demo.log_in(windows.new(), "Grâce")
    order = page.request.get(f"{demo.url}/orders").json()[0]["order_id"]
    demo.control("payment", failures=1000)
    try:
        make_invoice(page, order)
        expect(row(page, order)).to_contain_text("Trying again")
        expect(row(page, order)).to_contain_text("service", ignore_case=True)
    finally:
        demo.control("payment")
    expect(row(page, order)).to_contain_text("Done", timeout=30_000 * SLOWNESS)


def test_the_orders_service_being_away_is_said(demo: Demo, windows: Windows) -> None:
    page = demo.log_in(windows.new(), "Alan")
    expect(page.get_by_role("button", name="Make invoice").first).to_be_visible()
    demo.control("order", failures=1)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The order service is out of order")
    page.reload()
    expect(page.get_by_role("alert")).to_be_hidden()
