"""One stream's socket: what is written, what waits, and all the ways it ends."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import struct
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_notify.connection import LAST_CHUNK, MAX_BUFFER, Connection, Frame
from tests.support.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if importlib.util.find_spec("uvloop") is not None:
    LOOPS["uvloop"] = importlib.import_module("uvloop").new_event_loop


class Stream:
    """A connection and its reader's end, in a running loop; what the connection said of itself."""

    def __init__(
        self, *, chunked: bool = False, last_id: int = 0, tcp: bool = False, buffer: int | None = None
    ) -> None:
        ours, self.reader = tcp_pair() if tcp else socket.socketpair()
        if buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.reader.setblocking(False)
        self.ours = ours
        self.closed: list[Connection] = []
        self.drained: list[Connection] = []
        self.connection = Connection(
            ours,
            loop=asyncio.get_running_loop(),
            user="ada",
            last_id=last_id,
            chunked=chunked,
            patience=30,
            closed=self.closed.append,
            drained=self.drained.append,
        )

    def read(self, size: int = 1 << 20) -> bytes | None:
        """Return what can be read now: None for nothing, b"" at the end."""
        try:
            return self.reader.recv(size)
        except BlockingIOError:
            return None

    async def read_all(self, length: int, *, size: int = 1 << 20) -> bytes:
        """Read until so many bytes have come, or the end."""
        found, deadline = b"", Deadline(10)
        while len(found) < length and (data := self.read(size)) != b"":
            assert not deadline.over, f"expected {length} bytes or an end, got {len(found)} bytes"
            found += data or b""
            await asyncio.sleep(0 if data else 0.001)
        return found

    async def rest(self) -> bytes:
        return await self.read_all(1 << 40)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    return ours, reader


async def until(condition: Callable[[], object]) -> None:
    deadline = Deadline(10)
    while not condition():
        assert not deadline.over, "expected the condition to come true"
        await asyncio.sleep(0.001)


def run(work: Callable[[Callable[..., Stream]], Awaitable[Any]], loop: str = "asyncio") -> Any:
    """Run `work` in a new loop; it is given what makes streams, which are closed afterwards."""

    async def main() -> Any:
        made: list[Stream] = []

        def make(**options: Any) -> Stream:
            made.append(Stream(**options))
            return made[-1]

        try:
            return await work(make)
        finally:
            for stream in made:
                stream.connection.close()
                stream.reader.close()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(main())


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Frames


@given(st.binary(min_size=1, max_size=5000))
def test_a_frame_is_one_chunk_of_a_chunked_body(plain: bytes) -> None:
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    http.send(h11.EndOfMessage())
    http.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + Frame(plain).chunk + LAST_CHUNK)

    assert isinstance(http.next_event(), h11.Response)
    body = b""
    while isinstance(event := http.next_event(), h11.Data):
        body += bytes(event.data)
    assert body == plain
    assert isinstance(event, h11.EndOfMessage)


def test_a_frame_is_put_into_a_chunk_once() -> None:
    frame = Frame(b"data: 1\n\n")

    assert frame.chunk is frame.chunk


# Writing


@pytest.mark.parametrize(("chunked", "expected"), [(False, b"abcdef"), (True, b"3\r\nabc\r\n3\r\ndef\r\n")])
def test_frames_are_written_at_once(chunked: bool, expected: bytes, loop: str) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(chunked=chunked)
        stream.connection.send(Frame(b"abc"))
        stream.connection.send(Frame(b"def"))
        assert stream.read() == expected
        assert stream.connection.backlog == 0

    run(work, loop)


def test_the_head_is_no_part_of_the_body() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(chunked=True)
        stream.connection.send_head(b"HTTP/1.1 200 OK\r\n\r\n")
        stream.connection.send(Frame(b"abc"))
        assert stream.read() == b"HTTP/1.1 200 OK\r\n\r\n3\r\nabc\r\n"

    run(work)


def test_what_the_socket_does_not_take_waits_and_comes_in_order(loop: str) -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=4096)
        frames = [bytes([number]) * 5000 for number in range(40)]
        for frame in frames:
            stream.connection.send(Frame(frame))
        assert stream.connection.backlog > 0
        assert not stream.drained

        assert await stream.read_all(200_000, size=777) == b"".join(frames)

        await until(lambda: stream.drained)
        assert stream.drained == [stream.connection]
        assert stream.connection.backlog == 0
        stream.connection.send(Frame(b"after"))
        assert await stream.read_all(5) == b"after"

    run(work, loop)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 30_000), max_size=12), st.integers(500, 20_000), st.booleans())
def test_the_reader_gets_every_byte_however_it_reads(sizes: list[int], size: int, chunked: bool) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=2048, chunked=chunked)
        frames = [Frame(bytes([number % 256]) * length) for number, length in enumerate(sizes)]
        for frame in frames:
            stream.connection.send(frame, room=1 << 30)
        stream.connection.end()
        written = b"".join(frame.chunk if chunked else frame.plain for frame in frames)
        expected = written + (LAST_CHUNK if chunked else b"")
        assert await stream.read_all(1 << 40, size=size) == expected
        await until(lambda: stream.closed)

    run(work)


@pytest.mark.defends("F22")
def test_a_reader_that_is_too_slow_is_cut_at_the_cap(loop: str) -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=4096)
        frame = Frame(b"x" * 10_000)
        sent = 0
        while not stream.closed:
            assert stream.connection.backlog <= MAX_BUFFER
            stream.connection.send(frame)
            sent += 1
            assert sent < 100, "expected the connection to be cut"
        assert sent * 10_000 > MAX_BUFFER
        assert stream.closed == [stream.connection]
        assert stream.connection.backlog == 0
        assert not stream.connection.open
        assert len(await stream.rest()) < MAX_BUFFER

    run(work, loop)


def test_just_as_much_as_there_is_room_for_waits() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        while not stream.connection.backlog:
            stream.connection.send(Frame(b"x" * 100_000), room=1 << 30)
        left = (1 << 20) - stream.connection.backlog
        stream.connection.send(Frame(b"x" * left), room=1 << 20)
        assert (stream.connection.backlog, stream.closed) == (1 << 20, [])
        stream.connection.send(Frame(b"x"), room=1 << 20)
        assert stream.closed == [stream.connection]

    run(work)


@pytest.mark.defends("F22")
def test_one_that_never_reads_keeps_no_other_waiting() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        slow, quick = make(buffer=4096), make()
        for number in range(100):
            for stream in (slow, quick):
                stream.connection.send(Frame(b"%03d" % number + b"x" * 5000))
            assert (quick.read() or b"")[:3] == b"%03d" % number
        assert slow.closed
        assert not quick.closed

    run(work)


def test_the_time_of_the_last_word_is_kept() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        assert stream.connection.written == stream.connection.born
        clock = asyncio.get_running_loop().time
        await until(lambda: clock() > stream.connection.born)
        stream.connection.send(Frame(b"abc"))
        assert stream.connection.born < stream.connection.written <= clock()

    run(work)


# Ends


@pytest.mark.parametrize(("chunked", "last"), [(False, b""), (True, b"0\r\n\r\n")])
def test_an_orderly_end_completes_the_body(chunked: bool, last: bytes, loop: str) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(chunked=chunked)
        frame = Frame(b"abc")
        stream.connection.send(frame)
        stream.connection.end()
        assert stream.closed == [stream.connection]
        stream.connection.send(Frame(b"more"))
        stream.connection.end()
        stream.connection.close()
        assert await stream.rest() == (frame.chunk if chunked else frame.plain) + last
        assert stream.closed == [stream.connection]

    run(work, loop)


@pytest.mark.parametrize("chunked", [False, True])
def test_what_waits_is_written_before_the_end(chunked: bool, loop: str) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(chunked=chunked, buffer=4096)
        frame = Frame(b"x" * 100_000)
        stream.connection.send(frame)
        stream.connection.end()
        assert not stream.closed
        assert not stream.connection.open
        stream.connection.send(Frame(b"too late"))
        whole = frame.chunk + LAST_CHUNK if chunked else frame.plain
        assert await stream.rest() == whole
        await until(lambda: stream.closed)
        assert not stream.drained

    run(work, loop)


@pytest.mark.parametrize("tcp", [False, True])
def test_a_reader_that_leaves_is_noticed(tcp: bool, loop: str) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(tcp=tcp)
        stream.reader.close()
        await until(lambda: stream.closed)
        assert stream.closed == [stream.connection]
        assert stream.ours.fileno() == -1

    run(work, loop)


def test_a_reader_that_leaves_with_a_reset_is_noticed(loop: str) -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(tcp=True)
        stream.reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.reader.close()
        await until(lambda: stream.closed)

    run(work, loop)


@pytest.mark.defends("F31")
def test_a_reader_that_says_it_will_say_no_more_is_taken_at_its_word(loop: str) -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(tcp=True)
        stream.reader.shutdown(socket.SHUT_WR)
        await until(lambda: stream.closed)
        assert await stream.rest() == b""

    run(work, loop)


def test_a_reader_that_leaves_while_something_waits_is_noticed(loop: str) -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=4096)
        stream.connection.send(Frame(b"x" * 100_000))
        stream.reader.close()
        await until(lambda: stream.closed)
        assert stream.closed == [stream.connection]

    run(work, loop)


def test_writing_to_a_reader_that_has_left_is_no_error() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        stream.reader.close()
        stream.connection.send(Frame(b"abc"))
        assert stream.closed == [stream.connection]
        stream.connection.send(Frame(b"abc"))
        stream.connection.end()
        assert stream.closed == [stream.connection]

    run(work)


@pytest.mark.defends("F31")
@pytest.mark.parametrize("tcp", [False, True])
def test_a_reader_that_says_more_is_cut_and_nothing_of_it_is_a_request(tcp: bool, loop: str) -> None:  # noqa: FBT001
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(tcp=tcp)
        stream.connection.send(Frame(b"abc"))
        await until(lambda: stream.read() == b"abc")
        stream.reader.send(b"GET /secret HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: stream.closed)
        assert stream.closed == [stream.connection]

    run(work, loop)


# What a reader is told, and once


def frame(number: int) -> Frame:
    return Frame(b"%d;" % number)


def test_an_entry_that_was_told_is_not_told_again() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(last_id=5)
        for number in (4, 5, 6, 6, 8, 7, 9):
            stream.connection.tell(number, frame(number))
        assert stream.read() == b"6;8;9;"
        assert stream.connection.last_id == 9

    run(work)


def test_live_entries_wait_until_the_catch_up_is_over() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        for number in (3, 4, 5):
            stream.connection.dispatch(number, frame(number))
        assert stream.read() is None
        for number in (1, 3):
            stream.connection.tell(number, frame(number))
        stream.connection.go_live()
        stream.connection.dispatch(6, frame(6))
        assert stream.read() == b"1;3;4;5;6;"

    run(work)


def test_what_was_held_is_forgotten_when_the_catch_up_begins_anew() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        stream.connection.dispatch(3, frame(3))
        stream.connection.go_live()
        stream.connection.hold()
        stream.connection.dispatch(4, frame(4))
        stream.connection.hold()
        stream.connection.dispatch(5, frame(5))
        stream.connection.go_live()
        assert stream.read() == b"3;5;"

    run(work)


def test_no_more_is_held_than_may_wait_and_that_is_said() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make()
        for number in range(1, 27):
            assert stream.connection.holds_all
            stream.connection.dispatch(number, Frame(b"x" * 10_000))
        stream.connection.dispatch(27, Frame(b"x" * 10_000))
        assert not stream.connection.holds_all
        stream.connection.dispatch(28, frame(28))
        assert not stream.connection.holds_all
        stream.connection.hold()
        assert stream.connection.holds_all
        stream.connection.dispatch(29, frame(29))
        stream.connection.go_live()
        assert stream.read() == b"29;"

    run(work)


def test_a_connection_that_is_cut_while_it_goes_live_is_left_alone() -> None:
    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=4096)
        for number in range(1, 26):
            stream.connection.dispatch(number, Frame(b"x" * 10_000))
        stream.connection.go_live()
        stream.connection.send(Frame(b"x" * 100_000))
        assert stream.closed == [stream.connection]

    run(work)


def test_what_its_catch_up_has_left_waiting_does_not_cut_a_reader() -> None:
    """A history with many keys has a large `ready`: the next event must not end the stream."""

    async def work(make: Callable[..., Stream]) -> None:
        stream = make(buffer=4096)
        stream.connection.send(Frame(b"x" * (3 * MAX_BUFFER)), room=4 * MAX_BUFFER)
        stream.connection.go_live()
        stream.connection.dispatch(1, Frame(b"x" * 10_000))
        assert stream.closed == []
        stream.connection.dispatch(2, Frame(b"x" * MAX_BUFFER))
        assert stream.closed == [stream.connection]

    run(work)
