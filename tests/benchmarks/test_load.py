"""The load generator: it reads what is sent, cut anywhere, sees what is lost and what comes twice, and keeps up."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.benchmarks.audience import Audience
from tests.benchmarks.load import Load, serial
from tests.benchmarks.report import OURS, Comparison, at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from tests.benchmarks.load import Programs
    from tests.benchmarks.servers import Server

REQUEST = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Feeder:
    """A server whose streams a test writes by hand."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.sockets: list[socket.socket] = []
        self.requests: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for sock in (self._listener, *self.sockets):
            sock.close()

    def accept(self, streams: int) -> None:
        """Let so many readers in and read what they ask for; those before are forgotten."""
        for sock in self.sockets:
            sock.close()
        self.sockets = [self._listener.accept()[0] for _ in range(streams)]
        self.requests = [sock.recv(65536) for sock in self.sockets]

    def send(self, data: bytes) -> None:
        """Send the same to all."""
        for sock in self.sockets:
            sock.sendall(data)


@pytest.fixture
def feeder() -> Iterator[Feeder]:
    with Feeder() as feeder:
        yield feeder


def event(number: int, *, newline: bytes = b"\n") -> bytes:
    """Return an event of which more than its serial number has a # and digits."""
    title = f'"Invoice #12 of ##0000001# {serial(number)} #0000002# #'
    lines = (b"id: %d" % (1000 + number), b"event: task-progress", f'data: {{"title": {title}"}}'.encode(), b"", b"")
    return newline.join(lines)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


#: What is sent in one response, head included: each has events 1 and 2, in the framing that its name says.
RESPONSES = {
    "plain": PLAIN + b"event: ready\ndata: {}\n\n" + event(1) + b": heartbeat\n\n" + event(2),
    "plain with CRLF": PLAIN + b"event: ready\r\n\r\n" + event(1, newline=b"\r\n") + event(2, newline=b"\r\n"),
    "chunked": CHUNKED + chunk(b"event: ready\ndata: {}\n\n") + chunk(event(1)) + chunk(b": heartbeat\n\n" + event(2)),
    "chunks that cut events": CHUNKED
    + b"".join(chunk(part) for part in re.findall(rb"(?s).{1,7}", b"event: ready\n\n" + event(1) + event(2))),
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_a_response_is_understood_wherever_it_is_cut(programs: Programs, feeder: Feeder, response: bytes) -> None:
    """One reader for each place to cut it at."""
    streams = len(response) - 1
    with Load(programs, feeder.address, REQUEST, streams, rate=streams, ready="event: ready") as load:
        feeder.accept(streams)
        for place, sock in enumerate(feeder.sockets, 1):
            sock.sendall(response[:place])
        load.check()  # which is answered when all of that has been read
        for place, sock in enumerate(feeder.sockets, 1):
            sock.sendall(response[place:])
        reached = load.until(2 * streams)

        assert reached.bytes == streams * len(response)
        assert load.opened()[:2] == (streams, 0)
        assert load.check() == (streams, 0, 0, streams)


def test_a_stream_is_open_when_it_says_so(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 2, ready="event: ready") as load:
        feeder.accept(2)
        feeder.send(PLAIN + b"data: event: ready\n\nevent: read\n\n")
        assert load.check().open == 0
        feeder.send(b"event: ready\n\n")
        assert load.opened().opened == 2


def test_what_is_lost_and_what_comes_twice_is_seen(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 6) as load:
        feeder.accept(6)
        feeder.send(PLAIN)
        assert load.opened().opened == 6
        for sock, numbers in zip(feeder.sockets, ["123", "13", "12", "1223", "132", ""], strict=True):
            sock.sendall(b"".join(event(int(number)) for number in numbers))

        assert load.until(3 + 2 + 2 + 3 + 2).deliveries == 12
        # The fifth had 2 after 3, which counts as lost and as late.
        assert load.check() == (1, 0 + 1 + 1 + 0 + 1 + 3, 0 + 0 + 0 + 1 + 1 + 0, 6)


def test_an_event_without_its_end_is_none(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 1) as load:
        feeder.accept(1)
        feeder.send(PLAIN + event(1) + event(2)[:-1])
        load.until(1)
        assert load.check() == (1, 0, 0, 1)
        feeder.send(b"\n")
        load.until(2)


def test_readers_come_back_with_the_id_of_their_last_event(programs: Programs, feeder: Feeder) -> None:
    """Not with the id of one that was cut: its reader lacks it."""
    with Load(programs, feeder.address, REQUEST, 2) as load:
        feeder.accept(2)
        assert feeder.requests == [b"GET /0 HTTP/1.1\r\nHost: localhost\r\n\r\n"] * 2
        feeder.send(PLAIN + event(1) + event(2))
        feeder.sockets[0].sendall(event(3))
        feeder.sockets[1].sendall(event(3)[:-1])
        load.until(5)
        assert load.close() == 2
        load.again()
        feeder.accept(2)

        assert sorted(feeder.requests) == [
            b"GET /0 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1002\r\n\r\n",
            b"GET /0 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1003\r\n\r\n",
        ]
        for sock, request in zip(feeder.sockets, feeder.requests, strict=True):
            sock.sendall(PLAIN + b": heartbeat\n\n" + (event(3) if b"1002" in request else b"") + event(4))
        load.opened()
        load.until(8)
        assert load.check() == (2, 0, 0, 2)


def test_readers_of_several_users_have_serial_numbers_of_their_own(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 4, users=2) as load:
        feeder.accept(4)
        feeder.send(PLAIN)
        for sock, request in zip(feeder.sockets, feeder.requests, strict=True):
            sock.sendall(event(1) if b"/0 " in request else event(1) + event(2))
        load.until(2 * 1 + 2 * 2)
        assert load.check() == (4, 0, 0, 4)


def test_whoever_is_refused_or_left_is_counted(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 4) as load:
        feeder.accept(4)
        for sock, answer in zip(feeder.sockets, [PLAIN, PLAIN, PLAIN.replace(b"200", b"503"), b""], strict=True):
            sock.sendall(answer)
        feeder.sockets[3].close()
        assert load.opened()[:2] == (2, 2)
        feeder.sockets[0].sendall(event(1))
        feeder.sockets[0].close()
        load.until(1)
        assert load.check().open == 1


def test_times_are_those_of_the_readers(programs: Programs, feeder: Feeder) -> None:
    """The first, the median and the last of five, each of which gets its event after the one before has it."""
    with Load(programs, feeder.address, REQUEST, 5) as load:
        feeder.accept(5)
        feeder.send(PLAIN)
        load.opened()
        between = []
        for number, sock in enumerate(feeder.sockets, 1):
            between.append(time.monotonic())
            sock.sendall(event(1))
            reached = load.until(number)
        between.append(time.monotonic())

        [(number, (count, first, median, last))] = load.times().items()
        assert (number, count, reached.at) == (1, 5, last)
        assert between[0] < first < between[1]
        assert between[2] < median < between[3]
        assert between[4] < last < between[5]
        assert load.times() == {}


def test_what_does_not_come_in_time_is_an_error(programs: Programs, feeder: Feeder) -> None:
    with Load(programs, feeder.address, REQUEST, 2) as load:
        feeder.accept(2)
        with pytest.raises(TimeoutError, match="expected 2 streams to be open"):
            load.opened(limit=0.01)
        feeder.send(PLAIN + event(1))
        with pytest.raises(TimeoutError, match="expected 3 deliveries"):
            load.until(3, limit=0.01)


class Scale(NamedTuple):
    """How many streams and rounds, and the seconds of each."""

    streams: int
    rounds: int
    seconds: float


def waited(pid: int) -> float:
    """Return the seconds for which a process, of one thread, could have run and others had the cores."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


FULL, QUICK, SMOKE = Scale(1000, rounds=3, seconds=1.0), Scale(1000, rounds=1, seconds=0.5), Scale(20, 1, 0.0)


def test_it_keeps_up_with_send(
    programs: Programs,
    start: Callable[[str], Server],
    choose: Callable[[Scale, Scale, Scale], Scale],
    *,
    measuring: bool,
) -> None:
    """It is the quicker one even in front of what does nothing but send(), which is always busy then."""
    scale = choose(FULL, QUICK, SMOKE)
    comparison = Comparison("load generator", "CPU for each delivery", unit="us")
    busy = []
    with Audience(programs, start("send()"), streams=scale.streams, user=0) as audience:
        for _ in range(scale.rounds):
            before, waited_before = audience.cost(), waited(audience.server.process.pid)
            audience.tell()
            while time.monotonic() < before.clock + scale.seconds:
                audience.tell()
            cost = audience.cost().since(before)
            comparison.add(OURS, cost.generator / cost.deliveries * 1e6)
            comparison.add("send()", cost.server / cost.deliveries * 1e6)
            busy.append((cost.server + waited(audience.server.process.pid) - waited_before) / cost.clock)
        audience.check()
    comparison.note(f"send() runs, or waits for a core, {min(busy):.0%} of the time at the least")
    comparison.finish({"send()": at_most(1.0)}, measuring=measuring)
