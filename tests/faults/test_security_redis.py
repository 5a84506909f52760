"""What stands in Redis is not trusted: others may write there."""

from __future__ import annotations

import json
import pickle
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import celery_notify
from celery_notify import events, transport
from celery_notify.config import Settings
from celery_notify.events import MAX_DEPTH, MAX_ENTRY, TaskEvent
from celery_notify.transport import RedisTransport
from tests.support.event_stream import data_of
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web

KEYS = ("order", "entries", "ended")
#: An id above all that are issued: what has it is dropped by no reader for being old.
HIGHEST = 10**16 - 1


def entry(user: str, data: str | bytes, *, event: str = "note", number: int = 17) -> bytes:
    """Return an entry whose data is anything."""
    raw = data if isinstance(data, bytes) else data.encode()
    return f'{{"id":"{number}","user":{json.dumps(user)},"event":"{event}","data":'.encode() + raw + b"}"


def edge(levels: int) -> str:
    return "[" * levels + "]" * levels


def hostile(user: str, number: int = 17) -> dict[str, bytes]:
    """Return what is no entry of the user, by name."""
    nested = '{"a":' * 10_000 + "1" + "}" * 10_000

    def made(data: str | bytes, of: str = user) -> bytes:
        return entry(of, data, number=number)

    return {
        "a pickle": pickle.dumps({"id": str(number), "user": user, "event": "note", "data": {}}),
        "five megabytes": made('{"a":"' + "x" * 5_000_000 + '"}'),
        "one byte too many": made('{"a":"' + "x" * (MAX_ENTRY - len(made('{"a":""}')) + 1) + '"}'),
        "nested without end": made(nested),
        "nested too deep": made('{"a":' + edge(MAX_DEPTH) + "}"),
        "brackets without end": made('{"a":' + "[" * 30_000),
        "NaN": made('{"a":NaN}'),
        "infinity": made('{"a":-Infinity}'),
        "no UTF-8": made(b'{"a":"\xff\xfe"}'),
        "cut UTF-8": made(b'{"a":"\xf0\x9f\x98'),
        "no ASCII": made('{"a":"\u2028"}'),
        "no bytes": b"",
        "null bytes": b"\0" * 100,
        "no object": made("[]"),
        "another user's": made("{}", of=f"{user} too"),
        "nobody's": f'{{"id":"{number}","event":"note","data":{{}}}}'.encode(),
        "lists for texts": f'{{"id":["{number}"],"user":["{user}"],"event":["note"],"data":{{}}}}'.encode(),
        "two entries": made("{}") + made("{}"),
        "a script": b"<script>alert(1)</script>",
        "an id that is none": made("{}").replace(f'"{number}"'.encode(), b'"99999999999999999"'),
    }


def complaints(web: Web, since: int = 0) -> list[str]:
    """Return what the library has written of what is wrong."""
    return re.findall(r"^(?:WARNING|ERROR|CRITICAL) celery_notify.*", web.log()[since:], re.MULTILINE)


def names_of(redis_url: str, user: str) -> dict[str, str]:
    """Return the names of a user's keys, and of the channel under "channel"."""
    source = RedisTransport(Settings(redis_url=redis_url))
    channel = source.channel(user)
    source.close()
    return {"channel": channel, **{name: f"{channel}:{name}" for name in KEYS}}


# In a channel


@pytest.mark.defends("S17", "S7")
def test_what_is_no_entry_in_a_channel_is_skipped_with_one_line_in_the_log(
    user: str, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    channel = names_of(redis_server.url, user)["channel"]
    with web.stream(user) as stream, redis_server.client() as client:
        stream.ready()
        for name, content in hostile(user, HIGHEST).items():
            assert client.publish(channel, content) == 1, name
            web.send(user, "note", name)
            told = stream.until(lambda event: event.event != "heartbeat")
            assert [data_of(event)["data"] for event in told if event.event == "note"] == [name]

    assert len(complaints(web)) == 1
    assert "Traceback" not in web.log()


# In a history


@pytest.fixture
def poisoned(user: str, redis_server: GivenRedis) -> dict[str, bytes]:
    """Put what is no entry into the user's history, between two that are; return it."""
    source, keys = transport.connect(Settings(redis_url=redis_server.url)), names_of(redis_server.url, user)
    task = TaskEvent(task_id="first", task="t", state="STARTED", attempt=1)
    [number] = source.publish([events.publication(user, task)])
    assert isinstance(number, int)
    content = hostile(user, number + 1)
    with redis_server.client() as client:
        for name, raw in content.items():
            client.zadd(keys["order"], {name: number + 1})
            client.zadd(keys["ended"], {name: number + 1})
            client.hset(keys["entries"], name, raw)
    source.publish([events.custom(user, "note", "last", key="last")])
    return content


def told_of(streamed: list[Any]) -> list[str]:
    return [data_of(event).get("task_id") or data_of(event)["key"] for event in streamed]


@pytest.mark.defends("S17", "S7")
def test_what_is_no_entry_in_a_history_is_left_out_and_the_rest_is_told(
    user: str, web: Web, poisoned: dict[str, bytes], redis_server: GivenRedis
) -> None:
    since = len(web.log())
    with web.stream(user) as stream:
        assert told_of(stream.ready()) == ["first", "last"]
        web.send(user, "note", "live")
        stream.until("note")
    listed = web.tasks(user)
    assert [task["task_id"] for task in listed["tasks"]] == ["first"]
    assert [event["data"]["data"] for event in listed["events"]] == ["last", "live"]
    assert web.request("POST", f"{PREFIX}/tasks/first/cancel", user=user).status == 409
    for name in poisoned:
        assert web.request("POST", f"{PREFIX}/tasks/{quote(name, safe='')}/cancel", user=user).status == 404

    # What publishes survives it too: the next event under such a key replaces it, and it can be removed.
    source = transport.connect(Settings(redis_url=redis_server.url))
    names = list(poisoned)
    for name in names[::2]:
        task = TaskEvent(task_id=name, task="t", state="SUCCESS", attempt=1)
        [answer] = source.publish([events.publication(user, task)])
        assert isinstance(answer, int)
        assert answer > 0
    for name in names[1::2]:
        assert web.delete(user, name).status == 204
    assert {task["task_id"] for task in web.tasks(user)["tasks"]} == {"first", *names[::2]}
    assert "Traceback" not in web.log()[since:]


@pytest.mark.defends("S17")
def test_a_read_of_a_history_with_what_is_no_entry_is_one_line_in_the_log(
    user: str, poisoned: dict[str, bytes], redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    """Whoever has such a history could otherwise fill the disk by reloading the page."""
    assert len(poisoned) > 10
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    for _ in range(3):
        web.tasks(user)
        with web.stream(user) as stream:
            stream.ready()

    assert 0 < len(complaints(web)) <= 6


#: Numbers that JSON allows and Python does not read, and depths about which readers differ, by who calls them.
ODD_VALUES = ["9" * 5000, "-" + "9" * 5000, *map(edge, range(880, 1010, 2))]


@pytest.mark.defends("S17")
def test_what_python_cannot_read_harms_no_list_of_tasks(
    user: str, redis_server: GivenRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", redis_server.url)
    source, keys = transport.connect(Settings(redis_url=redis_server.url)), names_of(redis_server.url, user)
    tasks = [TaskEvent(task_id=task_id, task="t", state="STARTED", attempt=1) for task_id in ("a", "b")]
    source.publish([events.publication(user, task) for task in tasks])
    with redis_server.client() as client:
        for value in ODD_VALUES:
            data = f'{{"task_id":"a","task":"t","state":"STARTED","attempt":1,"result":{value}}}'
            client.hset(keys["entries"], "a", entry(user, data, event="task-progress"))

            assert celery_notify.tasks(user)[-1]["task_id"] == "b"


@pytest.mark.defends("S17")
def test_what_python_cannot_read_harms_no_stream(
    user: str, redis_server: GivenRedis, make_web: Callable[..., Web]
) -> None:
    """The hub reads more of an entry while a task of its user runs."""
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url})
    source, channel = (
        transport.connect(Settings(redis_url=redis_server.url)),
        names_of(redis_server.url, user)["channel"],
    )
    task = TaskEvent(task_id="t", task="t", state="STARTED", attempt=1)
    with web.stream(user) as stream, redis_server.client() as client:
        stream.ready()
        source.publish([events.publication(user, task, worker="0123456789abcdef.1")])
        stream.state("STARTED")
        for value in ODD_VALUES:
            data = f'{{"odd":{value},"key":"k"}}'
            client.publish(channel, entry(user, data, number=17))
        web.send(user, "last", None)
        stream.until("last")
        assert web.get(f"{PREFIX}/tasks", user=user).status == 200

    assert "Traceback" not in web.log()
    assert len(complaints(web)) <= 1


@pytest.mark.defends("S17")
@pytest.mark.parametrize(
    "current",
    [
        *("1e999", "-1e999", "NaN", "Infinity"),
        *("1e308", '"many"', "[]", "null", "-0.0"),
    ],
)
@pytest.mark.parametrize("state", ["SUCCESS", "RETRY"])
def test_an_end_is_told_whatever_stood_there_before(
    current: str, state: Any, user: str, redis_server: GivenRedis
) -> None:
    """What a task has shown is kept at its end: but only what can be shown."""
    source, keys = transport.connect(Settings(redis_url=redis_server.url)), names_of(redis_server.url, user)
    task = TaskEvent(task_id="t", task="t", state="STARTED", attempt=1)
    source.publish([events.publication(user, task)])
    data = f'{{"task_id":"t","task":"t","state":"PROGRESS","attempt":1,"current":{current},"total":{current}}}'
    with redis_server.client() as client:
        client.hset(keys["entries"], "t", entry(user, data, event="task-progress"))

    source.publish([events.publication(user, TaskEvent(task_id="t", task="t", state=state, attempt=1))])

    [found] = source.events_after([(user, 0)])
    assert not isinstance(found, Exception)
    [told] = [json.loads(bytes(events.decode_entry(raw, user).data)) for raw in found.entries]
    assert told["state"] == state
