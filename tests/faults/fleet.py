"""Several web processes, each a gunicorn of its own on a port of its own, and nginx in front of them."""

from __future__ import annotations

import os
import pwd
import signal
from typing import TYPE_CHECKING

from tests.support.processes import free_port
from tests.support.proxies import DOCUMENTED_ADDRESS, NGINX, Proxy, documented, program
from tests.support.waiting import wait_until
from tests.support.web_servers import APPLICATION, server, without_control_socket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.web_servers import WebServer


def web_process(name: str, *options: str, folder: Path, settings: Mapping[str, str]) -> WebServer:
    """Return a gunicorn, not yet started, that comes back on the same port when it is started again."""
    return server(
        name,
        *("gunicorn", f"{APPLICATION}()", "--bind", f"127.0.0.1:{free_port()}", "--worker-class", "gthread"),
        *("--threads", "4", *without_control_socket(), *options),
        listening=r"Listening at: http://127\.0\.0\.1:(\d+)",
        folder=folder,
        settings=settings,
    )


class Front(Proxy):
    """nginx as README.md has it, before several web servers or one of several."""

    def __init__(self, behind: Sequence[WebServer], folder: Path) -> None:
        super().__init__(
            *(program("nginx"), "-e", "stderr", "-p", str(folder), "-c"),
            folder=folder,
            name="nginx",
            template=NGINX.replace("worker_connections 1024", "worker_connections 10000"),
            values={
                "user": pwd.getpwuid(os.getuid()).pw_name,
                "folder": str(folder),
                "http": _upstream(behind),
                "listen": "",
                "tls": "",
                "location": documented("nginx").replace(DOCUMENTED_ADDRESS, "web"),
            },
        )

    def lead_to(self, *behind: WebServer) -> None:
        """Lead new connections to these; those that are open stay where they are."""
        before = set(self.process.children())
        self._values = {**self._values, "http": _upstream(behind)}
        self._file.write_text(self._template.format(**self._values, port=self.address[1]), encoding="utf-8")
        self.process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: set(self.process.children()) - before, what="nginx to take its new configuration")


def _upstream(behind: Sequence[WebServer]) -> str:
    """Return the group of servers. One that refuses a connection is not given up for ten seconds, as it is by default:

    a deploy that takes less would have them all given up.
    """
    servers = "\n".join("    server {}:{} max_fails=0;".format(*each.address) for each in behind)
    return f"upstream web {{\n{servers}\n}}"
