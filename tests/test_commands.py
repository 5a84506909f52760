"""Commands in bytes, and the connection that they go by: to a real Redis, and to a server that says what it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import redis

from celery_notify.commands import PIECE, Commands, command
from celery_notify.transport import without_setinfo
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tests.support.redis_server import GivenRedis, RedisServer


@pytest.fixture
def made() -> Iterator[Callable[..., Commands]]:
    """Return what makes connections, which are closed at the end."""
    all_of_them: list[Commands] = []

    def make(url: str, **options: Any) -> Commands:
        options = {"patience": 5, "socket_timeout": 5, **without_setinfo(), **options}
        all_of_them.append(Commands(url, **options))
        return all_of_them[-1]

    yield make
    for each in all_of_them:
        each.close()


class Scripted:
    """A server that reads one thing on each connection, answers what it was told to, and closes; a context manager."""

    def __init__(self, *answers: bytes) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(10)
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        self._answers = answers
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:  # noqa: PYI034 - nobody inherits from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        for answer in self._answers:
            with self._listening.accept()[0] as connection:
                self.heard.append(connection.recv(1 << 16))
                connection.sendall(answer)


# Bytes


def test_a_command_is_its_words_with_their_lengths_in_bytes() -> None:
    assert (
        command("SET", "k", "é\r\n", 7, 1.5)
        == b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\xc3\xa9\r\n\r\n$1\r\n7\r\n$3\r\n1.5\r\n"
    )


def test_redis_reads_words_of_any_kind(redis_server: GivenRedis, user: str, made: Callable[..., Commands]) -> None:
    words = ["", "a b", "é\u2028€😀", "\r\n$3\r\nabc", "x" * 100_000, 2**53, 0.1]
    commands = made(redis_server.admin_url)

    for word in words:
        assert commands.run([command("SET", user, word), command("GET", user)]) == [b"OK", str(word).encode()]
    commands.run([command("DEL", user)])


def test_what_utf_8_cannot_say_is_an_error_before_anything_is_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        command("SET", "\ud800", "")


# Answers


def test_each_command_has_its_answer_whatever_becomes_of_the_others(
    redis_server: GivenRedis, user: str, made: Callable[..., Commands]
) -> None:
    commands = made(redis_server.admin_url)
    asked = [command("ECHO", number) for number in range(5 * PIECE)]
    asked[7:7] = [command("SET", user, "text"), command("HGET", user, "f"), command("DEL", user)]

    answers = commands.run(asked)

    assert isinstance(answers.pop(8), redis.ResponseError)
    assert answers[7:9] == [b"OK", 1]
    assert answers[:7] + answers[9:] == [str(number).encode() for number in range(5 * PIECE)]
    assert commands.connections == 1


def test_nothing_is_asked_where_there_is_nothing_to_ask(made: Callable[..., Commands]) -> None:
    assert made("redis://127.0.0.1:1/0").run([]) == []


# The connection


@pytest.mark.defends("F6")
def test_a_connection_that_has_died_is_made_anew_once(made: Callable[..., Commands]) -> None:
    with Scripted(b"+one\r\n", b"+two\r\n", b"") as server:
        commands = made(server.url)

        assert commands.run([command("PING")]) == [b"one"]
        assert commands.run([command("PING")]) == [b"two"]
        with pytest.raises(redis.ConnectionError):
            commands.run([command("PING")])

    assert commands.connections == 3
    assert server.heard == [command("PING")] * 3


def test_after_an_answer_that_is_late_nothing_is_taken_for_it(
    own_redis: RedisServer, made: Callable[..., Commands]
) -> None:
    commands = made(own_redis.admin_url, socket_timeout=0.1)
    assert commands.run([command("ECHO", "before")]) == [b"before"]
    own_redis.pause()
    with pytest.raises(redis.TimeoutError):
        commands.run([command("ECHO", "late")])
    own_redis.resume()

    wait_until(lambda: answered(commands), what="an answer")

    assert commands.run([command("ECHO", "after")]) == [b"after"]


def answered(commands: Commands) -> bool:
    with contextlib.suppress(redis.TimeoutError):
        return commands.run([command("ECHO", "now")]) == [b"now"]
    return False


def test_what_interrupts_the_reading_leaves_no_answer_for_the_next(
    redis_server: GivenRedis, made: Callable[..., Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's time limit is raised wherever its thread is."""
    commands = made(redis_server.admin_url)
    with monkeypatch.context() as patch:
        answers = iter([KeyboardInterrupt])

        def interrupted() -> None:
            raise next(answers)

        patch.setattr(commands, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commands.run([command("ECHO", "first"), command("ECHO", "second")])

    assert commands.run([command("ECHO", "third")]) == [b"third"]


def test_threads_take_turns_and_do_not_wait_for_ever(own_redis: RedisServer, made: Callable[..., Commands]) -> None:
    commands = made(own_redis.admin_url, patience=0.05)
    commands.run([command("PING")])
    own_redis.pause()
    first = threading.Thread(target=commands.run, args=([command("PING")],))
    first.start()
    wait_until(commands._turn.locked, what="the first to have its turn")  # noqa: SLF001

    with pytest.raises(redis.ConnectionError, match="in use"):
        commands.run([command("PING")])

    own_redis.resume()
    first.join()
    assert commands.run([command("PING")]) == [b"PONG"]


def test_many_threads_each_get_their_own_answers(redis_server: GivenRedis, made: Callable[..., Commands]) -> None:
    commands = made(redis_server.admin_url)
    wrong: list[Any] = []

    def ask(name: int) -> None:
        for number in range(50):
            word = f"{name} {number}"
            if (answer := commands.run([command("ECHO", word)] * 3)) != [word.encode()] * 3:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert commands.connections == 1


def test_a_forked_child_closes_its_copy_without_a_word_to_redis(
    redis_server: GivenRedis, made: Callable[..., Commands]
) -> None:
    commands = made(redis_server.admin_url)
    commands.run([command("PING")])

    child = os.fork()
    if child == 0:
        commands.close()
        os._exit(0)
    os.waitpid(child, 0)

    assert commands.run([command("PING")]) == [b"PONG"]
    assert commands.connections == 1
