"""What is found wrong with a Redis: real ones as far as they can be made so, for other versions what they say."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from celery_notify.config import Settings
from celery_notify.diagnosis import diagnose, is_vulnerable, judge
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from celery_notify.diagnosis import Finding
    from tests.support.redis_server import GivenRedis, RedisServer

PASSWORD = "s3cret/pass@word"  # noqa: S105 - of a server that lives for one test
#: What a Redis with nothing wrong says of itself.
HEALTHY = {"redis_version": "8.2.2", "maxmemory_policy": "noeviction", "role": "master"}


def texts(found: Iterable[Finding], level: str) -> list[str]:
    return [finding.text for finding in found if finding.level == level]


def restrict(server: RedisServer, *rules: str) -> str:
    """Make a user of Redis with these rights and return the URL with which it logs in."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "events", "on", f">{PASSWORD}", *rules)
    return server.admin_url.replace("redis://", f"redis://events:{quote(PASSWORD, safe='')}@")


# A Redis that can be used


def test_an_event_goes_round_a_healthy_redis_and_leaves_nothing_for_long(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    found = diagnose(Settings(redis_url=own_redis.url))
    gc.collect()

    assert [record.getMessage() for record in caplog.records] == []

    assert texts(found, "fault") == []
    assert any(text.startswith("an event went round in ") for text in texts(found, "ok"))
    with own_redis.client() as client:
        kept = {key: client.ttl(key) for key in client.scan_iter(match="celery-notify:*")}
    assert all(0 < seconds <= 60 for seconds in kept.values()), kept


def test_the_version_the_policy_and_the_prefix_are_told(redis_server: GivenRedis) -> None:
    with redis_server.client() as client:
        version = client.info()["redis_version"]

    told = texts(diagnose(Settings(redis_url=redis_server.admin_url, key_prefix="elsewhere")), "ok")

    assert f"Redis {version}" in told
    assert "maxmemory-policy is noeviction" in told
    assert any("all keys begin with elsewhere" in text for text in told)
    redis_server.forget(redis_server.histories("elsewhere"))


def test_a_redis_that_forgets_is_a_warning(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    found = diagnose(Settings(redis_url=own_redis.url))

    assert texts(found, "fault") == []
    assert any("noeviction, got allkeys-lru" in text for text in texts(found, "warning"))


def test_memory_is_no_place_where_processes_meet() -> None:
    [finding] = diagnose(Settings(redis_url="memory://"))

    assert finding.level == "warning"


# A Redis that cannot be used


def test_a_redis_that_is_not_there_is_a_fault() -> None:
    port = free_port()

    [finding] = diagnose(Settings(redis_url=f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0"))

    assert finding.level == "fault"
    assert finding.text.startswith(f"redis://***@127.0.0.1:{port}/0 cannot be reached: ")


def test_a_redis_that_does_not_answer_is_a_fault(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_notify.transport.TIMEOUT", 0.2)
    own_redis.pause()

    [finding] = diagnose(Settings(redis_url=own_redis.url))

    own_redis.resume()
    assert finding.level == "fault"
    assert "cannot be reached" in finding.text


def test_an_option_that_redis_py_does_not_know_is_a_fault() -> None:
    [finding] = diagnose(Settings(redis_url="redis://127.0.0.1:1/0?colour=red"))

    assert finding.level == "fault"
    assert "colour" in finding.text


def test_a_full_redis_is_a_fault(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)

    found = diagnose(Settings(redis_url=own_redis.url))

    assert [text.partition(": ")[0] for text in texts(found, "fault")] == ["an event did not go round"]


def test_a_replica_is_a_fault(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", free_port())

    found = texts(diagnose(Settings(redis_url=own_redis.url)), "fault")

    assert found[0] == "expected a master, got a slave: nothing can be written to it"
    assert found[1].startswith("an event did not go round: ")


# Permissions


@pytest.mark.defends("S16")
@pytest.mark.parametrize("wrong", ["password", "user"])
def test_a_login_that_is_refused_is_a_fault_and_shows_no_password(wrong: str, own_redis: RedisServer) -> None:
    url = restrict(own_redis, "~*", "&*", "+@all")
    url = url.replace("events:", "nobody:") if wrong == "user" else url.replace("@", "-@")

    [finding] = diagnose(Settings(redis_url=url))

    assert finding.level == "fault"
    assert PASSWORD not in finding.text
    assert quote(PASSWORD, safe="") not in finding.text


def test_not_being_allowed_to_look_is_a_warning_and_the_event_goes_round(own_redis: RedisServer) -> None:
    url = restrict(own_redis, "~*", "&*", "+@all", "-info")

    found = diagnose(Settings(redis_url=url))

    assert texts(found, "fault") == []
    [warning] = texts(found, "warning")
    assert warning.startswith("redis://***@127.0.0.1")
    assert "does not let its version and settings be looked at" in warning
    assert found[-1].text.startswith("an event went round")


@pytest.mark.parametrize(
    "rules",
    [
        ("~*", "&*", "+@all", "-subscribe"),
        ("~*", "resetchannels", "+@all"),
        ("~other:*", "&*", "+@all"),
        ("&*", "+info"),
    ],
    ids=["no subscribing", "no channel", "no key", "no command"],
)
def test_what_is_not_allowed_and_needed_is_a_fault(rules: tuple[str, ...], own_redis: RedisServer) -> None:
    found = diagnose(Settings(redis_url=restrict(own_redis, *rules)))

    [fault] = texts(found, "fault")
    assert fault.startswith("an event did not go round: ")
    assert PASSWORD not in fault


# Versions


@pytest.mark.defends("S22")
@pytest.mark.parametrize(
    "version", ["6.2.0", "6.2.14", "6.2.19", "7.0.0", "7.0.15", "7.2.10", "7.4.5", "8.0.3", "8.2.1", "8.1.9"]
)
def test_a_redis_with_the_fault_in_lua_is_warned_of(version: str) -> None:
    found = list(judge({**HEALTHY, "redis_version": version}))

    [warning] = texts(found, "warning")
    assert f"Redis {version} has CVE-2025-49844" in warning
    assert texts(found, "fault") == []


@pytest.mark.defends("S22")
@pytest.mark.parametrize(
    "version", ["6.2.20", "6.2.21", "7.2.11", "7.4.6", "8.0.4", "8.2.2", "8.4.0", "9.0.0", "10.1.2", "255.255.255"]
)
def test_a_redis_in_which_it_is_mended_is_not(version: str) -> None:
    found = list(judge({**HEALTHY, "redis_version": version}))

    assert [finding.level for finding in found] == ["ok", "ok"]


@pytest.mark.defends("S22")
@pytest.mark.parametrize(("version", "warned"), [("7.2.10", True), ("8.0.5", True), ("8.1.3", True), ("8.1.4", False)])
def test_valkey_is_judged_by_its_own_version(version: str, warned: bool) -> None:  # noqa: FBT001
    """It also says that it is a Redis 7.2.4, whatever it is."""
    found = list(judge({**HEALTHY, "redis_version": "7.2.4", "server_name": "valkey", "valkey_version": version}))

    assert bool(texts(found, "warning")) == warned
    assert f"Valkey {version}" in texts(found, "ok")


@pytest.mark.parametrize("version", ["6.0.20", "5.0.14", "2.8.4"])
def test_a_redis_that_is_too_old_is_a_fault(version: str) -> None:
    found = list(judge({**HEALTHY, "redis_version": version}))

    assert texts(found, "fault") == [f"expected Redis 6.2 or later, got {version}"]


@pytest.mark.parametrize("info", [{}, {"redis_version": "unknown"}, {"redis_version": "8", "role": "master"}])
def test_a_server_that_says_nothing_of_use_is_no_error(info: dict[str, Any]) -> None:
    assert {finding.level for finding in judge(info)} <= {"ok", "warning", "fault"}


def test_a_version_of_few_numbers_is_judged_as_the_first_of_its_line() -> None:
    assert is_vulnerable("Redis", (7, 2))
    assert not is_vulnerable("Redis", (9,))
