"""Each program under test delivers what it is given, to whom it is meant for, and says what it has cost."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.servers import EVENT, SERVERS, data_of, started

if TYPE_CHECKING:
    from tests.benchmarks.load import Programs
    from tests.support.redis_server import RedisServer


@pytest.mark.parametrize("name", SERVERS)
def test_a_program_delivers_its_events(name: str, own_redis: RedisServer, programs: Programs) -> None:
    with started(name, own_redis, programs=programs) as server:
        with closing(server.stream(1)) as first, closing(server.stream(2)) as second:
            for serial in range(6):
                server.publish(1 + serial % 2, data_of(serial))
            for stream, serials in ((first, (0, 2, 4)), (second, (1, 3, 5))):
                told = [stream.until(EVENT)[-1].data for _ in serials]
                assert [re.findall("#([0-9]{8})#", each) for each in told] == [[f"{serial:08}"] for serial in serials]
                assert {len(each) for each in told} == {len(data_of(0))}
        assert server.cpu() > 0
        assert server.pss() > 100_000
        assert (server.beside() > 0) == (name not in {"nchan", "send()"})
