from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace
from decimal import Decimal

import pytest
from pypdf import PdfReader
from reportlab.pdfbase.ttfonts import TTFont

from example_invoice import pdf
from example_invoice.domain import Invoice, Line, PaymentStatus, format_amount, format_money
from example_invoice.pdf import FONTS, SELLER, font_folder, render_invoice
from tests.example_invoice.running import data, invoices
from tests.support.processes import run_python

ORDERS = [order["order_id"] for order in data("orders")]


def render(invoice: Invoice) -> bytes:
    return render_invoice(invoice, on_page=lambda _page, _pages: None)


def pages_of(invoice: Invoice) -> list[str]:
    """Return each page's text, all white space as one space."""
    reader = PdfReader(io.BytesIO(render(invoice)), strict=True)
    return [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]


@pytest.mark.parametrize("order_id", ORDERS)
def test_an_invoice_shows_all_that_it_is_made_of(order_id: str) -> None:
    invoice = invoices()[order_id]
    order, customer = invoice.order, invoice.customer
    text = " ".join(pages_of(invoice))
    for shown in (
        *(SELLER, order_id, customer.name, *customer.address, customer.country),
        *(format_money(order.gross, order.currency), invoice.status.upper()),
        *(format_amount(line.net(order.currency), order.currency) for line in order.lines),
        *(format_amount(share.vat, order.currency) for share in order.vat_shares),
        *(payment.payment_id for payment in invoice.payments),
        *(line.description for line in order.lines),
    ):
        assert shown in text


@pytest.mark.parametrize("order_id", ORDERS)
def test_each_page_says_which_of_how_many_it_is(order_id: str) -> None:
    pages = pages_of(invoices()[order_id])
    for number, text in enumerate(pages, start=1):
        assert f"Page {number} of {len(pages)}" in text


def test_the_head_of_the_lines_stands_on_each_page_that_has_some() -> None:
    pages = pages_of(invoices()["A-1003"])
    assert len(pages) == 3
    assert all("# Description Quantity Unit price VAT Amount EUR" in text for text in pages)


def test_later_pages_say_whose_invoice_they_belong_to() -> None:
    for text in pages_of(invoices()["T-3002"])[1:]:
        assert "Invoice T-3002 · Alan Şahin-Παπαδόπουλος" in text


def test_pages_are_reported_one_by_one_with_their_number() -> None:
    reported: list[tuple[int, int]] = []
    render_invoice(invoices()["A-1003"], on_page=lambda page, pages: reported.append((page, pages)))
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_an_error_of_the_callback_ends_the_rendering() -> None:
    class EnoughError(Exception):
        pass

    def refuse(_page: int, _pages: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        render_invoice(invoices()["A-1003"], on_page=refuse)


def test_the_same_data_make_the_same_bytes_in_any_process() -> None:
    code = (
        "import hashlib; from tests.example_invoice import test_pdf as t;"
        "print([hashlib.sha256(t.render(t.invoices()[each])).hexdigest() for each in t.ORDERS])"
    )
    here = str([hashlib.sha256(render(invoices()[each])).hexdigest() for each in ORDERS])
    for seed in ("1", "2"):
        assert run_python("-c", code, settings={"PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo"}).stdout.strip() == here


def test_all_fonts_are_in_the_file() -> None:
    for page in PdfReader(io.BytesIO(render(invoices()["T-3001"]))).pages:
        fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]  # type: ignore[index]
        assert fonts
        for font in fonts:
            assert "OpenSans" in font["/BaseFont"]
            assert "/FontFile2" in font["/FontDescriptor"]


@pytest.mark.parametrize("file", FONTS.values())
def test_the_fonts_can_show_each_character_there_is(file: str) -> None:
    known = TTFont("test", str(font_folder() / file)).face.charToGlyph
    ours = str([vars(pdf)[name] for name in dir(pdf) if name.startswith("SELLER")])
    text = ours + str([data(name) for name in ("users", "orders", "payments")])
    assert {character for character in text if ord(character) not in known} == set()


def test_the_files_properties_name_the_invoice() -> None:
    metadata = PdfReader(io.BytesIO(render(invoices()["A-1001"]))).metadata
    assert metadata is not None
    assert metadata.title == "Invoice A-1001"
    assert metadata.author == SELLER
    assert metadata.subject == "Invoice for Ada Nguyễn-Großmann"


def with_lines(*lines: Line) -> Invoice:
    invoice = invoices()["A-1004"]
    return Invoice(invoice.customer, replace(invoice.order, lines=lines, currency="EUR"), ())


def line(description: str, price: str = "1.00") -> Line:
    return Line(description, Decimal(1), "pcs", Decimal(price), Decimal(19))


def test_markup_in_the_data_is_text() -> None:
    invoice = with_lines(line("<b>bold</b> & <font color='red'>red"))
    invoice = replace(invoice, customer=replace(invoice.customer, name="A <i>& B"))
    text = " ".join(pages_of(invoice))
    assert "<b>bold</b> & <font color='red'>red" in text
    assert "A <i>& B" in text


def test_a_description_longer_than_a_page_goes_on_the_next() -> None:
    pages = pages_of(with_lines(line("many words " * 2000), line("x" * 500)))
    assert len(pages) > 2
    assert "many words" in pages[1]


def test_a_price_of_parts_of_a_cent_is_shown_entirely() -> None:
    text = " ".join(pages_of(with_lines(line("screw", "0.0125"), line("nut", "2.5"))))
    assert "0.0125" in text
    assert "2.50" in text


def test_an_invoice_without_lines_or_payments_is_one_all_the_same() -> None:
    (text,) = pages_of(with_lines())
    assert PaymentStatus.PAID.upper() in text
    assert "Nothing is left to be paid." in text


def test_the_closing_words_say_what_is_to_be_done() -> None:
    texts = {order_id: " ".join(pages_of(invoice)) for order_id, invoice in invoices().items()}
    assert "Please transfer 418.44 GBP by 11 May 2026" in texts["A-1004"]
    assert "Please transfer 2,044.35 EUR by 17 February 2026" in texts["A-1002"]
    assert "Nothing is left to be paid." in texts["G-2001"]
    assert "−25,050.57" in texts["G-2001"]  # noqa: RUF001 - the sign meant


def test_money_paid_in_excess_is_promised_back() -> None:
    invoice = invoices()["T-3003"]
    overpaid = Invoice(invoice.customer, invoice.order, invoice.payments[:1])
    assert "You have paid 10.00 GBP too much" in " ".join(pages_of(overpaid))
