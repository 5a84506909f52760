"""What all benchmarks share."""

from __future__ import annotations

import pytest


@pytest.fixture
def measuring(request: pytest.FixtureRequest) -> bool:
    """Say whether this is a measurement, or a test that the benchmarks run."""
    return bool(request.config.getoption("benchmark_enable"))
