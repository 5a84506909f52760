"""A short chaos run; `make chaos` makes longer ones, each with another seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.chaos.run import run
from tests.faults.chaos.world import Shape

if TYPE_CHECKING:
    from pathlib import Path

#: A run that is short, and in which each part of the system meets some fault.
SEED, SECONDS = 1, 8.0
SHAPE = Shape(users=12, web_processes=2, history_size=100, small_output_buffer=True, events=40.0)


#: What the seed is chosen for.
FAULTS = {
    *("Redis rolled back", "scripts flushed", "a key evicted", "subscribers cut", "clients cut"),
    *("network held one way", "network lost one way", "network half open"),
    *("web killed", "web stopped", "web frozen", "worker killed", "child killed"),
    *("slow reader", "half-closed reader", "aborted readers"),
}


@pytest.mark.timeout(180)
@pytest.mark.defends("F1", "F2", "F4", "F5", "F8", "F12", "F13", "F16", "F17", "F30", "F31")
def test_whatever_fails_every_page_shows_in_the_end_what_is(tmp_path: Path) -> None:
    report = run(tmp_path, seconds=SECONDS, seed=SEED, shape=SHAPE, gap=0.2)
    assert not report.breaches, str(report)
    assert report.faults.keys() >= FAULTS
    assert report.owed_events > 50
    assert report.owed_ends > 2
    assert report.shown > 100
