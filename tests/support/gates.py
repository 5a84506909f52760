"""Gates and journals: lists in Redis by which a test and the tasks it started wait for one another.

A task waits at a gate until the test opens it; a test reads from a journal what a task noted there. So a test
decides when each task goes on, and nothing sleeps.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import redis

from tests.support.waiting import SLOWNESS

if TYPE_CHECKING:
    from typing import Any

#: Seconds a task waits at a gate before it gives up: the test has failed by then.
PATIENCE = 30
#: Seconds after which what nobody read goes away.
KEPT = 300


class Gates:
    """The gates and journals in one Redis."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self._url, decode_responses=True, socket_timeout=None)

    def _push(self, key: str, *values: str) -> None:
        with self._client() as client, client.pipeline() as pipeline:
            pipeline.rpush(key, *values).expire(key, KEPT).execute()

    def _pop(self, key: str, patience: float) -> str | None:
        with self._client() as client:
            found = client.blpop([key], timeout=patience)
            return None if found is None else str(found[1])

    def open(self, name: str, times: int = 1) -> None:
        """Let so many passages through."""
        self._push(f"test:gate:{name}", *["open"] * times)

    def wait(self, name: str) -> None:
        """Pass a gate as soon as it is open (for tasks)."""
        if self._pop(f"test:gate:{name}", PATIENCE) is None:
            raise TimeoutError(f"expected gate {name} to open within {PATIENCE} s")

    def note(self, name: str, fact: object) -> None:
        """Tell the test something (for tasks)."""
        self._push(f"test:journal:{name}", json.dumps(fact))

    def read(self, name: str, *, timeout: float = 15.0) -> Any:
        """Return the next fact that a task has noted, waiting for it."""
        seconds = timeout * SLOWNESS
        fact = self._pop(f"test:journal:{name}", seconds)
        if fact is None:
            raise TimeoutError(f"expected a note in journal {name} within {seconds} s")
        return json.loads(fact)
