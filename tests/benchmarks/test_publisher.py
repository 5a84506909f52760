"""How many events a worker process publishes, and how many Redis bears, beside a raw PUBLISH of the same bytes.

A raw PUBLISH keeps nothing, judges nothing, numbers nothing: it is what any program pays that tells something by Redis.
The tests assert that the work was done, nothing about time; run as tests they tell little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import redis

from celery_notify.publisher import Publisher
from celery_notify.transport import without_setinfo
from tests.benchmarks.report import OURS, Comparison, at_least
from tests.benchmarks.telling import (
    BATCH,
    REPORTING,
    SILENT,
    Costs,
    Written,
    batches,
    packed,
    publish,
    send,
    story,
    transport_to,
    written,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_notify.events import Publication
    from tests.benchmarks.telling import (
        Cost,
    )
    from tests.support.redis_server import GivenRedis, RedisServer


class Scale(NamedTuple):
    """How many users have how many tasks each, and how often each way of publishing has its turn."""

    users: int
    tasks: int
    runs: int


FULL, QUICK, SMOKE = Scale(50, 40, 7), Scale(50, 10, 3), Scale(2, 3, 1)
#: Events that a test leaves waiting in the publisher at once: fewer than it gives up.
WAITING = 5000
#: What a script costs whatever it does: this one has the arguments of ours.
BARE = "return redis.call('PUBLISH', ARGV[1], ARGV[7])"

Message = tuple[bytes, bytes]


@pytest.fixture
def scale(choose: Callable[[Scale, Scale, Scale], Scale]) -> Scale:
    return choose(FULL, QUICK, SMOKE)


def messages_of(server: GivenRedis, items: Sequence[Publication]) -> list[Message]:
    """Publish these; return what went through Redis, channel and bytes."""
    found: list[Message] = []
    with server.client(decode_responses=False) as client, client.pubsub() as channels:
        channels.psubscribe("celery-notify:*")
        wait_until(lambda: channels.get_message(timeout=0.1), what="a confirmation")
        with transport_to(server.url) as to:
            for batch in batches(items):
                publish(to, batch)
                for _ in batch:
                    message = channels.get_message(timeout=5)
                    assert message is not None
                    found.append((message["channel"], message["data"]))
    return found


def forget(server: GivenRedis) -> None:
    with server.client() as client:
        client.flushall()


# The process that publishes


def through_a_publisher(server: GivenRedis, items: Sequence[Publication]) -> Cost:
    """Put the events, one by one as tasks do, into a publisher, and wait until all are told."""
    with transport_to(server.url) as to:
        publisher = Publisher(to, min_interval=0.1, worker_ttl=20)
        try:
            publisher.put(items[:1])
            assert publisher.flush(10, patient=True)
            with Costs(server, len(items) - 1) as costs:
                for start in range(1, len(items), WAITING):
                    for item in items[start : start + WAITING]:
                        publisher.put([item])
                    assert publisher.flush(60, patient=True)
        finally:
            publisher.stop()
    return costs.found


def through_the_transport(server: GivenRedis, items: Sequence[Publication]) -> Cost:
    """Publish the events in one thread, without a publisher."""
    with transport_to(server.url) as to:
        publish(to, items[:1])
        with Costs(server, len(items) - 1) as costs:
            publish(to, items[1:])
    return costs.found


def through_a_pipeline(server: GivenRedis, messages: Sequence[Message]) -> Cost:
    """Publish the bytes as redis-py does."""
    with redis.Redis.from_url(server.url, protocol=2, **without_setinfo()) as client:
        client.ping()
        with Costs(server, len(messages)) as costs:
            _publish_raw(client, messages)
    return costs.found


def _publish_raw(client: redis.Redis, messages: Sequence[Message]) -> None:
    for start in range(0, len(messages), BATCH):
        pipeline = client.pipeline(transaction=False)
        for channel, data in messages[start : start + BATCH]:
            pipeline.publish(channel, data)
        pipeline.execute()


def test_events_through_one_worker_process(own_redis: RedisServer, scale: Scale, *, measuring: bool) -> None:
    items = story(scale.users, scale.tasks)
    messages = messages_of(own_redis, items)
    ways: dict[str, Callable[[], Cost]] = {
        OURS: lambda: through_a_publisher(own_redis, items),
        "without a publisher": lambda: through_the_transport(own_redis, items),
        "raw PUBLISH": lambda: through_a_pipeline(own_redis, messages),
    }
    by_clock = Comparison("publisher throughput", "events a second through one worker process", unit="1/s")
    by_process = Comparison("publisher throughput", "events a CPU-second of the worker process", unit="1/s")
    by_redis = Comparison("publisher throughput", "events a CPU-second of Redis meanwhile", unit="1/s")
    for _ in range(scale.runs):
        for name, way in ways.items():
            forget(own_redis)
            cost = way()
            by_clock.add(name, 1e6 / cost.clock)
            by_process.add(name, 1e6 / cost.process)
            by_redis.add(name, 1e6 / max(cost.redis, 0.001))
    size = sum(len(data) for _, data in messages) / len(messages)
    by_clock.note(
        f"{len(items)} events of {size:.0f} bytes a run, {BATCH} in a round trip, both by redis-py {redis.__version__}"
    )
    by_clock.note("a round trip of ours is Redis' work for the most part, which the process waits for")
    by_clock.finish(measuring=measuring)
    by_process.finish({"raw PUBLISH": at_least(0.5)}, measuring=measuring)
    by_redis.finish(measuring=measuring)

    with transport_to(own_redis.url) as to:
        forget(own_redis)
        publish(to, items)
        found = to.events_after([(f"user {user}", 0) for user in range(scale.users)])
    assert [len(each.keys) for each in found if not isinstance(each, Exception)] == [scale.tasks] * scale.users


# Redis


def sent(server: GivenRedis, ways: Sequence[Written], *, answers: int = 1) -> Cost:
    """Send what was written, by several connections."""
    forget(server)
    with Costs(server, sum(len(each.commands) for each in ways)) as costs:
        send(server, ways, answers=answers)
    return costs.found


def kept_without_a_script(messages: Sequence[Message], items: Sequence[Publication]) -> Written:
    """Return the commands by which a history is kept that nobody judges and that never ends: three for each event."""
    return Written(
        [
            packed("HSET", channel + b":entries", item.key, data)
            + packed("ZADD", channel + b":order", number, item.key)
            + packed("PUBLISH", channel, data)
            for number, ((channel, data), item) in enumerate(zip(messages, items, strict=True))
        ]
    )


def test_events_that_redis_bears(own_redis: RedisServer, scale: Scale, *, measuring: bool) -> None:
    """Two connections keep Redis busy with bytes that were written before."""
    names = ("Ada", "Grace")
    tasks = max(1, scale.tasks // 2)
    stories = [story(scale.users, tasks, REPORTING, name=name) for name in names]
    messages = [messages_of(own_redis, items) for items in stories]
    forget(own_redis)
    ours = [written(own_redis, items) for items in stories]
    with own_redis.client() as client:
        bare = client.script_load(BARE)
    silent, jobs = (
        [written(own_redis, story(scale.users, tasks, SILENT, name=name, job=job)) for name in names]
        for job in (False, True)
    )
    plain = [kept_without_a_script(*each) for each in zip(messages, stories, strict=True)]
    raw = [Written([packed("PUBLISH", *message) for message in each]) for each in messages]
    ways: dict[str, Callable[[], Cost]] = {
        OURS: lambda: sent(own_redis, ours),
        "tasks without progress": lambda: sent(own_redis, silent),
        "tasks of jobs": lambda: sent(own_redis, jobs),
        "HSET, ZADD, PUBLISH": lambda: sent(own_redis, plain, answers=3),
        "a script that publishes": lambda: sent(own_redis, [each.with_script(bare) for each in ours]),
        "raw PUBLISH": lambda: sent(own_redis, raw),
    }
    by_redis = Comparison("Lua calls that Redis bears", "events a CPU-second of Redis", unit="1/s")
    by_clock = Comparison("Lua calls that Redis bears", "events a second of a saturated Redis", unit="1/s")
    for _ in range(scale.runs):
        for name, way in ways.items():
            cost = way()
            by_redis.add(name, 1e6 / max(cost.redis, 0.001))
            by_clock.add(name, 1e6 / cost.clock)
    with own_redis.client() as client:
        version = client.info("server")["redis_version"]
    by_redis.note(f"Redis {version}, with the rights of README.md; ours has {len(REPORTING)} events a task")
    by_redis.note("no script can reach the goal: one that only publishes, with the arguments of ours, does not")
    by_redis.finish({"raw PUBLISH": at_least(0.5)}, measuring=measuring)
    by_clock.finish(measuring=measuring)
