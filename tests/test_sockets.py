"""Parting from a socket: with what is unsent dropped, or without a word from a forked process."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_notify.sockets import drop_what_is_unsent, let_go

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            yield accepted, client


def fill(sock: socket.socket) -> int:
    """Write until the kernel takes no more; return how many bytes it has taken."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 65536)
    return sent


def read_all(sock: socket.socket) -> int:
    """Read to the end and return how many bytes there were."""
    read = 0
    while data := sock.recv(65536):
        read += len(data)
    return read


def test_what_is_unsent_is_dropped_when_the_socket_is_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    drop_what_is_unsent(ours)
    fill(ours)
    ours.close()

    with pytest.raises(ConnectionResetError):
        read_all(theirs)


def test_without_that_it_is_still_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    sent = fill(ours)
    ours.close()

    assert read_all(theirs) == sent


def test_a_socket_without_the_option_is_left_as_it_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        drop_what_is_unsent(ours)
        ours.sendall(b"word")
        ours.close()

        assert theirs.recv(100) == b"word"


def test_of_what_is_let_go_only_this_copy_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.dup() as parents:
        let_go(ours.fileno())

        assert Path(f"/proc/self/fd/{ours.fileno()}").readlink() == Path(os.devnull)
        assert not os.get_inheritable(ours.fileno())
        parents.sendall(b"goes on")
        assert theirs.recv(100) == b"goes on"


def test_a_socket_that_is_closed_is_nothing_to_let_go() -> None:
    let_go(-1)
