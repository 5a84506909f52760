"""No password, no address and no text of an error reaches a browser; no password stands in a log, no user in a URL.

Each way in which Redis can fail is brought about with a password in its URL, and all that was written is searched.
"""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.support.names import PREFIX
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, documented_acl
from tests.support.waiting import wait_until
from tests.support.web_servers import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.web_servers import Web

#: What an answer would betray our insides by.
INSIDES = re.compile(rb"(?i)redis|traceback|\.py|\.lua|wrongtype|noperm|wrongpass|oom|readonly|evalsha|127\.0\.0\.1")
NAME, *RULES = documented_acl()


class Failure(NamedTuple):
    """A way to fail: what brings it about, and what ends it."""

    begin: Callable[[RedisServer, str], Any]
    end: Callable[[RedisServer, str], Any]


def acl(*rules: str) -> Callable[[RedisServer, str], None]:
    def change(server: RedisServer, password: str) -> None:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", NAME, *(rule.replace("{password}", password) for rule in rules))
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    return change


def config(name: str, value: object) -> Callable[[RedisServer, str], None]:
    def change(server: RedisServer, _: str) -> None:
        with server.client() as client:
            client.config_set(name, value)  # type: ignore[arg-type]

    return change


def spoil(server: RedisServer, _: str) -> None:
    with server.client() as client:
        for key in list(client.scan_iter(match="celery-notify:{*")):
            client.delete(key)
            client.rpush(key, "a list")


def replicate(server: RedisServer, _: str) -> None:
    with server.client() as client:
        client.replicaof("127.0.0.1", free_port())


def lead(server: RedisServer, _: str) -> None:
    with server.client() as client:
        client.replicaof("no", "one")


def flush(server: RedisServer, _: str) -> None:
    with server.client() as client:
        client.flushall()
        client.script_flush()


FAILURES = {
    "gone": Failure(lambda server, _: server.kill(), lambda server, _: server.start()),
    "frozen": Failure(lambda server, _: server.pause(), lambda server, _: server.resume()),
    "another password": Failure(acl("resetpass", ">something else"), acl("resetpass", ">{password}")),
    "no such user": Failure(acl("off"), acl("on")),
    "no permission": Failure(acl("-evalsha", "-subscribe"), acl("+evalsha", "+subscribe")),
    "full": Failure(config("maxmemory", 1), config("maxmemory", 0)),
    "a replica": Failure(replicate, lead),
    "keys of another type": Failure(spoil, flush),
    "empty": Failure(flush, flush),
}


@pytest.fixture
def password() -> str:
    return f"s3cret-{uuid.uuid4().hex}"


@pytest.fixture
def guarded_redis(password: str, tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis whose password stands nowhere else; what it denies is what these tests are about."""
    rules = [f">{password}" if rule.startswith(">") else rule for rule in RULES]
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", acl=(NAME, *rules)).start()
    yield server
    server.stop()


def ask_all(web: Web, user: str) -> bytes:
    """Ask each endpoint, all at once, whatever it answers; return all that a browser gets to read."""
    asked = [
        ("GET", f"{PREFIX}/tasks"),
        ("DELETE", f"{PREFIX}/tasks/no%20such%20key"),
        ("POST", f"{PREFIX}/tasks/no%20such%20key/cancel"),
        ("HEAD", STREAM),
    ]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = [*threads.map(lambda each: web.request(*each, user=user), asked)]
    for answer in answers:
        assert answer.status in {200, 404, 503}, answer
        if answer.status == 503:
            assert answer.headers["retry-after"]
    return b"".join(str(answer.headers).encode() + answer.body for answer in answers)


@pytest.mark.defends("S16")
def test_whatever_fails_of_redis_nothing_is_betrayed(
    user: str,
    password: str,
    guarded_redis: RedisServer,
    make_web: Callable[..., Web],
    make_worker: Callable[..., Worker],
    tasks: ModuleType,
) -> None:
    settings = {"CELERY_NOTIFY_REDIS_URL": guarded_redis.url, "CELERY_NOTIFY_HEARTBEAT": "0.5"}
    web = make_web("gunicorn gthread", settings)
    worker = make_worker(notify_redis_url=guarded_redis.url)
    secret, read = f"text {uuid.uuid4().hex}", b""
    with web.stream(user) as stream:
        stream.ready()
        for name, failure in FAILURES.items():
            failure.begin(guarded_redis, password)
            result = tasks.failing.apply_async((user, secret), queue=worker.worker_queue)
            web.send(user, "note", name)
            wait_until(lambda: result.state == "FAILURE", timeout=20, what=f"the task's end with Redis {name}")  # noqa: B023
            read += ask_all(web, user)
            failure.end(guarded_redis, password)
            web.send(user, "back", name)
            stream.until(lambda event: f'"{name}"' in event.data and event.event == "back", timeout=25)  # noqa: B023
            read += ask_all(web, user)
        read += stream.raw
    logs = web.log() + worker.logs()

    failed = re.findall("Redis (?:does not take events|refused an event)", web.log())
    assert len(failed) >= len(FAILURES) - 2, "expected all but the last two to keep events back"
    assert not INSIDES.search(read.replace(b"gunicorn", b"")), INSIDES.search(read)
    for betrayed in (password, secret, "something else"):
        assert betrayed.encode() not in read
    assert password not in logs
    assert "something else" not in logs
    assert secret in logs  # the control: for those who run it, an error's text stands in the worker's log
    urls = re.findall(r'"(?:GET|POST|DELETE|HEAD) (\S+)', web.log())
    assert len(urls) > len(FAILURES)
    assert not [url for url in urls if user in url or quote(user) in url or password in url]
    assert "Traceback" not in web.log()


@pytest.mark.defends("S16")
def test_a_redis_that_never_let_us_in_is_no_secret_either(
    user: str, password: str, guarded_redis: RedisServer, make_web: Callable[..., Web]
) -> None:
    """From the start on: the first connection of a process has errors of its own."""
    web = make_web(
        "gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": guarded_redis.url.replace(password, f"{password}-x")}
    )
    web.send(user, "note", None)

    read = ask_all(web, user) + web.get(STREAM, user=user).body

    assert not INSIDES.search(read.replace(b"gunicorn", b""))
    wait_until(lambda: "celery_notify.publisher" in web.log(), what="a line of what is wrong")
    assert password not in web.log()
