"""Fixtures of the tests that watch a stream over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.event_stream import EventStream
    from tests.support.web_servers import Web


@pytest.fixture
def stream(web: Web, user: str) -> Iterator[EventStream]:
    """Return the user's stream, past its catch-up."""
    with web.stream(user) as stream:
        assert stream.ready() == []
        yield stream
