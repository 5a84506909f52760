"""Fixtures for faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.redis_journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.redis_server import RedisServer


@pytest.fixture
def journal(own_redis: RedisServer) -> Iterator[Journal]:
    """Return a publisher to a Redis of the test's own, and what that has acknowledged."""
    with Journal(own_redis) as made:
        yield made
