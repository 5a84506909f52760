"""What a web server holds: that which no client, however it behaves, may make grow."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import psutil

if TYPE_CHECKING:
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import WebServer

MIB = 1 << 20


def processes(web: WebServer) -> list[psutil.Process]:
    """Return the processes that answer requests."""
    return [psutil.Process(pid) for pid in web.worker_pids() or [web.process.pid]]


def descriptors(web: WebServer) -> int:
    """Return how many descriptors they have open: each stream is one, on a server that keeps its sockets three."""
    return sum(process.num_fds() for process in processes(web))


def threads(web: WebServer) -> int:
    return sum(process.num_threads() for process in processes(web))


def memory(web: WebServer) -> int:
    """Return the bytes that no other process shares with them."""
    return sum(int(process.memory_full_info().uss) for process in processes(web))


def subscriptions(server: GivenRedis, *users: str) -> int:
    """Return how many connections are subscribed to the channels of these users."""
    channels = [f"celery-notify:{{{quote(user, safe='')}}}" for user in users]
    with server.client() as client:
        return sum(count for _, count in client.pubsub_numsub(*channels))


def calls(server: GivenRedis) -> dict[str, int]:
    """Return how often each command was called since the server started, apart from what asks for this, and PING."""
    with server.client() as client:
        stats = client.info("commandstats")
    names = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}
    ours = {"client", "hello", "info", "ping"}
    return {name: count for name, count in names.items() if name.partition("|")[0] not in ours}
