"""Server-Sent Events: frames written and, the inverse, a stream parsed. Bytes in, bytes out.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

#: The standard sets no limit, Python does (int() takes 4300 digits); ten are a hundred days.
_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)

CONTENT_TYPE = "text/event-stream; charset=utf-8"


def frame(event: str, data: bytes, *, id: str | None = None, retry: int | None = None) -> bytes:  # noqa: A002
    """Return one event as its bytes on the stream.

    `data` is one line. `retry` is the reconnection time in milliseconds. The caller vouches for the names: events.py
    has checked them.
    """
    head = f"id: {id}\n" if id is not None else ""
    if retry is not None:
        head += f"retry: {retry}\n"
    return f"{head}event: {event}\ndata: ".encode("ascii") + data + b"\n\n"


def reconnection_time(milliseconds: int) -> bytes:
    """Return a block that dispatches nothing and only sets the reader's reconnection time."""
    return b"retry: %d\n\n" % milliseconds


@dataclass(frozen=True, slots=True)
class Event:
    """An event that was dispatched. `id` and `retry` are what this very block said, None if it did not."""

    event: str
    data: str
    id: str | None = None
    retry: int | None = None


class Parser:
    """Turns the bytes of an event stream, cut anywhere, into events, as the standard's section 9.2.6 says.

    `last_event_id` and `reconnection_time` (milliseconds) are what the stream has said so far.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.reconnection_time: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._begun = False
        self._after_cr = False
        self._clear()

    def _clear(self) -> None:
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._retry: int | None = None

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes; an incomplete one at the stream's end is lost, as it must be."""
        text = self._decoder.decode(data)
        if not text:
            return []
        if not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if self._after_cr and text.startswith("\n"):
            text = text[1:]
        self._after_cr = text.endswith("\r") if text else False
        *lines, self._text = (self._text + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = self.last_event_id = value
        elif name == "retry" and _DIGITS.fullmatch(value):
            self._retry = self.reconnection_time = int(value)

    def _dispatch(self) -> Event | None:
        event = Event(self._event or "message", "\n".join(self._data), self._id, self._retry) if self._data else None
        self._clear()
        return event
