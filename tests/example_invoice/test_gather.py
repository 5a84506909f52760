from __future__ import annotations

import asyncio
import gc
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from example_invoice.gather import (
    GatherError,
    Group,
    NotFoundError,
    Patience,
    ServiceError,
    Services,
    ServiceUnavailableError,
    gather_invoice,
)
from tests.example_invoice.running import NAMES, RunningServices, data, invoices
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from example_invoice.domain import Invoice

#: Impatient enough for a test; the attempts are those of the default.
BRISK = Patience(attempts=4, timeout=5.0, first_pause=0.001)


class PartError(Exception):
    pass


async def for_ever() -> None:
    await asyncio.Event().wait()


# The group


def test_a_group_gives_each_result() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def main() -> list[int]:
        async with Group() as group:
            tasks = [group.start(double(number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert asyncio.run(main()) == [0, 2, 4]


def test_the_first_error_cancels_the_others_and_is_raised_as_it_is() -> None:
    async def main() -> None:
        async with Group() as group:
            other = group.start(for_ever())
            group.start(fail(error))
        assert other.cancelled()

    async def fail(error: Exception) -> None:
        raise error

    error = PartError("first")
    with pytest.raises(PartError) as raised:
        asyncio.run(main())
    assert raised.value is error


def test_all_have_ended_when_an_error_leaves_the_group() -> None:
    ended = []

    async def tidy(release: asyncio.Event) -> None:
        try:
            await for_ever()
        finally:
            await release.wait()
            ended.append("tidied")

    async def fail(release: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(release.set))
        raise PartError

    async def main() -> None:
        release = asyncio.Event()
        async with Group() as group:
            group.start(tidy(release))
            await asyncio.sleep(0)
            group.start(fail(release))

    with pytest.raises(PartError):
        asyncio.run(main())
    assert ended == ["tidied"]


def test_an_error_that_comes_of_being_cancelled_does_not_hide_the_first() -> None:
    async def stumble() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            raise PartError("second") from None

    async def fail() -> None:
        raise PartError("first")

    async def main() -> None:
        async with Group() as group:
            group.start(stumble())
            await asyncio.sleep(0)
            group.start(fail())

    with pytest.raises(PartError, match="first"):
        asyncio.run(main())


def test_an_error_of_the_body_cancels_all_and_is_the_one_raised() -> None:
    tasks = []

    async def stumble() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            raise PartError("of a task") from None

    async def main() -> None:
        async with Group() as group:
            tasks.extend([group.start(for_ever()), group.start(stumble())])
            await asyncio.sleep(0)
            raise PartError("of the body")

    with pytest.raises(PartError, match="of the body"):
        asyncio.run(main())
    assert tasks[0].cancelled()


def test_cancelling_from_outside_reaches_all_and_stays_a_cancellation() -> None:
    async def main() -> None:
        tasks = []

        async def work() -> None:
            async with Group() as group:
                tasks.extend(group.start(for_ever()) for _ in range(2))

        outer = asyncio.create_task(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert outer.cancelled()
        assert [task.cancelled() for task in tasks] == [True, True]

    asyncio.run(main())


def test_a_time_out_around_a_group_stays_a_time_out() -> None:
    async def main() -> None:
        async with asyncio.timeout(0.001), Group() as group:
            group.start(for_ever())

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_coroutine_cancelled_before_its_first_step_is_not_left_unawaited() -> None:
    async def main() -> None:
        async with Group() as group:
            group.start(for_ever())
            raise PartError

    with pytest.raises(PartError):
        asyncio.run(main())
    gc.collect()  # a coroutine never awaited would warn now, and warnings are errors


# Gathering, from the real services


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServices]:
    with RunningServices(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture(autouse=True)
def healthy(running: RunningServices) -> Iterator[None]:
    yield
    running.heal()


def gather(
    services: Services,
    user_id: str = "ada",
    order_id: str = "A-1003",
    *,
    patience: Patience = BRISK,
    on_part: Callable[[str], None] = lambda _part: None,
) -> Invoice:
    return asyncio.run(gather_invoice(services, user_id, order_id, on_part=on_part, patience=patience))


@pytest.mark.parametrize("order_id", [order["order_id"] for order in data("orders")])
def test_an_invoice_is_what_the_three_services_say(running: RunningServices, order_id: str) -> None:
    invoice = invoices()[order_id]
    assert gather(running.services, invoice.customer.user_id, order_id) == invoice


def test_each_part_is_reported_once(running: RunningServices) -> None:
    parts: list[str] = []
    gather(running.services, on_part=parts.append)
    assert sorted(parts) == ["order", "payment", "user"]


@pytest.mark.parametrize("name", NAMES)
def test_a_service_that_fails_for_a_while_is_asked_again(running: RunningServices, name: str) -> None:
    running.control(name, {"failures": BRISK.attempts - 1})
    assert gather(running.services) == invoices()["A-1003"]


@pytest.mark.parametrize("name", NAMES)
def test_a_service_that_goes_on_failing_is_given_up(running: RunningServices, name: str) -> None:
    running.control(name, {"failures": 100})
    with pytest.raises(ServiceUnavailableError) as raised:
        gather(running.services)
    assert str(raised.value) == f"The {name} service does not answer at the moment."
    assert running.control(name, {}).json["failures"] == 100 - BRISK.attempts


@pytest.mark.parametrize("name", NAMES)
def test_a_service_too_slow_is_given_up(running: RunningServices, name: str) -> None:
    running.control(name, {"latency": 60})
    with pytest.raises(ServiceUnavailableError, match=f"The {name} service"):
        gather(running.services, patience=Patience(attempts=1, timeout=0.5))


@pytest.mark.parametrize("name", NAMES)
def test_a_service_that_is_down_is_given_up(running: RunningServices, name: str) -> None:
    urls = {**running.urls, name: f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(ServiceUnavailableError, match=f"The {name} service"):
        gather(Services(**urls))


@pytest.mark.parametrize(
    ("user_id", "order_id"),
    [
        ("ada", "A-9999"),
        ("ada", "G-2001"),  # grace's
        ("bob", "A-1003"),
        ("..", "A-1003"),
        ("ada", "../users/ada"),
        ("ada", ".."),
        ("ada", "A-1003?x=1"),
        ("ada", "A-1003#x"),
        ("ada", "%41-1003"),
        ("ada", "a-1003"),
        ("ada", ""),
        ("ada", "\ud800"),
        ("ada", "é" * 100_000),
    ],
)
def test_an_order_of_somebody_else_is_as_absent_as_any(running: RunningServices, user_id: str, order_id: str) -> None:
    with pytest.raises(NotFoundError, match=r"^There is no such order\.$"):
        gather(running.services, user_id, order_id)


def test_an_error_of_the_callback_is_raised_as_it_is(running: RunningServices) -> None:
    def refuse(part: str) -> None:
        raise PartError(part)

    with pytest.raises(PartError):
        gather(running.services, on_part=refuse)


# Gathering, from services as bad as services can be

Server = asyncio.StreamWriter


def answer(status: str, body: bytes, *, length: int | None = None) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def serving(respond: Callable[[str, Server], Awaitable[None]]) -> AsyncIterator[Services]:
    """Serve all three on one port; `respond` is given the path and writes what it likes."""

    async def connected(reader: asyncio.StreamReader, writer: Server) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        try:
            await respond(request.split()[1].decode(), writer)
        except ConnectionError:
            pass  # the client has lost its patience
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield Services(*[f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"] * 3)


def gather_from(respond: Callable[[str, Server], Awaitable[None]], patience: Patience = BRISK) -> Invoice:
    async def main() -> Invoice:
        async with serving(respond) as services:
            return await gather_invoice(services, "ada", "A-1001", on_part=lambda _: None, patience=patience)

    return asyncio.run(main())


def good_answer(path: str) -> Any:
    if path.endswith("/payments"):
        return [each for each in data("payments") if each["order_id"] == "A-1001"]
    return data("users")[0] if path.startswith("/users") else data("orders")[0]


def write_good(path: str, writer: Server) -> None:
    writer.write(answer("200 OK", json.dumps(good_answer(path)).encode()))


def test_the_three_are_asked_at_the_same_time() -> None:
    """Each answer comes only when all three have been asked for."""
    barrier = asyncio.Barrier(3)

    async def respond(path: str, writer: Server) -> None:
        await barrier.wait()
        write_good(path, writer)

    assert gather_from(respond) == invoices()["A-1001"]


def test_an_absent_order_is_not_asked_for_again_and_ends_the_wait_for_the_others() -> None:
    asked: list[str] = []

    async def respond(path: str, writer: Server) -> None:
        asked.append(path)
        if path == "/orders/A-1001":
            writer.write(answer("404 Not Found", b"{}"))
        else:
            await for_ever()

    with pytest.raises(NotFoundError):
        gather_from(respond, Patience(attempts=4, timeout=3600.0))
    assert asked.count("/orders/A-1001") == 1


@pytest.mark.parametrize(
    "response",
    [
        answer("200 OK", b"<html>"),
        answer("200 OK", b""),
        answer("200 OK", b"\xff\xfe\xfd"),
        answer("200 OK", b'{"order_id": 1}'),
        answer("200 OK", b"null"),
        answer("204 No Content", b""),
        answer("302 Found\r\nLocation: http://127.0.0.1:1/", b""),
        answer("403 Forbidden", b"{}"),
        answer("429 Too Many Requests", b"{}"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_at_once_without_internals(response: bytes) -> None:
    async def respond(path: str, writer: Server) -> None:
        if path == "/orders/A-1001":
            writer.write(response)
        else:
            write_good(path, writer)

    with pytest.raises(ServiceError) as raised:
        gather_from(respond)
    assert str(raised.value) == "The order service gave an answer that makes no sense."


@pytest.mark.parametrize(
    "response", [b"", b"SSH-2.0-OpenSSH\r\n", answer("200 OK", b'{"half', length=100), answer("500 Oops", b"")]
)
def test_a_broken_answer_is_a_reason_to_ask_again(response: bytes) -> None:
    broken = [response] * (BRISK.attempts - 1)

    async def respond(path: str, writer: Server) -> None:
        if path == "/orders/A-1001" and broken:
            writer.write(broken.pop())
        else:
            write_good(path, writer)

    assert gather_from(respond) == invoices()["A-1001"]
    assert not broken


def test_a_service_that_drips_is_given_up() -> None:
    """Each byte comes in time, the last one never."""

    async def respond(_path: str, writer: Server) -> None:
        writer.write(answer("200 OK", b"", length=10**6))
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(ServiceUnavailableError):
        gather_from(respond, Patience(attempts=1, timeout=0.5))


def test_any_id_is_one_segment_of_a_path_and_no_way_up() -> None:
    asked: list[str] = []

    async def respond(path: str, writer: Server) -> None:
        asked.append(path)
        writer.write(answer("404 Not Found", b"{}"))
        await writer.drain()

    async def main() -> None:
        async with serving(respond) as services:
            await gather_invoice(services, "..", "../a?b", on_part=lambda _: None, patience=BRISK)

    with pytest.raises(NotFoundError):
        asyncio.run(main())
    assert set(asked) <= {"/users/%2E%2E", "/orders/%2E%2E%2Fa%3Fb", "/orders/%2E%2E%2Fa%3Fb/payments"}


def test_after_the_last_attempt_there_is_no_pause() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailableError):
        gather(Services(url, url, url), patience=Patience(attempts=1, first_pause=3600.0))


def test_services_that_contradict_each_other_make_no_invoice() -> None:
    async def respond(path: str, writer: Server) -> None:
        other = {**data("users")[1]} if path.startswith("/users") else good_answer(path)
        writer.write(answer("200 OK", json.dumps(other).encode()))

    with pytest.raises(ServiceError, match=r"^The services contradict each other about this order\.$"):
        gather_from(respond)


def test_all_errors_of_gathering_are_one_kind() -> None:
    assert issubclass(NotFoundError, GatherError)
    assert issubclass(ServiceError, GatherError)
    assert issubclass(ServiceUnavailableError, GatherError)


def test_a_pause_doubles_and_is_never_the_same_for_all() -> None:
    patience = Patience(first_pause=1.0)
    for failures, longest in enumerate((1.0, 2.0, 4.0), start=1):
        pauses = {patience.pause(failures) for _ in range(50)}
        assert len(pauses) > 1
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


def test_the_environment_says_where_the_services_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "ORDER", "PAYMENT"):
        monkeypatch.setenv(f"INVOICE_{name}_URL", f"http://{name.lower()}:80/")
    assert Services.from_environment() == Services("http://user:80", "http://order:80", "http://payment:80")
    monkeypatch.setenv("INVOICE_ORDER_URL", "order:80")
    with pytest.raises(ValueError, match=r"expected INVOICE_ORDER_URL to be an http\(s\) URL, got 'order:80'"):
        Services.from_environment()


def test_gathering_knows_nothing_of_celery() -> None:
    from tests.support.processes import run_python  # noqa: PLC0415

    code = "import sys, example_invoice.gather, example_invoice.pdf; print('celery' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"
