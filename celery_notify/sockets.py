"""Two ways to part from a socket that `close()` alone does not know."""

from __future__ import annotations

import contextlib
import os
import socket
import struct


def drop_what_is_unsent(sock: socket.socket) -> None:
    """Have `close()` drop what the kernel still holds for the other side, and tell it so by a reset.

    A socket of the Unix kind has no such option, and nothing that outlives it. socket(7), SO_LINGER.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def let_go(descriptor: int) -> None:
    """Have a descriptor be /dev/null from now on: in a forked child, of what the parent's event loop looks at.

    To close it by the loop's own ways would end it for the parent too, and uvloop holds back a plain close.
    """
    if descriptor >= 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)
