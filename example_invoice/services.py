"""The three data services, as another department would run them: HTTP and JSON, each with its own database.

`POST /control` makes one slow or lets its next calls fail, so that one can watch what the others make of it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, jsonify, request
from werkzeug.exceptions import HTTPException

from example_invoice.domain import Order, format_money

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.typing import ResponseReturnValue

DATA = Path(__file__).parent / "data"
#: The longest latency, in seconds, that can be asked for.
MAX_LATENCY = 60.0
#: The largest number of failures that can be asked for.
MAX_FAILURES = 1000

_SCHEMAS = {
    "user": "CREATE TABLE users (user_id TEXT PRIMARY KEY, document TEXT NOT NULL)",
    "order": """
        CREATE TABLE orders (order_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, date TEXT NOT NULL,
                             currency TEXT NOT NULL, discount_rate TEXT NOT NULL);
        CREATE INDEX orders_of_user ON orders (user_id, date);
        CREATE TABLE lines (order_id TEXT NOT NULL REFERENCES orders, position INTEGER NOT NULL,
                            description TEXT NOT NULL, quantity TEXT NOT NULL, unit TEXT NOT NULL,
                            unit_price TEXT NOT NULL, vat_rate TEXT NOT NULL,
                            PRIMARY KEY (order_id, position));
    """,
    "payment": """
        CREATE TABLE payments (payment_id TEXT PRIMARY KEY, order_id TEXT NOT NULL, date TEXT NOT NULL,
                               kind TEXT NOT NULL, method TEXT NOT NULL, amount TEXT NOT NULL);
        CREATE INDEX payments_of_order ON payments (order_id, date);
    """,
}


class ControlError(ValueError):
    """A request to `/control` that cannot be carried out."""


@dataclass
class Faults:
    """What is wrong with a service at the moment: seconds each call takes, how many of the next ones fail."""

    latency: float = 0.0
    failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def change(self, wanted: object) -> dict[str, float]:
        """Take over what `wanted` names, all or nothing, and return what is now in force."""
        if not isinstance(wanted, dict):
            raise ControlError(f'expected an object with "latency" and "failures", got {wanted!r:.80}')
        unknown = sorted(set(wanted) - {"latency", "failures"})
        if unknown:
            raise ControlError(f'expected "latency" or "failures", got {unknown[0]!r:.80}')
        with self._lock:
            latency = _latency(wanted.get("latency", self.latency))
            self.failures = _failures(wanted.get("failures", self.failures))
            self.latency = latency
            return {"latency": self.latency, "failures": self.failures}

    def strike(self) -> bool:
        """Wait out the latency, then say whether this call fails."""
        threading.Event().wait(self.latency)
        with self._lock:
            fails = self.failures > 0
            self.failures -= fails
            return fails


def create_app(name: str, database: Path | str) -> Flask:
    """Make one of the services "user", "order" and "payment"; `database` is a file, made anew."""
    if name not in _SERVICES:
        raise ValueError(f"expected one of {', '.join(_SERVICES)}, got {name!r}")
    path = Path(database)
    app = Flask(f"{__name__}.{name}")
    faults = app.extensions["faults"] = Faults()
    _SERVICES[name](app, path)
    app.add_url_rule("/health", "health", lambda: jsonify(service=name))
    app.add_url_rule("/control", "control", lambda: _control(faults), methods=["POST"])
    app.before_request(lambda: _suffer(faults))
    app.register_error_handler(HTTPException, _explain)
    return app


def _user_service(app: Flask, database: Path) -> None:
    users = [(user["user_id"], json.dumps(user)) for user in _data("users")]
    _fill(database, _SCHEMAS["user"], {"INSERT INTO users VALUES (?, ?)": users})

    def user(user_id: str) -> ResponseReturnValue:
        rows = _query(database, "SELECT document FROM users WHERE user_id = ?", user_id)
        return jsonify(json.loads(rows[0]["document"])) if rows else _absent("user")

    app.add_url_rule("/users/<user_id>", view_func=user)


def _order_service(app: Flask, database: Path) -> None:
    orders = _data("orders")
    lines = [
        {**line, "order_id": order["order_id"], "position": position}
        for order in orders
        for position, line in enumerate(order["lines"], start=1)
    ]
    _fill(
        database,
        _SCHEMAS["order"],
        {
            "INSERT INTO orders VALUES (:order_id, :user_id, :date, :currency, :discount_rate)": orders,
            """INSERT INTO lines VALUES
               (:order_id, :position, :description, :quantity, :unit, :unit_price, :vat_rate)""": lines,
        },
    )

    def orders_of(user_id: str) -> ResponseReturnValue:
        found = _query(database, "SELECT * FROM orders WHERE user_id = ? ORDER BY date, order_id", user_id)
        return jsonify([_summary(Order.from_json(_with_lines(database, order))) for order in found])

    def order(order_id: str) -> ResponseReturnValue:
        found = _query(database, "SELECT * FROM orders WHERE order_id = ?", order_id)
        return jsonify(_with_lines(database, found[0])) if found else _absent("order")

    app.add_url_rule("/users/<user_id>/orders", view_func=orders_of)
    app.add_url_rule("/orders/<order_id>", view_func=order)


def _payment_service(app: Flask, database: Path) -> None:
    insert = "INSERT INTO payments VALUES (:payment_id, :order_id, :date, :kind, :method, :amount)"
    _fill(database, _SCHEMAS["payment"], {insert: _data("payments")})

    def payments(order_id: str) -> ResponseReturnValue:
        select = "SELECT * FROM payments WHERE order_id = ? ORDER BY date, payment_id"
        return jsonify(_query(database, select, order_id))

    app.add_url_rule("/orders/<order_id>/payments", view_func=payments)


#: Each fills its database and adds its endpoints.
_SERVICES: dict[str, Callable[[Flask, Path], None]] = {
    "user": _user_service,
    "order": _order_service,
    "payment": _payment_service,
}


def _with_lines(database: Path, order: dict[str, Any]) -> dict[str, Any]:
    lines = _query(
        database,
        """SELECT description, quantity, unit, unit_price, vat_rate FROM lines
           WHERE order_id = ? ORDER BY position""",
        order["order_id"],
    )
    return {**order, "lines": lines}


def _summary(order: Order) -> dict[str, Any]:
    """Return what a list of orders shows: `lines` is their number, `total` text for people."""
    return {
        "order_id": order.order_id,
        "date": order.date.isoformat(),
        "currency": order.currency,
        "lines": len(order.lines),
        "total": format_money(order.gross, order.currency),
    }


def _data(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return rows


def _fill(database: Path, schema: str, rows: dict[str, list[Any]]) -> None:
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(schema)
        for statement, values in rows.items():
            connection.executemany(statement, values)


def _query(database: Path, statement: str, *values: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def _suffer(faults: Faults) -> ResponseReturnValue | None:
    """Apply the faults to calls for data; the means to end them, and the health check, are spared."""
    if request.endpoint in {None, "health", "control"} or not faults.strike():
        return None
    return jsonify(error="the service is out of order"), 503


def _control(faults: Faults) -> ResponseReturnValue:
    try:
        return jsonify(faults.change(request.get_json(force=True)))
    except ControlError as error:
        return jsonify(error=str(error)), 400


def _latency(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_LATENCY:
        raise ControlError(f'expected "latency" to be seconds from 0 to {MAX_LATENCY:g}, got {value!r:.80}')
    return float(value)


def _failures(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_FAILURES:
        raise ControlError(f'expected "failures" to be a whole number from 0 to {MAX_FAILURES}, got {value!r:.80}')
    return value


def _absent(what: str) -> ResponseReturnValue:
    return jsonify(error=f"there is no such {what}"), 404


def _explain(error: HTTPException) -> ResponseReturnValue:
    """Answer errors in JSON, as everything else."""
    return jsonify(error=error.description), error.code or 500
