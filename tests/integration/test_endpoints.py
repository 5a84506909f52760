"""The other endpoints, over HTTP: what PROTOCOL section 4 says of them."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.event_stream import data_of, states
from tests.support.names import PREFIX
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from tests.conftest import Servers
    from tests.support.celery_nodes import Worker
    from tests.support.gates import Gates
    from tests.support.web_servers import Web

TASKS = f"{PREFIX}/tasks"
#: All fields of a task event, PROTOCOL section 2.
FIELDS = {
    *(
        "task_id",
        "task",
        "state",
        "title",
        "current",
        "total",
        "description",
        "attempt",
        "error",
        "result",
        "url",
    ),
    *("cancellable", "cancelling", "weight", "job_id", "root_id", "parent_id", "group_id", "retry_at", "at", "job"),
}


def done(web: Web, user: str, task_id: str) -> dict[str, Any]:
    """Wait for a task's end and return what is known of it."""

    def look() -> dict[str, Any] | None:
        found = {task["task_id"]: task for task in web.tasks(user)["tasks"]}
        task = found.get(task_id, {})
        return task if task.get("state") == "SUCCESS" else None

    return wait_until(look, timeout=15) or {}


def note(web: Web, user: str, key: str, data: object = None) -> dict[str, Any]:
    """Send a custom event and return its entry in the history."""
    web.send(user, "note", data, key=key)

    def look() -> dict[str, Any] | None:
        found = {event["data"]["key"]: event for event in web.tasks(user)["events"]}
        return found.get(key)

    return wait_until(look) or {}


# The list of tasks


def test_a_user_without_a_history_has_empty_lists(each_web: Web, user: str) -> None:
    listed = each_web.tasks(user)

    assert (listed["tasks"], listed["events"], listed["keys"]) == ([], [], [])
    assert listed["last_event_id"] == "0"


def test_the_list_says_all_that_a_stream_would(web: Web, user: str, tasks: ModuleType, worker: Worker) -> None:
    del worker  # it runs the task
    first = note(web, user, "a", {"number": 1})
    result = tasks.told.delay(user, 7)
    done(web, user, result.id)
    last = note(web, user, "b", [1, "é"])
    listed = web.tasks(user)

    with web.stream(user) as stream:
        caught_up = stream.ready()
        keys = data_of(stream.events[-1])["keys"]

    assert [event["data"]["key"] for event in listed["events"]] == ["a", "b"]
    assert listed["events"] == [
        {"id": event.id, "event": event.event, "data": data_of(event)} for event in caught_up if event.event == "note"
    ]
    assert listed["tasks"] == [data_of(event) for event in caught_up if event.event == "task-done"]
    assert sorted(listed["keys"]) == sorted(keys) == sorted(["a", result.id, "b"])
    assert listed["last_event_id"] == caught_up[-1].id == last["id"]
    assert int(first["id"]) < int(last["id"])
    assert (last["data"]["data"], first["data"]["data"]) == ([1, "é"], {"number": 1})


def test_the_list_after_an_id_holds_only_what_is_newer(web: Web, user: str) -> None:
    first, second = note(web, user, "a"), note(web, user, "b")

    listed = web.tasks(user, f"?after={first['id']}")

    assert [event["data"]["key"] for event in listed["events"]] == ["b"]
    assert sorted(listed["keys"]) == ["a", "b"]
    assert listed["last_event_id"] == second["id"]
    nothing = web.tasks(user, f"?after={second['id']}")
    assert (nothing["events"], sorted(nothing["keys"])) == ([], ["a", "b"])
    assert nothing["last_event_id"] == second["id"]


@pytest.mark.parametrize("bad", ["", "abc", "-1", "1" * 17, "9" * 16, "9" * 3000, "%00", "%FF"])
def test_the_list_after_a_bad_id_holds_all(bad: str, web: Web, user: str) -> None:
    note(web, user, "a")

    assert [event["data"]["key"] for event in web.tasks(user, f"?after={bad}")["events"]] == ["a"]


def test_an_unchanged_list_is_not_sent_again(each_web: Web, user: str) -> None:
    note(each_web, user, "a")
    first = each_web.get(TASKS, user=user)
    assert first.headers["content-type"].startswith("application/json")

    again = each_web.get(TASKS, user=user, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]

    note(each_web, user, "b")
    changed = each_web.get(TASKS, user=user, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status == 200
    assert changed.headers["etag"] != first.headers["etag"]


def test_a_list_is_not_the_same_after_a_removal_or_for_another_id(web: Web, user: str) -> None:
    first = note(web, user, "a")
    tags = [web.get(TASKS, user=user).headers["etag"]]
    tags.append(web.get(f"{TASKS}?after={first['id']}", user=user).headers["etag"])
    assert web.delete(user, "a").status == 204
    tags.append(web.get(TASKS, user=user).headers["etag"])

    assert len(set(tags)) == 3


@pytest.mark.defends("S15")
def test_a_list_is_kept_by_no_shared_cache(web: Web, user: str) -> None:
    answer = web.get(TASKS, user=user)

    assert "private" in answer.headers["cache-control"] or "no-store" in answer.headers["cache-control"]
    assert "cookie" in answer.headers["vary"].lower()


@pytest.mark.parametrize(("method", "path"), [("GET", TASKS), ("DELETE", f"{TASKS}/a")], ids=["list", "delete"])
def test_without_a_user_the_answer_is_401_in_json(method: str, path: str, web: Web) -> None:
    answer = web.request(method, path)

    assert answer.status == 401
    assert set(answer.json()) == {"error"}


def test_the_list_is_refused_in_json_while_redis_was_never_reached(user: str, servers: Servers) -> None:
    from tests.support.processes import free_port  # noqa: PLC0415
    from tests.support.web_servers import InProcess  # noqa: PLC0415

    del servers  # it clears up
    web = InProcess(CELERY_NOTIFY_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")

    answer = web.get(TASKS, user=user)

    assert answer.status == 503
    assert set(answer.json()) == {"error"}


# Removal


def test_a_finished_task_is_removed_in_all_open_streams(
    each_web: Web, user: str, tasks: ModuleType, worker: Worker
) -> None:
    del worker  # it runs the task
    result = tasks.ok.delay(user)
    done(each_web, user, result.id)
    with each_web.stream(user) as one, each_web.stream(user) as two:
        for stream in (one, two):
            assert states(stream.ready()) == ["SUCCESS"]

        assert each_web.delete(user, result.id).status == 204

        told = [stream.until("removed")[-1] for stream in (one, two)]
        assert [data_of(event) for event in told] == [{"key": result.id}] * 2
        assert told[0].id == told[1].id is not None
        assert int(told[0].id or 0) > int(one.events[0].id or 0)
    assert each_web.tasks(user)["tasks"] == []
    assert each_web.delete(user, result.id).status == 404
    with each_web.stream(user) as again:
        assert again.ready() == []
        assert data_of(again.events[-1]) == {"keys": []}


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a b",
        "a/b",
        "é",
        "%31",
        "*",
        "a}b",
        "雪",
        "a?b#c",
        "cancel",
        "a\\b",
        "+",
        "a&b=c",
        '"',
        "a\nb",
        "/a",
        "a//b",
        "a/",
    ],
)
def test_a_custom_entry_is_removed_whatever_its_key(key: str, web: Web, user: str) -> None:
    note(web, user, key)
    note(web, user, "other")

    assert web.delete(user, key).status == 204

    listed = web.tasks(user)
    assert listed["keys"] == ["other"]
    assert [event["data"]["key"] for event in listed["events"]] == ["other"]


def test_a_running_task_is_not_removed(web: Web, user: str, tasks: ModuleType, worker: Worker, gates: Gates) -> None:
    del worker  # it runs the task
    with web.stream(user) as stream:
        result = tasks.slow.delay(user, user, 1)
        stream.state("STARTED")

        answer = web.delete(user, result.id)

        assert answer.status == 409
        assert set(answer.json()) == {"error"}
        assert web.tasks(user)["keys"] == [result.id]
        gates.open(user, 2)
        stream.state("SUCCESS")
    assert web.delete(user, result.id).status == 204


@pytest.mark.defends("S23")
def test_what_is_absent_and_what_is_anothers_get_the_same_answer(web: Web, user: str) -> None:
    other = f"{user} too"
    note(web, other, "theirs")

    absent, foreign = web.delete(user, "nothing"), web.delete(user, "theirs")

    assert absent.status == foreign.status == 404
    assert set(absent.json()) == {"error"}
    assert absent.body == foreign.body
    assert web.tasks(other)["keys"] == ["theirs"]


@pytest.mark.defends("S10")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        ({"Sec-Fetch-Site": "none"}, 204),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({"Sec-Fetch-Site": "anything"}, 403),
        ({"Origin": "{own}"}, 204),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "{own}.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "{own}"}, 204),
    ],
    ids=str,
)
def test_a_removal_is_refused_to_other_sites(headers: dict[str, str], status: int, web: Any, user: str) -> None:
    note(web, user, "a")
    own = "http://{}:{}".format(*web.address)
    sent = {name: value.replace("{own}", own) for name, value in headers.items()}
    sent["Host"] = "{}:{}".format(*web.address)

    answer = web.delete(user, "a", headers=sent)

    assert answer.status == status
    if status == 403:
        assert set(answer.json()) == {"error"}
        assert web.tasks(user)["keys"] == ["a"]


@pytest.mark.defends("S10", "S23")
def test_a_refused_site_learns_nothing_of_what_there_is(web: Web, user: str) -> None:
    note(web, user, "a")
    foreign = {"Sec-Fetch-Site": "cross-site"}

    assert web.delete(user, "a", headers=foreign).body == web.delete(user, "b", headers=foreign).body


# Files


def test_the_schema_describes_each_field_of_a_task_event(each_web: Web) -> None:
    answer = each_web.get(f"{PREFIX}/schema.json")

    assert answer.status == 200
    assert "json" in answer.headers["content-type"]
    schema = answer.json()
    assert set(schema["properties"]) == FIELDS
    assert "https://json-schema.org/" in schema["$schema"]
    assert set(schema["required"]) >= {"task_id", "task", "state"}
    assert "PENDING" in json.dumps(schema["properties"]["state"])
    assert schema.get("additionalProperties", True) is True


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_the_browser_client_is_sent_once(encoding: str, each_web: Web) -> None:
    accepted = {"Accept-Encoding": encoding}
    answer = each_web.get(f"{PREFIX}/client.js", headers=accepted)

    assert answer.status == 200
    assert answer.headers["content-type"].split(";")[0] in {"text/javascript", "application/javascript"}
    assert answer.headers.get("content-encoding", "identity") == encoding
    assert answer.headers["content-length"] == str(len(answer.body))
    assert b"TaskNotifications" in (gzip.decompress(answer.body) if encoding == "gzip" else answer.body)
    again = each_web.get(f"{PREFIX}/client.js", headers={**accepted, "If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    head = each_web.request("HEAD", f"{PREFIX}/client.js", headers=accepted)
    assert (head.status, head.body) == (200, b"")
    for name in ("etag", "content-length", "content-encoding", "vary"):
        assert head.headers.get(name) == answer.headers.get(name)


# Whose a stream is asked for


@pytest.mark.defends("S11", "S12")
def test_a_stream_for_another_user_is_refused_and_takes_no_place(kind: str, servers: Servers, user: str) -> None:
    """Two streams are a user's limit there, three that of the process."""
    web = servers.get(kind, "limited")
    theirs = web.get(TASKS, user=f"{user} too").headers["celery-notify-user"]
    for _ in range(5):
        answer = web.get(f"{PREFIX}/stream?user_tag={theirs}", user=user)
        assert (answer.status, answer.json()) == (403, {"error": "another user is logged in"})
    mine = web.get(TASKS, user=user).headers["celery-notify-user"]

    with web.stream(user, query=f"?user_tag={mine}") as one, web.stream(user, query=f"?user_tag={mine}") as two:
        one.ready()
        two.ready()
        assert web.get(f"{PREFIX}/stream?user_tag={theirs}", user=user).status == 403


# Other files


@pytest.mark.parametrize("name", ["client.js/..", "../flask.py", "%2e%2e/flask.py", "nothing", "publish.lua"])
def test_no_other_file_is_sent(name: str, web: Web, user: str) -> None:
    assert web.get(f"{PREFIX}/{name}", user=user).status == 404
