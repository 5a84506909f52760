"""Publishers that know at once what Redis has taken: a script's answer is the acknowledgement."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.transport import RedisTransport
from tests.faults.chaos.dice import dice
from tests.faults.chaos.journal import Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_notify.events import Publication

#: Keys that a user's events replace each other under; half of the events have one of their own.
KEYS = ("a", "b")


class DirectPublisher:
    """Publishes custom events by the transport, one after the other, in a thread; `sent` is the journal."""

    def __init__(self, name: str, settings: Settings, *, seed: int, secrets: dict[str, str]) -> None:
        self.name = name
        self.sent: list[Sent] = []
        self._transport = RedisTransport(settings)
        self._secrets = secrets
        self._rng = dice(seed)
        self._numbers = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, rate: float) -> None:
        """Publish so many events a second, on average, until `stop`."""
        self._thread = threading.Thread(target=self._work, args=(rate,), name=f"chaos-{self.name}")
        self._thread.start()

    def stop(self) -> None:
        """Publish no more by itself; `publish` can still be called."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Stop, and close the connection."""
        self.stop()
        self._transport.close()

    def _work(self, rate: float) -> None:
        users = sorted(self._secrets)
        while not self._stopped.wait(self._rng.expovariate(rate)):
            key = self._rng.choice((*KEYS, *[None] * len(KEYS)))
            self.publish([self._rng.choice(users)], key=None if key is None else f"{self.name}-{key}")

    def publish(self, users: Sequence[str], *, key: str | None = None, event: str = "direct", filling: int = 0) -> bool:
        """Publish an event to each of these users in one round trip; return whether Redis has taken all of them."""
        publications, facts = [], []
        for user in users:
            publication, token = self._make(user, key, event, filling)
            publications.append(publication)
            facts.append((user, self._numbers, token))
        began = time.time()
        answers = self._transport.publish(publications)
        done = time.time()
        for (user, number, token), answer in zip(facts, answers, strict=True):
            taken = isinstance(answer, int) and answer > 0
            self.sent.append(
                Sent(
                    *(self.name, number, user, key or "", token, began),
                    done=done if taken else 0.0,
                    id=int(str(answer)) if taken else 0,
                )
            )
        return all(isinstance(answer, int) and answer > 0 for answer in answers)

    def _make(self, user: str, key: str | None, event: str, filling: int) -> tuple[Publication, str]:
        self._numbers += 1
        token = f"{self.name}-{self._numbers}-{self._rng.getrandbits(64):016x}"
        data = {"token": token, "number": self._numbers, "secret": self._secrets[user], "filling": "x" * filling}
        return events.custom(user, event, data, key=key), token


def settings_for(redis_url: str, *, history_size: int) -> Settings:
    """Return what a transport of our own needs to know."""
    return Settings(redis_url=redis_url, history_size=history_size)
