"""No user is told of another, whatever their ids look like and whatever anyone sends."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import random
import unicodedata
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_notify import events, transport
from celery_notify.config import Settings
from celery_notify.events import TaskEvent
from celery_notify.transport import RedisTransport
from tests.support.event_stream import data_of
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from tests.support.celery_nodes import Worker
    from tests.support.redis_server import GivenRedis, RedisServer
    from tests.support.web_servers import Answer, Web

#: Out of these ids are made: what paths, patterns, hash tags, percent-encoding, JSON and lines have a meaning for.
PARTS = [
    *("%", "%3A", "%7D", "%25", "{", "}", "{}", ":", "*", "?", "[a]", "^", "/", "//", "..", " ", "+", "\\", '"', "'"),
    *("1", "12", "a", "A", "é", "e\u0301", "ﬁ", "fi", "ß", "ss", "雪", "😀", "\u2028", "\u0085", "\ufeff", "\0", "\n"),
    *(":order", ":entries", ":ended", ":last", "celery-notify:", "worker:", "null", "x" * 120),
]
#: What somebody might take an id for.
MISTAKES: list[Callable[[str], str]] = [
    lambda text: quote(text, safe=""),
    quote,
    str.upper,
    str.casefold,
    str.strip,
    lambda text: f"{text} ",
    lambda text: f"{text}\0",
    lambda text: f"{{{text}}}",
    lambda text: f"{text}:order",
    lambda text: f"{text}*",
    lambda text: text[:-1],
    lambda text: unicodedata.normalize("NFC", text),
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFKC", text),
]
#: What the keys of a user end with, PROTOCOL section 6 and ARCHITECTURE; the channel ends with nothing.
ENDS = ["", ":order", ":entries", ":ended"]

user_ids = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join).filter(lambda text: len(text) <= 256)


def confusable(first: str, mistakes: list[Callable[[str], str]]) -> list[str]:
    """Return an id and those for which it might be taken, each once."""
    found = [first, *(mistake(first) for mistake in mistakes)]
    return [user for user in dict.fromkeys(found) if 0 < len(user) <= 256]


# Names


@pytest.fixture
def names() -> Iterator[RedisTransport]:
    made = RedisTransport(Settings())
    yield made
    made.close()


@pytest.mark.defends("S6")
def test_no_two_of_ten_thousand_pairs_of_ids_have_a_name_in_common(names: RedisTransport) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    chance = random.Random(seed)  # noqa: S311
    for _ in range(10_000):
        one = "".join(chance.choices(PARTS, k=chance.randint(1, 5)))
        other = chance.choice(MISTAKES)(one) if chance.random() < 0.5 else "".join(chance.choices(PARTS, k=2))
        if one == other:
            continue
        mine, theirs = ({names.channel(user) + end for end in ENDS} for user in (one, other))
        assert mine.isdisjoint(theirs), (seed, one, other)


@pytest.mark.defends("S6")
@given(user=user_ids)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_is_no_pattern_has_one_hash_tag_and_says_whose_it_is(user: str, names: RedisTransport) -> None:
    channel = names.channel(user)

    assert channel.isascii()
    assert not set(channel) & set("*?[]^\\ \r\n\0/")
    assert channel.count("{") == channel.count("}") == 1
    assert names.user_of(channel.encode()) == user


# Everything that a user can ask


def cancel(web: Web, user: str, key: str) -> Answer:
    return web.request("POST", f"{PREFIX}/tasks/{quote(key, safe='')}/cancel", user=user)


@pytest.mark.defends("S6", "S23")
@given(first=user_ids, mistakes=st.lists(st.sampled_from(MISTAKES), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_byte_of_one_user_reaches_another(
    first: str, mistakes: list[Callable[[str], str]], web: Web, redis_server: GivenRedis
) -> None:
    """Over the stream, the list, cancelling, removing and custom events; all that is read is searched."""
    users = confusable(first, [*mistakes, lambda _: uuid.uuid4().hex])
    secrets = {user: uuid.uuid4().hex for user in users}
    read: dict[str, list[bytes]] = {user: [] for user in users}
    source = transport.connect(Settings(redis_url=redis_server.url))
    with contextlib.ExitStack() as stack:
        streams = {user: stack.enter_context(web.stream(user)) for user in users}
        for user, stream in streams.items():
            stream.ready()
            web.send(user, "note", secrets[user], key=f"note {secrets[user]}")
            task = TaskEvent(task_id=f"task {secrets[user]}", task="t", state="STARTED", attempt=1, title=secrets[user])
            source.publish([events.publication(user, task)])
        for user, other in itertools.permutations(users, 2):
            keys = [f"{kind} {secrets[other]}" for kind in ("note", "task")]
            answers = [
                *(cancel(web, user, key) for key in keys),
                *(web.delete(user, key) for key in keys),
            ]
            assert {answer.status for answer in answers} == {404}
            read[user] += [answer.body for answer in answers]
        for user in users:
            read[user].append(web.get(f"{PREFIX}/tasks", user=user).body)
            assert cancel(web, user, f"task {secrets[user]}").status == 409
            assert web.delete(user, f"note {secrets[user]}").status == 204
            web.send(user, "last", None)
        for user, stream in streams.items():
            told = [event.event for event in stream.until("last")]
            assert sorted(set(told) - {"heartbeat"}) == ["last", "note", "removed", "task-progress"]
            read[user].append(stream.raw)

    for user, other in itertools.product(users, users):
        found = any(secrets[other].encode() in body for body in read[user])
        assert found == (user == other), (user, other)


# What is learned of what there is


def commands(server: RedisServer) -> Counter[str]:
    """Return how often each command has run, without what the hub and this test ask by themselves."""
    with server.client() as client:
        found = client.info("commandstats")
    names = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in found.items()}
    own = {"ping", "info", "client", "client|setinfo", "auth", "hello", "select"}
    return Counter({name: calls for name, calls in names.items() if name not in own})


@pytest.mark.defends("S23")
def test_what_is_anothers_costs_and_says_the_same_as_what_is_not_there(
    user: str, own_redis: RedisServer, make_web: Callable[..., Web]
) -> None:
    """However much the other one has: neither the answer nor what Redis has to do for it tells them apart."""
    web = make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    source = transport.connect(Settings(redis_url=own_redis.url))
    task = TaskEvent(task_id="theirs", task="t", state="STARTED", attempt=1)
    source.publish([events.publication(f"{user} too", task)])
    source.publish([events.custom(f"{user} too", "note", "x" * 1000, key=str(n)) for n in range(150)])
    source.publish([events.custom(user, "note", None, key="mine")])
    asks: dict[str, Callable[[str], Answer]] = {
        "cancel": lambda key: cancel(web, user, key),
        "delete": lambda key: web.delete(user, key),
    }
    for ask in asks.values():
        ask("nothing")  # what a first call loads

    def seen(ask: Callable[[str], Answer], key: str) -> tuple[Any, ...]:
        answer = ask(key)
        headers = {name: value for name, value in answer.headers.items() if name != "date"}
        return answer.status, answer.body, headers

    def cost(ask: Callable[[str], Answer], key: str) -> Counter[str]:
        """Return the commands of one call: the least of five, since the process may be doing something beside it."""
        found: list[Counter[str]] = []
        for _ in range(5):
            before = commands(own_redis)
            ask(key)
            found.append(commands(own_redis) - before)
        return functools.reduce(operator.and_, found)

    for ask in asks.values():
        absent = seen(ask, "nothing")
        assert absent == seen(ask, "theirs")
        assert absent[0] == 404
        assert cost(ask, "nothing") == cost(ask, "theirs")
        assert cost(ask, "nothing")["evalsha"] == 1
    # The control: these figures do tell what is there.
    assert cost(lambda key: cancel(web, f"{user} too", key), "theirs") != cost(asks["cancel"], "theirs")


# Headers of messages


@pytest.mark.defends("S24")
def test_a_forged_header_says_for_whom_and_opens_nothing(
    user: str, web: Web, tasks: ModuleType, worker: Worker
) -> None:
    """Whoever can start a task can name anybody; what that one's tasks are called and say stays where it was."""
    del worker  # it runs the tasks
    victim, secret = f"{user} victim", uuid.uuid4().hex
    with web.stream(victim) as theirs, web.stream(user) as mine:
        theirs.ready()
        mine.ready()
        target = tasks.public.delay(victim, secret)
        job = theirs.state("FAILURE")["job_id"]
        forged: list[dict[str, Any]] = [
            {"notify_user": [user, "*", "{}", "}", f"{victim}:order", quote(victim, safe="")]},
            {"notify_user": user, "notify_job": job},
            {"notify_user": user, "notify_again": {"id": target.id, "title": "x", "url": "/x", "attempt": 99}},
            {"notify_user": user, "root_id": target.id, "parent_id": target.id, "group": target.id},
            {"notify_user": {"user": victim}, "notify_job": {"a": 1}, "notify_again": "x"},
            {"notify_user": ["*"]},
        ]
        started = [tasks.step.apply_async((n,), headers=headers) for n, headers in enumerate(forged)]
        last = tasks.ok.delay(user)
        done: set[str] = set()
        while not {last.id, *(result.id for result in started[:4])} <= done:
            event = mine.next(timeout=20)
            if event.event == "task-done":
                done.add(data_of(event)["task_id"])
        web.send(victim, "last", None)
        theirs.until("last")
        listed = web.get(f"{PREFIX}/tasks", user=user).body

    assert secret.encode() not in mine.raw + listed
    told = [data_of(event) for event in mine.events if event.event.startswith("task-")]
    assert {(task["attempt"], task.get("title") in {None, f"Task of {user}"}) for task in told} == {(1, True)}
    assert {data_of(event)["task_id"] for event in theirs.events if event.event.startswith("task-")} == {target.id}
    assert {result.id for result in started[4:]}.isdisjoint(done)
    for stranger in ("{}", "}"):  # ids like any other, of which only those are told who have them
        assert [task["task_id"] for task in web.tasks(stranger)["tasks"]] == [started[0].id]
