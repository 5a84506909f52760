from __future__ import annotations

import contextlib
import http.cookiejar
import io
import os
import re
import signal
import socket
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from pypdf import PdfReader

from example_invoice.launcher import LauncherError, broker_url
from tests.support.processes import PYTHON, ROOT, Process, clean_environment, free_port, run_python
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from tests.support.redis_server import RedisServer


class Demo:
    """The demo, as `make demo` starts it, on any free port; its temporary folders lie in `temporary`."""

    def __init__(self, folder: Path, *, lasting: bool = False, **settings: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        surroundings = {"PORT": "0", "TMPDIR": str(self.temporary), **settings}
        self.process = Process(
            *(*PYTHON, "-m", "example_invoice"), folder=folder, name="demo", settings=surroundings, lasting=lasting
        )
        self._seen: set[psutil.Process] = set()

    def start(self) -> Self:
        self.process.start()
        return self

    def started(self) -> Self:
        """Start it and wait until it says where it is."""
        self.process.start()
        wait_until(lambda: self.url or not self.process.alive, timeout=30, what=self.process.log)
        assert self.url, self.process.log()
        self.look()
        return self

    @property
    def url(self) -> str | None:
        found = re.search(r"^(http://127\.0\.0\.1:\d+)$", self.process.log(), re.MULTILINE)
        return found[1] if found else None

    @property
    def folder(self) -> Path:
        """The folder of all that the demo writes."""
        return next(self.temporary.glob("example-invoice-*"))

    def change(self, service: str, statement: str) -> None:
        """Change a service's data, which it reads anew at each request."""
        with contextlib.closing(sqlite3.connect(self.folder / f"{service}.db")) as connection, connection:
            connection.execute(statement)

    def look(self) -> None:
        """Remember all processes that there are now."""
        self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def child(self, *words: str) -> psutil.Process:
        """Return the direct child whose command contains these words."""
        for child in psutil.Process(self.process.pid).children():
            if all(word in " ".join(child.cmdline()) for word in words):
                return child
        raise AssertionError(f"expected a child with {words}")

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def left(self) -> list[str]:
        """Name the processes that still run, and the files that are still there."""
        alive = [str(each) for each in self._seen if runs(each)]
        return alive + [str(path) for path in self.temporary.iterdir()]

    def close(self) -> None:
        self.process.stop()
        for each in self._seen:
            if runs(each):
                each.kill()


def runs(process: psutil.Process) -> bool:
    """Say whether it still does anything: what has ended and waits to be collected does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Start the demo for all tests that leave it as it was, but for what they order."""
    demo = Demo(tmp_path_factory.mktemp("demo"), lasting=True).started()
    yield demo
    demo.close()


class Browser:
    """What a person does in the demo."""

    def __init__(self, url: str | None, user_id: str = "ada") -> None:
        assert url is not None
        self._user_id = user_id
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10.0, cookies=http.cookiejar.CookieJar())

    def __enter__(self) -> Self:
        assert self._client.post("/login", data={"user_id": self._user_id}).status_code == 303
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def order(self, order_id: str) -> str:
        answer = self._client.post("/invoices", json={"order_id": order_id})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def order_statement(self) -> str:
        answer = self._client.post("/statements")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def orders(self) -> list[str]:
        """Return the ids of the orders, the oldest first."""
        return [str(order["order_id"]) for order in reversed(self._client.get("/orders").json())]

    def tasks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.get("/notifications/tasks").json()["tasks"]
        return found

    def task(self, task_id: str) -> dict[str, Any]:
        return next((task for task in self.tasks() if task["task_id"] == task_id), {})

    def wait_for(self, task_id: str, state: str, *, timeout: float = 20.0) -> dict[str, Any]:
        wait_until(
            lambda: self.task(task_id).get("state") == state, timeout=timeout, what=lambda: str(self.task(task_id))
        )
        return self.task(task_id)

    def get(self, path: str, *, status: int = 200) -> bytes:
        answer = self._client.get(path)
        assert answer.status_code == status
        return answer.content

    def control(self, name: str, **wanted: float) -> None:
        assert self._client.post(f"/services/{name}", json=wanted).status_code == 200


def test_an_invoice_is_made_and_ctrl_c_leaves_nothing_behind(demo: Demo) -> None:
    with Browser(demo.started().url) as browser:
        done = browser.wait_for(browser.order("A-1003"), "SUCCESS")
        assert done["title"] == "Invoice A-1003"
        assert (done["current"], done["total"]) == (100, 100)
        assert browser.get(done["url"]).startswith(b"%PDF-")
    demo.look()
    demo.signal(signal.SIGINT)
    assert demo.process.wait() == 0
    assert demo.left() == []
    assert "Traceback" not in demo.process.log()


def pages(content: bytes) -> list[str]:
    return [page.extract_text() for page in PdfReader(io.BytesIO(content), strict=True).pages]


def test_a_statement_holds_all_of_ones_invoices_and_nobody_else_gets_it(demo: Demo) -> None:
    with Browser(demo.started().url) as ada, Browser(demo.url, "grace") as grace:
        done = ada.wait_for(statement_id := ada.order_statement(), "SUCCESS", timeout=40.0)
        assert (done["title"], done["url"]) == ("Statement", f"/statements/{statement_id}.pdf")
        invoices = [ada.get(f"/invoices/{order_id}.pdf") for order_id in ada.orders()]
        assert len(invoices) == 4
        assert pages(ada.get(done["url"])) == [page for invoice in invoices for page in pages(invoice)]
        assert {task["job_id"] for task in ada.tasks()} == {done["job_id"]}
        assert sorted(task["title"] for task in ada.tasks()) == [
            *(f"Invoice {order_id}" for order_id in ada.orders()),
            "Statement",
        ]
        grace.get(done["url"], status=404)
        assert grace.tasks() == []


def test_statements_and_invoices_made_at_the_same_time_do_not_disturb_one_another(running: Demo) -> None:
    with Browser(running.url) as ada, Browser(running.url, "grace") as grace:
        ordered = [ada.order_statement(), ada.order("A-1003"), ada.order_statement()]
        hers = grace.order_statement()
        one, invoice, other = (ada.wait_for(each, "SUCCESS", timeout=60.0) for each in ordered)
        assert one["url"] != other["url"]
        assert one["job_id"] != other["job_id"]
        assert ada.get(one["url"]) == ada.get(other["url"])
        assert set(pages(ada.get(invoice["url"]))) < set(pages(ada.get(one["url"])))
        foreign = pages(grace.get(grace.wait_for(hers, "SUCCESS", timeout=60.0)["url"]))
        assert set(foreign).isdisjoint(pages(ada.get(one["url"])))
        assert list(running.folder.glob("invoices/**/*.part")) == []


def test_a_single_order_makes_a_statement_too(demo: Demo) -> None:
    demo.started().change("order", "UPDATE orders SET user_id = 'nobody' WHERE order_id != 'A-1003'")
    with Browser(demo.url) as ada:
        done = ada.wait_for(ada.order_statement(), "SUCCESS")
        assert ada.get(done["url"]) != ada.get("/invoices/A-1003.pdf")
        assert pages(ada.get(done["url"])) == pages(ada.get("/invoices/A-1003.pdf"))


def test_without_one_of_the_invoices_there_is_no_statement(demo: Demo) -> None:
    demo.started().change("payment", "UPDATE payments SET amount = 'much' WHERE order_id = 'A-1002'")
    with Browser(demo.url) as ada:
        statement_id = ada.order_statement()
        ends = ("SUCCESS", "FAILURE")
        wait_until(lambda: sum(task["state"] in ends for task in ada.tasks()) == 4, timeout=40, what=demo.process.log)
        failed = [task["title"] for task in ada.tasks() if task["state"] == "FAILURE"]
        assert failed == ["Invoice A-1002"]
        ada.wait_for(statement_id, "REVOKED")  # nobody waits for what will never be
        ada.get(f"/statements/{statement_id}.pdf", status=404)
        ada.wait_for(ada.order("A-1001"), "SUCCESS")  # the others can still be had


def test_a_service_that_is_down_for_long_makes_the_task_try_again(running: Demo) -> None:
    with Browser(running.url) as browser:
        browser.control("payment", failures=5)  # one more than gathering bears
        done = browser.wait_for(browser.order("A-1001"), "SUCCESS", timeout=40.0)
        assert done["attempt"] == 2


def test_each_line_says_which_process_wrote_it(running: Demo) -> None:
    lines = running.process.log().splitlines()
    assert all(re.match(r" *(redis|user|order|payment|worker|web) \| |http://", line) for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_ask_for_an_end_do_the_same(demo: Demo, number: int) -> None:
    demo.started().signal(number)
    assert demo.process.wait() == 0
    assert demo.left() == []


@pytest.mark.parametrize("moment", ["Redis is starting", "Starting gunicorn", "GET /health"])
def test_ctrl_c_during_the_start_leaves_nothing_behind(demo: Demo, moment: str) -> None:
    demo.start().process.wait_for_log(moment)
    demo.look()
    demo.signal(signal.SIGINT)
    assert demo.process.wait() == 0
    assert demo.url is None
    assert demo.left() == []


def test_ctrl_c_pressed_twice_does_not_wait_for_a_running_task(demo: Demo) -> None:
    with Browser(demo.started().url) as browser:
        browser.control("user", latency=60)
        browser.wait_for(browser.order("A-1001"), "PROGRESS")
    demo.signal(signal.SIGINT)
    demo.process.wait_for_log("Warm shutdown")
    demo.signal(signal.SIGINT)
    assert demo.process.wait() == 0
    assert "Redis is now ready to exit" not in demo.process.log()  # killed, as all were
    assert demo.left() == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("web", ["example_invoice.web"]), ("worker", ["celery"]), ("order", ["'order'"]), ("redis", ["redis-server"])],
)
def test_the_death_of_one_is_the_end_of_all(demo: Demo, name: str, words: list[str]) -> None:
    demo.started().child(*words).kill()
    assert demo.process.wait() == 1
    assert f"example_invoice: {name} was killed by SIGKILL: the demo ends" in demo.process.log()
    assert demo.left() == []


def test_even_if_the_launcher_is_killed_nothing_is_left(demo: Demo) -> None:
    demo.started().signal(signal.SIGKILL)
    assert demo.process.wait() == -signal.SIGKILL
    wait_until(lambda: not demo.left(), timeout=20, what=lambda: f"nothing but {demo.left()}")


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        demo = Demo(tmp_path, PORT=str(port)).start()
        assert demo.process.wait() == 1
        demo.close()
    assert demo.process.log() == (
        f"example_invoice: cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Is the demo running already? PORT=8001 takes another one.\n"
    )
    assert demo.left() == []


@pytest.mark.parametrize("port", ["http", "-1", "65536", "80 "])
def test_a_bad_port_is_refused_with_what_was_given(port: str) -> None:
    ended = run_python("-m", "example_invoice", settings={"PORT": port})
    assert ended.returncode == 1
    assert ended.stderr == f"example_invoice: expected PORT to be a number from 0 to 65535, got {port!r}\n"


def test_a_redis_that_is_given_is_used_and_left_running(tmp_path: Path, own_redis: RedisServer) -> None:
    demo = Demo(tmp_path, CELERY_NOTIFY_REDIS_URL=own_redis.admin_url).started()
    with Browser(demo.url) as browser:
        browser.wait_for(browser.order("A-1001"), "SUCCESS")
    demo.signal(signal.SIGINT)
    assert demo.process.wait() == 0
    assert "redis |" not in demo.process.log()
    assert demo.left() == []
    assert own_redis.process.alive
    demo.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:secret@127.0.0.1:{port}/0", "expected a Redis at 127.0.0.1:{port}, got no answer"),
        ("redis://127.0.0.1:http/0", "expected CELERY_NOTIFY_REDIS_URL to be a URL"),
        ("memory://", "to begin with redis://, rediss:// or unix:// for the demo, got 'memory'"),
    ],
)
def test_a_redis_that_is_not_there_is_an_error_without_its_password(tmp_path: Path, url: str, message: str) -> None:
    port = free_port()
    demo = Demo(tmp_path, CELERY_NOTIFY_REDIS_URL=url.format(port=port)).start()
    assert demo.process.wait() == 1
    demo.close()
    assert message.format(port=port) in demo.process.log()
    assert "secret" not in demo.process.log()
    assert "Traceback" not in demo.process.log()
    assert demo.left() == []


def test_an_output_that_nobody_reads_any_more_is_the_end(tmp_path: Path) -> None:
    environment = clean_environment({"PORT": "0", "TMPDIR": str(tmp_path)})
    command = [*PYTHON, "-m", "example_invoice"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        try:
            assert process.wait(timeout=30) == 1
        finally:
            process.terminate()  # nothing, if it has ended
    assert list(tmp_path.iterdir()) == []


def test_celery_is_told_the_same_redis_in_its_own_spelling() -> None:
    assert broker_url("redis://host:1/2") == "redis://host:1/2"
    assert broker_url("rediss://host") == "rediss://host?ssl_cert_reqs=required"
    assert broker_url("rediss://host?ssl_ca_certs=x") == "rediss://host?ssl_ca_certs=x&ssl_cert_reqs=required"
    assert broker_url("rediss://host?ssl_cert_reqs=none") == "rediss://host?ssl_cert_reqs=none"
    assert broker_url("unix:///run/redis.sock") == "redis+socket:///run/redis.sock"
    assert broker_url("unix:///run/redis.sock?db=3") == "redis+socket:///run/redis.sock?virtual_host=3"
    with pytest.raises(LauncherError, match="got 'redis\\+sentinel'"):
        broker_url("redis+sentinel://host")
