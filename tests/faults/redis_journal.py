"""Two journals to compare: what Redis has acknowledged of a publisher's events, and what a page showed of them."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import h11

from celery_notify import events
from celery_notify.config import Settings
from celery_notify.publisher import Publisher
from celery_notify.transport import RedisTransport
from tests.support.event_stream import StreamEndedError, data_of
from tests.support.waiting import SLOWNESS, Deadline, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Self

    from celery_notify.events import Publication
    from celery_notify.sse import Event
    from tests.support.event_stream import EventStream
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

#: Room for all that a test publishes, so that the bounds of the history take nothing away.
HISTORY_SIZE = 20_000
#: Seconds between two events of a load.
PACE = 0.005
#: What says that a stream broke off.
BROKEN = (StreamEndedError, h11.RemoteProtocolError, ConnectionError)


def web_settings(url: str, **more: object) -> dict[str, str]:
    """Return the environment of a web process over the Redis at `url`."""
    settings = {"HISTORY_SIZE": HISTORY_SIZE, "MAX_STREAMS_PER_USER": 1000, "REDIS_URL": url, **more}
    return {f"CELERY_NOTIFY_{name}": str(value) for name, value in settings.items()}


def channel(user: str) -> str:
    """Return the user's channel, with which the names of the user's keys begin too."""
    return f"celery-notify:{{{quote(user, safe='')}}}"


def history(server: GivenRedis, user: str) -> dict[str, int]:
    """Return what Redis holds of a user: the id of each entry, by its key, in their order."""
    with server.client() as client:
        found: Any = client.zrange(f"{channel(user)}:order", 0, -1, withscores=True)
    return {key: int(number) for key, number in found}


def entries(server: GivenRedis, user: str) -> dict[str, int]:
    """Return the same by what the entries themselves say."""
    with server.client() as client:
        found: Any = client.hgetall(f"{channel(user)}:entries")
    return {key: int(json.loads(entry)["id"]) for key, entry in found.items()}


class Journal(RedisTransport):
    """A transport that writes down what Redis has acknowledged: (id, key), in the order of the answers."""

    def __init__(self, server: GivenRedis, *, history_size: int = HISTORY_SIZE) -> None:
        super().__init__(Settings(redis_url=server.url, history_size=history_size))
        self.acknowledged: list[tuple[int, str]] = []
        self.publisher = Publisher(self, min_interval=0.05, worker_ttl=20.0)

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        answers = super().publish(publications)
        for item, answer in zip(publications, answers, strict=True):
            if isinstance(answer, int) and answer > 1:
                self.acknowledged.append((answer, item.key))
        return answers

    def send(self, user: str, *data: object, key: str | None = None) -> list[str]:
        """Send notes, each under a key of its own unless one is given; return the keys."""
        sent = [events.custom(user, "note", one, key=key) for one in data]
        self.publisher.put(sent)
        return [item.key for item in sent]

    def settle(self, *, timeout: float = 20.0) -> None:
        """Wait until Redis has acknowledged all that was sent."""
        assert self.publisher.flush(timeout * SLOWNESS, patient=True), "Redis did not take all that was sent"

    @contextmanager
    def load(self, user: str, *, pace: float = PACE) -> Iterator[list[str]]:
        """Send numbered notes all the time until the block ends; they are acknowledged then. Gives their keys."""
        with self.load_all([user], pace=pace) as keys:
            yield keys[user]

    @contextmanager
    def load_all(self, users: Iterable[str], *, pace: float = PACE) -> Iterator[dict[str, list[str]]]:
        """Do as `load` for several users in turn, one note each `pace` seconds. Gives the keys of each."""
        keys: dict[str, list[str]] = {user: [] for user in users}
        over = threading.Event()

        def work() -> None:
            while True:
                for user, of_user in keys.items():
                    if over.wait(pace):
                        return
                    of_user.extend(self.send(user, len(of_user)))

        thread = threading.Thread(target=work, name="load")
        thread.start()
        try:
            yield keys
        finally:
            over.set()
            thread.join()
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.stop()
        self.close()


class Page:
    """What a browser's page does: keeps a stream open, comes back with its last event id, shows what is new to it.

    It asserts what must hold whatever happens: ids rise on a stream.
    """

    def __init__(self, web: Web, user: str) -> None:
        self._web = web
        self._user = user
        self._stream: EventStream | None = None
        self._newest = 0
        self.last_id = ""
        #: What is on the screen: the id by key.
        self.shown: dict[str, int] = {}
        #: All that was ever put there, in that order; what was known already was not.
        self.told: list[tuple[int, str]] = []
        #: The newest data of each key, and the keys of tasks that ended, in that order.
        self.data: dict[str, Any] = {}
        self.ended: list[str] = []
        #: What the last `ready` named, and how often the page read what.
        self.keys: set[str] = set()
        self.count: dict[str, int] = {"opened": 0, "ready": 0, "degraded": 0}

    def open(self) -> Self:
        """Connect, with the id of the last event there was; the answer's head has come when this returns."""
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        self._stream, self._newest = self._web.stream(self._user, headers=headers), 0
        assert self._stream.status == 200, self._stream.status
        self.count["opened"] += 1
        return self

    def close(self) -> None:
        """Leave; what is shown stays on the screen."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def ready(self, *, timeout: float = 15.0) -> None:
        """Read up to the next `ready`."""
        before = self.count["ready"]
        self.until(lambda: self.count["ready"] > before, timeout=timeout, what="another ready")

    def shows(self, keys: Sequence[str], *, timeout: float = 15.0) -> None:
        """Read until all these were shown."""
        missing = set(keys)

        def none_missing() -> bool:
            missing.difference_update(key for _, key in self.told[-1:])
            return not missing

        missing.difference_update(key for _, key in self.told)
        self.until(none_missing, timeout=timeout, what=lambda: f"{len(missing)} of {len(keys)} events")

    def until(
        self, condition: Callable[[], object], *, timeout: float = 15.0, what: str | Callable[[], str] = "the condition"
    ) -> None:
        """Read event by event until the condition holds; comes back as often as the stream breaks off."""
        deadline = Deadline(timeout)
        while not condition():
            try:
                self._read(deadline)
            except TimeoutError:
                text = what() if callable(what) else what
                raise TimeoutError(f"expected {text} within {deadline.seconds} s, read {self.count}") from None

    def _read(self, deadline: Deadline) -> None:
        if self._stream is None:
            self.open()
        assert self._stream is not None
        try:
            event = self._stream.next(timeout=deadline.left / SLOWNESS)
        except BROKEN:
            self.close()
            return
        self._show(event)

    def _show(self, event: Event) -> None:
        data = data_of(event)
        if event.event in self.count:
            self.count[event.event] += 1
        if event.event == "ready":
            self.keys = set(data["keys"])
            self.shown = {key: number for key, number in self.shown.items() if key in self.keys}
        if event.id is None:
            return
        number, key = int(event.id), str(data.get("task_id") or data["key"])
        assert number > self._newest, f"expected ids to rise, got {number} after {self._newest}"
        self._newest, self.last_id = number, event.id
        if event.event == "removed":
            self.shown.pop(key, None)
        elif self.shown.get(key) != number:
            self.shown[key], self.data[key] = number, data
            self.told.append((number, key))
            if event.event == "task-done":
                self.ended.append(key)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()


def agree(page: Page, server: GivenRedis, user: str) -> None:
    """Read until the page shows what Redis holds, no more and no less."""

    def same() -> bool:
        return page.shown == history(server, user)

    with suppress(TimeoutError):
        page.until(same, timeout=5)
    assert page.shown == history(server, user)


def once(page: Page) -> None:
    """Assert that nothing was put on the screen twice."""
    assert len(set(page.told)) == len(page.told)


def subscribers(server: GivenRedis) -> int:
    """Return how many connections of web processes are subscribed or may be: those of the kind that tells."""
    with server.client() as client:
        return len(client.client_list(_type="pubsub"))  # type: ignore[arg-type]


def wait_for_subscribers(server: GivenRedis, count: int) -> None:
    """Wait until so many connections are subscribed to something."""
    wait_until(lambda: subscribers(server) == count, what=f"{count} subscribed connections")
