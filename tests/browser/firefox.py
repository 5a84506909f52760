"""Debian's Firefox for Playwright, which is made for later ones: a program that stands between the two.

Playwright starts it in place of Firefox, speaks WebDriver BiDi with it (https://w3c.github.io/webdriver-bidi/) and
takes a command that Firefox does not know yet for the end; here such a command counts as done where no test misses it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TYPE_CHECKING

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

if TYPE_CHECKING:
    from websockets.asyncio.connection import Connection
    from websockets.asyncio.server import ServerConnection

#: Dark and light, which no test looks at in Firefox; Playwright sets it for each window.
DISPENSABLE = "emulation.setMediaFeaturesOverride"
#: How Firefox says where it listens.
ADDRESS = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


class Relay:
    """Carries what Playwright and Firefox say to one another."""

    def __init__(self, address: str) -> None:
        self._address = address
        #: Numbers of dispensable commands without an answer.
        self._dispensable: set[int] = set()

    async def __call__(self, playwright: ServerConnection) -> None:
        path = playwright.request.path if playwright.request else ""
        async with connect(self._address + path, max_size=None, ping_interval=None, proxy=None) as firefox:
            await asyncio.gather(self._ask(playwright, firefox), self._answer(firefox, playwright))

    async def _ask(self, playwright: Connection, firefox: Connection) -> None:
        async for text in playwright:
            command = json.loads(text)
            if command["method"] == DISPENSABLE:
                self._dispensable.add(command["id"])
            await firefox.send(text)
        await firefox.close()

    async def _answer(self, firefox: Connection, playwright: Connection) -> None:
        async for text in firefox:
            await playwright.send(self._mended(json.loads(text)))
        await playwright.close()

    def _mended(self, said: dict[str, object]) -> str:
        if said.get("error") == "unknown command" and said["id"] in self._dispensable:
            said = {"type": "success", "id": said["id"], "result": {}}
        return json.dumps(said)


async def run(*command: str) -> int:
    """Run Firefox until it ends; where it would say that it listens, it is said where the relay does."""
    firefox = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert firefox.stderr
    async for line in firefox.stderr:
        text = line.decode(errors="replace")
        found = ADDRESS.search(text)
        if found:
            server = await serve(Relay(found[1]), "127.0.0.1", 0, max_size=None, ping_interval=None)
            [socket] = server.sockets
            text = text.replace(found[1], f"ws://127.0.0.1:{socket.getsockname()[1]}")
        sys.stderr.write(text)
        sys.stderr.flush()
    return await firefox.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(run(*sys.argv[1:])))
