"""An invoice as PDF, with reportlab. Knows nothing of Celery: it reports by callback."""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from reportlab.lib.colors import HexColor, white
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    KeepTogether,
    NextPageTemplate,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

from example_invoice.domain import PaymentKind, PaymentStatus, format_amount, format_money, round_money

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence
    from decimal import Decimal

    from reportlab.pdfgen.canvas import Canvas
    from reportlab.platypus import Flowable

    from example_invoice.domain import Invoice, Line, Payment, VatShare

SELLER = "Nordlicht Kontor GmbH"
SELLER_ADDRESS = ("Speicherstraße 7", "20457 Hamburg", "Germany")
SELLER_CONTACT = ("nordlicht-kontor.example", "rechnung@nordlicht-kontor.example", "+49 40 5550 123")
SELLER_LEGAL = "HRB 000 000, Amtsgericht Hamburg  ·  VAT no. DE 000 000 000  ·  Managing director: Jördis Ahlström"
SELLER_BANK = "Musterbank Hamburg  ·  IBAN DE89 3704 0044 0532 0130 00  ·  BIC MUSTDEHHXXX"

#: Name in the PDF and file of each font; Open Sans shows Latin, Greek, Cyrillic and Vietnamese letters.
FONTS = {"Sans": "OpenSans-Regular.ttf", "SansBold": "OpenSans-SemiBold.ttf"}

INK = HexColor("#1d2733")
FAINT = HexColor("#667484")
RULE = HexColor("#d5dce3")
TINT = HexColor("#f3f6f9")
ACCENT = HexColor("#0f5c6e")
STATUS_COLOURS = {
    PaymentStatus.UNPAID: HexColor("#a8481a"),
    PaymentStatus.PARTIALLY_PAID: HexColor("#96690a"),
    PaymentStatus.PAID: HexColor("#1e7a4c"),
    PaymentStatus.OVERPAID: HexColor("#5a4a9c"),
    PaymentStatus.PARTIALLY_REFUNDED: HexColor("#5a4a9c"),
    PaymentStatus.REFUNDED: HexColor("#5a6573"),
}

WIDTH, HEIGHT = A4
LEFT = RIGHT = 20 * mm
TEXT_WIDTH = WIDTH - LEFT - RIGHT
BOTTOM = 30 * mm
#: Where the text begins, from the page's top: below the letterhead, and below the short head of later pages.
FIRST_TOP = 96 * mm
LATER_TOP = 30 * mm
#: DIN 5008 puts the address where the window of an envelope is.
ADDRESS_TOP = 45 * mm
ADDRESS_WIDTH = 90 * mm

BODY = ParagraphStyle("body", fontName="Sans", fontSize=9, leading=12.5, textColor=INK)
ADDRESS = ParagraphStyle("address", BODY, fontSize=10, leading=14)
RIGHT_BODY = ParagraphStyle("right", BODY, alignment=TA_RIGHT)
HEADING = ParagraphStyle("heading", BODY, fontName="SansBold", fontSize=10, leading=14, textColor=ACCENT)
TABLE_HEAD = ParagraphStyle("head", BODY, fontName="SansBold", fontSize=8, leading=10, textColor=white)
RIGHT_TABLE_HEAD = ParagraphStyle("right-head", TABLE_HEAD, alignment=TA_RIGHT)


def render_invoice(invoice: Invoice, *, on_page: Callable[[int, int], None]) -> bytes:
    """Return the invoice as PDF, the same bytes for the same data.

    `on_page(page, pages)` is called as each page is done. The number of pages, which stands on each of them,
    is found by laying the invoice out once before.
    """
    _register_fonts()
    pages = _InvoiceDocument(invoice, pages=0, on_page=lambda _page, _pages: None).render().page
    document = _InvoiceDocument(invoice, pages=pages, on_page=on_page).render()
    return document.content.getvalue()


@functools.cache
def _register_fonts() -> None:
    """Make the fonts known to reportlab, once a process."""
    for name, file in FONTS.items():
        pdfmetrics.registerFont(TTFont(name, str(font_folder() / file)))
    pdfmetrics.registerFontFamily("Sans", normal="Sans", bold="SansBold", italic="Sans", boldItalic="SansBold")


def font_folder() -> Path:
    """Return the folder of the fonts, which the package ttf-opensans brings (it is not imported)."""
    spec = importlib.util.find_spec("ttf_opensans")
    if spec is None or spec.origin is None:
        raise RuntimeError("expected the package ttf-opensans to be installed, for the invoice's fonts")
    return Path(spec.origin).parent / "ttf"


class _InvoiceDocument(BaseDocTemplate):
    """One run over the invoice: the letterhead, the flowing text, and a foot on each page."""

    def __init__(self, invoice: Invoice, *, pages: int, on_page: Callable[[int, int], None]) -> None:
        self.content = io.BytesIO()
        self._invoice = invoice
        self._pages = pages
        self._on_page = on_page
        super().__init__(
            self.content,
            pagesize=A4,
            title=f"Invoice {invoice.order.order_id}",
            author=SELLER,
            subject=f"Invoice for {invoice.customer.name}",
            lang="en",
            initialFontName="Sans",  # else Helvetica is named in the file, used or not, and not embedded
            invariant=1,  # no time of day, no random id: same data, same bytes
            pageTemplates=[
                self._template("first", FIRST_TOP, self._draw_letterhead),
                self._template("later", LATER_TOP, self._draw_running_head),
            ],
        )

    def _template(self, name: str, top: float, draw_head: Callable[[Canvas], None]) -> PageTemplate:
        frame = Frame(
            *(LEFT, BOTTOM, TEXT_WIDTH, HEIGHT - top - BOTTOM),
            *(0, 0, 0, 0),  # the margins are the page's, not the frame's
        )
        return PageTemplate(
            name,
            frames=[frame],
            onPage=lambda canvas, _: draw_head(canvas),
            onPageEnd=lambda canvas, _: self._end_page(canvas),
        )

    def render(self) -> _InvoiceDocument:
        """Lay the invoice out; `content` and `page`, the number of the last page, then tell the result."""
        self.build(_story(self._invoice))
        return self

    def _end_page(self, canvas: Canvas) -> None:
        _draw_foot(canvas, f"Page {self.page} of {self._pages}")
        self._on_page(self.page, self._pages)

    def _draw_letterhead(self, canvas: Canvas) -> None:
        _draw_brand(canvas)
        _draw_address(canvas, self._invoice)
        _draw_facts(canvas, self._invoice)
        _draw_title(canvas, self._invoice)

    def _draw_running_head(self, canvas: Canvas) -> None:
        baseline = HEIGHT - 18 * mm
        canvas.setFillColor(ACCENT)
        canvas.setFont("SansBold", 9)
        canvas.drawString(LEFT, baseline, SELLER)
        canvas.setFillColor(FAINT)
        canvas.setFont("Sans", 8.5)
        about = f"Invoice {self._invoice.order.order_id}  ·  {self._invoice.customer.name}"
        canvas.drawRightString(WIDTH - RIGHT, baseline, about)
        _draw_rule(canvas, baseline - 3 * mm)


def _draw_rule(canvas: Canvas, y: float) -> None:
    canvas.setStrokeColor(RULE)
    canvas.setLineWidth(0.6)
    canvas.line(LEFT, y, WIDTH - RIGHT, y)


def _draw_brand(canvas: Canvas) -> None:
    """Draw the coloured edge, the seller's mark and name, and how to reach them."""
    canvas.setFillColor(ACCENT)
    canvas.rect(0, HEIGHT - 4 * mm, WIDTH, 4 * mm, stroke=0, fill=1)
    top = HEIGHT - 22 * mm
    _draw_mark(canvas, LEFT, top - 2.6 * mm)
    canvas.setFillColor(INK)
    canvas.setFont("SansBold", 15)
    canvas.drawString(LEFT + 13 * mm, top - 0.5 * mm, SELLER)
    canvas.setFillColor(FAINT)
    canvas.setFont("Sans", 8)
    for row, text in enumerate((", ".join(SELLER_ADDRESS), *SELLER_CONTACT)):
        canvas.drawRightString(WIDTH - RIGHT, top + 4.2 * mm - row * 4 * mm, text)


def _draw_mark(canvas: Canvas, x: float, y: float) -> None:
    """Draw three bars of light above a horizon."""
    canvas.setFillColor(ACCENT)
    canvas.roundRect(x, y, 10 * mm, 10 * mm, 2 * mm, stroke=0, fill=1)
    canvas.setFillColor(white)
    for bar, height in enumerate((2.6, 5.2, 3.8)):
        canvas.roundRect(x + (2 + bar * 2.2) * mm, y + 2.6 * mm, 1.5 * mm, height * mm, 0.5 * mm, stroke=0, fill=1)
    canvas.rect(x + 2 * mm, y + 1.6 * mm, 5.9 * mm, 0.5 * mm, stroke=0, fill=1)


def _draw_address(canvas: Canvas, invoice: Invoice) -> None:
    """Draw the customer's address where an envelope's window shows it."""
    customer = invoice.customer
    canvas.setFillColor(FAINT)
    canvas.setFont("Sans", 6.5)
    canvas.drawString(LEFT, HEIGHT - ADDRESS_TOP, "  ·  ".join((SELLER, *SELLER_ADDRESS[:2])))
    lines = (f"<b>{escape(customer.name)}</b>", *map(escape, customer.address), escape(customer.country))
    paragraph = Paragraph("<br/>".join(lines), ADDRESS)
    _, height = paragraph.wrapOn(canvas, ADDRESS_WIDTH, HEIGHT)
    paragraph.drawOn(canvas, LEFT, HEIGHT - ADDRESS_TOP - 3 * mm - height)


def _draw_facts(canvas: Canvas, invoice: Invoice) -> None:
    """Draw number, dates and such, opposite the address."""
    order, customer = invoice.order, invoice.customer
    facts = [
        ("Invoice number", order.order_id),
        ("Invoice date", _day(order.date)),
        ("Payable by", _day(order.due)),
        ("Customer", customer.user_id),
        ("Currency", order.currency),
    ]
    if customer.vat_number:
        facts.append(("Customer's VAT no.", customer.vat_number))
    left, y = WIDTH - RIGHT - 68 * mm, HEIGHT - ADDRESS_TOP - 7 * mm
    for name, value in facts:
        canvas.setFont("Sans", 9)
        canvas.setFillColor(FAINT)
        canvas.drawString(left, y, name)
        canvas.setFont("SansBold", 9)
        canvas.setFillColor(INK)
        canvas.drawRightString(WIDTH - RIGHT, y, value)
        y -= 4.9 * mm


def _draw_title(canvas: Canvas, invoice: Invoice) -> None:
    """Draw the word that says what this is, and the stamp that says whether it is paid."""
    baseline = HEIGHT - FIRST_TOP + 8 * mm
    canvas.setFillColor(ACCENT)
    canvas.setFont("SansBold", 22)
    canvas.drawString(LEFT, baseline, "Invoice")
    text = invoice.status.upper()
    width = canvas.stringWidth(text, "SansBold", 8.5) + 8 * mm
    canvas.setFillColor(STATUS_COLOURS[invoice.status])
    canvas.roundRect(WIDTH - RIGHT - width, baseline - 1 * mm, width, 7 * mm, 3.5 * mm, stroke=0, fill=1)
    canvas.setFillColor(white)
    canvas.setFont("SansBold", 8.5)
    canvas.drawCentredString(WIDTH - RIGHT - width / 2, baseline + 1.4 * mm, text)


def _draw_foot(canvas: Canvas, page: str) -> None:
    _draw_rule(canvas, 22 * mm)
    canvas.setFillColor(FAINT)
    canvas.setFont("Sans", 7)
    canvas.drawString(LEFT, 17.5 * mm, SELLER_BANK)
    canvas.drawString(LEFT, 13.5 * mm, SELLER_LEGAL)
    canvas.setFont("SansBold", 8)
    canvas.drawRightString(WIDTH - RIGHT, 17.5 * mm, page)


def _story(invoice: Invoice) -> list[Flowable]:
    """Return what flows over the pages."""
    return [
        NextPageTemplate("later"),
        _lines_table(invoice),
        Spacer(1, 5 * mm),
        KeepTogether([_totals_table(invoice)]),
        Spacer(1, 6 * mm),
        KeepTogether(_vat_block(invoice)),
        Spacer(1, 6 * mm),
        KeepTogether([*_payments_block(invoice), Spacer(1, 5 * mm), Paragraph(_closing_words(invoice), BODY)]),
    ]


def _lines_table(invoice: Invoice) -> Table:
    """Return the lines; the head stands again on each page."""
    order = invoice.order
    head = _row(["#", "Description", "Quantity", "Unit price", "VAT", f"Amount {order.currency}"], TABLE_HEAD)
    rows = [_line_row(position, line, order.currency) for position, line in enumerate(order.lines, start=1)]
    widths = [9 * mm, 79 * mm, 24 * mm, 22 * mm, 12 * mm, 24 * mm]
    return Table([head, *rows], colWidths=widths, repeatRows=1, splitInRow=1, style=_LIST_STYLE)


def _line_row(position: int, line: Line, currency: str) -> list[Paragraph]:
    return _row(
        [
            str(position),
            line.description,
            f"{line.quantity:,} {line.unit}",
            _unit_price(line.unit_price, currency),
            _percent(line.vat_rate),
            format_amount(line.net(currency), currency),
        ],
        BODY,
    )


def _unit_price(price: Decimal, currency: str) -> str:
    """Return a price with the currency's decimals, or with all of its own: screws cost parts of a cent."""
    rounded = round_money(price, currency)
    return f"{rounded if rounded == price else price:,}"


def _row(texts: Sequence[str], style: ParagraphStyle, *, left: int = 2) -> list[Paragraph]:
    """Return cells that wrap their text, the first `left` of them ragged right, the rest ragged left."""
    right = RIGHT_TABLE_HEAD if style is TABLE_HEAD else RIGHT_BODY
    return [Paragraph(escape(text), style if column < left else right) for column, text in enumerate(texts)]


def _totals_table(invoice: Invoice) -> Table:
    """Return the sum, from the lines' total to what is still to be paid."""
    order = invoice.order
    rows: list[tuple[str, Decimal]] = [("Subtotal, without VAT", order.net)]
    if order.discount:
        rows.append((f"Discount {_percent(order.discount_rate)}", -order.discount))
    rows += [(f"VAT {_percent(share.rate)}", share.vat) for share in order.vat_shares]
    total = len(rows)
    rows.append(("Total", order.gross))
    if invoice.paid:
        rows.append(("Paid", -invoice.paid))
    if invoice.refunded:
        rows.append(("Refunded", invoice.refunded))
    if invoice.credited:
        rows.append(("Credited", -invoice.credited))
    rows.append(("Balance due", invoice.balance))
    cells = [[name, _signed_money(amount, order.currency)] for name, amount in rows]
    return Table(cells, colWidths=[46 * mm, 36 * mm], hAlign="RIGHT", style=_totals_style(total))


def _totals_style(total: int) -> TableStyle:
    """Return the style of the sum: row `total` is the invoice's total, the last one the balance."""
    return TableStyle(
        [
            ("FONT", (0, 0), (-1, -1), "Sans", 9, 12),
            ("TEXTCOLOR", (0, 0), (-1, -1), INK),
            ("ALIGN", (1, 0), (1, -1), "RIGHT"),
            ("TOPPADDING", (0, 0), (-1, -1), 2.2),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 2.8),
            ("LINEABOVE", (0, total), (-1, total), 0.8, ACCENT),
            ("FONT", (0, total), (-1, total), "SansBold", 10, 13),
            ("TEXTCOLOR", (0, total), (-1, total), ACCENT),
            ("BACKGROUND", (0, -1), (-1, -1), ACCENT),
            ("TEXTCOLOR", (0, -1), (-1, -1), white),
            ("FONT", (0, -1), (-1, -1), "SansBold", 10, 13),
            ("TOPPADDING", (0, -1), (-1, -1), 4),
            ("BOTTOMPADDING", (0, -1), (-1, -1), 5),
        ]
    )


def _vat_block(invoice: Invoice) -> list[Flowable]:
    """Return the amounts by VAT rate, as the tax office wants them."""
    currency = invoice.order.currency
    head = _row(["VAT rate", "Net", "Discount", "Taxable", "VAT", "Gross"], TABLE_HEAD, left=1)
    rows = [_vat_row(share, currency) for share in invoice.order.vat_shares]
    widths = [30 * mm, *[28 * mm] * 5]
    return [
        Paragraph(f"VAT by rate, in {currency}", HEADING),
        Spacer(1, 1.5 * mm),
        Table([head, *rows], colWidths=widths, style=_LIST_STYLE),
    ]


def _vat_row(share: VatShare, currency: str) -> list[Paragraph]:
    amounts = (share.net, share.discount, share.taxable, share.vat, share.taxable + share.vat)
    return _row([_percent(share.rate), *(format_amount(amount, currency) for amount in amounts)], BODY, left=1)


def _payments_block(invoice: Invoice) -> list[Flowable]:
    """Return what was paid and paid back."""
    heading = Paragraph("Payments", HEADING)
    if not invoice.payments:
        return [heading, Paragraph("We have not received a payment yet.", BODY)]
    head = _row(["Date", "Payment", "Reference", f"Amount {invoice.order.currency}"], TABLE_HEAD, left=3)
    rows = [_payment_row(payment, invoice.order.currency) for payment in invoice.payments]
    widths = [34 * mm, 66 * mm, 35 * mm, 35 * mm]
    return [
        heading,
        Spacer(1, 1.5 * mm),
        Table([head, *rows], colWidths=widths, style=_LIST_STYLE),
    ]


def _payment_row(payment: Payment, currency: str) -> list[Paragraph]:
    what = payment.method if payment.kind is PaymentKind.PAYMENT else f"Refund, {payment.method}"
    amount = _minus(format_amount(payment.signed_amount, currency))
    return _row([_day(payment.date), what, payment.payment_id, amount], BODY, left=3)


def _closing_words(invoice: Invoice) -> str:
    order = invoice.order
    if invoice.balance > 0:
        amount = escape(format_money(invoice.balance, order.currency))
        return (
            f"Please transfer <b>{amount}</b> by <b>{_day(order.due)}</b> to the account below, "
            f"with the reference <b>{escape(order.order_id)}</b>. Thank you for your order."
        )
    if invoice.balance < 0:
        amount = escape(format_money(-invoice.balance, order.currency))
        return f"You have paid <b>{amount}</b> too much; we return it to you. Thank you for your order."
    return "Nothing is left to be paid. Thank you for your order."


#: A dark head, then rows with thin rules and every other one tinted.
_LIST_STYLE = TableStyle(
    [
        ("FONT", (0, 0), (-1, -1), "Sans", 9),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("BACKGROUND", (0, 0), (-1, 0), ACCENT),
        ("TOPPADDING", (0, 0), (-1, -1), 3),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
        ("LEFTPADDING", (0, 0), (-1, -1), 5),
        ("RIGHTPADDING", (0, 0), (-1, -1), 5),
        ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, TINT]),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
    ]
)


def _day(date: dt.date) -> str:
    """Return a date that nobody takes for another one."""
    return f"{date.day} {_MONTHS[date.month - 1]} {date.year}"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _percent(rate: Decimal) -> str:
    return f"{rate.normalize():f} %"


def _signed_money(amount: Decimal, currency: str) -> str:
    return _minus(format_money(amount, currency))


def _minus(text: str) -> str:
    """Return the text with a minus sign that is as wide as a digit."""
    return text.replace("-", "\N{MINUS SIGN}")
