"""Proxies in front: with README.md's configuration each event comes through at once, and what has gone is noticed."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import shutil
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import h11
import httpx
import pytest

from tests.support.event_stream import SocketStream, data_of
from tests.support.proxies import Certificate, GzipStream, Http2Stream, documented, haproxy, nginx
from tests.support.waiting import SLOWNESS, missing, wait_until
from tests.support.web_servers import SERVERS, STREAM, user_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from tests.support.event_stream import EventStream
    from tests.support.proxies import Proxy
    from tests.support.redis_server import GivenRedis
    from tests.support.web_servers import Web, WebServer

#: Seconds after which an event counts as held back: somewhat less than the 200 ms that Linux holds back what is corked.
HELD = 0.15
#: Sizes of events around those of the buffers that proxies have.
SIZES = (0, 1, 1400, 4000, 4096, 8192, 16384, 60_000)

HTTP_1_0 = re.sub(r".*(proxy_http_version|Connection).*\n", "", documented("nginx"))


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path)


@pytest.fixture
def put_before(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Return what puts a proxy before a web server: `put_before(nginx, web, ...)`."""
    started: list[Proxy] = []

    def put(kind: Callable[..., Proxy], web: Web, **options: Any) -> Proxy:
        folder = tmp_path / f"proxy-{len(started)}"
        folder.mkdir()
        started.append(kind(web, folder, **options))
        return started[-1].start()

    yield put
    for proxy in started:
        proxy.stop()


@pytest.fixture
def lively(servers: Any) -> WebServer:
    """Return the application with a heartbeat after 0.3 s of silence."""
    web: WebServer = servers.get("gunicorn gthread", "lively")
    return web


@pytest.fixture
def silent(make_web: Callable[..., WebServer], redis_server: GivenRedis) -> WebServer:
    """Return the application with a heartbeat that no test lives to see, and one stream for each user."""
    settings = {"CELERY_NOTIFY_HEARTBEAT": "600", "CELERY_NOTIFY_MAX_STREAMS_PER_USER": "1"}
    return make_web("gunicorn gthread", {"CELERY_NOTIFY_REDIS_URL": redis_server.url, **settings})


@pytest.fixture
def http2(certificate: Certificate) -> Iterator[Callable[[Proxy], httpx.Client]]:
    """Return what makes clients that speak HTTP/2."""
    with contextlib.ExitStack() as clients:

        def make(proxy: Proxy) -> httpx.Client:
            url = "https://{}:{}".format(*proxy.address)
            timeout = httpx.Timeout(10 * SLOWNESS)
            client = httpx.Client(
                base_url=url, verify=certificate.context(), http1=False, http2=True, timeout=timeout, trust_env=False
            )
            return clients.enter_context(client)

        yield make


# Each event at once


def delays(stream: EventStream, web: Web, user: str) -> dict[int, float]:
    """Send events, each when the one before it has come; return how many seconds the fastest of each size took.

    What holds events back holds back each of a size; a machine that is slow now and then does not.
    """
    stream.ready()
    fastest = dict.fromkeys(SIZES, math.inf)
    for number in range(10):
        for size in SIZES:
            begun = time.monotonic()
            web.send(user, "note", f"{number} {'x' * size}")
            [*_, event] = stream.until("note")
            fastest[size] = min(fastest[size], time.monotonic() - begun)
            assert data_of(event)["data"] == f"{number} {'x' * size}"
    return fastest


def is_as_it_should_be(stream: EventStream, web: Web, user: str) -> None:
    """Check that events and heartbeats come by themselves, that none is held back, and that the end is an end."""
    assert max(delays(stream, web, user).values()) < HELD
    for _ in range(3):
        stream.until("heartbeat")
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-store, private"
    assert "Cookie" in stream.headers["vary"]
    web.close_streams(user)
    assert {event.event for event in stream.rest()} <= {"heartbeat"}


@pytest.mark.defends("F25", "S15")
@pytest.mark.parametrize(
    "kind",
    [nginx, functools.partial(nginx, location=HTTP_1_0), haproxy],
    ids=["nginx as documented", "nginx with HTTP/1.0 to the application", "HAProxy as documented"],
)
def test_each_event_comes_through_without_another_that_pushes_it(
    kind: Callable[..., Proxy], put_before: Callable[..., Proxy], lively: WebServer, user: str
) -> None:
    with put_before(kind, lively).stream(user) as stream:
        is_as_it_should_be(stream, lively, user)


@pytest.mark.defends("F25")
def test_a_proxy_that_compresses_holds_nothing_back(
    put_before: Callable[..., Proxy], lively: WebServer, user: str
) -> None:
    proxy = put_before(nginx, lively, http="gzip on; gzip_types text/event-stream; gzip_min_length 0;")
    with GzipStream(proxy, user) as stream:
        is_as_it_should_be(stream, lively, user)


@pytest.mark.defends("F25")
def test_over_http_2_nothing_is_held_back(
    put_before: Callable[..., Proxy],
    certificate: Certificate,
    http2: Callable[[Proxy], httpx.Client],
    lively: WebServer,
    user: str,
) -> None:
    proxy = put_before(nginx, lively, certificate=certificate)
    with Http2Stream(http2(proxy), user) as stream:
        is_as_it_should_be(stream, lively, user)


@pytest.mark.defends("F25")
@pytest.mark.parametrize("kind", [kind for kind in SERVERS if kind != "test_client"])  # which has no port
def test_each_server_streams_to_a_proxy_that_speaks_http_1_0(
    kind: str, put_before: Callable[..., Proxy], servers: Any, user: str
) -> None:
    web = servers.get(kind)
    with put_before(nginx, web, location=HTTP_1_0).stream(user) as stream:
        assert max(delays(stream, web, user).values()) < HELD


@pytest.mark.defends("F25")
def test_control_a_proxy_that_does_not_heed_the_header_holds_events_back(
    put_before: Callable[..., Proxy], lively: WebServer, user: str
) -> None:
    """Over HTTP/1.1 it holds back only what is larger than a buffer, over HTTP/1.0 it waits for one that is full."""
    deaf = HTTP_1_0.replace("}", "proxy_ignore_headers X-Accel-Buffering; }")
    proxy = put_before(nginx, lively, location=deaf)
    with lively.stream(user) as direct:
        direct.ready()

    with pytest.raises(TimeoutError):
        SocketStream(proxy.address, STREAM, headers=user_headers(user).items(), timeout=0.5)


@pytest.mark.defends("F25")
def test_control_haproxy_holds_each_event_back_unless_told_not_to(
    put_before: Callable[..., Proxy], lively: WebServer, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SIZES", (1,))
    settings = documented("haproxy").replace("option http-no-delay", "")
    with put_before(haproxy, lively, settings=settings).stream(user) as stream:
        assert delays(stream, lively, user)[1] >= HELD


# Idle times, and who has gone

#: README.md's configurations with a second for silence instead of a minute.
IMPATIENT = {
    "nginx": functools.partial(
        nginx, location=documented("nginx").replace("proxy_read_timeout 60s", "proxy_read_timeout 1s")
    ),
    "HAProxy": functools.partial(haproxy, settings=re.sub("(client|server) 60s", r"\1 1s", documented("haproxy"))),
}
impatient = pytest.mark.parametrize("kind", IMPATIENT.values(), ids=IMPATIENT)


def wait_until_free(proxy: Proxy, user: str) -> None:
    """Wait until the user, who may have one stream, can open it: the one before has ended behind the proxy too."""

    def opens() -> bool:
        with proxy.stream(user) as stream:
            return stream.status == 200

    wait_until(opens, what="the place of a reader who has gone to be free")


@pytest.mark.defends("F26")
@impatient
def test_heartbeats_keep_a_stream_open_behind_an_impatient_proxy(
    kind: Callable[..., Proxy], put_before: Callable[..., Proxy], lively: WebServer, user: str
) -> None:
    begun = time.monotonic()
    with put_before(kind, lively).stream(user) as stream:
        while time.monotonic() - begun < 2.5:
            stream.until("heartbeat")
        lively.send(user, "note", "still here")

        assert data_of(stream.until("note")[-1])["data"] == "still here"


@pytest.mark.defends("F26")
@impatient
def test_control_without_heartbeats_an_impatient_proxy_cuts_the_stream(
    kind: Callable[..., Proxy], silent: WebServer, put_before: Callable[..., Proxy], user: str
) -> None:
    proxy = put_before(kind, silent)
    with proxy.stream(user) as stream:
        stream.ready()
        with pytest.raises(h11.RemoteProtocolError):
            stream.rest()

    wait_until_free(proxy, user)


@pytest.mark.defends("F26", "F30")
@pytest.mark.parametrize("kind", [nginx, haproxy], ids=["nginx", "HAProxy"])
def test_the_stream_behind_a_proxy_ends_when_the_reader_before_it_goes(
    kind: Callable[..., Proxy], silent: WebServer, put_before: Callable[..., Proxy], user: str
) -> None:
    proxy = put_before(kind, silent)
    stream = proxy.stream(user)
    stream.ready()
    assert proxy.get(STREAM, user=user).status == 429

    stream.close()

    wait_until_free(proxy, user)


# What else a proxy does


@pytest.mark.defends("S10")
@pytest.mark.parametrize("kind", [nginx, haproxy], ids=["nginx", "HAProxy"])
def test_requests_of_ones_own_pages_are_known_as_such_behind_a_proxy(
    kind: Callable[..., Proxy], put_before: Callable[..., Proxy], lively: WebServer, user: str
) -> None:
    proxy = put_before(kind, lively)
    own = "http://{}:{}".format(*proxy.address)

    assert proxy.delete(user, "nothing", headers={"Origin": own}).status == 404
    assert proxy.delete(user, "nothing", headers={"Origin": "http://127.0.0.1:1"}).status == 403


#: A cache that keeps whatever it is not forbidden to keep, as a careless one does: a cookie in an answer stops it not.
CACHE = "proxy_cache all; proxy_cache_valid any 10m; proxy_ignore_headers Set-Cookie{more}; proxy_cache_key $uri;"


@pytest.mark.defends("S15")
@pytest.mark.parametrize("heeds", [True, False], ids=["as it is", "control: a cache that ignores what it is told"])
def test_a_shared_cache_keeps_nobodys_tasks(
    put_before: Callable[..., Proxy], lively: WebServer, user: str, tmp_path: Path, *, heeds: bool
) -> None:
    cache = CACHE.format(more="" if heeds else " Cache-Control Vary Expires")
    location = documented("nginx").replace("}", f"{cache} }}")
    http = f"proxy_cache_path {tmp_path}/cache keys_zone=all:1m;"
    proxy = put_before(nginx, lively, location=location, http=http)
    lively.send(user, "note", 1, key="mine")
    wait_until(lambda: lively.tasks(user)["keys"] == ["mine"])

    assert proxy.tasks(user)["keys"] == ["mine"]
    assert proxy.tasks(f"{user} too")["keys"] == ([] if heeds else ["mine"])


@pytest.mark.defends("F25")
def test_one_http_2_connection_carries_more_streams_than_a_browser_opens_connections(
    put_before: Callable[..., Proxy],
    certificate: Certificate,
    http2: Callable[[Proxy], httpx.Client],
    lively: WebServer,
    user: str,
) -> None:
    client = http2(put_before(nginx, lively, certificate=certificate))
    with contextlib.ExitStack() as streams:
        opened = [streams.enter_context(Http2Stream(client, user)) for _ in range(7)]
        for stream in opened:
            stream.ready()
        lively.send(user, "note", "all")

        for stream in opened:
            assert data_of(stream.until("note")[-1])["data"] == "all"
        lively.close_streams(user)


#: Opens so many streams in one page, and counts those that are ready.
OPENING = """count => {
    window.ready = 0;
    for (let n = 0; n < count; n++)
        new EventSource("/notifications/stream").addEventListener("ready", () => { window.ready++; });
}"""


ASKING = """() => Promise.race([
    fetch("/ordinary").then(() => "answered"), new Promise((resolve) => setTimeout(resolve, 500, "waits")),
])"""


@pytest.mark.defends("F25")
def test_a_browser_has_as_many_pages_open_as_it_likes(
    put_before: Callable[..., Proxy], certificate: Certificate, lively: WebServer, user: str
) -> None:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - it occupies the event loop while it runs

    executable = shutil.which("chromium") or missing("chromium, for example Debian's package of that name")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--headless", "--no-sandbox"])
        page = browser.new_page(ignore_https_errors=True, extra_http_headers={"X-User": quote(user)})
        page.goto("https://{}:{}/ordinary".format(*put_before(nginx, lively, certificate=certificate).address))
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        page.evaluate(OPENING, 10)
        wait_until(lambda: page.evaluate("ready") == 10, what="all streams to be ready")

        # The control: over HTTP/1.1 the seventh waits for a connection, as every other request of the page would.
        page.goto("http://{}:{}/ordinary".format(*put_before(nginx, lively).address))
        page.evaluate(OPENING, 10)
        wait_until(lambda: page.evaluate("ready") == 6, what="six streams to be ready")
        assert page.evaluate(ASKING) == "waits"
        assert page.evaluate("ready") == 6
        browser.close()
