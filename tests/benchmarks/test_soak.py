"""That a soak runs, tells each stream each end, and knows what grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.soak import MIB, Plan, Report, Sample, soak

if TYPE_CHECKING:
    from pathlib import Path


def test_a_brief_soak_loses_nothing(tmp_path: Path) -> None:
    said: list[str] = []

    report = soak(tmp_path, Plan(seconds=1, streams=20), said.append)

    assert report.lost == []
    assert report.connects > 0
    assert len(said) == len(report.samples) == 11
    assert {"web", "worker", "publisher", "Redis"} == {*report.samples[0].memory} == {*report.samples[0].cpu}
    assert "CPU us an event" in str(report)


def test_what_grows_is_named() -> None:
    report = Report()
    for n in range(10):
        memory = {"web": (40 + n) * MIB, "worker": 100 * MIB + n, "Redis": MIB}
        spent = {"web": 0.001 * n**2, "worker": 0.002 * n, "Redis": 0.0}
        report.samples.append(Sample(n, memory, spent, events=100 * n))

    assert report.grown == ["web"]
    assert report.memory("web") == (41 * MIB, 48 * MIB)
    assert report.cost("worker") == pytest.approx((20.0, 20.0))
    assert report.cost("web") == pytest.approx((30.0, 150.0))
    assert "GROWN: web" in str(report)
