"""What all benchmarks share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.benchmarks.load import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.load import Programs

Scale = TypeVar("Scale")

#: Set by `make bench QUICK=1`.
QUICK_VARIABLE = "CELERY_NOTIFY_BENCH_QUICK"


@pytest.fixture(scope="session")
def measuring(request: pytest.FixtureRequest) -> bool:
    """Say whether this is a measurement, or a test that the benchmarks run."""
    return bool(request.config.getoption("benchmark_enable"))


@pytest.fixture(scope="session")
def choose(*, measuring: bool) -> Callable[[Scale, Scale, Scale], Scale]:
    """Return a function that chooses among three: of a full measurement, of a quick one, of a test that it runs."""

    def chosen(full: Scale, quick: Scale, smoke: Scale) -> Scale:
        if not measuring:
            return smoke
        return quick if os.environ.get(QUICK_VARIABLE) else full

    return chosen


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Compile the load generator and the baseline."""
    return compiled(tmp_path_factory.mktemp("programs"))
