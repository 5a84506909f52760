"""One read of a history, for `tasks()` and for the polling endpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import celery_notify
from celery_notify import events, history, transport
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.exceptions import TransportError
from celery_notify.transport import History

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from celery_notify.events import Publication
    from celery_notify.transport import Deliver, Subscriber


def entry(number: int, user: str = "ada", event: str = "note", data: str = '{"key":"k"}') -> bytes:
    return f'{{"id":"{number}","user":"{user}","event":"{event}","data":{data}}}'.encode()


class Scripted:
    """A transport whose histories are given; it notes what was asked."""

    def __init__(self, *pages: History | Exception) -> None:
        self.pages = list(pages)
        self.asked: list[Sequence[tuple[str, int]]] = []

    def events_after(
        self, wanted: Sequence[tuple[str, int]], *, room: int = transport.PAGE
    ) -> list[History | Exception]:
        assert room == transport.WHOLE
        self.asked.append(wanted)
        return [self.pages.pop(0)]

    def publish(self, publications: Sequence[Publication]) -> list[int | Exception]:
        raise NotImplementedError

    def subscriber(self, deliver: Deliver) -> Subscriber:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def test_a_history_is_read_at_one_moment_however_long_it_is() -> None:
    """Page by page, a task that changes meanwhile would stand on two of them."""
    source = Scripted(History(newest=30, complete=30, keys=["a", "b"], entries=[entry(10), entry(30)]))

    found = history.read(source, "ada", after=5)

    assert [item.id for item in found.entries] == ["10", "30"]
    assert (found.keys, found.newest) == (["a", "b"], 30)
    assert source.asked == [[("ada", 5)]]


#: What a hub is told, and no history holds.
CLOSE = b'{"id":"","user":"ada","event":"close-streams","data":{}}'


def test_what_is_no_entry_of_this_user_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    page = History(30, 30, ["a"], [b"\xff", entry(10, user="grace"), entry(20), CLOSE, b"[" * 5000])

    found = history.read(Scripted(page), "ada")

    assert [item.id for item in found.entries] == ["20"]
    assert len(caplog.records) == 1
    assert "grace" not in caplog.text


@pytest.mark.parametrize("error", [TransportError("away"), ValueError("WRONGTYPE")])
def test_a_history_that_cannot_be_read_is_an_error_of_the_transport(error: Exception) -> None:
    with pytest.raises(TransportError, match=str(error)):
        history.read(Scripted(error), "ada")


@pytest.fixture(params=["memory", "redis"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> transport.Transport:
    """Return the transport of this process, which `tasks` uses too."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_server").url
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", url)
    return transport.connect(Settings(redis_url=url))


def test_a_history_of_many_pages_is_read_whole(shared: transport.Transport, user: str) -> None:
    sent = [events.custom(user, "note", "x" * 40_000, key=str(number)) for number in range(12)]
    shared.publish(sent)

    found = history.read(shared, user)

    assert [json.loads(bytes(item.data))["key"] for item in found.entries] == [str(number) for number in range(12)]


def task(user: str, state: str, key: str, **fields: Any) -> Publication:
    return events.publication(user, TaskEvent(task_id=key, task="shop.bill", state=state, attempt=1, **fields))  # type: ignore[arg-type]


def test_tasks_are_the_newest_states_and_no_custom_events(shared: transport.Transport, user: str) -> None:
    shared.publish(
        [
            task(user, "STARTED", "a", title="Bill"),
            task(user, "STARTED", "b"),
            events.custom(user, "note", 1, key="k"),
            task(user, "PROGRESS", "a", title="Bill", current=1, total=2),
            task(f"{user} too", "STARTED", "c"),
            task(user, "SUCCESS", "b", result={"pages": [1]}),
        ]
    )

    found = celery_notify.tasks(user)

    assert [(one["task_id"], one["state"]) for one in found] == [("a", "PROGRESS"), ("b", "SUCCESS")]
    assert found[0] == {
        "task_id": "a",
        "task": "shop.bill",
        "state": "PROGRESS",
        "attempt": 1,
        "title": "Bill",
        "current": 1,
        "total": 2,
        "at": found[0]["at"],
    }
    assert found[1]["result"] == {"pages": [1]}


def test_nobodys_tasks_are_none(shared: transport.Transport, user: str) -> None:
    assert celery_notify.tasks(user) == []


def test_a_users_id_may_be_a_number(shared: transport.Transport, user: str) -> None:
    number = int(user.rpartition(" ")[2], 16)
    shared.publish([task(str(number), "STARTED", "a")])

    assert [one["task_id"] for one in celery_notify.tasks(number)] == ["a"]


@pytest.mark.parametrize("user", ["", None, 1.5, True, b"ada", "x" * 257])
def test_what_is_no_users_id_is_refused(user: Any) -> None:
    with pytest.raises(ValueError, match="expected a user's id"):
        celery_notify.tasks(user)


def test_without_redis_tasks_is_an_error_of_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", "redis://127.0.0.1:1/0")

    with pytest.raises(TransportError):
        celery_notify.tasks("ada")
