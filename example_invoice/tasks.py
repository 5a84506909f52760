"""The Celery app of the demo and its tasks. `celery -A example_invoice.tasks worker` runs it."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from typing import TYPE_CHECKING

from celery import Celery, chord

import celery_notify
from celery_notify import notify, progress
from example_invoice.gather import (
    GatherError,
    NotFoundError,
    Services,
    ServiceUnavailableError,
    gather_invoice,
)
from example_invoice.pdf import render_invoice
from example_invoice.statement import merge_invoices
from example_invoice.storage import invoice_path, statement_path, store

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

#: Celery's Redis, which carries the messages and counts how many of a chord's members have ended.
REDIS_URL = (
    os.environ.get("CELERY_BROKER_URL") or os.environ.get("CELERY_NOTIFY_REDIS_URL") or "redis://localhost:6379/0"
)

app = Celery("example_invoice")
app.conf.update(
    broker_url=REDIS_URL,
    result_backend=REDIS_URL,
    broker_connection_retry_on_startup=True,
    # A Redis that is frozen or away shall not hold a thread of the web server for ever, nor for long.
    broker_transport_options={"socket_connect_timeout": 5.0, "socket_timeout": 10.0},
    redis_socket_connect_timeout=5.0,
    redis_socket_timeout=10.0,
    result_backend_transport_options={"retry_policy": {"max_retries": 3}},  # as often as the broker is tried
    task_default_queue="example-invoice",  # a Redis that is given may have others' queues in it
    task_ignore_result=True,  # nobody asks for one: the page is told, and a chord counts its members all the same
)
celery_notify.init_app(app)

#: Of the work, in per cent, what each gathered part is, and what all pages together are. How many pages there will
#: be is known last: were each counted as one step, the bar would go back when it turns out that there are many.
PART_WEIGHT = 20
PAGES_WEIGHT = 40
#: How often the whole task is tried again when a service stays away for longer than gathering waits for it.
MAX_RETRIES = 4


class ServiceAwayError(celery_notify.PublicError):
    """A service stays away: the task is tried again later, and at last given up with this text."""


@app.task(
    autoretry_for=(ServiceAwayError,),
    max_retries=MAX_RETRIES,
    retry_backoff=2,
    retry_backoff_max=30,
    retry_jitter=True,
)
@notify(user="user_id", title="Invoice {order_id}", url="/invoices/{order_id}.pdf", cancellable=True)
def create_invoice(user_id: str, order_id: str) -> None:
    """Gather what belongs to a user's order, render it, and store the PDF at `invoice_path(user_id, order_id)`."""
    steps = Steps()
    progress(0, steps.total, "Gathering")
    gathering = gather_invoice(Services.from_environment(), user_id, order_id, on_part=steps.part_gathered)
    try:
        invoice = asyncio.run(gathering)
    except NotFoundError as error:
        raise celery_notify.PublicError(f"There is no order {order_id}.") from error
    except ServiceUnavailableError as error:
        raise ServiceAwayError(str(error)) from error
    except GatherError as error:
        raise celery_notify.PublicError(str(error)) from error
    content = render_invoice(invoice, on_page=steps.page_rendered)
    store(invoice_path(user_id, order_id), content)
    logger.info("The invoice %s has %d bytes.", order_id, len(content))


def order_statement(user_id: str, order_ids: Sequence[str]) -> str:
    """Have all these invoices made, then merged in this order; return the statement's id.

    That is the id of the chord's body, too: so the address of the PDF is known to those who know the task.
    """
    statement_id = str(uuid.uuid4())
    body = create_statement.si(user_id, order_ids, statement_id)
    started = chord([create_invoice.si(user_id, order_id) for order_id in order_ids], body)
    # Celery waits for a chord's results, in a subscription for each, until somebody takes or forgets them.
    started.apply_async(task_id=statement_id).forget()
    return statement_id


@app.task
@notify(user="user_id", title="Statement", url="/statements/{statement_id}.pdf", cancellable=True)
def create_statement(user_id: str, order_ids: Sequence[str], statement_id: str) -> None:
    """Merge a user's invoices, which have been made, and store the PDF at `statement_path(user_id, statement_id)`."""
    invoices = (
        (order_id, invoice_path(user_id, order_id).read_bytes())
        for order_id in progress.track(order_ids, description="Merging")
    )
    content = merge_invoices(invoices)
    store(statement_path(user_id, statement_id), content)
    logger.info("The statement %s has %d bytes.", statement_id, len(content))


class Steps:
    """How far one run of create_invoice is: it never goes back."""

    total = 3 * PART_WEIGHT + PAGES_WEIGHT

    def __init__(self) -> None:
        self._parts: list[str] = []

    def part_gathered(self, part: str) -> None:
        """Report that one of user, order and payment has come."""
        self._parts.append(part)
        done = len(self._parts) * PART_WEIGHT
        progress(done, self.total, f"Gathered {', '.join(self._parts)}")

    def page_rendered(self, page: int, pages: int) -> None:
        """Report that a page of the PDF is done."""
        done = len(self._parts) * PART_WEIGHT + PAGES_WEIGHT * page // pages
        progress(done, self.total, f"Rendered page {page} of {pages}")
