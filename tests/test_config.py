"""Settings: three places, one name, and errors that say what is wrong without giving anything away."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_notify import config
from celery_notify.exceptions import ConfigurationError

if TYPE_CHECKING:
    from typing import Any

SECRET = "s3cret"  # noqa: S105 - what must not be shown

DEFAULTS = {
    "redis_url": "redis://localhost:6379/0",
    "key_prefix": "celery-notify",
    "min_interval": 0.1,
    "history_size": 200,
    "history_ttl": 86400.0,
    "heartbeat": 15.0,
    "max_stream_age": 900.0,
    "worker_ttl": 20.0,
    "max_streams_per_user": 10,
    "max_streams": 10000,
}


def test_the_settings_have_these_names_and_defaults() -> None:
    assert dataclasses.asdict(config.load()) == DEFAULTS


@pytest.mark.parametrize("name", ["notify_heartbeat", "CELERY_NOTIFY_HEARTBEAT"])
def test_a_setting_has_one_name_in_two_forms(name: str) -> None:
    assert config.load({name: 3}).heartbeat == 3


def test_a_setting_may_be_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_HEARTBEAT", "2.5")
    monkeypatch.setenv("CELERY_NOTIFY_HISTORY_SIZE", "7")
    monkeypatch.setenv("CELERY_NOTIFY_KEY_PREFIX", "shop")

    loaded = config.load()

    assert (loaded.heartbeat, loaded.history_size, loaded.key_prefix) == (2.5, 7, "shop")
    assert type(loaded.history_size) is int


def test_configuration_goes_before_the_environment_and_the_first_before_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_HEARTBEAT", "1")
    monkeypatch.setenv("CELERY_NOTIFY_MAX_STREAMS", "1")
    monkeypatch.setenv("CELERY_NOTIFY_HISTORY_SIZE", "1")

    loaded = config.load({"notify_heartbeat": 3}, {"notify_heartbeat": 2, "notify_max_streams": 2})

    assert (loaded.heartbeat, loaded.max_streams, loaded.history_size) == (3, 2, 1)


def test_the_process_asks_celery_then_flask_then_the_environment_and_an_application_first_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HEARTBEAT", "MAX_STREAMS", "HISTORY_SIZE", "WORKER_TTL"):
        monkeypatch.setenv(f"CELERY_NOTIFY_{name}", "1")
    flask = {"CELERY_NOTIFY_HEARTBEAT": 2, "CELERY_NOTIFY_MAX_STREAMS": 2, "CELERY_NOTIFY_HISTORY_SIZE": 2}
    config.announce("flask", lambda: (flask, None))
    config.announce("celery", lambda: ({"notify_heartbeat": 3, "notify_max_streams": 3}, None))

    found = config.settings()
    assert (found.heartbeat, found.max_streams, found.history_size, found.worker_ttl) == (3, 3, 2, 1)

    found = config.settings(flask={"CELERY_NOTIFY_HEARTBEAT": 4})
    assert (found.heartbeat, found.max_streams, found.history_size, found.worker_ttl) == (4, 3, 1, 1)


def test_what_was_announced_is_asked_anew_each_time() -> None:
    configuration = {"notify_heartbeat": 3}
    config.announce("celery", lambda: (configuration, None))
    assert config.settings().heartbeat == 3

    configuration["notify_heartbeat"] = 4

    assert config.settings().heartbeat == 4


def test_reset_forgets_what_was_announced() -> None:
    config.announce("celery", lambda: ({"notify_heartbeat": 3}, "redis://broker/1"))

    config.reset()

    assert config.settings() == config.Settings()


def test_the_broker_is_the_default_where_no_place_names_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    config.announce("celery", lambda: ({}, "redis://broker/1"))
    assert config.settings().redis_url == "redis://broker/1"

    monkeypatch.setenv("CELERY_NOTIFY_REDIS_URL", "redis://environment/2")
    assert config.settings().redis_url == "redis://environment/2"

    config.announce("flask", lambda: ({"CELERY_NOTIFY_REDIS_URL": "redis://flask/3"}, None))
    assert config.settings().redis_url == "redis://flask/3"


def test_none_means_that_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_HEARTBEAT", "5")

    assert config.load({"notify_heartbeat": None, "notify_history_size": None}).heartbeat == 5
    assert config.load({"notify_history_size": None}).history_size == 200


def test_other_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://x")

    assert config.load({"broker_url": "x", "NOTIFY_SOCKET": "x", "DEBUG": True}) == config.Settings()


@pytest.mark.parametrize("name", ["notify_hartbeat", "CELERY_NOTIFY_HARTBEAT", "notify_", "notify_Heartbeat"])
def test_an_unknown_name_is_an_error_that_says_what_is_known(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config.load({name: 3})
    assert name in str(refused.value)
    for known in DEFAULTS:
        assert known in str(refused.value)


def test_an_unknown_name_in_the_environment_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_HARTBEAT", "3")

    with pytest.raises(ConfigurationError, match="CELERY_NOTIFY_HARTBEAT"):
        config.load()


BAD = [
    *[("heartbeat", value) for value in (0, -1, "", "x", "nan", "inf", float("nan"), True, [], {}, b"1", "1e999")],
    *[("heartbeat", value) for value in (10**400, "1" * 400)],
    *[("min_interval", value) for value in (-0.1, "x", None.__class__, float("inf"))],
    *[("history_size", value) for value in (0, -1, 1.5, "1.5", "x", True, float("nan"))],
    *[("max_streams", value) for value in (0, "0", 10**400)],
    *[("max_stream_age", value) for value in (0, "forever")],
    *[("key_prefix", value) for value in ("", "a b", "a{b", "a}b", "a*b", "a?b", "é", "x" * 65, 7, "a\n")],
    *[
        ("redis_url", value)
        for value in (
            *("", "x", "localhost:6379", "http://localhost", "redis", "redis://h:port/0", "redis://h:0/0"),
            *(
                "redis://h:99999/0",
                "redis://h/zero",
                "unix://",
                "memory://x",
                "MEMORY://",
                7,
                b"redis://h",
                "redis://[h",
            ),
        )
    ],
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:30])
def test_a_bad_value_names_the_setting_the_value_and_what_was_expected(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config.load({f"notify_{name}": value})
    text = str(refused.value)
    assert text.startswith(f"notify_{name}: expected ")
    assert text.endswith(f", got {value!r}")


def test_a_bad_value_in_the_environment_is_named_as_it_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_NOTIFY_MAX_STREAMS", "many")

    with pytest.raises(ConfigurationError) as refused:
        config.load()
    assert str(refused.value) == "CELERY_NOTIFY_MAX_STREAMS: expected a whole number, 1 or above, got 'many'"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://h",
        "redis://h/",
        "redis://:p@h:6380/12",
        "rediss://u:p@h/0?ssl_cert_reqs=none",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=2",
        "memory://",
    ],
)
def test_these_are_addresses_of_redis(url: str) -> None:
    assert config.load({"notify_redis_url": url}).redis_url == url


@pytest.mark.defends("S16")
@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h:port/0",
        f"redis://user:{SECRET}@h:99999/0",
        f"http://user:{SECRET}@h",
        f"redis://h/zero?password={SECRET}",
        f"redis://h/zero?db=1&password={SECRET}&x=1",
        f"redis://h/zero?PASSWORD={SECRET}",
        f"redis://:a/{SECRET}@h/0",
        f"redis://:a@{SECRET}@h:port/0",
        f"redis://:a?{SECRET}@h:port/0",
        f"redis://:a#{SECRET}@h:port/0",
        f"sentinel://:{SECRET}@h:port/0;sentinel://:{SECRET}@i:port/0",
        f"redis:/:{SECRET}@h",
        f"  redis://:{SECRET}@h:port/0",
        [f"redis://:{SECRET}@h/0"],
        f"redis://:{SECRET}@h/0".encode(),
    ],
    ids=str,
)
def test_a_password_is_in_no_error(url: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config.load({"notify_redis_url": url})
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigurationError) as refused:
        config.load(default_url=url)  # type: ignore[arg-type]
    assert SECRET not in str(refused.value)


@pytest.mark.defends("S16")
def test_an_error_has_no_other_error_behind_it_that_would_tell() -> None:
    with pytest.raises(ConfigurationError) as refused:
        config.load({"notify_redis_url": f"redis://:{SECRET}@h:port/0"})
    assert refused.value.__suppress_context__


@given(st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.binary(), st.lists(st.integers())))
def test_any_value_is_a_setting_or_a_configuration_error(value: Any) -> None:
    for name, default in DEFAULTS.items():
        try:
            loaded = config.load({f"notify_{name}": value})
        except ConfigurationError as error:
            assert f"notify_{name}" in str(error)  # noqa: PT017 - either way is right
        else:
            assert isinstance(getattr(loaded, name), type(default))


def test_settings_are_shared_by_their_value() -> None:
    assert {config.load({"notify_heartbeat": 3}): 1}[config.load({"CELERY_NOTIFY_HEARTBEAT": "3"})] == 1
