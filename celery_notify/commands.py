"""Commands in the bytes in which they go to Redis, and the connection that they go by.

redis-py's pool and pipeline cost three times as much, and for a single command even more (ARCHITECTURE.md).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_notify import sockets

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Commands that are handed to the kernel at once, each time with all the time that Redis has for an answer.
PIECE = 50


def command(*words: str | float) -> bytes:
    """Return a command as it goes to Redis. Raises UnicodeEncodeError for what UTF-8 cannot say."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub has tuples of one word
    return packed


class Commands:
    """One connection, for one thread at a time; it is made at the first use, and anew when it is found dead.

    Who waits for longer than `patience` seconds for the others gets redis.ConnectionError. `options` are those of
    redis-py's connections.
    """

    def __init__(self, url: str, *, patience: float, **options: Any) -> None:
        never = Retry(NoBackoff(), 0)  # that is done here
        pool = redis.ConnectionPool.from_url(url, protocol=2, retry=never, redis_connect_func=self._greet, **options)
        self._connection: Any = pool.make_connection()
        self._patience = patience
        self._turn = threading.Lock()
        #: How often it was made.
        self.connections = 0

    def _greet(self, connection: Any) -> None:
        """Greet Redis as redis-py does, and count.

        What is given up must not be delivered any more: when the way is free again the kernel would go on to send it,
        and an event that was repeated meanwhile would come after those that followed. So closing drops what is unsent.
        """
        sockets.drop_what_is_unsent(connection._sock)  # noqa: SLF001
        connection.on_connect()
        self.connections += 1

    def run(self, commands: Sequence[bytes]) -> list[Any]:
        """Run commands in one round trip; return their answers as Redis gives them, or what it has against a command.

        Raises redis.RedisError or OSError if it cannot be asked.
        """
        if not commands:
            return []
        if not self._turn.acquire(timeout=self._patience):
            raise redis.ConnectionError(f"expected the connection to be free within {self._patience} s, it is in use")
        try:
            try:
                return self._exchange(commands)
            except redis.ConnectionError:  # it has died since the last time; if not, one more try does no harm
                return self._exchange(commands)
        finally:
            self._turn.release()

    def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        pieces = [b"".join(commands[start : start + PIECE]) for start in range(0, len(commands), PIECE)]
        try:
            self._connection.send_packed_command(pieces)
            return [self._answer() for _ in commands]
        except BaseException:  # such as a time limit's: an answer that is still to come would be taken for another's
            self._connection.disconnect()
            raise

    def _answer(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        """Close the connection; in a forked child its copy of it, without a word to Redis."""
        self._connection.disconnect()
