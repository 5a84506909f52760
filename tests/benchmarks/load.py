"""The load generator and the baseline, in C: compiled when they are first asked for, driven from here."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.waiting import SLOWNESS, missing

if TYPE_CHECKING:
    from typing import Self

SOURCES = Path(__file__).parent / "load"
#: Seconds that streams have to open, and deliveries to come.
LIMIT = 60.0


class Programs(NamedTuple):
    """Where the compiled programs are."""

    load: Path
    broadcast: Path


class Opened(NamedTuple):
    """How many streams are open, how many were refused, in how many seconds, and the generator's CPU seconds so far."""

    opened: int
    refused: int
    seconds: float
    cpu: float


class Reached(NamedTuple):
    """How many deliveries and bytes have come, when the last one awaited came, the generator's CPU seconds so far."""

    deliveries: int
    at: float
    bytes: int
    cpu: float


class Times(NamedTuple):
    """How many readers had an event, and when the first, the median and the last of them had it."""

    count: int
    first: float
    median: float
    last: float


class Check(NamedTuple):
    """Readers that had all, once and in order; what others lack; what came again or late; streams that are open."""

    complete: int
    missing: int
    twice: int
    open: int


def compiled(folder: Path) -> Programs:
    """Compile both into a folder; skip the test where there is no compiler."""
    compiler = shutil.which("cc") or missing("cc, a C compiler")
    programs = Programs(*(folder / name for name in Programs._fields))
    for program in programs:
        source = SOURCES / f"{program.name}.c"
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    return programs


def serial(number: int) -> str:
    """Return what stands in an event's data for the readers to know it by."""
    return f"#{number:08}#"


class Load:
    """Many streams on one server; `load.c` says what each method's answer means.

    `request` is the head that each stream begins with, `%d` and `%s` in it as in `load.c`. `ready` is what a line that
    says that a stream is live begins with. At most `rate` of the streams are on their way at once.
    """

    def __init__(
        self,
        programs: Programs,
        address: tuple[str, int],
        request: bytes,
        streams: int,
        *,
        users: int = 1,
        rate: int = 200,
        ready: str | None = None,
    ) -> None:
        self._file = programs.load.with_name(f"request-{address[1]}")
        self._file.write_bytes(request)
        options = ("--users", str(users), "--rate", str(rate), *(("--ready", ready) if ready else ()))
        self._command = (programs.load, *options, address[0], str(address[1]), str(streams), self._file)
        self._streams = streams

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._popen:
            self._popen.kill()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def opened(self, limit: float = LIMIT) -> Opened:
        """Wait until all streams are open or refused."""
        answer = Opened(**self._ask(f"opened {limit * SLOWNESS}"))
        if answer.opened + answer.refused < self._streams:
            raise TimeoutError(f"expected {self._streams} streams to be open or refused within {limit} s, got {answer}")
        return answer

    def until(self, deliveries: int, limit: float = LIMIT) -> Reached:
        """Wait until so many deliveries have come since the start."""
        answer = Reached(**self._ask(f"until {deliveries} {limit * SLOWNESS}"))
        if answer.deliveries < deliveries:
            raise TimeoutError(f"expected {deliveries} deliveries within {limit} s, got {answer}, {self.check()}")
        return answer

    def times(self) -> dict[int, Times]:
        """Return, by serial number, when what came since the last time came."""
        return {int(number): Times(*times) for number, times in self._ask("times").items()}

    def check(self) -> Check:
        """Return what the readers have had and what they lack."""
        return Check(**self._ask("check"))

    def close(self) -> int:
        """Close all streams; return how many were open."""
        return int(self._ask("close")["closed"])

    def again(self) -> None:
        """Close what is open and open all again, with the last id that each had."""
        self._ask("again")

    def _ask(self, command: str) -> Any:
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{command}\n".encode())
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"expected an answer to {command!r}, the load generator ended: {self._popen.wait()}")
        return json.loads(answer)
