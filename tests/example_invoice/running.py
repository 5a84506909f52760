"""The three data services in processes of their own, and the parts of an invoice as they lie in the data."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from example_invoice.domain import Customer, Invoice, Order, Payment
from example_invoice.gather import Services
from example_invoice.services import DATA
from tests.support.processes import PYTHON, Process
from tests.support.waiting import wait_until
from tests.support.web_servers import without_control_socket

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

NAMES = ("user", "order", "payment")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    json: Any


class RunningServices:
    """The services under gunicorn, as the launcher runs them."""

    def __init__(self, folder: Path) -> None:
        self._processes = {name: self._process(name, folder) for name in NAMES}
        self.urls: dict[str, str] = {}

    def _process(self, name: str, folder: Path) -> Process:
        application = f"example_invoice.services:create_app({name!r}, {str(folder / f'{name}.db')!r})"
        return Process(
            *(*PYTHON, "-m", "gunicorn", application, "--bind", "127.0.0.1:0"),
            *(
                "--worker-class",
                "gthread",
                "--workers",
                "1",
                "--threads",
                "4",
                "--graceful-timeout",
                "1",
                *without_control_socket(),
            ),
            folder=folder,
            name=name,
            lasting=True,
        )

    def __enter__(self) -> Self:
        for process in self._processes.values():
            process.start()
        for name, process in self._processes.items():
            process.wait_for_log("Listening at: ")
            self.urls[name] = self._url(process)
            wait_until(lambda name=name: self.get(name, "/health").status == 200, what=f"health of {name}")
        return self

    def _url(self, process: Process) -> str:
        found = re.search(r"Listening at: (http://127\.0\.0\.1:\d+)", process.log())
        assert found is not None
        return found[1]

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.stop()

    @property
    def services(self) -> Services:
        return Services(**self.urls)

    def get(self, name: str, path: str) -> Answer:
        answer = httpx.get(self.urls[name] + path, trust_env=False)
        return Answer(answer.status_code, answer.json())

    def control(self, name: str, wanted: object) -> Answer:
        answer = httpx.post(self.urls[name] + "/control", json=wanted, trust_env=False)
        return Answer(answer.status_code, answer.json())

    def heal(self) -> None:
        """Make all of them well again."""
        for name in NAMES:
            self.control(name, {"latency": 0, "failures": 0})


def data(name: str) -> list[dict[str, Any]]:
    """Return one of the files the services are filled from."""
    rows: list[dict[str, Any]] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return rows


def invoices() -> dict[str, Invoice]:
    """Return all invoices that the data make, by order."""
    customers = {each["user_id"]: Customer.from_json(each) for each in data("users")}
    payments = Payment.list_from_json(data("payments"))
    orders = [Order.from_json(each) for each in data("orders")]
    return {
        order.order_id: Invoice(
            customers[order.user_id], order, tuple(each for each in payments if each.order_id == order.order_id)
        )
        for order in orders
    }
