"""The commands of `celery -A proj notify`, run as people run them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from celery_notify.config import redact
from tests.support.processes import ROOT, free_port, run_python

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.support.redis_server import GivenRedis, RedisServer

PASSWORD = "s3cret/pass@word"  # noqa: S105 - of no server
PROJECT = """
    import os
    import celery_notify
    from celery import Celery
    app = Celery("shop", broker=os.environ.get("SHOP_BROKER", "memory://"))
"""
KNOWN = "celery_notify.init_app(app)"
MARKED = """
    @app.task
    @celery_notify.notify(user="user")
    def bill(user): ...
"""


class Shop:
    """A project of which `write` makes the one module, and a terminal in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, *parts: str) -> None:
        source = "\n".join(textwrap.dedent(part) for part in (PROJECT, *parts))
        (self._folder / "shop.py").write_text(source, encoding="utf-8")

    def celery(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{ROOT}:{self._folder}"
        return run_python("-m", "celery", *arguments, settings={"PYTHONPATH": path, **environment})

    def check(self, broker: str) -> subprocess.CompletedProcess[str]:
        return self.celery("-A", "shop", "notify", "check", SHOP_BROKER=broker)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def lines(finished: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """Return what was said at one level."""
    assert "Traceback" not in finished.stderr, finished.stderr
    told = [line.partition(" ") for line in finished.stdout.splitlines()]
    return [text.strip() for found, _, text in told if found == level]


def test_a_project_in_order_is_told_so(shop: Shop, redis_server: GivenRedis) -> None:
    shop.write(KNOWN, MARKED)

    finished = shop.check(redis_server.url)

    assert (finished.returncode, lines(finished, "fault")) == (0, [])
    told = lines(finished, "ok")
    assert told[0] == "shop has tasks that are shown: 1"
    assert told[-1].startswith("an event went round")


def test_warnings_alone_are_no_failure(shop: Shop, own_redis: RedisServer) -> None:
    shop.write(KNOWN, "app.conf.task_protocol = 1")
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")

    finished = shop.check(own_redis.url)

    assert (finished.returncode, lines(finished, "fault")) == (0, [])
    told = "\n".join(lines(finished, "warning"))
    assert "none is marked with @notify" in told
    assert "task_protocol is 1" in told
    assert "expected maxmemory-policy noeviction, got volatile-lru" in told


@pytest.mark.defends("S16")
def test_a_redis_that_is_not_there_is_a_failure_and_its_password_is_not_shown(shop: Shop) -> None:
    shop.write(KNOWN, MARKED)
    address = f"127.0.0.1:{free_port()}/0"

    finished = shop.check(f"redis://events:{quote(PASSWORD, safe='')}@{address}")

    [fault] = lines(finished, "fault")
    assert finished.returncode == 1
    assert fault.startswith(f"redis://***@{address} cannot be reached")
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((MARKED,), "celery_notify.init_app was not called for shop"),
        (
            (KNOWN, "app.conf.imports = ['no_such_module']"),
            "the application's tasks cannot be imported: ModuleNotFoundError",
        ),
        (
            (KNOWN, "@app.task(notify={'user': 'nobody'})\ndef bill(user): ..."),
            "task shop.bill: ",
        ),
        ((KNOWN, "app.conf.notify_heartbeat = 'soon'"), "notify_heartbeat: expected a number of seconds above 0"),
    ],
    ids=["not known", "an import that fails", "a marker that does not fit", "a bad setting"],
)
def test_a_fault_of_the_application_is_a_failure(
    parts: tuple[str, ...], text: str, shop: Shop, own_redis: RedisServer
) -> None:
    shop.write(*parts)

    finished = shop.check(own_redis.url)

    assert finished.returncode == 1
    assert any(text in fault for fault in lines(finished, "fault")), finished.stdout


def test_without_an_application_the_environment_counts(shop: Shop, redis_server: GivenRedis) -> None:
    finished = shop.celery("notify", "check", CELERY_NOTIFY_REDIS_URL=redis_server.url)

    assert (finished.returncode, lines(finished, "fault")) == (0, [])
    assert lines(finished, "warning")[0].startswith("no application is named")
    assert redact(redis_server.url) in lines(finished, "ok")[0]


def test_a_setting_in_the_environment_that_cannot_be_used_is_a_failure(shop: Shop) -> None:
    finished = shop.celery("notify", "check", CELERY_NOTIFY_HEARTBEAT="soon")

    assert finished.returncode == 1
    assert lines(finished, "fault") == ["CELERY_NOTIFY_HEARTBEAT: expected a number of seconds above 0, got 'soon'"]


def test_options_that_an_application_adds_to_all_commands_are_no_error(shop: Shop, redis_server: GivenRedis) -> None:
    """Celery hands them to plugins too."""
    shop.write(
        KNOWN,
        """
        from celery import signals
        from click import Option
        app.user_options["preload"].add(Option(["--colour"]))

        @signals.user_preload_options.connect
        def show(options, **_):
            print("colour", options["colour"])
        """,
    )

    finished = shop.celery("-A", "shop", "notify", "--colour", "red", "check", SHOP_BROKER=redis_server.url)

    assert finished.returncode == 0, finished.stderr
    assert "colour red" in finished.stdout.splitlines()


def test_the_group_names_its_commands(shop: Shop) -> None:
    finished = shop.celery("notify", "--help")

    assert finished.returncode == 0
    assert "check  Say what is wrong" in finished.stdout
