"""The web application: log in, order invoices, watch them being made, open them (PROTOCOL section 8)."""

from __future__ import annotations

import http
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    send_file,
    session,
    url_for,
)
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from werkzeug.exceptions import BadGateway, HTTPException, ServiceUnavailable

import celery_notify
from celery_notify.flask import create_blueprint
from example_invoice.pdf import font_folder
from example_invoice.storage import invoice_path, statement_path
from example_invoice.tasks import create_invoice, order_statement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flask.typing import ResponseReturnValue
    from werkzeug.wrappers import Response

#: The environment variable that names each data service's URL.
SERVICES = {"user": "INVOICE_USER_URL", "order": "INVOICE_ORDER_URL", "payment": "INVOICE_PAYMENT_URL"}
#: Seconds that a data service has to accept a connection, and then to answer.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 2.0, 10.0
#: What Celery raises if a chord's broker is away, its result backend, or that when it subscribes to results.
CHORD_FAILED = (OperationalError, RedisError, RuntimeError)
#: No order's id is longer.
MAX_ORDER_ID = 64
#: Bytes: no request's body is longer.
MAX_BODY = 16 * 1024
#: Nothing but our own files: no inline script or style, no frame around the page, no form to elsewhere.
PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who can log in, as the login page shows them."""

    user_id: str
    name: str
    place: str


PEOPLE = {
    person.user_id: person
    for person in (
        Person("ada", "Ada Nguyễn-Großmann", "München"),
        Person("grace", "Grâce Łukasiewicz-Høyer", "Kraków"),
        Person("alan", "Alan Şahin-Παπαδόπουλος", "Αθήνα"),
    )
}


def create_app() -> Flask:
    """Make the application; the environment says where the data services are."""
    app = Flask(__name__)
    app.config.from_mapping(
        # Without a key of its own each start makes a new one, and everybody logs in again.
        SECRET_KEY=os.environ.get("INVOICE_SECRET_KEY") or secrets.token_hex(32),
        SESSION_COOKIE_NAME="invoice_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=MAX_BODY,
    )
    app.extensions["invoice_services"] = Services()
    app.before_request(_refuse_other_sites)
    app.after_request(_add_headers)
    app.register_error_handler(HTTPException, _explain)
    app.register_blueprint(create_blueprint(load_user), url_prefix="/notifications")
    # The page is set in the invoices' own type.
    app.register_blueprint(Blueprint("fonts", __name__, static_folder=font_folder(), static_url_path="/fonts"))
    app.add_url_rule("/", "page", _page)
    app.add_url_rule("/login", "login", _login, methods=["POST"])
    app.add_url_rule("/logout", "logout", _logout, methods=["POST"])
    app.add_url_rule("/orders", "orders", _orders)
    app.add_url_rule("/invoices", "order_invoice", _order_invoice, methods=["POST"])
    app.add_url_rule("/invoices/<order_id>.pdf", "invoice", _invoice)
    app.add_url_rule("/statements", "order_statement", _order_statement, methods=["POST"])
    app.add_url_rule("/statements/<statement_id>.pdf", "statement", _statement)
    app.add_url_rule("/services/<name>", "control", _control, methods=["POST"])
    return app


def load_user() -> str | None:
    """Return the id of the person who is logged in."""
    user_id = session.get("user_id")
    return user_id if user_id in PEOPLE else None


class Services:
    """The data services as the web application needs them."""

    def __init__(self) -> None:
        # verify: they are spoken to in plain HTTP, and loading certificates takes time.
        # trust_env: they are on this machine, whatever proxy the environment names.
        timeout = httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT)
        self._http = httpx.Client(timeout=timeout, verify=False, trust_env=False)  # noqa: S501
        self._known: dict[str, set[str]] = {}

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._http.close()

    def orders(self, user_id: str) -> list[dict[str, Any]]:
        """Return the user's orders, the newest first. Raises BadGateway or ServiceUnavailable."""
        orders = self._call("GET", "order", f"/users/{quote(user_id, safe='')}/orders")
        if not isinstance(orders, list) or not all(_is_order(order) for order in orders):
            raise BadGateway("The order service sent something that is no list of orders.")
        self._known[user_id] = {order["order_id"] for order in orders}
        return orders[::-1]

    def has_order(self, user_id: str, order_id: str) -> bool:
        """Say whether the order is the user's.

        An order never changes hands, so that what has been seen once is not asked for again: the service may
        be slow or away, and it is the task's part to wait for it.
        """
        if order_id in self._known.get(user_id, ()):
            return True
        return any(order["order_id"] == order_id for order in self.orders(user_id))

    def control(self, name: str, body: bytes) -> tuple[object, int]:
        """Make a service slow or let it fail; return its answer and the status to send on."""
        try:
            return self._call("POST", name, "/control", content=body), http.HTTPStatus.OK
        except _RefusedError as refused:
            return {"error": refused.reason}, http.HTTPStatus.BAD_REQUEST

    def _call(self, method: str, name: str, path: str, *, content: bytes | None = None) -> object:
        url = os.environ.get(SERVICES[name], "")
        try:
            response = self._http.request(method, url.rstrip("/") + path, content=content)
            answer: object = response.json()
        except (httpx.TransportError, httpx.InvalidURL):
            raise ServiceUnavailable(f"The {name} service is away. Please try again.") from None
        except ValueError:
            raise BadGateway(f"The {name} service sent something that is no JSON.") from None
        if response.status_code == http.HTTPStatus.BAD_REQUEST:
            raise _RefusedError(name, answer)
        if not response.is_success:
            raise BadGateway(f"The {name} service is out of order. Please try again.")
        return answer


class _RefusedError(BadGateway):
    """A data service found the request wrong and says why."""

    def __init__(self, name: str, answer: object) -> None:
        super().__init__(f"The {name} service refused the request.")
        self.reason = str(answer.get("error")) if isinstance(answer, dict) else self.description


def _is_order(order: object) -> bool:
    return isinstance(order, dict) and isinstance(order.get("order_id"), str)


def _services() -> Services:
    services: Services = current_app.extensions["invoice_services"]
    return services


def _user() -> str:
    """Return who is logged in, or answer 401."""
    return load_user() or abort(401, "Please log in.")


def _page() -> str:
    user_id = load_user()
    return render_template("page.html", people=PEOPLE.values(), person=PEOPLE.get(user_id or ""))


def _login() -> ResponseReturnValue:
    user_id = request.form.get("user_id", "")
    if user_id not in PEOPLE:
        abort(400, f'expected "user_id" to be one of {", ".join(PEOPLE)}')
    session.clear()
    session["user_id"] = user_id
    return redirect(url_for("page"), 303)


def _logout() -> ResponseReturnValue:
    user_id = load_user()
    session.clear()
    if user_id is not None:
        celery_notify.close_streams(user_id)
    return redirect(url_for("page"), 303)


def _orders() -> ResponseReturnValue:
    user_id = _user()
    orders = _services().orders(user_id)
    return jsonify([{**order, "invoice": _invoice_url(user_id, order["order_id"])} for order in orders])


def _invoice_url(user_id: str, order_id: str) -> str | None:
    """Return where an order's invoice is, None while none has been made."""
    return url_for("invoice", order_id=order_id) if invoice_path(user_id, order_id).is_file() else None


def _order_invoice() -> ResponseReturnValue:
    user_id = _user()
    order_id = _order_id(request.get_json(silent=True))
    if not _services().has_order(user_id, order_id):
        abort(404, "You have no such order.")
    try:
        task = create_invoice.delay(user_id, order_id)
    except OperationalError:
        abort(503, "No invoice can be ordered at the moment. Please try again.")
    return jsonify(task_id=task.id), 202


def _order_id(body: object) -> str:
    order_id = body.get("order_id") if isinstance(body, dict) else None
    if not isinstance(order_id, str) or not 0 < len(order_id) <= MAX_ORDER_ID:
        abort(400, 'expected a JSON object with "order_id", a text')
    return order_id


def _invoice(order_id: str) -> ResponseReturnValue:
    return _own_pdf("invoice", invoice_path, order_id)


def _order_statement() -> ResponseReturnValue:
    user_id = _user()
    orders = _services().orders(user_id)
    if not orders:
        abort(409, "You have no orders yet.")
    try:
        statement_id = order_statement(user_id, [order["order_id"] for order in reversed(orders)])  # the oldest first
    except CHORD_FAILED:
        abort(503, "No statement can be ordered at the moment. Please try again.")
    return jsonify(task_id=statement_id), 202


def _statement(statement_id: str) -> ResponseReturnValue:
    return _own_pdf("statement", statement_path, statement_id)


def _own_pdf(kind: str, path_of: Callable[[str, str], Path], name: str) -> ResponseReturnValue:
    """Send the user's own PDF; what is another's, and what is not there, are answered alike."""
    user_id = load_user()
    path = None if user_id is None else path_of(user_id, name)
    if path is None or not path.is_file():
        abort(404, f"You have no such {kind}.")
    response = send_file(path.absolute(), mimetype="application/pdf")
    response.headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(f'{kind}-{name}.pdf', safe='')}"
    response.headers["Cache-Control"] = "private, no-store"
    return response


def _control(name: str) -> ResponseReturnValue:
    """Pass on what is to go wrong with a data service; for the demonstration only, so nobody need log in."""
    if name not in SERVICES:
        abort(404, f"expected one of the services {', '.join(SERVICES)}")
    answer, status = _services().control(name, request.get_data())
    return jsonify(answer), status


def _refuse_other_sites() -> None:
    """Refuse what another site's page has the browser send; without either header it is no browser."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    own = site in {"same-origin", "none"} if site else origin in {None, request.host_url.rstrip("/")}
    if not own:
        abort(403, "This request came from another site.")


def _add_headers(response: Response) -> Response:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if response.mimetype == "text/html":
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    if request.endpoint in {"page", "orders"}:
        response.headers.setdefault("Cache-Control", "private, no-store")
    return response


def _explain(error: HTTPException) -> ResponseReturnValue:
    """Answer errors in JSON, with the headers that belong to them."""
    response = error.get_response()
    if response.status_code >= http.HTTPStatus.BAD_REQUEST:
        response.data = current_app.json.dumps({"error": error.description})
        response.content_type = "application/json"
    return response
