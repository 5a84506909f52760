"""Gathering an invoice's parts from three services at once; reports by callback, knows nothing of Celery."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from example_invoice.domain import Customer, InvalidDataError, Invoice, Order, Payment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

Answer = TypeVar("Answer")

#: Characters: no user or order has a longer id, and no URL would hold one without end.
LONGEST_ID = 200

logger = logging.getLogger(__name__)


class GatherError(Exception):
    """An invoice could not be gathered. The text is for people: it names no address and no internals."""


class NotFoundError(GatherError):
    """There is no such order of this user."""


class ServiceError(GatherError):
    """A service answered something that makes no sense; asking again would not help."""


class ServiceUnavailableError(GatherError):
    """A service stayed away through all attempts; it may be back later."""


@dataclass(frozen=True, slots=True)
class Services:
    """Where the three services are: base URLs without a slash at the end."""

    user: str
    order: str
    payment: str

    @classmethod
    def from_environment(cls) -> Services:
        """Read INVOICE_USER_URL, INVOICE_ORDER_URL and INVOICE_PAYMENT_URL; ValueError if one is missing."""
        return cls(*(_url_from_environment(f"INVOICE_{name}_URL") for name in ("USER", "ORDER", "PAYMENT")))


def _url_from_environment(variable: str) -> str:
    url = os.environ.get(variable, "")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"expected {variable} to be an http(s) URL, got {url!r}")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a service is borne with; durations in seconds."""

    #: How often a call is made before the service counts as unavailable.
    attempts: int = 4
    #: How long one attempt may take, from connecting to the last byte.
    timeout: float = 5.0
    #: The pause after the first failure; it doubles with each further one, and a random part is taken off.
    first_pause: float = 0.2

    def pause(self, failures: int) -> float:
        """Return how long to wait after so many failures: apart from others who failed at the same time."""
        return self.first_pause * 2.0 ** (failures - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Group:
    """Several coroutines at once, as Go's errgroup has it.

    The first error, of the body or of a coroutine, cancels the others and is the one raised, as it is and not
    in an ExceptionGroup. All have ended when the `async with` block is left. Cancellation reaches all.
    """

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()
        self._first_error: BaseException | None = None

    def start(self, coroutine: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Let a coroutine run; its result is the task's, once the block is left."""
        task = self._tasks.create_task(coroutine)
        # Not a wrapper around the coroutine: cancelled before its first step, that would never await it.
        task.add_done_callback(self._note_error)
        return task

    def _note_error(self, task: asyncio.Task[Any]) -> None:
        if self._first_error is None and not task.cancelled():
            self._first_error = task.exception()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._first_error is None and not isinstance(error, asyncio.CancelledError):
            self._first_error = error
        with contextlib.suppress(BaseExceptionGroup):
            await self._tasks.__aexit__(kind, error, trace)
        if self._first_error is not None:
            raise self._first_error


async def gather_invoice(
    services: Services,
    user_id: str,
    order_id: str,
    *,
    on_part: Callable[[str], None],
    patience: Patience | None = None,
) -> Invoice:
    """Fetch user, order and payments at once; `on_part` hears "user", "order" and "payment" as each is there.

    Raises a GatherError: NotFoundError too if the order is another user's.
    """
    if max(len(user_id), len(order_id)) > LONGEST_ID:
        raise _not_found()
    # The services are neighbours: a proxy meant for the rest of the world is not to be asked.
    async with httpx.AsyncClient(trust_env=False) as client, Group() as group:

        def start(part: str, url: str, read: Callable[[object], Answer]) -> asyncio.Task[Answer]:
            call = _Call(client, part, url, patience or Patience())
            return group.start(_fetch_part(call, read, on_part))

        def own_order(data: object) -> Order:
            order = Order.from_json(data)
            if (order.user_id, order.order_id) != (user_id, order_id):
                raise _not_found()
            return order

        customer = start("user", f"{services.user}/users/{_segment(user_id)}", Customer.from_json)
        order = start("order", f"{services.order}/orders/{_segment(order_id)}", own_order)
        payments = start("payment", f"{services.payment}/orders/{_segment(order_id)}/payments", Payment.list_from_json)
    try:
        return Invoice(customer.result(), order.result(), payments.result())
    except InvalidDataError as error:
        raise ServiceError("The services contradict each other about this order.") from error


@dataclass(frozen=True, slots=True)
class _Call:
    client: httpx.AsyncClient
    part: str
    url: str
    patience: Patience


async def _fetch_part(call: _Call, read: Callable[[object], Answer], on_part: Callable[[str], None]) -> Answer:
    response = await _call_patiently(call)
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise _not_found()
    try:
        response.raise_for_status()
        part = read(response.json())
    except (httpx.HTTPStatusError, ValueError) as error:
        raise ServiceError(f"The {call.part} service gave an answer that makes no sense.") from error
    on_part(call.part)
    return part


async def _call_patiently(call: _Call) -> httpx.Response:
    """Return the first answer that is not a failure of the service itself."""
    for attempt in range(1, call.patience.attempts + 1):
        try:
            # httpx's own time-outs are for each read: a service that drips would hold us for ever.
            async with asyncio.timeout(call.patience.timeout):
                response = await call.client.get(call.url, timeout=call.patience.timeout)
            if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                return response
            problem = f"status {response.status_code}"
        except (httpx.RequestError, TimeoutError) as error:
            problem = repr(error)
        logger.warning("%s, attempt %d of %d: %s", call.url, attempt, call.patience.attempts, problem)
        if attempt < call.patience.attempts:
            await asyncio.sleep(call.patience.pause(attempt))
    raise ServiceUnavailableError(f"The {call.part} service does not answer at the moment.")


def _not_found() -> NotFoundError:
    return NotFoundError("There is no such order.")


def _segment(text: str) -> str:
    """Return any text as one segment of a path; dots too, which a path would take for a way up."""
    return quote(text, safe="", errors="replace").replace(".", "%2E")
