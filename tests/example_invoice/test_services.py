from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from example_invoice.services import create_app
from tests.example_invoice.running import NAMES, RunningServices, data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = {"user": "/users/ada", "order": "/orders/A-1001", "payment": "/orders/A-1001/payments"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServices]:
    with RunningServices(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture(autouse=True)
def healthy(running: RunningServices) -> Iterator[None]:
    yield
    running.heal()


def test_the_user_service_knows_three_users(running: RunningServices) -> None:
    for user in data("users"):
        assert running.get("user", f"/users/{user['user_id']}").json == user
    assert running.get("user", "/users/bob").status == 404


def test_an_order_comes_with_its_lines_in_order(running: RunningServices) -> None:
    for order in data("orders"):
        assert running.get("order", f"/orders/{order['order_id']}").json == order
    assert running.get("order", "/orders/none").status == 404


def test_the_list_of_orders_says_what_a_person_wants_to_see(running: RunningServices) -> None:
    orders = running.get("order", "/users/ada/orders").json
    assert [order["order_id"] for order in orders] == ["A-1001", "A-1002", "A-1003", "A-1004"]
    assert orders[0] == {
        "order_id": "A-1001",
        "date": "2026-01-14",
        "currency": "EUR",
        "lines": 1,
        "total": "1,020.00 EUR",
    }
    assert running.get("order", "/users/bob/orders").json == []


def test_payments_come_by_order(running: RunningServices) -> None:
    for order in data("orders"):
        wanted = [each for each in data("payments") if each["order_id"] == order["order_id"]]
        assert running.get("payment", f"/orders/{order['order_id']}/payments").json == wanted


@pytest.mark.parametrize("name", NAMES)
def test_as_many_calls_fail_as_were_ordered(running: RunningServices, name: str) -> None:
    assert running.control(name, {"failures": 2}).json == {"latency": 0, "failures": 2}
    assert [running.get(name, CALLS[name]).status for _ in range(3)] == [503, 503, 200]


def test_neither_health_nor_control_fail(running: RunningServices) -> None:
    running.control("user", {"failures": 5})
    assert running.get("user", "/health").status == 200
    assert running.control("user", {}).json["failures"] == 5


def test_latency_delays_the_data_and_spares_the_control(running: RunningServices) -> None:
    running.control("user", {"latency": 60})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(running.urls["user"] + CALLS["user"], timeout=0.2, trust_env=False)
    assert running.control("user", {"latency": 0}).json == {"latency": 0, "failures": 0}
    assert running.get("user", CALLS["user"]).status == 200


def test_simultaneous_calls_share_the_failures_exactly(running: RunningServices) -> None:
    running.control("order", {"failures": 10})
    statuses: list[int] = []

    def call() -> None:
        statuses.extend(running.get("order", CALLS["order"]).status for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 10 + [503] * 10


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"latency": "soon"}, """expected "latency" to be seconds from 0 to 60, got 'soon'"""),
        ({"latency": -1}, 'expected "latency" to be seconds from 0 to 60, got -1'),
        ({"latency": 61}, 'expected "latency" to be seconds from 0 to 60, got 61'),
        ({"latency": True}, 'expected "latency" to be seconds from 0 to 60, got True'),
        ({"failures": 1.5}, 'expected "failures" to be a whole number from 0 to 1000, got 1.5'),
        ({"failures": -1}, 'expected "failures" to be a whole number from 0 to 1000, got -1'),
        ({"failures": None}, 'expected "failures" to be a whole number from 0 to 1000, got None'),
        ({"delay": 1}, """expected "latency" or "failures", got 'delay'"""),
        ([1], 'expected an object with "latency" and "failures", got [1]'),
    ],
)
def test_bad_control_is_refused_with_both_sides_and_changes_nothing(
    running: RunningServices, wanted: Any, message: str
) -> None:
    answer = running.control("payment", {"latency": 0, "failures": 0, **wanted} if isinstance(wanted, dict) else wanted)
    assert (answer.status, answer.json) == (400, {"error": message})
    assert running.control("payment", {}).json == {"latency": 0, "failures": 0}


@pytest.mark.parametrize("body", [b"", b"{", b'{"latency": NaN}', b'{"latency": 1e999}', b"\xff"])
def test_control_with_what_is_no_json_is_refused_in_json(running: RunningServices, body: bytes) -> None:
    answer = httpx.post(running.urls["user"] + "/control", content=body, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_what_does_not_exist_is_said_in_json(running: RunningServices) -> None:
    assert running.get("user", "/nowhere").status == 404
    assert running.get("user", "/control").status == 405


def test_an_unknown_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of user, order, payment, got 'stock'"):
        create_app("stock", tmp_path / "stock.db")


def test_a_service_started_again_has_the_same_data(tmp_path: Path) -> None:
    for _ in range(2):
        answer = create_app("payment", tmp_path / "payment.db").test_client().get("/orders/A-1003/payments")
        assert len(answer.get_json()) == 2
