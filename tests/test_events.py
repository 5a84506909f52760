"""Events and entries: what may stand in them, and what is refused."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_notify import events
from celery_notify.events import FINAL_STATES, MAX_ENTRY, MAX_EVENT, TaskEvent
from celery_notify.exceptions import InvalidEntryError

if TYPE_CHECKING:
    from typing import Any

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
any_text = st.text(st.characters())  # lone surrogates included


def task_event(**fields: Any) -> TaskEvent:
    return TaskEvent(**{"task_id": "t1", "task": "shop.bill", "state": "STARTED", "attempt": 1, **fields})


def entry(**fields: Any) -> bytes:
    """Return an entry's bytes; a value that is bytes stands in it as it is."""
    parts = {"id": "17", "user": "u", "event": "note", "data": b'{"key":"k"}', **fields}
    written = [
        b'"%b":%b' % (name.encode(), value if isinstance(value, bytes) else json.dumps(value).encode())
        for name, value in parts.items()
    ]
    return b"{" + b",".join(written) + b"}"


# What is written


@pytest.mark.defends("S2")
@settings(deadline=None)
@given(json_values)
@example("\u2028 \u2029 \u0085 \r\n \x00 \x7f 😀")
def test_json_is_ascii_on_one_line_and_says_the_same(value: object) -> None:
    text = events.encode(value)

    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value


def endless(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {"a": [float("-inf")]},
        "\ud800",
        {"\udfff": 1},
        ["a", "b\udc00c"],
        "\ud800\ud800",
        endless(100_000),
        b"bytes",
        object(),
        {1, 2},
        Decimal(1),
        {(1, 2): 3},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.defends("F28")
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        events.encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(ValueError, match=r"[Cc]ircular"):
        events.encode(value)


@given(any_text)
def test_text_with_a_surrogate_of_a_pair_alone_is_refused_all_else_is_not(text: str) -> None:
    alone = any("\ud800" <= character <= "\udfff" for character in text)

    if alone:
        with pytest.raises(ValueError, match="expected a JSON value"):
            events.encode(text)
    else:
        assert json.loads(events.encode(text)) == text


# Text and numbers from tasks


@given(any_text | st.text(st.sampled_from("aé€😀\ud800"), min_size=200, max_size=2000))
def test_cleaned_text_is_unicode_of_one_kib_at_the_most(text: str) -> None:
    cleaned = events.clean_text(text)

    assert cleaned is not None
    data = cleaned.encode()
    assert len(data) <= 1024
    assert events.clean_text(cleaned) == cleaned
    shown = text.encode(errors="replace").decode()
    if len(shown.encode()) <= 1024:
        assert cleaned == shown
    else:
        assert cleaned.endswith("…")
        assert shown.startswith(cleaned[:-1])
        assert len(data) > 1024 - 4  # no more is cut than must be


def test_text_of_just_one_kib_is_not_cut() -> None:
    assert events.clean_text("x" * 1024) == "x" * 1024
    assert events.clean_text("é" * 512) == "é" * 512
    assert events.clean_text("x" * 1025) == "x" * 1021 + "…"
    assert events.clean_text("x" + "é" * 512) == "x" + "é" * 510 + "…"


def test_no_text_stays_no_text() -> None:
    assert events.clean_text(None) is None
    assert events.clean_text("") == ""


@pytest.mark.parametrize("value", [b"bytes", 7, ["a"], {"not": "text"}, object()])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="expected text, got"):
        events.clean_text(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, None),
        (0, 0),
        (7, 7),
        (-7, -7),
        (True, 1),
        (2**53 - 1, 2**53 - 1),
        (0.25, 0.25),
        (1e300, 1e300),
        (Fraction(1, 4), 0.25),
        (Decimal("1.5"), 1.5),
    ],
)
def test_numbers_are_those_of_json(value: object, number: object) -> None:
    cleaned = events.clean_number(value)

    assert cleaned == number
    assert type(cleaned) is type(number)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        Decimal("NaN"),
        Decimal("sNaN"),
        2**53,
        -(2**53),
        10**400,
        "3",
        b"3",
        1j,
        [1],
        object(),
    ],
)
def test_what_is_no_number_of_json_and_javascript_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        events.clean_number(value)


# Names


@pytest.mark.parametrize("name", ["a", "note", "order-paid", "x9", "a" * 64])
def test_a_custom_event_may_have_such_a_name(name: str) -> None:
    assert events.check_name(name) == name


@pytest.mark.defends("S1")
@pytest.mark.parametrize(
    "name",
    ["", "A", "9a", "-a", "a_b", "a b", "é", "a\n", "a\r", "a\nb", "a:b", "a" * 65, "\uff41", None, 7, b"note"],
)
def test_a_custom_event_has_no_other_name(name: object) -> None:
    with pytest.raises(ValueError, match="expected an event's name"):
        events.check_name(name)


@pytest.mark.defends("S1")
@pytest.mark.parametrize(
    "name", ["task-progress", "task-done", "ready", "removed", "heartbeat", "degraded", "close-streams", "error"]
)
def test_a_custom_event_takes_none_of_our_own_names(name: str) -> None:
    assert name in events.RESERVED
    with pytest.raises(ValueError, match="expected an event's name"):
        events.check_name(name)


@pytest.mark.parametrize("key", ["k", "a/b", "a b", "é", "...", "x" * 256, "\n"])
def test_a_key_is_any_text_that_can_end_a_path(key: str) -> None:
    assert events.check_key(key) == key


@pytest.mark.parametrize("key", ["", ".", "..", "x" * 257, "\ud800", None, 7, b"k"])
def test_what_is_no_key_is_refused(key: object) -> None:
    with pytest.raises(ValueError, match="expected a key"):
        events.check_key(key)


@pytest.mark.parametrize(("user", "text"), [("ada", "ada"), (42, "42"), (-1, "-1"), ("x" * 256, "x" * 256)])
def test_a_users_id_is_text_or_a_whole_number(user: object, text: str) -> None:
    assert events.check_user(user) == text


@pytest.mark.parametrize("user", ["", "x" * 257, "\ud800", None, True, False, 1.5, b"ada", ["ada"], object()])
def test_what_is_no_users_id_is_refused(user: object) -> None:
    with pytest.raises(ValueError, match="expected a user's id"):
        events.check_user(user)


@pytest.mark.defends("S4")
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("1795465486475053", 1795465486475053),
        ("9" * 16, int("9" * 16)),
        ("007", 7),
        ("0", 0),
        (None, 0),
        ("", 0),
        ("9" * 17, 0),
        ("-1", 0),
        ("+1", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("0x10", 0),
        (" 1", 0),
        ("1\n", 0),
        ("1_0", 0),
        ("\u0661", 0),
        ("\uff11", 0),
        ("x" * 100_000, 0),
    ],
)
def test_a_last_event_id_is_1_to_16_digits_or_none(text: str | None, number: int) -> None:
    assert events.parse_id(text) == number


# From an event to what is published


def test_a_task_event_is_published_with_its_position_beside_its_data() -> None:
    event = task_event(state="PROGRESS", current=3, total=10, title="Bill", cancellable=True)

    told = events.publication("ada", event)

    assert (told.user, told.event, told.key) == ("ada", "task-progress", "t1")
    assert json.loads(told.data) == {
        "task_id": "t1",
        "task": "shop.bill",
        "state": "PROGRESS",
        "attempt": 1,
        "title": "Bill",
        "cancellable": True,
    }
    assert told.task == events.Position(attempt=1, state="PROGRESS", current=3, total=10)


@given(
    title=st.none() | st.text(),
    weight=st.integers(1, 9) | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
def test_an_event_says_the_same_by_whichever_way_it_is_encoded(title: str | None, weight: float) -> None:
    event = task_event(title=title, weight=weight)

    data = events.publication("ada", event).data

    assert data.isascii()
    assert len(data.splitlines()) == 1
    assert json.loads(data) == msgspec.to_builtins(event)


@pytest.mark.parametrize("state", [*sorted(FINAL_STATES), "PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED"])
def test_only_a_final_state_is_told_as_done(state: str) -> None:
    name = "task-done" if state in FINAL_STATES else "task-progress"

    assert events.publication("u", task_event(state=state)).event == name


def test_an_end_over_64_kib_is_sent_without_its_result(caplog: pytest.LogCaptureFixture) -> None:
    told = events.publication("u", task_event(state="SUCCESS", url="/a.pdf", result="x" * MAX_EVENT))

    assert json.loads(told.data)["url"] == "/a.pdf"
    assert "result" not in json.loads(told.data)
    assert len(told.data) <= MAX_EVENT
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_event_over_64_kib_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an event of at most 65536 bytes"):
        events.publication("u", task_event(task="x" * MAX_EVENT))
    with pytest.raises(ValueError, match="expected an event of at most 65536 bytes"):
        events.custom("u", "note", "x" * MAX_EVENT, key="k")


def test_a_custom_event_of_just_64_kib_is_published_and_can_be_read() -> None:
    frame = len(events.custom("u", "note", "", key="k").data)
    told = events.custom("u", "note", "x" * (MAX_EVENT - frame), key="k")
    assert len(told.data) == MAX_EVENT

    read = events.decode_entry(entry(data=told.data.encode()), "u")

    assert bytes(read.data) == told.data.encode()


def test_the_largest_event_of_the_longest_names_can_be_read() -> None:
    """What may be written must be read: the user's id and the key are the only parts beside the 64 KiB."""
    user, name = "\U0010ffff" * 256, "n" * 64
    key = "\U0010ffff" * 256
    frame = len(events.custom(user, name, "", key=key).data)
    told = events.custom(user, name, "x" * (MAX_EVENT - frame), key=key)

    raw = entry(id="9" * 16, user=user, event=name, data=(told.data[:-1] + f',"at":"{"9" * 24}"}}').encode())

    assert events.decode_entry(raw, user).event == name


@settings(deadline=None)
@given(json_values)
def test_data_of_a_custom_event_comes_back_as_it_was(value: object) -> None:
    told = events.custom("u", "note", value, key="k")

    read = events.decode_entry(entry(data=told.data.encode()), "u")

    assert json.loads(bytes(read.data)) == {"key": "k", "data": value}


# Nothing in Redis is trusted


def test_an_entry_is_read() -> None:
    read = events.decode_entry(entry(), "u")

    assert (read.id, read.user, read.event, bytes(read.data)) == ("17", "u", "note", b'{"key":"k"}')


def test_fields_of_a_newer_version_are_passed_over() -> None:
    assert events.decode_entry(entry(version=2, more={"a": [1]}), "u").id == "17"


@pytest.mark.parametrize("name", ["", "0123456789abcdef.t1", "w.%22a-b_c~%2E", "w"])
def test_who_runs_a_task_is_read_as_it_was_written(name: str) -> None:
    assert events.decode_entry(entry(worker=name), "u").worker == name
    assert events.decode_entry(entry(lost=name), "u").lost == name


DEEP = 20_000

FOREIGN = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "two": entry() + entry(),
    "not UTF-8": entry(event=b'"n\xffte"'),
    "not UTF-8 in the data": entry(data=b'{"a":"\xff"}'),
    "another's": entry(user="v"),
    "another's, alike": entry(user="u "),
    "without a user": entry().replace(b'"user":"u",', b""),
    "a number for an id": entry(id=17),
    "an id that is none": entry(id="x"),
    "an id of 17 digits": entry(id="1" * 17),
    "no id": entry(id=""),
    "an id of other digits": entry(id="\u0661"),
    "lines in the id": entry(id="17\n\ndata: x"),
    "a name that is none": entry(event="Note"),
    "lines in the name": entry(event="note\ndata: x"),
    "a name that ends a line": entry(event="note\n"),
    "a name of 65": entry(event="n" * 65),
    "text for data": entry(data=b'"text"'),
    "a list for data": entry(data=b"[1]"),
    "a number for data": entry(data=b"7"),
    "a line feed in the data": entry(data=b'{"key":\n"k"}'),
    "a carriage return in the data": entry(data=b'{"key":\r"k"}'),
    "a line feed in a text": entry(data=b'{"key":"\n"}'),
    "more than ASCII in the data": entry(data='{"key":"\u2028"}'.encode()),
    "an é in the data": entry(data='{"key":"é"}'.encode()),
    "NaN": entry(data=b'{"current":NaN}'),
    "Infinity": entry(data=b'{"current":-Infinity}'),
    "data that ends early": entry(data=b'{"key":'),
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep lists, open": b"[" * DEEP,
    "deep lists in the data": entry(data=b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "deep objects in the data": entry(data=b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "100000 deep": b"[" * 100_000 + b"]" * 100_000,
    "5 MB": entry(data=b'{"key":"' + b"x" * 5_000_000 + b'"}'),
    "fields in a worker's name": entry(worker='w","user":"v.t1'),
    "fields in a lost worker's name": entry(lost='w","user":"v.t1'),
    "a backslash in a worker's name": entry(worker="w\\.t1"),
    "lines in a worker's name": entry(worker="w.t1\n"),
    "a space in a worker's name": entry(worker="w.t 1"),
    "more than ASCII in a worker's name": entry(worker="w.\u0661"),
    "a little too large": entry(data=b'{"key":"' + b"x" * MAX_ENTRY + b'"}'),
}


@pytest.mark.defends("S7", "S17")
@pytest.mark.parametrize("raw", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_entry_of_this_user_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidEntryError) as refused:
        events.decode_entry(raw, "u")
    assert len(str(refused.value)) < 1000


@pytest.mark.defends("S17")
@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_refused(raw: bytes) -> None:
    with pytest.raises(InvalidEntryError):
        events.decode_entry(raw, "u")


@pytest.mark.defends("S1")
@settings(deadline=None, max_examples=300)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_entry_never_breaks_a_frame(place: int, damage: bytes) -> None:
    whole = entry()
    raw = whole[:place] + damage + whole[place + 1 :]
    try:
        read = events.decode_entry(raw, "u")
    except InvalidEntryError:
        return
    data = bytes(read.data)
    assert data.isascii()
    assert b"\n" not in data
    assert b"\r" not in data
    assert json.loads(data) is not None
    assert read.id.isdecimal()


def test_an_entry_is_told_anew_as_being_cancelled_with_all_that_a_newer_version_says_of_it() -> None:
    data = {
        "task_id": "t",
        "task": "s",
        "state": "RETRY",
        "attempt": 2,
        "current": 3,
        "total": 9,
        "newer": [1],
        "at": "x",
    }
    entry = events.decode_entry(
        json.dumps({"id": "7", "worker": "w.t", "user": "ada", "event": "task-progress", "data": data}).encode(), "ada"
    )

    item = events.cancelling(entry)

    assert json.loads(item.data) == {
        **{name: value for name, value in data.items() if name not in {"current", "total", "at"}},
        "cancelling": True,
    }
    assert item.task == events.Position(2, "RETRY", 3, 9)
    assert (item.key, item.since, item.worker, item.event) == ("t", 7, "w.t", "task-progress")


@pytest.mark.parametrize("data", ["{}", '{"task_id":"t","state":"DONE","attempt":1}', '{"attempt":{}}'])
def test_what_is_no_tasks_entry_is_not_being_cancelled(data: str) -> None:
    raw = f'{{"id":"7","user":"ada","event":"task-progress","data":{data}}}'.encode()

    with pytest.raises(ValueError, match="expected a task's entry"):
        events.cancelling(events.decode_entry(raw, "ada"))


def test_a_word_to_the_hubs_needs_no_id() -> None:
    assert events.decode_entry(entry(id="", event="close-streams", data=b"{}"), "u").event == "close-streams"


def test_a_word_to_the_hubs_of_another_user_is_refused() -> None:
    with pytest.raises(InvalidEntryError):
        events.decode_entry(entry(id="", event="close-streams", user="v"), "u")


# The schema


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Judge a value by as much of JSON Schema as ours uses."""
    known = {"anyOf", "type", "enum", "default", "title", "description", "properties", "required", "$schema"}
    assert schema.keys() <= known, f"expected only {known}, got {schema.keys()}"
    if "anyOf" in schema and not any(fits(value, each) for each in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    types = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None), "object": dict}
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    properties = schema.get("properties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        fits(value[name], each) for name, each in properties.items() if name in value
    )


def test_the_schema_names_every_field_of_the_contract() -> None:
    schema = events.json_schema()

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == [*TaskEvent.__struct_fields__]
    assert set(schema["required"]) == {"task_id", "task", "state", "attempt"}
    assert set(schema["properties"]["state"]["enum"]) == {
        *("PENDING", "STARTED", "PROGRESS", "RETRY", "STALLED"),
        *("SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"),
    }
    assert schema.get("additionalProperties") is not False, "expected room for fields of newer versions"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"state": "PROGRESS", "current": 1, "total": 2.5, "description": "é"},
        {"state": "SUCCESS", "result": {"pages": [1]}, "url": "/a"},
        {"state": "RETRY", "error": "no", "retry_at": "2026-11-24T19:30:00.123Z"},
        {"title": "t", "cancellable": True, "job_id": "j", "root_id": "r", "parent_id": "p", "group_id": "g"},
        {"weight": 2.5, "cancelling": True},
    ],
)
def test_real_events_fit_the_schema(fields: dict[str, Any]) -> None:
    told = json.loads(events.publication("u", task_event(**fields)).data)
    told.update({name: fields[name] for name in ("current", "total") if name in fields}, at="2026-11-24T19:30:00.123Z")

    assert fits(told, events.json_schema())
    numbers = {"tasks": 2, "ended": 1, "failed": 0, "revoked": 0, "hidden": 0, "fraction": 0.5}
    assert fits({**told, "job": numbers}, events.json_schema())
    assert {**told, **fields} == told


@pytest.mark.parametrize(
    "change", [{"state": "DONE"}, {"task_id": 7}, {"current": "3"}, {"cancellable": "yes"}, {"job": {"tasks": 1}}]
)
def test_other_values_do_not_fit_the_schema(change: dict[str, Any]) -> None:
    told = json.loads(events.publication("u", task_event()).data)

    assert not fits({**told, **change}, events.json_schema())
