"""nginx and HAProxy in front of a web server, as plain processes with the configuration that README.md shows.

And streams as those have them who are before such a proxy: compressed, or over HTTP/2.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.event_stream import PumpedStream, SocketStream
from tests.support.processes import ROOT, Process, free_port
from tests.support.waiting import missing, wait_until
from tests.support.web_servers import STREAM, WebServer, user_headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    import httpx

#: How often another free port is tried when a program was faster in taking one.
ATTEMPTS = 5
#: The application's address in the configuration that README.md shows.
DOCUMENTED_ADDRESS = "127.0.0.1:8000"

NGINX = """
daemon off;
user {user};
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port} {listen};
        {tls}
        {location}
    }}
}}
"""

HAPROXY = """
{settings}

frontend front
    bind 127.0.0.1:{port}
    default_backend application
"""


def program(name: str) -> str:
    """Return the path of a server that Debian keeps where not everybody's PATH leads, or skip the test."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") or missing(name)


def documented(language: str) -> str:
    """Return the one block of README.md in this language."""
    [block] = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(block)


class Proxy(WebServer):
    """A proxy as the web server that it is to its clients: it has the same paths as the one behind it."""

    def __init__(self, *command: str, folder: Path, name: str, template: str, values: Mapping[str, str]) -> None:
        file = folder / f"{name}.conf"
        super().__init__(Process(*command, str(file), folder=folder, name=name), "")
        self._file = file
        self._template = template
        self._values = values

    def start(self) -> Self:
        """Start it on a free port, and wait until it listens."""
        for _ in range(ATTEMPTS):
            said = self._start_on(free_port())
            if self.process.alive and "in use" not in said:
                return self
            self.process.kill()
            if "in use" not in said:
                break
        raise RuntimeError(f"{self.process.name} did not start:\n{self.log()}")

    def _start_on(self, port: int) -> str:
        """Start it on a port, and return what it says until it listens, ends, or has found the port taken."""
        self.address = ("127.0.0.1", port)
        self._file.write_text(self._template.format(**self._values, port=port), encoding="utf-8")
        before = len(self.log())
        self.process.start()
        wait_until(
            lambda: self._listens() or not self.process.alive or "in use" in self.log()[before:],
            what=lambda: f"{self.process.name} to listen, which wrote\n{self.log()}\n",
        )
        return self.log()[before:]

    def _listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(self.address):
            return True
        return False


def nginx(
    behind: WebServer,
    folder: Path,
    *,
    location: str | None = None,
    http: str = "",
    certificate: Certificate | None = None,
) -> Proxy:
    """Return nginx, not yet started, with README.md's `location` or another; with a certificate it speaks HTTP/2."""
    tls = "" if certificate is None else f"ssl_certificate {certificate.file}; ssl_certificate_key {certificate.key};"
    return Proxy(
        *(program("nginx"), "-e", "stderr", "-p", str(folder), "-c"),
        folder=folder,
        name="nginx",
        template=NGINX,
        values={
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "folder": str(folder),
            "http": http,
            "listen": "" if certificate is None else "ssl http2",
            "tls": tls,
            "location": _leading_to(behind, documented("nginx") if location is None else location),
        },
    )


def haproxy(behind: WebServer, folder: Path, *, settings: str | None = None) -> Proxy:
    """Return HAProxy, not yet started, with README.md's settings or others."""
    settings = documented("haproxy") if settings is None else settings
    return Proxy(
        *(program("haproxy"), "-db", "-f"),
        folder=folder,
        name="haproxy",
        template=HAPROXY,
        values={"settings": _leading_to(behind, settings)},
    )


def _leading_to(behind: WebServer, settings: str) -> str:
    assert DOCUMENTED_ADDRESS in settings, f"expected the address {DOCUMENTED_ADDRESS}, got {settings}"
    return settings.replace(DOCUMENTED_ADDRESS, "{}:{}".format(*behind.address))


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for 127.0.0.1 and its key, in files."""

    file: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Have openssl make one that lasts for a day."""
        made = cls(folder / "certificate.pem", folder / "key.pem")
        openssl = shutil.which("openssl") or missing("openssl")
        subprocess.run(
            [
                *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"),
                *("-out", str(made.file), "-keyout", str(made.key)),
            ],
            check=True,
            capture_output=True,
        )
        return made

    def context(self) -> ssl.SSLContext:
        """Return what trusts it."""
        return ssl.create_default_context(cafile=str(self.file))


class GzipStream(SocketStream):
    """A stream that the proxy compresses."""

    def __init__(self, proxy: Proxy, user: str) -> None:
        self._gzip = zlib.decompressobj(wbits=31)
        headers = {**user_headers(user), "Accept-Encoding": "gzip"}
        super().__init__(proxy.address, STREAM, headers=headers.items())
        assert self.headers["content-encoding"] == "gzip"

    def _read(self, timeout: float) -> bytes:
        while data := super()._read(timeout):
            if text := self._gzip.decompress(data):
                return text
        return b""


class Http2Stream(PumpedStream):
    """A stream over HTTP/2, on a client's connection that others share."""

    def __init__(self, client: httpx.Client, user: str) -> None:
        super().__init__()
        self._client = client
        self._user = user
        self._closing = False
        self._thread = threading.Thread(target=self._pump, name="http/2 stream")
        self._thread.start()

    def _pump(self) -> None:
        with self._client.stream("GET", STREAM, headers=user_headers(self._user)) as response:
            assert response.http_version == "HTTP/2"
            self.status, self.headers = response.status_code, dict(response.headers)
            for chunk in response.iter_raw():
                self._chunks.put(chunk)
                if self._closing:
                    return
        self._chunks.put(b"")

    def close(self) -> None:
        """Leave at the next chunk: one who waits for bytes cannot be interrupted."""
        self._closing = True
        self._thread.join()
