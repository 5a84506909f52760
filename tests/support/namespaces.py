"""Two hosts with a cable between them, on one machine: network namespaces, which only root may make (Linux).

What a thread does while it has entered a host is done there: sockets that it makes, processes that it starts. Both stay
there. The namespaces have no names, so that the kernel removes them, and the cable, with the last who uses them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.waiting import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

#: <sched.h>; Python has os.unshare and os.setns from 3.12 on.
_CLONE_NEWNET = 0x40000000
_OURS = "/proc/thread-self/ns/net"


class Host:
    """A host with a network of its own; `address` is its end of the cable."""

    def __init__(self, address: str) -> None:
        self.address = address
        made: list[int | OSError] = []
        thread = threading.Thread(target=lambda: made.append(_new_namespace()), name="new-namespace")
        thread.start()
        thread.join()
        [namespace] = made
        if isinstance(namespace, OSError):
            missing(f"the right to make a network namespace: {namespace}")
        self._namespace = namespace
        self.run("ip link set lo up")

    @property
    def path(self) -> str:
        """Where other programs find the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread be on the host."""
        home = os.open(_OURS, os.O_RDONLY)
        _call("setns", self._namespace, _CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", home, _CLONE_NEWNET)
            os.close(home)

    def run(self, command: str) -> None:
        """Run a command on the host."""
        with self.entered():
            subprocess.run(command.split(), check=True, timeout=10)

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self._namespace)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, a cable between them."""
    if not hasattr(ctypes.CDLL(None), "setns") or os.geteuid() != 0 or shutil.which("ip") is None:
        missing("root, Linux and the program ip, for network namespaces")
    hosts = (Host("10.0.0.1"), Host("10.0.0.2"))
    try:
        hosts[0].run(f"ip link add cable type veth peer name cable netns {hosts[1].path}")
        for host in hosts:
            host.run(f"ip address add {host.address}/24 dev cable")
            host.run("ip link set cable up")
        yield hosts
    finally:
        for host in hosts:
            host.close()


def unplug(_: Host, peer: Host) -> None:
    """Pull the peer's plug: neither side hears of the other any more."""
    peer.run("ip link set cable down")


def lead_astray(host: Host, peer: Host) -> None:
    """Have all that the host sends to the peer vanish on the way, without an error on either side."""
    host.run(f"ip neighbour replace {peer.address} lladdr 02:00:00:00:00:01 dev cable nud permanent")


def _new_namespace() -> int | OSError:
    """Return a new namespace; the thread that asks stays in it."""
    try:
        _call("unshare", _CLONE_NEWNET)
    except OSError as error:
        return error
    return os.open(_OURS, os.O_RDONLY)


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
