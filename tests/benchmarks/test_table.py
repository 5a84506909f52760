"""The table of results: what was kept of a run stands in it, and where it belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import table
from tests.benchmarks.report import OURS, RESULTS_VARIABLE, Comparison, at_least, at_most
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[table.Result]:
    """Return what three comparisons have left."""
    path = tmp_path / "results"
    monkeypatch.setenv(RESULTS_VARIABLE, str(path))
    page = Comparison("page, 10 tasks", "of a core", "%")
    page.add(OURS, 11.0)
    page.finish({OURS: at_most(10)}, measuring=True)
    page.finish(measuring=False)
    progress = Comparison("progress()", "time of a call", "ns")
    fan_out = Comparison("fan-out 1000", "deliveries", "1/s")
    for ours, other in ((100.0, 50.0), (120.0, 100.0), (110.0, 200.0)):
        for comparison in (progress, fan_out):
            comparison.add(OURS, ours)
            comparison.add("tqdm.update()" if comparison is progress else "nchan", other)
        fan_out.add("send()", 4 * ours)
    progress.finish({"tqdm.update()": at_most(2)}, measuring=True)
    fan_out.note("Redis takes 12 us")
    fan_out.finish({"nchan": at_least(1), "send()": at_least(0.8)}, measuring=True)
    return table.read(path)


def test_each_row_says_what_ours_is_compared_with_and_whether_the_goal_is_held(results: list[table.Result]) -> None:
    ours, other, ratio = "110 (100 to 120)", "100 (50 to 200)", "1.20 (0.55 to 2.00)"
    assert table.table(results).splitlines()[2:] == [
        f"| **fan-out 1000**: deliveries [1/s] | {ours} | nchan {other} | {ratio} | >= 1 | yes |",
        "|  |  | send() 440 (400 to 480) | 0.25 (0.25 to 0.25) | >= 0.8 | **no** |",
        f"| **progress()**: time of a call [ns] | {ours} | tqdm.update() {other} | {ratio} | <= 2 | yes |",
        "| **page, 10 tasks**: of a core [%] | 11 |  |  | <= 10 | **no** |",
        "",
        "<details><summary>Noted beside</summary>",
        "",
        "- fan-out 1000: Redis takes 12 us",
        "",
        "</details>",
    ]


def test_the_headlines_say_what_was_measured_and_no_more(results: list[table.Result]) -> None:
    assert table.headlines(results) == "- `progress()` takes 110 ns: 1.20 of `tqdm.update()`."


def test_a_text_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- measured -->\nold\n<!-- until here -->\nb\n")

    for _ in range(2):
        table.put(path, "new")

    assert path.read_text() == "a\n<!-- measured -->\nnew\n<!-- until here -->\nb\n"
    path.write_text("a")
    with pytest.raises(ValueError, match=r"expected <!-- measured --> and <!-- until here --> in README\.md"):
        table.put(path, "new")


@pytest.mark.parametrize("name", ["README.md", "tests/benchmarks/README.md"])
def test_there_is_a_place_for_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text((ROOT / name).read_text(encoding="utf-8"))

    table.put(path, "new")

    assert "\nnew\n" in path.read_text()


def test_the_machine_is_described() -> None:
    assert "cores" in table.machine()
    assert "Redis " in table.machine()
    assert "redis " in table.machine()
