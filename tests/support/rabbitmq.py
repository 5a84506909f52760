"""A RabbitMQ of our own, where the program is on the machine: no test needs it, in CI neither."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import Process, free_port

if TYPE_CHECKING:
    from typing import Self

#: Debian's own command in the PATH insists on being the system's one server.
DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def find_binary() -> str:
    """Return the path of the program, or skip the test."""
    found = str(DEBIANS) if DEBIANS.exists() else shutil.which("rabbitmq-server")
    if found is None or shutil.which("epmd") is None:
        pytest.skip("the program rabbitmq-server is not here")
    return found


class RabbitMQ:
    """A node on free ports of 127.0.0.1; all that it writes is in its folder."""

    def __init__(self, folder: Path) -> None:
        binary = find_binary()
        port, names_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        # Erlang's register of names would otherwise be started by the node, as a daemon that outlives it.
        self._names = Process("epmd", "-address", "127.0.0.1", "-port", str(names_port), folder=folder, name="epmd")
        settings = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(names_port),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "none"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(folder),
            "RABBITMQ_NODENAME": f"tests-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        self._node = Process(binary, folder=folder, name="rabbitmq", settings=settings)

    def start(self) -> Self:
        self._names.start()
        self._node.start()
        self._node.wait_for_log("startup complete", timeout=30)
        return self

    def stop(self) -> None:
        for process in (self._node, self._names):
            process.kill()  # quicker than the orderly way, and nothing of it is used again
