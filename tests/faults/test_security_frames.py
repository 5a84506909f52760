"""Nothing that is sent, and nothing that stands in Redis, adds a field or an event to a stream.

The judge is a reader of event streams of its own, written from the words of the HTML standard, without a line of the
library's: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import celery_notify
from celery_notify import events
from celery_notify.catch_up import framed
from celery_notify.events import FINAL_STATES, TaskEvent, clean_text, decode_entry
from celery_notify.exceptions import InvalidEntryError
from tests.support.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from tests.support.event_stream import EventStream
    from tests.support.web_servers import Web

#: Texts that mean something to a stream, to a line, to JSON or to a decoder.
HOSTILE = [
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\r\r",
    "\n\nevent: task-done\ndata: {}\n\n",
    "\r\rid: 9999999999999999\rdata: x\r\r",
    "x\ndata: y",
    "\0",
    "id\0",
    "\ufeff",
    "\ufeffdata: x\n\n",
    "\u2028data: x\u2028\u2028",
    "\u2029",
    "\u0085\u0085",
    "\v\f\x1c\x1d\x1e",
    "\x1b[2J",
    "\u202e\u2066",
    "\uffff\ufffe\ufffd",
    "😀\U0010ffff",
    '"}\n\ndata: {"',
    "\\u000a\\n",
    ": comment",
    "retry: 0",
    "</script>",
    "x" * 60_000,
    "\n" * 9_000,
]
#: What JSON in UTF-8 cannot say.
SURROGATES = ["\ud800", "\udfff\ud800", "x\udc00\n\n"]

texts = st.sampled_from(HOSTILE) | st.text(max_size=60) | st.text('\r\n\0\ufeff\u2028\u0085:{}"\\ ab', max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


class Told(NamedTuple):
    """An event that a browser would dispatch."""

    event: str
    data: str
    last_event_id: str


def interpret(stream: bytes) -> list[Told]:
    """Return the events of a stream, read as a whole.

    It is decoded with replacement and without one byte order mark at its beginning, and its lines end in CRLF, LF or CR
    and nothing else; what stands in quotes below are the standard's words.
    """
    text = stream.decode("utf-8", errors="replace").removeprefix("\ufeff")
    told: list[Told] = []
    data, event_type, last_event_id = "", "", ""
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    for line in lines:
        if line == "":  # "If the line is empty (a blank line), dispatch the event"
            if data != "":  # "If the data buffer is an empty string, set [both] to the empty string and return."
                told.append(Told(event_type or "message", data[:-1] if data[-1] == "\n" else data, last_event_id))
            data, event_type = "", ""
            continue
        colon = line.find(":")
        if colon == 0:  # "Ignore the line."
            continue
        field, value = (line, "") if colon < 0 else (line[:colon], line[colon + 1 :])
        if colon > 0 and value[:1] == " ":
            value = value[1:]
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_event_id = value
    return told


# The judge itself


def test_the_standards_own_examples_are_read_as_it_says() -> None:
    assert interpret(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [Told("message", "YHOO\n+2\n10", "")]
    assert interpret(
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\ndata: fourth"
    ) == [Told("message", "first event", "1"), Told("message", "second event", ""), Told("message", " third event", "")]
    assert [told.data for told in interpret(b"data\n\ndata\ndata\n\ndata:")] == ["", "\n"]
    assert interpret(b"data:test\n\ndata: test\n\n") == [Told("message", "test", "")] * 2


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_the_judge_sees_an_injection_where_there_is_one(end: str) -> None:
    """The control: a frame made without JSON is broken open."""
    hostile = f"x{end}{end}event: task-done{end}data: {{}}{end}id: 99{end}{end}"

    told = interpret(b"id: 1\nevent: note\ndata: " + hostile.encode() + b"\n\n")

    assert [each.event for each in told] == ["note", "task-done"]


# Frames as they are made


def entry(publication: events.Publication, number: int = 7) -> bytes:
    """Return a publication as Redis hands it on."""
    head = f'{{"id":"{number}","user":{json.dumps(publication.user)},"event":"{publication.event}","data":'
    return (head + publication.data + "}").encode()


def unless_too_long(make: Callable[[], events.Publication]) -> events.Publication | None:
    """Return what is made; None for an event of more than 64 KiB, the one thing that may be wrong with it here."""
    try:
        return make()
    except ValueError as error:
        if "expected an event of at most" not in str(error):
            raise
        return None


def frame_of(raw: bytes, user: str) -> bytes:
    _, frame = framed(decode_entry(raw, user))
    return frame.plain


def is_one_event(frame: bytes, name: str) -> Any:
    """Assert that a frame is one event, also between two others, and return what its data says."""
    neighbour = b"id: 3\nevent: note\ndata: {}\n\n"
    before, told, after = interpret(neighbour + frame + neighbour)
    assert before == after == Told("note", "{}", "3")
    assert (told.event, told.last_event_id) == (name, "7")
    assert frame.isascii()
    assert not set(frame) & set(b"\0\r\v\f\x1b")
    assert frame.count(b"\n") == 4  # id, event, data, and the blank line
    return json.loads(told.data)


@pytest.mark.defends("S1", "S2")
@given(user=texts.filter(lambda text: 0 < len(text) <= 256), key=texts.filter(bool), value=values)
@settings(max_examples=200, deadline=None)
def test_a_custom_event_is_one_event_whatever_is_sent(user: str, key: str, value: Any) -> None:
    publication = unless_too_long(lambda: events.custom(user, "note", value, key=key))
    if publication is None:
        return

    data = is_one_event(frame_of(entry(publication), user), "note")

    assert data == {"key": key, "data": value}


@pytest.mark.defends("S1", "S2")
@given(text=texts | st.sampled_from(SURROGATES), state=st.sampled_from(["PENDING", "PROGRESS", "FAILURE", "SUCCESS"]))
@settings(max_examples=100, deadline=None)
def test_a_task_event_is_one_event_whatever_its_texts(text: str, state: Any) -> None:
    shown = clean_text(text)
    fields = dict.fromkeys(
        ("title", "description", "error", "url", "job_id", "root_id", "parent_id", "group_id"), shown
    )
    event = TaskEvent(task_id=shown or "", task=shown or "", state=state, attempt=1, result=[shown], **fields)
    publication = unless_too_long(lambda: events.publication("ada", event))
    if publication is None:
        return

    name = "task-done" if state in FINAL_STATES else "task-progress"
    data = is_one_event(frame_of(entry(publication), "ada"), name)

    assert {data[field] for field in fields} == {shown}


@pytest.mark.defends("S1")
@pytest.mark.parametrize("text", SURROGATES)
def test_what_utf8_cannot_say_is_refused_before_it_is_sent(text: str) -> None:
    for value in (text, [text], {text: 1}, {"a": {"b": text}}):
        with pytest.raises(ValueError, match="expected a JSON value"):
            events.custom("ada", "note", value, key=None)


@pytest.mark.defends("S1", "S2", "S17")
@given(
    number=texts | st.sampled_from(["7", "7\n", "\u0667", "-7", "7" * 17]),
    name=texts | st.sampled_from(["note", "note\n", "nOte", "task-done", "x" * 65]),
    data=texts
    | st.builds(json.dumps, values)
    | st.builds(lambda text: json.dumps({"a": text}, ensure_ascii=False), texts),
    escaped=st.booleans(),
)
@example(number="7", name="note", data='{"a":\n1}', escaped=True)
@example(number="7", name="note", data='{"a":\r1}', escaped=True)
@example(number="7", name="note", data='{"a":"\u2028"}', escaped=True)
@example(number="7\n\ndata: x", name="note", data="{}", escaped=True)
@example(number="7", name="note\ndata: x", data="{}", escaped=True)
@settings(max_examples=300, deadline=None)
def test_what_stands_in_redis_is_one_event_or_none(number: str, name: str, data: str, escaped: bool) -> None:  # noqa: FBT001
    """As if somebody else wrote into our keys: with names as JSON has them, and raw."""
    write = json.dumps if escaped else (lambda text: f'"{text}"')
    raw = f'{{"id":{write(number)},"user":"ada","event":{write(name)},"data":{data}}}'.encode()
    try:
        frame = frame_of(raw, "ada")
    except InvalidEntryError:
        return

    neighbour = b"id: 3\nevent: note\ndata: {}\n\n"
    _, told, _ = interpret(neighbour + frame + neighbour)

    assert re.fullmatch("[a-z][a-z0-9-]{0,63}", told.event)
    assert re.fullmatch("[0-9]{1,16}", told.last_event_id, re.ASCII)
    assert isinstance(json.loads(told.data), dict)
    assert frame.isascii()


# Through Redis and the hub


def until_told(stream: EventStream, text: str) -> None:
    """Read on until `text` stands in the bytes of the stream."""
    deadline = Deadline(10)
    while text.encode() not in stream.raw:
        stream.next(timeout=deadline.left)


@pytest.mark.defends("S1", "S2")
def test_what_is_sent_comes_out_of_a_socket_as_it_was_and_nothing_else(web: Web, tasks: ModuleType, user: str) -> None:
    del tasks  # this process sends, with Celery's configuration
    sent: list[Any] = []
    with web.stream(user) as stream:
        stream.ready()

        @given(value=values | st.sampled_from([*HOSTILE, *SURROGATES]))
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        def send(value: Any) -> None:
            celery_notify.send(user, "note", value)
            with contextlib.suppress(ValueError):  # what is too long, or no Unicode, is not sent
                events.custom(user, "note", value, key=None)
                sent.append(value)

        send()
        for text in HOSTILE:
            celery_notify.send(user, "note", text, key=text[:256])
            sent.append(text)
        celery_notify.send(user, "last", None)
        until_told(stream, "event: last")
        told = interpret(stream.raw)

    assert stream.raw.isascii()
    assert {each.event for each in told} <= {"ready", "heartbeat", "note", "last"}
    assert [json.loads(each.data)["data"] for each in told if each.event == "note"] == sent
    ids = [int(each.last_event_id) for each in told if each.event in {"note", "last"}]
    assert ids == sorted(set(ids))
