"""An open event stream as a client sees it: h11 judges the HTTP, celery_notify.sse parses the events."""

from __future__ import annotations

import json
import queue
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

import h11

from celery_notify.sse import Parser
from tests.support.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, Self

    from werkzeug.test import TestResponse

    from celery_notify.sse import Event


class StreamEndedError(Exception):
    """The server ended the stream in the orderly way: the body is complete."""


class EventStream(ABC):
    """Events one by one, each wait with a limit. `events` keeps all that came, `raw` the body's bytes."""

    status: int
    headers: Mapping[str, str]

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.raw = b""
        self._parser = Parser()
        self._waiting: deque[Event] = deque()

    @abstractmethod
    def _read(self, timeout: float) -> bytes:
        """Return the next bytes of the body, b"" at its complete end; TimeoutError if none come in time."""

    @abstractmethod
    def close(self) -> None:
        """Leave without a word, as a closed tab does."""

    def next(self, *, timeout: float = 10.0) -> Event:
        """Return the next event."""
        deadline = Deadline(timeout)
        while not self._waiting:
            self._feed(deadline)
        self.events.append(self._waiting.popleft())
        return self.events[-1]

    def _feed(self, deadline: Deadline) -> None:
        if deadline.over:
            raise TimeoutError(f"expected an event within {deadline.seconds} s, had {self.raw[-500:]!r} before")
        data = self._read(deadline.left)
        if not data:
            raise StreamEndedError(f"after {len(self.events)} events")
        self.raw += data
        self._waiting.extend(self._parser.feed(data))

    def until(self, wanted: Callable[[Event], object] | str, *, timeout: float = 10.0) -> list[Event]:
        """Return the events up to the first that is `wanted` (a condition or a name), it included."""
        condition = wanted if callable(wanted) else lambda event: event.event == wanted
        deadline, seen = Deadline(timeout), []
        while True:
            seen.append(self.next(timeout=deadline.left))
            if condition(seen[-1]):
                return seen

    def ready(self, *, timeout: float = 10.0) -> list[Event]:
        """Return the catch-up: what comes before `ready`, without it."""
        return self.until("ready", timeout=timeout)[:-1]

    def state(self, state: str, *, timeout: float = 10.0) -> dict[str, Any]:
        """Wait for the task event with this state and return what it says."""
        return data_of(self.until(lambda event: data_of(event).get("state") == state, timeout=timeout)[-1])

    def rest(self, *, timeout: float = 10.0) -> list[Event]:
        """Return what still comes until the server ends the stream in the orderly way."""
        deadline, seen = Deadline(timeout), []
        while True:
            try:
                seen.append(self.next(timeout=deadline.left))
            except StreamEndedError:
                return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SocketStream(EventStream):
    """A stream over TCP; h11.RemoteProtocolError says that a body broke off or that bytes are no HTTP."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        timeout: float = 10.0,
    ) -> None:
        super().__init__()
        deadline = Deadline(timeout)
        self._socket = socket.create_connection(address, timeout=deadline.seconds)
        self._http = h11.Connection(h11.CLIENT)
        try:
            request = h11.Request(method="GET", target=path, headers=[("Host", address[0]), *headers])
            self._socket.sendall(self._http.send(request) + self._http.send(h11.EndOfMessage()))
            response = self._next_event(deadline)
        except BaseException:
            self._socket.close()
            raise
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}
        #: The socket itself, for tests that shut one direction or stop reading.
        self.socket = self._socket

    def _next_event(self, deadline: Deadline) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._socket.settimeout(max(deadline.left, 0.001))
            self._http.receive_data(self._socket.recv(65536))
        return event

    def _read(self, timeout: float) -> bytes:
        event = self._next_event(Deadline(timeout))
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def close(self) -> None:
        self._socket.close()


class PumpedStream(EventStream):
    """A stream whose body a thread puts into `_chunks`, so that waiting can have a limit; b"" is its complete end."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def _read(self, timeout: float) -> bytes:
        try:
            return self._chunks.get(timeout=max(timeout, 0.001))
        except queue.Empty:
            raise TimeoutError(f"expected bytes within {timeout} s") from None


class ClientStream(PumpedStream):
    """A stream through Flask's test client."""

    def __init__(self, response: TestResponse) -> None:
        super().__init__()
        self._response = response
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="test-client-stream", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        body: Iterator[bytes] = self._response.iter_encoded()
        for chunk in body:
            self._chunks.put(chunk)
            if self._closing.is_set():
                break
        self._response.close()
        self._chunks.put(b"")

    def close(self) -> None:
        """Leave; it shows at the body's next chunk, as it does to a WSGI server."""
        self._closing.set()
        self._thread.join(timeout=0.01)


def data_of(event: Event) -> dict[str, Any]:
    """Return the object an event's data is."""
    data = json.loads(event.data) if event.data else {}
    assert isinstance(data, dict), f"expected an object, got {event.data!r}"
    return data


def states(events: Iterable[Event], task_id: str | None = None) -> list[str]:
    """Return the states that task events tell, in order, of one task if its id is given."""
    told = [data_of(event) for event in events if event.event.startswith("task-")]
    return [data["state"] for data in told if task_id in (None, data["task_id"])]
