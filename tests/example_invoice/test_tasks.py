from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from celery_notify import PublicError
from example_invoice.gather import Services
from example_invoice.statement import merge_invoices
from example_invoice.storage import invoice_path, statement_path
from example_invoice.tasks import MAX_RETRIES, ServiceAwayError, Steps, create_invoice, create_statement
from tests.example_invoice.running import RunningServices
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServices]:
    with RunningServices(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture(autouse=True)
def surroundings(running: RunningServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INVOICE_FOLDER", str(tmp_path))
    for name, url in running.urls.items():
        monkeypatch.setenv(f"INVOICE_{name.upper()}_URL", url)
    yield
    running.heal()


def test_the_task_leaves_a_pdf_where_the_web_application_looks_for_it() -> None:
    create_invoice("ada", "A-1001")
    assert invoice_path("ada", "A-1001").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("order_id", ["A-9999", "G-2001", "../../G-2001"])
def test_an_order_that_is_not_the_users_is_said_not_to_exist(order_id: str, tmp_path: Path) -> None:
    with pytest.raises(PublicError) as raised:
        create_invoice("ada", order_id)
    assert str(raised.value) == f"There is no order {order_id}."
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_stays_away_is_said_so_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOICE_PAYMENT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServiceAwayError) as raised:
        create_invoice("ada", "A-1001")
    assert isinstance(raised.value, PublicError)
    assert str(raised.value) == "The payment service does not answer at the moment."


def test_the_retries_have_an_end() -> None:
    assert create_invoice.max_retries == MAX_RETRIES


def test_a_missing_setting_is_not_shown_to_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOICE_USER_URL")
    with pytest.raises(ValueError, match="expected INVOICE_USER_URL") as raised:
        create_invoice("ada", "A-1001")
    assert not isinstance(raised.value, PublicError)


@pytest.mark.parametrize("pages", [1, 3, 60])
def test_progress_never_falls_and_ends_at_the_total(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[Any, Any]] = []
    monkeypatch.setattr("example_invoice.tasks.progress", lambda current, total, _: reported.append((current, total)))
    steps = Steps()
    for part in ("order", "user", "payment"):
        steps.part_gathered(part)
    for page in range(1, pages + 1):
        steps.page_rendered(page, pages)
    assert [current for current, _ in reported] == sorted(current for current, _ in reported)
    assert reported[-1] == (100, 100)
    assert len(reported) == 3 + pages
    assert {total for _, total in reported} == {100}


def test_a_statement_is_the_invoices_that_have_been_made_in_the_order_given() -> None:
    for order_id in ("A-1001", "A-1004"):
        create_invoice("ada", order_id)
    create_statement("ada", ["A-1004", "A-1001"], "the id")
    made = [(order_id, invoice_path("ada", order_id).read_bytes()) for order_id in ("A-1004", "A-1001")]
    assert statement_path("ada", "the id").read_bytes() == merge_invoices(made)


def test_without_one_of_the_invoices_there_is_no_statement() -> None:
    create_invoice("ada", "A-1001")
    with pytest.raises(FileNotFoundError):
        create_statement("ada", ["A-1001", "A-1002"], "the id")
    assert not statement_path("ada", "the id").exists()


def test_the_environment_is_read_when_the_task_runs(running: RunningServices) -> None:
    assert Services.from_environment() == running.services
    assert "INVOICE_FOLDER" in os.environ
