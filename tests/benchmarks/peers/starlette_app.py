"""sse-starlette with a subscription of Redis' for each stream, by redis.asyncio, as its users write it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import redis.asyncio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

#: Its pool has a connection for each stream; the default is a hundred.
client = redis.asyncio.Redis.from_url(os.environ["PEER_REDIS_URL"], decode_responses=True, max_connections=100_000)


async def events(request: Request) -> EventSourceResponse:
    return EventSourceResponse(told(request.query_params["user"]))


async def told(user: str) -> AsyncIterator[dict[str, str]]:
    async with client.pubsub() as subscription:
        await subscription.subscribe(user)
        async for message in subscription.listen():
            if message["type"] == "message":
                yield {"event": "task-done", "data": message["data"]}
            else:  # the subscription's confirmation
                yield {"event": "ready", "data": "{}"}


app = Starlette(routes=[Route("/events", events)])
