"""Where a stream leaves the WSGI server: the only module that names a key of a WSGI environ (PEP 3333).

A server spends a worker or a thread on each response that is open. So its socket is taken: a duplicate goes to the hub,
and on the server's file descriptor a dummy is put, to which it writes an answer that nobody reads; then it logs the
request and is free. Where there is no plain socket to be had, the response's body carries the stream.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http
import logging
import os
import signal
import socket
import ssl
import sys
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    #: Adopts a socket: (socket, head, chunked).
    Adopt = Callable[[socket.socket, bytes, bool], None]
    Headers = list[tuple[str, str]]

logger = logging.getLogger(__name__)

#: Under which key a server shows the socket of the request: gunicorn, and Werkzeug for `flask run`.
GUNICORN_SOCKET = "gunicorn.socket"
SOCKET_KEYS = (GUNICORN_SOCKET, "werkzeug.socket")

#: What only we can say of the message and its connection: an application's word on it would make two of them.
FRAMING = frozenset({"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})

#: By the type of the server's socket: whether the first stream's self-test found that it can be taken.
_verdicts: dict[type, bool] = {}


def open_stream(
    environ: dict[str, Any], start_response: Any, status: str, headers: Headers, adopt: Adopt
) -> Iterable[bytes]:
    """Begin a stream with this status and these headers; return what the server is to send itself."""
    chunked = environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    head = _head(status, headers, chunked=chunked)  # before the socket is taken: the server answers if this fails
    taken = take(environ)
    if taken is None:
        ours, theirs = socket.socketpair()
        start_response(status, headers)
        adopt(ours, b"", False)
        return Body(theirs)
    sock, dummy = taken
    adopt(sock, head, chunked)
    start_response(status, [("Content-Length", "0")])
    return dummy


def stopping() -> bool:
    """Say whether the server has begun to stop, if it shows that: gunicorn does, by the worker that handles SIGTERM.

    It says so on any signal and at max_requests, and long before the process ends: it waits for the requests in work.
    """
    gunicorn = sys.modules.get("gunicorn.workers.base")
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return gunicorn is not None and isinstance(worker, gunicorn.Worker) and not worker.alive


def _head(status: str, headers: Headers, *, chunked: bool) -> bytes:
    """Return the head that the server would have written."""
    given = [(name, value) for name, value in headers if name.lower() not in FRAMING]
    own = [("Connection", "close")]
    if chunked:
        own.append(("Transfer-Encoding", "chunked"))
    if "date" not in {name.lower() for name, _ in given}:
        own.insert(0, ("Date", _date(int(time.time()))))
    lines = [f"{name}: {value}" for name, value in (*given, *own)]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    """Return a time as HTTP writes it; when many streams begin, it is the same for most of them."""
    return formatdate(seconds, usegmt=True)


def take(environ: dict[str, Any]) -> tuple[socket.socket, Dummy] | None:
    """Take the server's socket; return it, and the body of the server's own answer. None where that cannot be done.

    Requests that are more than a GET's head are left alone: what follows the head would be read by nobody.
    """
    key, server_socket = _socket_of(environ)
    if server_socket is None or not _is_plain(environ):
        return None
    exchanged = _exchange(server_socket)
    if exchanged is None:
        return None
    sock, peer = exchanged
    return sock, Dummy(peer, keeps_alive=key == GUNICORN_SOCKET)


def would_hold_a_thread(environ: dict[str, Any]) -> bool:
    """Say whether this request alone, not its server, keeps the stream from leaving.

    A server that otherwise gives its streams away has few threads, or one: gunicorn's sync worker is killed when a
    request takes long, and all streams with it.
    """
    return _socket_of(environ)[1] is not None and not _is_plain(environ)


def _socket_of(environ: dict[str, Any]) -> tuple[str, socket.socket | None]:
    """Return the server's socket, if it is one that can be taken, and under which key it is."""
    key = next((key for key in SOCKET_KEYS if key in environ), "")
    sock = environ.get(key)
    if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket) or _verdicts.get(type(sock)) is False:
        return key, None
    return key, sock


def _is_plain(environ: dict[str, Any]) -> bool:
    """Say whether the request is a GET's head and no more."""
    return (
        environ["REQUEST_METHOD"] == http.HTTPMethod.GET
        and environ.get("SERVER_PROTOCOL") in {"HTTP/1.1", "HTTP/1.0"}
        and environ.get("CONTENT_LENGTH") in {None, "", "0"}
        and "HTTP_TRANSFER_ENCODING" not in environ
        and "HTTP_UPGRADE" not in environ
    )


def _exchange(server_socket: socket.socket) -> tuple[socket.socket, socket.socket] | None:
    """Put a dummy on the server's file descriptor; the first time, see that the server's socket now writes to it."""
    descriptor = server_socket.fileno()
    dummy, peer = socket.socketpair()
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        dummy.close()
        peer.close()
        raise
    os.set_blocking(dummy.fileno(), os.get_blocking(descriptor))
    os.dup2(dummy.fileno(), descriptor, inheritable=os.get_inheritable(descriptor))
    dummy.close()
    kind = type(server_socket)
    if kind not in _verdicts:
        _verdicts[kind] = _writes_to(server_socket, peer)
        if not _verdicts[kind]:
            os.dup2(duplicate, descriptor, inheritable=os.get_inheritable(descriptor))
            os.close(duplicate)
            peer.close()
            logger.warning("The server's sockets (%s) cannot be taken: each stream holds a thread", kind.__qualname__)
            return None
    # The server finds an end when it reads on, and room when it writes its answer.
    peer.shutdown(socket.SHUT_WR)
    return socket.socket(server_socket.family, server_socket.type, server_socket.proto, fileno=duplicate), peer


def _writes_to(sock: socket.socket, peer: socket.socket) -> bool:
    """Say whether what is sent on `sock` comes out of `peer`."""
    test = b"?"
    peer.setblocking(False)
    try:
        sock.send(test)
        return peer.recv(len(test)) == test
    except OSError:
        return False


def hang_up(environ: dict[str, Any]) -> None:
    """Have the server end the connection once it has answered: what follows this request is not to be trusted.

    gunicorn waits two seconds for a client to close its end as well, in the one thread that accepts connections: a
    client that does not would keep all others waiting. To the server it has closed it now; what comes later is refused.
    """
    sock = environ.get(GUNICORN_SOCKET)
    if sock is not None:  # other servers heed Connection: close
        with contextlib.suppress(OSError):  # the client has gone already
            sock.shutdown(socket.SHUT_RD)
        _hang_up()


def _hang_up() -> None:
    raise BrokenPipeError(errno.EPIPE, "the connection is not to be used any more")


class Dummy:
    """The empty body of an answer that is written to the dummy."""

    def __init__(self, peer: socket.socket, *, keeps_alive: bool) -> None:
        self._peer = peer
        self._keeps_alive = keeps_alive

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Let go of the dummy: the server has written its answer, and logged the request.

        A server that would go on with the connection is told that it is gone. It may have read more than this request
        already, and would run what follows as a second one that nobody gets an answer to.
        """
        self._peer.close()
        if self._keeps_alive:
            _hang_up()


class Body:
    """The stream as a body: what the hub writes to the other end of a pair of sockets."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __iter__(self) -> Iterator[bytes]:
        while data := self._socket.recv(65536):
            yield data

    def close(self) -> None:
        """Leave; the hub notices."""
        self._socket.close()
