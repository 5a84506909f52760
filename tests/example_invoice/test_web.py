"""The demo's web application over HTTP, with a real order service beside it; `tests/browser` sees its page."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest

from example_invoice.pdf import FONTS
from example_invoice.storage import FOLDER_VARIABLE, invoice_path, statement_path, store
from tests.support.processes import PYTHON, Process, free_port
from tests.support.waiting import SLOWNESS, wait_until
from tests.support.web_servers import without_control_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.redis_server import GivenRedis, RedisServer

PDF = b"%PDF-1.4 not much of one"
STATEMENT = "0b5d9f3e-7a52-4c1e-9a0b-4f6f0c6a1d2e"


class Site:
    """The web application in a process of its own, and what its visitors share."""

    def __init__(self, url: str, invoices: Path) -> None:
        self.url = url
        self.invoices = invoices

    def visitor(self, user_id: str | None = None) -> httpx.Client:
        """Return a browser of sorts: it has cookies, follows no redirect, and may have logged in."""
        client = httpx.Client(base_url=self.url, timeout=20 * SLOWNESS, trust_env=False)
        if user_id is not None:
            assert client.post("/login", data={"user_id": user_id}).status_code == 303
        return client


def start(
    application: str, folder: Path, *, name: str, settings: dict[str, str], lasting: bool = True
) -> tuple[Process, str]:
    """Start gunicorn; return its process and its URL."""
    process = Process(
        *(*PYTHON, "-m", "gunicorn", application, "--bind", "127.0.0.1:0"),
        *("--worker-class", "gthread", "--threads", "4", *without_control_socket()),
        folder=folder,
        name=name,
        settings=settings,
        lasting=lasting,
    ).start()
    listening = re.compile(r"Listening at: (http://127\.0\.0\.1:\d+)")
    found = wait_until(lambda: listening.search(process.log()), what=lambda: f"an address in\n{process.log()}")
    process.wait_for_log("Booting worker")
    return process, found[1]


@dataclass(frozen=True, slots=True)
class OrderService:
    """The service of the orders, and the database it reads at each request."""

    url: str
    database: Path

    @contextlib.contextmanager
    def left_with(self, user_id: str, *order_ids: str) -> Iterator[None]:
        """Let the user have no orders but these, for a while."""
        self._change(
            """UPDATE orders SET user_id = 'not ' || user_id
               WHERE user_id = ? AND order_id NOT IN (SELECT value FROM json_each(?))""",
            user_id,
            json.dumps(order_ids),
        )
        try:
            yield
        finally:
            self._change("UPDATE orders SET user_id = ? WHERE user_id = 'not ' || ?", user_id, user_id)

    def _change(self, statement: str, *values: str) -> None:
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(statement, values)


@pytest.fixture(scope="module")
def order_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrderService]:
    folder = tmp_path_factory.mktemp("order-service")
    database = folder / "order.db"
    application = f"example_invoice.services:create_app('order', {str(database)!r})"
    process, url = start(application, folder, name="order", settings={})
    yield OrderService(url, database)
    process.stop()


@pytest.fixture(scope="module")
def site(
    order_service: OrderService, lasting_redis: GivenRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web")
    settings = {
        "CELERY_NOTIFY_REDIS_URL": lasting_redis.url,
        "CELERY_BROKER_URL": "memory://",
        "CELERY_RESULT_BACKEND": "cache+memory://",
        "INVOICE_ORDER_URL": order_service.url,
        "INVOICE_USER_URL": f"http://127.0.0.1:{free_port()}",  # where nobody listens
        FOLDER_VARIABLE: str(folder / "invoices"),
    }
    process, url = start("example_invoice.web:create_app()", folder, name="web", settings=settings)
    yield Site(url, folder / "invoices")
    process.stop()


@pytest.fixture
def visitor(site: Site) -> Iterator[Callable[[str | None], httpx.Client]]:
    """Return what makes visitors: `visitor("ada")` has logged in, `visitor(None)` has not."""
    opened: list[httpx.Client] = []

    def make(user_id: str | None) -> httpx.Client:
        opened.append(site.visitor(user_id))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


Visitor = "Callable[[str | None], httpx.Client]"


@pytest.fixture
def ada(visitor: Visitor) -> httpx.Client:
    return visitor("ada")


@pytest.fixture
def nobody(visitor: Visitor) -> httpx.Client:
    return visitor(None)


# Logging in and out


def test_the_page_asks_who_is_there_and_then_shows_a_desk(nobody: httpx.Client) -> None:
    page = nobody.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.count('name="user_id"') == 3
    nobody.post("/login", data={"user_id": "alan"})
    assert "<task-list" in nobody.get("/").text


def test_the_page_is_set_in_the_type_of_the_invoices(nobody: httpx.Client) -> None:
    files = re.findall(r'href="(/fonts/[^"]+)"', nobody.get("/").text)
    assert set(FONTS.values()) < {file.removeprefix("/fonts/") for file in files}
    for file in files:
        answer = nobody.get(file)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "font/ttf")
        assert answer.content.startswith(b"\0\1\0\0")


def test_the_session_cookie_is_out_of_reach_for_scripts_and_other_sites(nobody: httpx.Client) -> None:
    answer = nobody.post("/login", data={"user_id": "ada"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    attributes = answer.headers["set-cookie"].split("; ")[1:]
    assert set(attributes) >= {"HttpOnly", "SameSite=Lax"}


@pytest.mark.parametrize("form", [{}, {"user_id": ""}, {"user_id": "eve"}, {"user_id": ["eve", "ada"]}])
def test_nobody_else_logs_in(nobody: httpx.Client, form: dict[str, str]) -> None:
    answer = nobody.post("/login", data=form)
    assert answer.status_code == 400
    assert "ada, grace, alan" in answer.json()["error"]
    assert nobody.get("/orders").status_code == 401


def test_a_cookie_that_was_tampered_with_is_no_session(ada: httpx.Client, nobody: httpx.Client) -> None:
    [value] = ada.cookies.values()
    nobody.cookies.set("invoice_session", value[:-2] + "xx")
    assert nobody.get("/orders").status_code == 401


def test_after_logging_out_nothing_is_shown_any_more(ada: httpx.Client) -> None:
    answer = ada.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert ada.get("/orders").status_code == 401
    assert ada.get("/notifications/stream").status_code == 401
    assert ada.post("/logout").status_code == 303


@pytest.mark.defends("S11")
def test_logging_out_ends_the_users_streams_and_no_others(visitor: Visitor) -> None:
    ada, elsewhere, grace = visitor("ada"), visitor("ada"), visitor("grace")
    with (
        elsewhere.stream("GET", "/notifications/stream") as hers,
        grace.stream("GET", "/notifications/stream") as other,
    ):
        lines, others = hers.iter_lines(), other.iter_lines()
        for stream in (lines, others):
            assert next(line for line in stream if line.startswith("event:")) == "event: ready"
        ada.post("/logout")
        assert [line for line in lines if line.startswith("event:")] == []  # to its orderly end
        assert grace.post("/notifications/tasks/none/cancel").status_code in {404, 405}
        assert not other.is_closed


# Orders


def test_a_users_orders_are_listed_the_newest_first(ada: httpx.Client) -> None:
    orders = ada.get("/orders").json()
    assert len(orders) > 1
    assert [order["date"] for order in orders] == sorted((order["date"] for order in orders), reverse=True)
    assert {"order_id", "date", "currency", "lines", "total"} <= set(orders[0])


def test_whoever_has_not_logged_in_gets_401_and_json(nobody: httpx.Client) -> None:
    ordered = nobody.post("/invoices", json={"order_id": "A-1001"}), nobody.post("/statements")
    for answer in (nobody.get("/orders"), *ordered):
        assert (answer.status_code, answer.json()) == (401, {"error": "Please log in."})


def test_an_order_service_that_fails_is_502(ada: httpx.Client) -> None:
    assert ada.post("/services/order", json={"failures": 1}).json() == {"latency": 0, "failures": 1}
    answer = ada.get("/orders")
    assert answer.status_code == 502
    assert "order service" in answer.json()["error"]
    assert ada.get("/orders").status_code == 200


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "", "no address"])
def test_an_order_service_that_is_away_is_503(tmp_path: Path, lasting_redis: GivenRedis, address: str) -> None:
    settings = {
        "CELERY_NOTIFY_REDIS_URL": lasting_redis.url,
        "CELERY_BROKER_URL": "memory://",
        "INVOICE_ORDER_URL": address,
    }
    process, url = start("example_invoice.web:create_app()", tmp_path, name="web", settings=settings, lasting=False)
    try:
        with contextlib.closing(Site(url, tmp_path).visitor("ada")) as ada:
            ordered = ada.post("/invoices", json={"order_id": "A-1001"}), ada.post("/statements")
            for answer in (ada.get("/orders"), *ordered):
                assert answer.status_code == 503
                assert "order service" in answer.json()["error"]
    finally:
        process.stop()


# Ordering invoices


def test_an_invoice_of_ones_own_order_is_accepted(ada: httpx.Client) -> None:
    answer = ada.post("/invoices", json={"order_id": "A-1001"})
    assert answer.status_code == 202
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.json()["task_id"])


def test_the_page_holds_the_state_and_no_cache_keeps_it(ada: httpx.Client, nobody: httpx.Client) -> None:
    task_id = ada.post("/invoices", json={"order_id": "A-1001"}).json()["task_id"]
    wait_until(lambda: task_id in ada.get("/").text, what="the task in the page")
    assert ada.get("/").headers["cache-control"] == "private, no-store"
    assert "application/json" not in nobody.get("/").text


@pytest.mark.defends("S19")
@pytest.mark.parametrize("order_id", ["G-2001", "A-9999", "a-1001", "A-1001 ", "../A-1001", "*", "\u202e"])
def test_what_is_not_ones_own_order_is_404(ada: httpx.Client, order_id: str) -> None:
    answer = ada.post("/invoices", json={"order_id": order_id})
    assert (answer.status_code, answer.json()) == (404, {"error": "You have no such order."})


@pytest.mark.parametrize(
    "body",
    ["", "{", "null", "[]", '"A-1001"', "{}", '{"order_id": null}', '{"order_id": 1001}', '{"order_id": ""}',
     '{"order_id": ["A-1001"]}', '{"order_id": "%s"}' % ("x" * 65), "\xff"],
)  # fmt: skip
def test_a_body_that_makes_no_sense_is_400(ada: httpx.Client, body: str) -> None:
    answer = ada.post("/invoices", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "order_id" in answer.json()["error"]


def test_a_body_that_is_not_said_to_be_json_is_400(ada: httpx.Client) -> None:
    assert ada.post("/invoices", content='{"order_id": "A-1001"}').status_code == 400


def test_a_body_that_is_too_long_is_413(ada: httpx.Client) -> None:
    answer = ada.post("/invoices", json={"order_id": "x" * 20_000})
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_an_order_once_seen_can_be_invoiced_while_the_order_service_is_away(ada: httpx.Client) -> None:
    ada.get("/orders")
    ada.post("/services/order", json={"failures": 1})
    try:
        assert ada.post("/invoices", json={"order_id": "A-1001"}).status_code == 202
        assert ada.get("/orders").status_code == 502  # the failure was left for whoever asks the service
    finally:
        ada.post("/services/order", json={"failures": 0})


@pytest.fixture
def own_site(tmp_path: Path, own_redis: RedisServer, order_service: OrderService) -> Iterator[Site]:
    """Start the web application on a Redis that the test may kill."""
    settings = {
        "CELERY_NOTIFY_REDIS_URL": own_redis.url,
        "CELERY_BROKER_URL": own_redis.admin_url,
        "INVOICE_ORDER_URL": order_service.url,
    }
    process, url = start("example_invoice.web:create_app()", tmp_path, name="web", settings=settings, lasting=False)
    yield Site(url, tmp_path)
    process.stop()


def test_a_broker_that_is_away_is_503(own_site: Site, own_redis: RedisServer) -> None:
    with contextlib.closing(own_site.visitor("ada")) as ada:
        own_redis.kill()
        answer = ada.post("/invoices", json={"order_id": "A-1001"})
        assert (answer.status_code, list(answer.json())) == (503, ["error"])


# Ordering statements


def test_a_statement_is_accepted_and_each_is_another_one(ada: httpx.Client) -> None:
    answers = [ada.post("/statements") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    one, other = (answer.json()["task_id"] for answer in answers)
    assert re.fullmatch(r"[0-9a-f-]{36}", one)
    assert one != other


def test_what_is_sent_with_the_order_of_a_statement_says_nothing(ada: httpx.Client) -> None:
    for body in ("{", "[]", '{"user_id": "grace"}'):
        answer = ada.post("/statements", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 202


def test_whoever_has_no_orders_gets_409(ada: httpx.Client, order_service: OrderService) -> None:
    with order_service.left_with("ada"):
        answer = ada.post("/statements")
    assert (answer.status_code, answer.json()) == (409, {"error": "You have no orders yet."})
    assert ada.post("/statements").status_code == 202


def test_a_statement_is_not_ordered_without_knowing_all_orders(ada: httpx.Client) -> None:
    ada.get("/orders")
    ada.post("/services/order", json={"failures": 1})
    answer = ada.post("/statements")
    assert answer.status_code == 502
    assert "order service" in answer.json()["error"]


@pytest.mark.parametrize("order_ids", [["A-1001"], ["A-1001", "A-1002"]])  # one alone takes another way in Celery
@pytest.mark.parametrize("used", [False, True])
def test_no_statement_is_made_while_redis_is_away(
    own_site: Site, own_redis: RedisServer, order_service: OrderService, order_ids: list[str], *, used: bool
) -> None:
    with contextlib.closing(own_site.visitor("ada")) as ada, order_service.left_with("ada", *order_ids):
        if used:
            assert ada.post("/statements").status_code == 202
        own_redis.kill()
        answer = ada.post("/statements")
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        own_redis.start()
        assert ada.post("/statements").status_code == 202


def test_the_web_application_waits_for_no_statement(own_site: Site, own_redis: RedisServer) -> None:
    with contextlib.closing(own_site.visitor("ada")) as ada, own_redis.client() as client:
        for _ in range(3):
            assert ada.post("/statements").status_code == 202
        assert client.pubsub_channels("celery-task-meta-*") == []


# PDFs


@pytest.fixture
def make_pdf(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what puts a PDF where the task puts it."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(site.invoices))
    return lambda user_id, order_id: store(invoice_path(user_id, order_id), PDF)


@pytest.fixture
def make_statement(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what puts a statement where its task puts it."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(site.invoices))
    return lambda user_id, statement_id: store(statement_path(user_id, statement_id), PDF)


def test_ones_own_pdf_is_shown_and_kept_from_caches(ada: httpx.Client, make_pdf: Callable[[str, str], None]) -> None:
    make_pdf("ada", "A-1001")
    answer = ada.get("/invoices/A-1001.pdf")
    assert (answer.status_code, answer.content) == (200, PDF)
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''invoice-A-1001.pdf"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-store"
    [order] = [order for order in ada.get("/orders").json() if order["order_id"] == "A-1001"]
    assert order["invoice"] == "/invoices/A-1001.pdf"


@pytest.mark.defends("S19")
def test_other_peoples_and_absent_pdfs_are_answered_alike(
    visitor: Visitor, make_pdf: Callable[[str, str], None]
) -> None:
    make_pdf("ada", "A-1002")
    foreign, absent = (visitor("grace").get(f"/invoices/{order_id}.pdf") for order_id in ("A-1002", "A-9999"))
    anonymous = visitor(None).get("/invoices/A-1002.pdf")
    answers = [(answer.status_code, answer.content) for answer in (foreign, absent, anonymous)]
    assert answers == [(404, b'{"error": "You have no such invoice."}')] * 3


@pytest.mark.defends("S19")
@pytest.mark.parametrize(
    "path", ["../grace/G-2001", "..%2Fgrace%2FG-2001", "%2e%2e%2fgrace%2fG-2001", "..%5Cgrace%5CG-2001", "%00", "."]
)
def test_no_path_leads_to_other_peoples_files(
    ada: httpx.Client, make_pdf: Callable[[str, str], None], path: str
) -> None:
    make_pdf("grace", "G-2001")
    assert ada.get(f"/invoices/{path}.pdf").status_code == 404


def test_ones_own_statement_is_shown_as_invoices_are(
    ada: httpx.Client, make_statement: Callable[[str, str], None]
) -> None:
    make_statement("ada", STATEMENT)
    answer = ada.get(f"/statements/{STATEMENT}.pdf")
    assert (answer.status_code, answer.content) == (200, PDF)
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.headers["content-disposition"] == f"inline; filename*=UTF-8''statement-{STATEMENT}.pdf"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.defends("S19")
def test_other_peoples_and_absent_statements_are_answered_alike(
    visitor: Visitor, make_statement: Callable[[str, str], None]
) -> None:
    make_statement("ada", STATEMENT)
    foreign, absent = (visitor("grace").get(f"/statements/{each}.pdf") for each in (STATEMENT, STATEMENT[::-1]))
    anonymous = visitor(None).get(f"/statements/{STATEMENT}.pdf")
    answers = [(answer.status_code, answer.content) for answer in (foreign, absent, anonymous)]
    assert answers == [(404, b'{"error": "You have no such statement."}')] * 3


@pytest.mark.defends("S19")
@pytest.mark.parametrize(
    "path",
    [
        *("../../grace/statements/{}", "..%2F..%2Fgrace%2Fstatements%2F{}", "..%5C..%5Cgrace%5Cstatements%5C{}"),
        *("%2e%2e%2f%2e%2e%2fgrace%2fstatements%2f{}", "..%2FA-1001", "..%2F..%2Fada%2FA-1001", "%00", "."),
    ],
)
def test_no_path_leads_from_the_statements_to_other_files(
    ada: httpx.Client, make_pdf: Callable[[str, str], None], make_statement: Callable[[str, str], None], path: str
) -> None:
    make_pdf("ada", "A-1001")
    make_statement("grace", STATEMENT)
    assert ada.get(f"/statements/{path.format(STATEMENT)}.pdf").status_code == 404


@pytest.mark.defends("S19")
def test_a_statement_is_no_invoice_and_an_invoice_no_statement(
    ada: httpx.Client, make_pdf: Callable[[str, str], None], make_statement: Callable[[str, str], None]
) -> None:
    make_pdf("ada", "A-1001")
    make_statement("ada", STATEMENT)
    for path in ("/statements/A-1001", f"/invoices/{STATEMENT}", f"/invoices/statements%2F{STATEMENT}"):
        assert ada.get(f"{path}.pdf").status_code == 404


@pytest.mark.defends("S20")
@pytest.mark.parametrize(
    ("order_id", "sent"),
    [('a"b', "a%22b"), ("a\r\nSet-Cookie: x=1", "a%0D%0ASet-Cookie%3A%20x%3D1"), ("é €", "%C3%A9%20%E2%82%AC")],
)
def test_a_file_name_adds_no_header(
    ada: httpx.Client, make_pdf: Callable[[str, str], None], order_id: str, sent: str
) -> None:
    make_pdf("ada", order_id)
    answer = ada.get(f"/invoices/{sent}.pdf")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == f"inline; filename*=UTF-8''invoice-{sent}.pdf"
    assert answer.headers.get_list("set-cookie") == []


# The services, and what is for all requests


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("order", '{"latency": 0}', 200),
        ("order", "{}", 200),
        ("order", '{"latency": -1}', 400),
        ("order", '{"failures": "many"}', 400),
        ("order", "[", 400),
        ("user", "{}", 503),
        ("orders", "{}", 404),
        ("__class__", "{}", 404),
    ],
)
def test_the_services_are_controlled_without_a_login(nobody: httpx.Client, name: str, body: str, status: int) -> None:
    answer = nobody.post(f"/services/{name}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert isinstance(answer.json(), dict)
    assert ("error" in answer.json()) == (status != 200)


@pytest.mark.defends("S10")
@pytest.mark.parametrize("path", ["/login", "/logout", "/invoices", "/statements", "/services/order"])
@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, True),
        ({"Origin": "https://elsewhere.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "{own}"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_requests_from_other_sites_are_refused(
    nobody: httpx.Client, path: str, headers: dict[str, str], *, refused: bool
) -> None:
    own = str(nobody.base_url).rstrip("/")
    sent = {name: value.format(own=own) for name, value in headers.items()}
    assert (nobody.post(path, headers=sent).status_code == 403) == refused


@pytest.mark.defends("S18")
def test_the_page_allows_nothing_but_its_own_files(nobody: httpx.Client) -> None:
    headers = nobody.get("/").headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("PUT", "/orders", 405), ("GET", "/invoices", 405), ("GET", "/statements", 405)],
)
def test_errors_are_json(nobody: httpx.Client, method: str, path: str, status: int) -> None:
    answer = nobody.request(method, path)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
