"""What readers do that mean no good, and what people do."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from celery_notify.sockets import drop_what_is_unsent
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.chaos.driver import Driver
    from tests.faults.chaos.schedule import Fault


#: Bytes of one event of a flood, and how many there are.
FLOOD_SIZE, FLOOD_COUNT = 40_000, 60


def _open_stream(driver: Driver, fault: Fault, *, room: int | None = None) -> socket.socket | None:
    """Ask for a stream as a client does that means no good; None where the web server is down."""
    port = driver.world.ports[fault.detail % len(driver.world.ports)]
    sock = socket.socket()
    sock.settimeout(3)
    if room is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    try:
        sock.connect(("127.0.0.1", port))
        user = quote(driver.user(fault), safe="")
        sock.sendall(f"GET {PREFIX}/stream HTTP/1.1\r\nHost: h\r\nX-User: {user}\r\n\r\n".encode("ascii"))
    except OSError:
        sock.close()
        return None
    return sock


def read_slowly(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Read nothing, while a flood of large events comes."""
    readers = [_open_stream(driver, fault, room=4096) for _ in range(3)]
    user = driver.user(fault)
    for _ in range(FLOOD_COUNT):
        driver.flooder.publish([user], key="flood", event="flood", filling=FLOOD_SIZE)

    def leave() -> None:
        for reader in readers:
            if reader is not None:
                reader.close()

    return leave


def half_close(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Shut the direction to the server."""
    sock = _open_stream(driver, fault)
    if sock is None:
        return lambda: None
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    return sock.close


def send_garbage(driver: Driver, fault: Fault) -> Callable[[], None]:
    """Say more than a request, at once or when the stream has begun."""
    sock = _open_stream(driver, fault)
    if sock is None:
        return lambda: None
    with contextlib.suppress(OSError):
        if fault.detail % 2:
            sock.recv(100)
        sock.sendall(b"GET /ordinary HTTP/1.1\r\nHost: h\r\n\r\n\0\xff" * 100)
    return sock.close


def abort(driver: Driver, fault: Fault) -> None:
    """Connect and reset, at different moments."""
    for number in range(20):
        sock = _open_stream(driver, fault)
        if sock is None:
            return
        with contextlib.suppress(OSError):
            if number % 3:
                sock.recv(1 if number % 3 == 1 else 4096)
            drop_what_is_unsent(sock)
        sock.close()


def close_streams(driver: Driver, fault: Fault) -> None:
    """End a user's streams, as a logout does."""
    with contextlib.suppress(AssertionError, OSError):
        driver.world.webs[fault.target].close_streams(driver.user(fault))


def remove_entry(driver: Driver, fault: Fault) -> None:
    """Remove something that has ended from a user's history."""
    driver.clients.remove(driver.user(fault))


def reload_pages(driver: Driver, _: Fault) -> None:
    """Have all pages come back at once."""
    driver.clients.reload()
