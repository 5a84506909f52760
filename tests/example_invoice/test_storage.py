from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_invoice.storage import encode_name, invoice_path, statement_path, store

if TYPE_CHECKING:
    from collections.abc import Callable

#: Ids that are no more than text, whatever a path, a URL or Redis would make of them.
ODD_IDS = [
    *("a b", "1:2", "*", "a}b", "é", "..", ".", "%31", "1", "%2E%2E", "", "/", "/etc/passwd", "../../x", "\0"),
    *("~", "a\nb", "x" * 5000, "x" * 5001, "\ud800", "?", "A-1001", "A-1001.pdf", "e\u0301"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INVOICE_FOLDER", str(tmp_path / "invoices"))
    return tmp_path / "invoices"


def test_an_invoice_lies_in_its_users_folder(folder: Path) -> None:
    assert invoice_path("ada", "A-1001") == folder / "ada" / "A-1001.pdf"


@pytest.mark.defends("S19")
def test_odd_ids_are_told_apart_and_stay_in_the_folder(folder: Path) -> None:
    paths = {invoice_path(user, order) for user, order in itertools.product(ODD_IDS, ODD_IDS)}
    assert len(paths) == len(ODD_IDS) ** 2
    for path in paths:
        assert path.parent.parent == folder
        assert path.resolve() == path
        assert not path.exists()  # not even an error


@pytest.mark.defends("S19")
def test_odd_statements_are_told_apart_and_stay_in_the_folder(folder: Path) -> None:
    paths = {statement_path(user, statement) for user, statement in itertools.product(ODD_IDS, ODD_IDS)}
    assert len(paths) == len(ODD_IDS) ** 2
    for path in paths:
        assert path.parent.parent.parent == folder
        assert path.resolve() == path
        assert not path.exists()


@pytest.mark.parametrize("path", [invoice_path, statement_path])
def test_a_file_can_be_stored_for_every_odd_id(path: Callable[[str, str], Path]) -> None:
    for odd in ODD_IDS:
        store(path(odd, odd), odd.encode(errors="replace"))
    for odd in ODD_IDS:
        assert path(odd, odd).read_bytes() == odd.encode(errors="replace")


def test_an_order_may_be_called_as_the_folder_of_the_statements_is() -> None:
    store(statement_path("ada", "1"), b"statement")
    store(invoice_path("ada", "statements"), b"invoice")
    assert invoice_path("ada", "statements").read_bytes() == b"invoice"


@pytest.mark.defends("S19")
@given(st.text(), st.text())
def test_two_ids_have_the_same_name_only_if_they_are_the_same(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_storing_again_replaces_the_file_and_leaves_no_part(folder: Path) -> None:
    path = invoice_path("ada", "A-1001")
    store(path, b"old")
    with path.open("rb") as reader:
        store(path, b"new")
        assert reader.read() == b"old"  # whoever reads meanwhile sees the old one entirely
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_store_that_fails_leaves_the_old_file_and_no_part() -> None:
    path = invoice_path("ada", "A-1001")
    store(path, b"old")
    with pytest.raises(TypeError):
        store(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_without_a_setting_the_folder_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOICE_FOLDER")
    assert invoice_path("ada", "A-1001") == Path("invoices/ada/A-1001.pdf")
