"""The control to the faults of a network: the proxy that brings them about does so, and not more."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.proxy import FROM_SERVER, TO_SERVER, Proxy
from tests.support.waiting import SLOWNESS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.redis_server import GivenRedis


@pytest.fixture
def proxy(redis_server: GivenRedis) -> Iterator[Proxy]:
    with Proxy(redis_server.address) as made:
        yield made


@pytest.fixture
def client(redis_server: GivenRedis, proxy: Proxy) -> Iterator[redis.Redis]:
    """Return a client with one connection at a time, which asks nothing a second time."""
    options = {"socket_timeout": 0.3 * SLOWNESS, "retry": Retry(NoBackoff(), 0), "max_connections": 1}
    with redis_server.by_way_of(proxy.port).client(**options) as made:
        made.ping()
        yield made


def test_what_is_held_comes_later_and_what_is_lost_never(
    proxy: Proxy, client: redis.Redis, redis_server: GivenRedis, user: str
) -> None:
    name = f"test:{user}"
    with redis_server.client() as beside:
        proxy.hold(TO_SERVER, only=b"held")
        assert client.ping()
        with pytest.raises(redis.TimeoutError):
            client.set(name, "held", ex=60)
        assert proxy.held == 1
        assert beside.get(name) is None
        proxy.heal()
        wait_until(lambda: beside.get(name) == "held")
        assert proxy.held == 0

        proxy.lose(TO_SERVER, of=b"SET")
        assert client.ping()
        with pytest.raises(redis.TimeoutError):
            client.set(name, "lost", ex=60)
        proxy.heal()
        assert client.get(name) == "held"

        proxy.lose(FROM_SERVER)
        with pytest.raises(redis.TimeoutError):
            client.set(name, "unanswered", ex=60)
        assert beside.get(name) == "unanswered"
        proxy.heal()
        assert client.get(name) == "unanswered"


def test_connections_that_are_open_are_lost_while_new_ones_are_sound(proxy: Proxy, client: redis.Redis) -> None:
    proxy.lose_what_is_open()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert client.ping()

    proxy.hold_what_is_open()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert client.ping()

    before = client.client_id()
    proxy.cut()
    with suppress(redis.ConnectionError):  # unless the reset was noticed before the command was sent
        client.ping()
    assert client.client_id() != before


def test_new_connections_are_refused_while_those_that_are_open_are_sound(
    proxy: Proxy, client: redis.Redis, redis_server: GivenRedis
) -> None:
    proxy.refuse()
    assert client.ping()
    with redis_server.by_way_of(proxy.port).client(retry=Retry(NoBackoff(), 0)) as another:
        with pytest.raises(redis.ConnectionError):
            another.ping()
        assert proxy.refused == 1
        proxy.heal()
        assert another.ping()
