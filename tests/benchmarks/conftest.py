"""What all benchmarks share."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.benchmarks.load import compiled
from tests.benchmarks.servers import started
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server

Scale = TypeVar("Scale")

#: Set by `make bench QUICK=1`.
QUICK_VARIABLE = "BENCH_QUICK"
#: For a Redis that has a connection for each stream, which some peers make.
MANY_CLIENTS = ("--maxclients", "15000")


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


@pytest.fixture
def start(programs: Programs, tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Return what starts a program under test, with a Redis of its own: `start(name)`. They run until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Server:
            folder = tmp_path / name
            folder.mkdir()
            redis = RedisServer(folder, *MANY_CLIENTS)
            stack.callback(redis.stop)
            return stack.enter_context(started(name, redis.start(), programs=programs))

        yield start
