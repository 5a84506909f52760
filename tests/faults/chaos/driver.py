"""Brings about what the schedule says."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.faults.chaos.journal import EVER, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    import redis

    from tests.faults.chaos.clients import Clients
    from tests.faults.chaos.publishers import DirectPublisher
    from tests.faults.chaos.schedule import Fault
    from tests.faults.chaos.world import World


class Driver:
    """Brings the faults about, each in a thread of its own until it is over."""

    def __init__(self, world: World, clients: Clients, flooder: DirectPublisher, report: Callable[[str], None]) -> None:
        self.world, self.clients, self.flooder = world, clients, flooder
        self.counts: Counter[str] = Counter()
        self._report = report
        self._begun = time.time()
        self._healing = threading.Event()
        self._locks: dict[str, threading.Lock] = {}

    def run(self, faults: list[Fault], seconds: float) -> None:
        """Bring all about in time; when this returns all is healed. Raises what went wrong in doing so."""
        self._begun = time.time()
        running: list[Future[None]] = []
        with ThreadPoolExecutor(16, thread_name_prefix="chaos-fault") as pool:
            try:
                for fault in faults:
                    self._wait_until(fault.at)
                    lock = self._locks.setdefault(fault.resource, threading.Lock())
                    running.append(pool.submit(self._bring_about, fault, lock))
                self._wait_until(seconds)
            finally:
                self._healing.set()
        for each in running:
            each.result()

    def _wait_until(self, at: float) -> None:
        time.sleep(max(0.0, self._begun + at - time.time()))

    def _bring_about(self, fault: Fault, lock: threading.Lock) -> None:
        with lock:
            self.counts[fault.name] += 1
            self._report(f"{time.time() - self._begun:7.2f}  {fault.name} ({fault.resource}, {fault.lasts:.2f} s)")
            end = None
            try:
                end = fault.kind.begin(self, fault)
                self._healing.wait(fault.lasts)
            finally:
                if end is not None:
                    end()

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """Yield a client of the library's Redis that goes past the proxies."""
        with self.world.redis.client(retry=None, socket_timeout=10) as client:
            yield client

    def trouble_since(self, begin: float) -> None:
        """Note that workers may not have reached Redis since then."""
        self.world.journal.troubles.append((begin, time.time()))

    def lost(self, kind: str, *, since: float = EVER, user: str | None = None) -> None:
        """Note that Redis has forgotten what it was told between then and now."""
        self.world.journal.losses.append(Loss(time.time(), since, user, kind))

    def user(self, fault: Fault) -> str:
        """Return the user a fault is meant for."""
        users = sorted(self.world.journal.secrets)
        return users[fault.detail % len(users)]
