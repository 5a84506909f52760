from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_invoice.domain import (
    CURRENCY_EXPONENTS,
    Customer,
    InvalidDataError,
    Invoice,
    Line,
    Order,
    Payment,
    PaymentKind,
    PaymentStatus,
    format_money,
    round_money,
)
from tests.example_invoice.running import invoices

CUSTOMER = Customer("ada", "Ada Nguyễn-Großmann", ("Münzstraße 14", "80331 München"), "Germany")
DAY = dt.date(2026, 2, 3)


def order(*lines: Line, currency: str = "EUR", discount: str = "0") -> Order:
    return Order("A-1", "ada", DAY, currency, lines, Decimal(discount))


def line(price: str, *, quantity: str = "1", rate: str = "19") -> Line:
    return Line("Ink", Decimal(quantity), "pcs", Decimal(price), Decimal(rate))


def payment(amount: str, kind: PaymentKind = PaymentKind.PAYMENT) -> Payment:
    return Payment("P-1", "A-1", DAY, kind, "Card", Decimal(amount))


def refund(amount: str) -> Payment:
    return payment(amount, PaymentKind.REFUND)


def test_a_half_is_rounded_away_from_zero() -> None:
    assert round_money(Decimal("2.675"), "EUR") == Decimal("2.68")
    assert round_money(Decimal("-2.675"), "EUR") == Decimal("-2.68")


@pytest.mark.parametrize(
    ("currency", "text"), [("EUR", "1,234.57 EUR"), ("JPY", "1,235 JPY"), ("KWD", "1,234.568 KWD")]
)
def test_money_has_the_decimals_of_its_currency(currency: str, text: str) -> None:
    assert format_money(Decimal("1234.5678"), currency) == text


def test_an_unknown_currency_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidDataError, match=r"expected a currency of CHF, EUR, .*, got 'XYZ'"):
        round_money(Decimal(1), "XYZ")


def test_each_line_is_rounded_before_it_is_added() -> None:
    assert order(line("0.333", quantity="2"), line("0.333", quantity="2")).net == Decimal("1.34")


def test_vat_is_computed_for_each_rate_on_what_the_discount_leaves() -> None:
    shares = order(line("100.00"), line("50.00", rate="7"), line("10.00", rate="0"), discount="10").vat_shares
    assert [(share.rate, share.taxable, share.vat) for share in shares] == [
        (Decimal(19), Decimal("90.00"), Decimal("17.10")),
        (Decimal(7), Decimal("45.00"), Decimal("3.15")),
        (Decimal(0), Decimal("9.00"), Decimal("0.00")),
    ]


def test_the_totals_of_an_order_in_a_currency_without_decimals_have_none() -> None:
    totals = order(line("999", quantity="0.5"), line("1"), currency="JPY", discount="2.5")
    assert (totals.net, totals.discount, totals.vat, totals.gross) == (501, 13, 93, 581)
    assert totals.gross.as_tuple().exponent == 0


amounts = st.decimals(min_value=0, max_value=10**6, places=3)
lines = st.builds(
    Line,
    description=st.just("Ink"),
    quantity=amounts,
    unit=st.just("pcs"),
    unit_price=amounts,
    vat_rate=st.sampled_from([Decimal(0), Decimal(7), Decimal("7.7"), Decimal(19)]),
)


@given(st.lists(lines, max_size=60), st.sampled_from(sorted(CURRENCY_EXPONENTS)), st.integers(0, 100))
def test_the_totals_add_up_to_the_smallest_unit(lines: list[Line], currency: str, discount: int) -> None:
    total = order(*lines, currency=currency, discount=str(discount))
    assert total.gross == total.net - total.discount + total.vat
    assert total.gross == sum(share.taxable + share.vat for share in total.vat_shares)
    assert total.net == sum(line.net(currency) for line in lines)
    assert all(
        round_money(amount, currency) == amount for amount in (total.net, total.discount, total.vat, total.gross)
    )
    assert 0 <= total.discount <= total.net


@pytest.mark.parametrize(
    ("payments", "status", "balance"),
    [
        ([], PaymentStatus.UNPAID, "100"),
        ([payment("40")], PaymentStatus.PARTIALLY_PAID, "60"),
        ([payment("40"), payment("60")], PaymentStatus.PAID, "0"),
        ([payment("100"), refund("100")], PaymentStatus.REFUNDED, "0"),
        ([payment("100"), refund("30")], PaymentStatus.PARTIALLY_REFUNDED, "0"),
        ([payment("120")], PaymentStatus.OVERPAID, "-20"),
        ([payment("120"), refund("20")], PaymentStatus.PAID, "0"),
        ([payment("120"), refund("50")], PaymentStatus.PARTIALLY_REFUNDED, "0"),
        ([payment("40"), refund("40")], PaymentStatus.UNPAID, "60"),
    ],
)
def test_payments_and_refunds_decide_what_is_still_owed(
    payments: list[Payment], status: PaymentStatus, balance: str
) -> None:
    invoice = Invoice(CUSTOMER, order(line("100", rate="0")), tuple(payments))
    assert (invoice.status, invoice.balance) == (status, Decimal(balance))


def test_an_order_without_lines_is_paid() -> None:
    assert Invoice(CUSTOMER, order(), ()).status is PaymentStatus.PAID


def test_parts_that_do_not_belong_together_make_no_invoice() -> None:
    with pytest.raises(InvalidDataError, match="expected an order of 'ada', got one of 'grace'"):
        Invoice(CUSTOMER, replace(order(), user_id="grace"), ())
    with pytest.raises(InvalidDataError, match="expected payments of 'A-1', got one of 'A-2'"):
        Invoice(CUSTOMER, order(line("1")), (replace(payment("1"), order_id="A-2"),))
    with pytest.raises(InvalidDataError, match="expected refunds of at most the 5 paid, got 6"):
        Invoice(CUSTOMER, order(line("9")), (payment("5"), refund("6")))
    with pytest.raises(InvalidDataError, match=r"expected an amount in JPY, got 0\.5"):
        Invoice(CUSTOMER, order(line("9"), currency="JPY"), (payment("0.5"),))


def good_order() -> dict[str, Any]:
    a_line = {"description": "Ink", "quantity": "2", "unit": "pcs", "unit_price": "9.95", "vat_rate": "19"}
    return {
        "order_id": "A-1",
        "user_id": "ada",
        "date": "2026-02-03",
        "currency": "EUR",
        "discount_rate": "0",
        "lines": [a_line],
    }


def test_an_order_is_read_from_json() -> None:
    assert Order.from_json(good_order()) == order(line("9.95", quantity="2"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order_id", 7, "expected order_id to be text, got 7"),
        ("order_id", "", "expected order_id to be text, got ''"),
        ("date", "3.2.2026", "expected date to be a date as YYYY-MM-DD, got '3.2.2026'"),
        ("date", None, "expected date to be a date as YYYY-MM-DD, got None"),
        ("discount_rate", 5, "expected discount_rate to be a decimal number as text, at most 100, got 5"),
        ("discount_rate", "NaN", "expected discount_rate to be a decimal number as text, at most 100, got 'NaN'"),
        ("discount_rate", "-1", "expected discount_rate to be a decimal number as text, at most 100, got '-1'"),
        ("discount_rate", "101", "expected discount_rate to be a decimal number as text, at most 100, got '101'"),
        ("lines", {}, "expected lines to be a list, got {}"),
        ("lines", [3], "expected a line of an order as an object, got 3"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_both_sides(field: str, value: object, message: str) -> None:
    with pytest.raises(InvalidDataError) as refusal:
        Order.from_json({**good_order(), field: value})
    assert str(refusal.value) == message


def test_a_missing_field_is_named() -> None:
    fields = good_order()
    del fields["currency"]
    with pytest.raises(InvalidDataError, match="expected currency to be text, got nothing"):
        Order.from_json(fields)


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(InvalidDataError) as refusal:
        Customer.from_json("x" * 10_000)
    assert len(str(refusal.value)) < 200


def test_a_payment_of_an_unknown_kind_is_refused() -> None:
    fields = {"payment_id": "P-1", "order_id": "A-1", "date": "2026-02-03", "kind": "gift", "method": "", "amount": "1"}
    with pytest.raises(InvalidDataError, match="expected kind to be one of payment, refund, got 'gift'"):
        Payment.from_json(fields)


def test_the_data_show_all_that_an_invoice_can_be() -> None:
    shown = invoices().values()
    assert {invoice.customer.user_id for invoice in shown} == {"ada", "grace", "alan"}
    assert {len(invoice.order.lines) for invoice in shown} >= {1, 60}
    assert {CURRENCY_EXPONENTS[invoice.order.currency] for invoice in shown} == {0, 2}
    assert any(invoice.order.discount for invoice in shown)
    assert max(len(invoice.order.vat_shares) for invoice in shown) == 3
    assert {invoice.status for invoice in shown} == set(PaymentStatus) - {PaymentStatus.OVERPAID}
