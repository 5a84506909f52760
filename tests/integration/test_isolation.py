"""No user is ever told of another's tasks, whatever their ids look like."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import celery_notify
from tests.support.event_stream import data_of
from tests.support.names import PREFIX
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.web_servers import Web

#: Ids that a careless encoding, a pattern or a path would take for one another.
USERS = [
    *(
        "1",
        "2",
        "1:2",
        "1:2:order",
        ":",
        "%31",
        "%",
        "%25",
        "*",
        "?",
        "[12]",
        "a b",
        "a+b",
        "a%20b",
        "a",
        "A",
    ),
    *(
        "a}b",
        "{a}",
        "{a",
        "a}",
        "{}",
        ".",
        "..",
        "../a",
        "a/b",
        "é",
        "e\u0301",
        "%C3%A9",
        "雪",
        "😀",
        "\\",
        '"',
        "'",
    ),
    *(" a", "a ", "a\tb", "\u2028", "\x7f", "\x00", "null", "None", "0", "-1", "x" * 255, "x" * 256),
]


@pytest.mark.defends("S6")
def test_user_ids_are_told_apart_everywhere(web: Web, tasks: ModuleType, worker: Worker) -> None:
    del worker  # it runs the tasks
    with contextlib.ExitStack() as stack:
        streams = {user: stack.enter_context(web.stream(user)) for user in USERS}
        for stream in streams.values():
            assert stream.ready() == []

        for user in USERS:
            web.send(user, "note", user, key="note")
            celery_notify.send(user, "note", user, key="from another process")
        results = {user: tasks.ok.delay(user) for user in USERS}
        for user, stream in streams.items():
            # A custom event may be told after the end of the task, since another process sent it.
            while not _complete(stream.events, results[user].id):
                stream.next()
        for user in USERS:
            web.send(user, "last", user, key="last")
        told = {user: stream.until("last") and stream.events for user, stream in streams.items()}

    for user, events in told.items():
        notes = [data_of(event) for event in events if event.event in {"note", "last"}]
        assert [note["data"] for note in notes] == [user] * 3
        ids = {data_of(event)["task_id"] for event in events if event.event.startswith("task-")}
        assert ids == {results[user].id}
        keys = {"note", "from another process", results[user].id, "last"}
        assert set(web.tasks(user)["keys"]) == keys
        assert [task["task_id"] for task in celery_notify.tasks(user)] == [results[user].id]

    for user, other in zip(USERS, [*USERS[1:], USERS[0]], strict=True):
        assert web.delete(other, results[user].id).status == 404
    for user in USERS:
        assert web.delete(user, results[user].id).status == 204
        assert results[user].id not in web.tasks(user)["keys"]


def _complete(events: list, task_id: str) -> bool:
    keys = {data_of(event).get("key") for event in events}
    done = {data_of(event)["task_id"] for event in events if event.event == "task-done"}
    return {"note", "from another process"} <= keys and done == {task_id}


@pytest.mark.defends("S11")
def test_streams_are_closed_for_one_user_only(web: Web, tasks: ModuleType) -> None:
    del tasks  # this process closes them, with Celery's configuration
    with contextlib.ExitStack() as stack:
        streams = {user: stack.enter_context(web.stream(user)) for user in USERS}
        for stream in streams.values():
            stream.ready()

        for n, user in enumerate(USERS):
            celery_notify.close_streams(user)
            streams.pop(user).rest(timeout=5)
            if n % 10 == 0:
                for other, stream in streams.items():
                    celery_notify.send(other, "note", n, key="note")
                    assert data_of(stream.until("note")[-1])["data"] == n


user_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.text(
    "12:%*{}ab .", min_size=1, max_size=4
)


@pytest.mark.defends("S6")
@given(users=st.lists(user_ids, min_size=2, max_size=2, unique=True))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_users_never_see_each_others_events(users: list[str], web: Web) -> None:
    for user in users:
        web.send(user, "note", user, key="note")
    for user in users:
        found = wait_until(lambda: web.tasks(user)["events"])  # noqa: B023 - called at once
        assert [event["data"]["data"] for event in found] == [user]


@pytest.mark.parametrize("user", ["", "x" * 257, "\ud800"], ids=["empty", "too long", "a lone surrogate"])
def test_what_can_be_no_id_is_refused(user: str, tasks: ModuleType, web: Web) -> None:
    del tasks  # this process sends, with Celery's configuration
    with pytest.raises(ValueError, match="expected a user's id"):
        celery_notify.send(user, "note", None)
    if user.isascii():
        assert web.get(f"{PREFIX}/tasks", user=user).status in {401, 500}
