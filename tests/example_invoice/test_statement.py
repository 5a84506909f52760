from __future__ import annotations

import io
import re

import pytest
from pypdf import PdfReader
from pypdf.errors import PyPdfError

from example_invoice.pdf import SELLER, render_invoice
from example_invoice.statement import merge_invoices
from tests.example_invoice.running import invoices
from tests.support.processes import run_python


def rendered() -> list[tuple[str, bytes]]:
    """Return all invoices there are, by order."""
    return [
        (order_id, render_invoice(invoice, on_page=lambda _page, _pages: None))
        for order_id, invoice in invoices().items()
    ]


def texts(content: bytes) -> list[str]:
    """Return each page's text, all white space as one space."""
    return [re.sub(r"\s+", " ", page.extract_text()) for page in PdfReader(io.BytesIO(content), strict=True).pages]


def test_all_pages_of_all_invoices_are_there_in_the_order_given() -> None:
    given = rendered()[::-1]
    assert texts(merge_invoices(iter(given))) == [text for _, content in given for text in texts(content)]


def test_the_outline_leads_to_each_invoices_first_page() -> None:
    given = rendered()
    reader = PdfReader(io.BytesIO(merge_invoices(given)), strict=True)
    assert [item.title for item in reader.outline] == [f"Invoice {order_id}" for order_id, _ in given]
    for item, (_, content) in zip(reader.outline, given, strict=True):
        first = reader.pages[reader.get_destination_page_number(item)]
        assert first.extract_text() == PdfReader(io.BytesIO(content)).pages[0].extract_text()


def test_one_invoice_makes_a_statement_too() -> None:
    given = rendered()[:1]
    assert texts(merge_invoices(given)) == texts(given[0][1])


def test_all_fonts_are_in_the_file() -> None:
    for page in PdfReader(io.BytesIO(merge_invoices(rendered()))).pages:
        fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]  # type: ignore[index]
        assert fonts
        assert all("/FontFile2" in font["/FontDescriptor"] for font in fonts)


def test_the_files_properties_say_what_it_is() -> None:
    reader = PdfReader(io.BytesIO(merge_invoices(rendered())))
    assert reader.metadata is not None
    assert (reader.metadata.title, reader.metadata.author) == ("Statement of all invoices", SELLER)
    assert reader.trailer["/Root"]["/Lang"] == "en"


def test_an_order_may_have_any_name_in_the_outline() -> None:
    [(_, content), *_] = rendered()
    [item] = PdfReader(io.BytesIO(merge_invoices([("(é) \\ €", content)]))).outline
    assert item.title == "Invoice (é) \\ €"


@pytest.mark.parametrize("content", [b"", b"%PDF-1.4 not much of one"])
def test_what_is_no_pdf_makes_no_statement(content: bytes) -> None:
    with pytest.raises(PyPdfError):
        merge_invoices([("A-1001", content)])


def test_the_same_invoices_make_the_same_bytes_in_any_process() -> None:
    code = (
        "import hashlib; from tests.example_invoice import test_statement as t;"
        "print(hashlib.sha256(t.merge_invoices(t.rendered())).hexdigest())"
    )
    one, other = (run_python("-c", code, settings={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2"))
    assert one == other != ""
