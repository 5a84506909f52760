"""Frames and their inverse, by the HTML standard's section on server-sent events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify import sse
from celery_notify.sse import Event, Parser

if TYPE_CHECKING:
    from collections.abc import Iterable

names = st.from_regex(r"[a-z][a-z0-9-]{0,63}", fullmatch=True)
lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
frames = st.tuples(
    names,
    lines,
    st.none() | st.integers(0, 10**16 - 1).map(str),
    st.none() | st.integers(0, 10**6),
)


def parse(*pieces: bytes) -> list[Event]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


def told(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in events]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut `data` at places that are taken modulo its length."""
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


def test_a_frame_is_what_the_protocol_shows() -> None:
    assert sse.frame("note", b'{"a":1}', id="17") == b'id: 17\nevent: note\ndata: {"a":1}\n\n'
    assert sse.frame("ready", b"{}", retry=1500) == b"retry: 1500\nevent: ready\ndata: {}\n\n"
    assert sse.frame("heartbeat", b"{}") == b"event: heartbeat\ndata: {}\n\n"


@pytest.mark.defends("S1")
@given(st.lists(frames), st.lists(st.integers(0, 10**4)))
def test_what_was_framed_is_parsed_however_it_is_cut(
    written: list[tuple[str, str, str | None, int | None]], places: list[int]
) -> None:
    stream = b"".join(sse.frame(event, data.encode(), id=number, retry=retry) for event, data, number, retry in written)

    assert parse(*cut(stream, places)) == [Event(*each) for each in written]


@given(st.text(st.sampled_from("data:id ev\r\n\ufeff\0é1"), max_size=60), st.lists(st.integers(0, 200)))
def test_any_stream_means_the_same_however_it_is_cut(text: str, places: list[int]) -> None:
    data = text.encode()

    assert parse(*cut(data, places)) == parse(data)


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(data: bytes) -> None:
    assert parse(data, b"\n\ndata: after\n\n")[-1].data == "after"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_line_ends_in_either_way(end: bytes) -> None:
    stream = b"event: add" + end + b"data: 1" + end + b"data: 2" + end + end + b"data: 3" + end + end

    for size in (1, 2, 3, len(stream)):
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert told(parse(*pieces)) == [("add", "1\n2"), ("message", "3")]


# The examples of section 9.2.6, word for word


def test_several_data_lines_are_one_text() -> None:
    assert told(parse(b"data: YHOO\ndata: +2\ndata: 10\n\n")) == [("message", "YHOO\n+2\n10")]


def test_the_example_with_a_comment_and_an_id_that_is_reset() -> None:
    parser = Parser()
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"

    first, second, third = parser.feed(stream)

    assert (first.data, first.id) == ("first event", "1")
    assert (second.data, second.id) == ("second event", "")
    assert (third.data, third.id) == (" third event", None)
    assert parser.last_event_id == ""


def test_data_without_a_colon_is_an_empty_line_and_what_has_no_end_is_dropped() -> None:
    assert told(parse(b"data\n\ndata\ndata\n\ndata:")) == [("message", ""), ("message", "\n")]


def test_one_space_after_the_colon_does_not_count() -> None:
    assert told(parse(b"data:test\n\ndata: test\n\n")) == [("message", "test")] * 2


# What else it says


def test_only_one_byte_order_mark_at_the_beginning_is_dropped() -> None:
    mark = "\ufeff".encode()

    assert told(parse(mark[:1], mark[1:] + b"data: a\n\n")) == [("message", "a")]
    assert told(parse(mark + mark + b"data: a\n\n")) == []
    assert told(parse(b"data: a\n\n" + mark + b"data: b\n\ndata: c\n\n")) == [("message", "a"), ("message", "c")]


def test_a_block_without_data_dispatches_nothing_and_forgets_its_name() -> None:
    assert told(parse(b"event: add\n\ndata: 1\n\n")) == [("message", "1")]


def test_a_block_without_data_sets_the_id_all_the_same() -> None:
    parser = Parser()

    assert parser.feed(b"id: 7\n\n") == []
    assert parser.last_event_id == "7"


def test_an_id_with_a_null_is_ignored() -> None:
    parser = Parser()

    [event] = parser.feed(b"id: 1\nid: 2\x003\ndata: a\n\n")

    assert (event.id, parser.last_event_id) == ("1", "1")


@pytest.mark.parametrize(
    "value", [b"", b"1.5", b"-1", b"+1", b"1e3", b"x", b"1 ", "\u0661".encode(), "\u00b2".encode()]
)
def test_a_retry_of_other_than_ascii_digits_is_ignored(value: bytes) -> None:
    parser = Parser()
    parser.feed(b"retry: 100\n\nretry: " + value + b"\n\n")

    assert parser.reconnection_time == 100


def test_a_retry_of_endless_digits_is_no_error() -> None:
    assert told(parse(b"retry: " + b"9" * 5000 + b"\ndata: a\n\n")) == [("message", "a")]


def test_a_reconnection_time_alone_dispatches_nothing() -> None:
    parser = Parser()

    assert parser.feed(sse.reconnection_time(2500)) == []
    assert parser.reconnection_time == 2500


def test_other_fields_and_comments_are_ignored() -> None:
    assert told(parse(b":\n: comment\nfoo: bar\nfoo\nDATA: no\n data: no\ndata: yes\n\n")) == [("message", "yes")]


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert told(parse(b"data: a\xffb\n\n")) == [("message", "a\ufffdb")]


def test_a_colon_in_a_value_belongs_to_it() -> None:
    assert told(parse(b'data: {"a":"b: c"}\n\n')) == [("message", '{"a":"b: c"}')]


def test_a_name_that_was_said_twice_is_the_last_one() -> None:
    assert told(parse(b"event: a\nevent: b\ndata: 1\n\n")) == [("b", "1")]
