"""What an invoice is: customers, orders and payments, and the money in them. Pure: no I/O."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Decimal places of each currency's smallest unit (ISO 4217).
CURRENCY_EXPONENTS = {
    "CHF": 2,
    "EUR": 2,
    "GBP": 2,
    "JPY": 0,
    "KRW": 0,
    "KWD": 3,
    "PLN": 2,
    "USD": 2,
    "VND": 0,
}
#: How long after its date an invoice is to be paid.
PAYMENT_TERM = dt.timedelta(days=14)

_ZERO = Decimal(0)
_HUNDRED = Decimal(100)
#: Characters of a wrong value that a message shows.
_SHOWN = 80


class InvalidDataError(ValueError):
    """Data that makes no invoice; the message says what was expected and what was given."""


class PaymentKind(StrEnum):
    """Which way the money went."""

    PAYMENT = "payment"
    REFUND = "refund"


class PaymentStatus(StrEnum):
    """What has become of an invoice, in words for people."""

    UNPAID = "unpaid"
    PARTIALLY_PAID = "partially paid"
    PAID = "paid"
    OVERPAID = "overpaid"
    PARTIALLY_REFUNDED = "partially refunded"
    REFUNDED = "refunded"


def round_money(amount: Decimal, currency: str) -> Decimal:
    """Round to the currency's smallest unit, halves away from zero, as tax offices do."""
    try:
        exponent = CURRENCY_EXPONENTS[currency]
    except KeyError:
        known = ", ".join(CURRENCY_EXPONENTS)
        raise InvalidDataError(f"expected a currency of {known}, got {currency!r}") from None
    return amount.quantize(Decimal(1).scaleb(-exponent), rounding=ROUND_HALF_UP)


def format_amount(amount: Decimal, currency: str) -> str:
    """Return the amount with the currency's decimals and thousands set apart: "1,234.50"."""
    return f"{round_money(amount, currency):,}"


def format_money(amount: Decimal, currency: str) -> str:
    """Return the amount with its currency: "1,234.50 EUR"."""
    return f"{format_amount(amount, currency)} {currency}"


@dataclass(frozen=True, slots=True)
class Customer:
    """A person who orders; `address` is what stands under the name on a letter, without the country."""

    user_id: str
    name: str
    address: tuple[str, ...]
    country: str
    vat_number: str | None = None

    @classmethod
    def from_json(cls, data: object) -> Customer:
        """Read what the user service says; InvalidDataError if it is no customer."""
        fields = _mapping(data, "a customer")
        return cls(
            user_id=_text(fields, "user_id"),
            name=_text(fields, "name"),
            address=_texts(fields, "address"),
            country=_text(fields, "country"),
            vat_number=None if fields.get("vat_number") is None else _text(fields, "vat_number"),
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One thing ordered; `vat_rate` in per cent."""

    description: str
    quantity: Decimal
    unit: str
    unit_price: Decimal
    vat_rate: Decimal

    @classmethod
    def from_json(cls, data: object) -> Line:
        """Read one line of an order; InvalidDataError if it is none."""
        fields = _mapping(data, "a line of an order")
        return cls(
            description=_text(fields, "description"),
            quantity=_decimal(fields, "quantity"),
            unit=_text(fields, "unit"),
            unit_price=_decimal(fields, "unit_price"),
            vat_rate=_decimal(fields, "vat_rate", highest=_HUNDRED),
        )

    def net(self, currency: str) -> Decimal:
        """Return what the line costs before discount and VAT."""
        return round_money(self.quantity * self.unit_price, currency)


@dataclass(frozen=True, slots=True)
class VatShare:
    """What of an order is taxed at one rate; all three amounts are rounded."""

    rate: Decimal
    net: Decimal
    discount: Decimal
    vat: Decimal

    @property
    def taxable(self) -> Decimal:
        """What the VAT is a part of: net less discount."""
        return self.net - self.discount


@dataclass(frozen=True)
class Order:
    """What a user ordered; `discount_rate` in per cent of everything before VAT."""

    order_id: str
    user_id: str
    date: dt.date
    currency: str
    lines: tuple[Line, ...]
    discount_rate: Decimal = _ZERO

    @classmethod
    def from_json(cls, data: object) -> Order:
        """Read what the order service says; InvalidDataError if it is no order."""
        fields = _mapping(data, "an order")
        currency = _text(fields, "currency")
        round_money(_ZERO, currency)  # an unknown currency is refused here, not when the PDF is half done
        return cls(
            order_id=_text(fields, "order_id"),
            user_id=_text(fields, "user_id"),
            date=_date(fields, "date"),
            currency=currency,
            lines=tuple(Line.from_json(line) for line in _list(fields, "lines")),
            discount_rate=_decimal(fields, "discount_rate", highest=_HUNDRED),
        )

    @property
    def due(self) -> dt.date:
        """The day until which it is to be paid."""
        return self.date + PAYMENT_TERM

    @cached_property
    def vat_shares(self) -> tuple[VatShare, ...]:
        """The order by VAT rate, the highest first; every total is the sum of these."""
        rates = sorted({line.vat_rate for line in self.lines}, reverse=True)
        return tuple(self._vat_share(rate) for rate in rates)

    def _vat_share(self, rate: Decimal) -> VatShare:
        net = _sum(line.net(self.currency) for line in self.lines if line.vat_rate == rate)
        discount = round_money(net * self.discount_rate / _HUNDRED, self.currency)
        vat = round_money((net - discount) * rate / _HUNDRED, self.currency)
        return VatShare(rate=rate, net=net, discount=discount, vat=vat)

    @property
    def net(self) -> Decimal:
        """All lines, before discount and VAT."""
        return _sum(share.net for share in self.vat_shares)

    @property
    def discount(self) -> Decimal:
        """What is taken off the net."""
        return _sum(share.discount for share in self.vat_shares)

    @property
    def vat(self) -> Decimal:
        """VAT of all rates."""
        return _sum(share.vat for share in self.vat_shares)

    @property
    def gross(self) -> Decimal:
        """What the customer is asked to pay."""
        return self.net - self.discount + self.vat


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that came in, or went back; `amount` is positive either way."""

    payment_id: str
    order_id: str
    date: dt.date
    kind: PaymentKind
    method: str
    amount: Decimal

    @classmethod
    def from_json(cls, data: object) -> Payment:
        """Read one payment of the payment service; InvalidDataError if it is none."""
        fields = _mapping(data, "a payment")
        kind = _text(fields, "kind")
        if kind not in set(PaymentKind):
            raise InvalidDataError(f"expected kind to be one of {', '.join(PaymentKind)}, got {kind!r}")
        return cls(
            payment_id=_text(fields, "payment_id"),
            order_id=_text(fields, "order_id"),
            date=_date(fields, "date"),
            kind=PaymentKind(kind),
            method=_text(fields, "method"),
            amount=_decimal(fields, "amount"),
        )

    @classmethod
    def list_from_json(cls, data: object) -> tuple[Payment, ...]:
        """Read all payments of an order."""
        if not isinstance(data, list):
            raise InvalidDataError(f"expected a list of payments, got {_shown(data)}")
        return tuple(cls.from_json(payment) for payment in data)

    @property
    def signed_amount(self) -> Decimal:
        """The amount as the seller sees it: negative when it went back."""
        return self.amount if self.kind is PaymentKind.PAYMENT else -self.amount


@dataclass(frozen=True, slots=True)
class Invoice:
    """An order with its customer and its payments, checked to belong together."""

    customer: Customer
    order: Order
    payments: tuple[Payment, ...]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, and money the currency does not have."""
        if self.order.user_id != self.customer.user_id:
            raise InvalidDataError(f"expected an order of {self.customer.user_id!r}, got one of {self.order.user_id!r}")
        for payment in self.payments:
            if payment.order_id != self.order.order_id:
                raise InvalidDataError(f"expected payments of {self.order.order_id!r}, got one of {payment.order_id!r}")
            if payment.amount != round_money(payment.amount, self.order.currency):
                raise InvalidDataError(f"expected an amount in {self.order.currency}, got {payment.amount}")
        if self.refunded > self.paid:
            raise InvalidDataError(f"expected refunds of at most the {self.paid} paid, got {self.refunded}")

    @property
    def paid(self) -> Decimal:
        """What came in, refunds not taken off."""
        return _sum(payment.amount for payment in self.payments if payment.kind is PaymentKind.PAYMENT)

    @property
    def refunded(self) -> Decimal:
        """What went back."""
        return _sum(payment.amount for payment in self.payments if payment.kind is PaymentKind.REFUND)

    @property
    def credited(self) -> Decimal:
        """What of the refunds is no longer owed: all but the return of money paid in excess."""
        overpaid = max(self.paid - self.order.gross, _ZERO)
        return max(self.refunded - overpaid, _ZERO)

    @property
    def balance(self) -> Decimal:
        """What is still to be paid; negative if too much was. Refunded goods are not owed again."""
        return self.order.gross - self.credited - (self.paid - self.refunded)

    @property
    def status(self) -> PaymentStatus:
        """What has become of it."""
        kept = self.paid - self.refunded
        if self.balance < 0:
            return PaymentStatus.OVERPAID
        if self.balance > 0:
            return PaymentStatus.PARTIALLY_PAID if kept else PaymentStatus.UNPAID
        if self.credited:
            return PaymentStatus.PARTIALLY_REFUNDED if kept else PaymentStatus.REFUNDED
        return PaymentStatus.PAID


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return sum(amounts, start=_ZERO)


def _shown(value: object) -> str:
    """Return a value as a message can bear it, whatever its length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _mapping(data: object, what: str) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise InvalidDataError(f"expected {what} as an object, got {_shown(data)}")
    return data


def _field(fields: Mapping[str, object], name: str, kind: str) -> object:
    if name not in fields:
        raise InvalidDataError(f"expected {name} to be {kind}, got nothing")
    return fields[name]


def _text(fields: Mapping[str, object], name: str) -> str:
    value = _field(fields, name, "text")
    if not isinstance(value, str) or not value:
        raise InvalidDataError(f"expected {name} to be text, got {_shown(value)}")
    return value


def _list(fields: Mapping[str, object], name: str) -> Sequence[object]:
    value = _field(fields, name, "a list")
    if not isinstance(value, list):
        raise InvalidDataError(f"expected {name} to be a list, got {_shown(value)}")
    return value


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    return tuple(_text({name: value}, name) for value in _list(fields, name))


def _decimal(fields: Mapping[str, object], name: str, *, highest: Decimal | None = None) -> Decimal:
    """Read a number written as text: JSON's own numbers are binary fractions to most readers."""
    value = _field(fields, name, "a decimal number as text")
    try:
        number = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or number < 0 or (highest is not None and number > highest):
        limit = "" if highest is None else f", at most {highest}"
        raise InvalidDataError(f"expected {name} to be a decimal number as text{limit}, got {_shown(value)}")
    return number


def _date(fields: Mapping[str, object], name: str) -> dt.date:
    value = _field(fields, name, "a date as YYYY-MM-DD")
    try:
        return dt.date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise InvalidDataError(f"expected {name} to be a date as YYYY-MM-DD, got {_shown(value)}") from None
