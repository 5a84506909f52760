"""Several invoices as one PDF, with pypdf. Knows nothing of Celery: how far it is, is how much of them it has read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pypdf import PdfWriter
from pypdf.generic import NameObject, TextStringObject

from example_invoice.pdf import SELLER

if TYPE_CHECKING:
    from collections.abc import Iterable


def merge_invoices(invoices: Iterable[tuple[str, bytes]]) -> bytes:
    """Return one PDF with all pages of the invoices, each given as its order's id and its PDF, in this order.

    The outline leads to the first page of each. The same bytes for the same invoices.
    """
    writer = PdfWriter()
    for order_id, content in invoices:
        writer.append(io.BytesIO(content), outline_item=f"Invoice {order_id}")
    writer.add_metadata({"/Title": "Statement of all invoices", "/Author": SELLER})
    writer.root_object[NameObject("/Lang")] = TextStringObject("en")  # as each of the invoices says
    merged = io.BytesIO()
    writer.write(merged)
    return merged.getvalue()
