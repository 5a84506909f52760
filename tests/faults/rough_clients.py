"""Clients that are rough: they do not read, break off at any point, say more than they may, all come at once."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import h11

from celery_notify.sockets import drop_what_is_unsent
from tests.support.event_stream import EventStream
from tests.support.waiting import SLOWNESS, Deadline
from tests.support.web_servers import STREAM, user_headers

if TYPE_CHECKING:
    from tests.support.web_servers import WebServer


def request(user: str | None, *headers: str, path: str = STREAM) -> bytes:
    """Return a request for the user's stream."""
    own = ("Host: localhost", *(": ".join(pair) for pair in user_headers(user).items()))
    return "\r\n".join([f"GET {path} HTTP/1.1", *own, *headers, "", ""]).encode()


def connect(web: WebServer, *, takes: int | None = None) -> socket.socket:
    """Connect; with `takes` the kernel takes no more than about so many bytes that nobody reads."""
    sock = socket.socket()
    if takes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, takes)
    sock.settimeout(10 * SLOWNESS)
    sock.connect(web.address)
    return sock


def never_reading(web: WebServer, user: str) -> socket.socket:
    """Ask for a stream, and read nothing of it."""
    sock = connect(web, takes=4096)
    sock.sendall(request(user))
    return sock


def reset(sock: socket.socket) -> None:
    """Leave without a word: the server hears of it as an error."""
    drop_what_is_unsent(sock)
    sock.close()


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """Return what comes up to the packet with `wanted`, or to the end."""
    deadline, data = Deadline(10), b""
    while wanted not in data and (more := _read(sock, deadline)):
        data += more
    return data


def rest(sock: socket.socket) -> bytes:
    """Return all that still comes, whatever ends it. Raises TimeoutError if nothing does."""
    deadline, data = Deadline(10), b""
    while more := _read(sock, deadline):
        data += more
    return data


def _read(sock: socket.socket, deadline: Deadline) -> bytes:
    sock.settimeout(max(deadline.left, 0.001))
    try:
        return sock.recv(65536)
    except (ConnectionResetError, BrokenPipeError):
        return b""


class HastyStream(EventStream):
    """A stream whose answer is awaited only when it is read, so that one thread can ask for many at once."""

    def __init__(self, web: WebServer, user: str, *, last_id: str | None = None) -> None:
        super().__init__()
        self.status, self.headers = 0, {}
        self._http = h11.Connection(h11.CLIENT)
        headers = {"Host": "localhost", **user_headers(user), **({} if last_id is None else {"Last-Event-ID": last_id})}
        asked: Any = h11.Request(method="GET", target=STREAM, headers=list(headers.items()))
        self.socket = connect(web)
        self.socket.sendall(self._http.send(asked) + self._http.send(h11.EndOfMessage()))

    def _read(self, timeout: float) -> bytes:
        deadline = Deadline(timeout / SLOWNESS)
        while True:
            event: Any = self._http.next_event()
            if event is h11.NEED_DATA:
                self.socket.settimeout(max(deadline.left, 0.001))
                self._http.receive_data(self.socket.recv(65536))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
            else:
                return bytes(event.data) if isinstance(event, h11.Data) else b""

    def close(self) -> None:
        self.socket.close()
