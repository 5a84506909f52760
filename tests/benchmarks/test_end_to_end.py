from __future__ import annotations

import bisect
import re
import statistics
import sys
import threading
import time
import uuid
from pathlib import Path
import os

import pytest

from tests.benchmarks.report import Comparison, at_most
from tests.faults.redis_journal import channel
from tests.support.web_servers import gthread, WebServer, without_control_socket, APPLICATION
from tests.support.processes import Process
from tests.support.waiting import wait_until

TOLD = re.compile(rb'"task_id":"([^"]+)".*?"current":(\d+)')


class Reader(threading.Thread):
    """Notes when bytes come out of a socket; what they say is looked at later."""

    def __init__(self, sock) -> None:
        super().__init__()
        self.socket = sock
        sock.settimeout(0.5)
        self.chunks = []
        self.over = False
        self.start()

    def run(self):
        while not self.over:
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                continue
            now = time.monotonic()
            self.chunks.append((now, data))

    def arrivals(self):
        """By task: [(number, when)]"""
        self.over = True
        self.join()
        ends, total = [], 0
        for _, data in self.chunks:
            total += len(data)
            ends.append(total)
        found = {}
        for match in TOLD.finditer(b"".join(d for _, d in self.chunks)):
            when = self.chunks[bisect.bisect_left(ends, match.end())][0]
            found.setdefault(match[1].decode(), []).append((int(match[2]), when))
        return found


def latencies(sent, arrived):
    """Until the value, or a newer one, was there."""
    out, it = [], iter(arrived)
    number, when = next(it)
    for n, t in enumerate(sent, 1):
        while number < n:
            number, when = next(it)
        out.append(when - t)
    return out


def test_it(own_redis, make_worker, tmp_path, tasks, gates, user, make_web):
    n = int(os.environ.get("N", 4)); rate = float(os.environ.get("RATE", 2000)); secs = float(os.environ.get("SECS", 3))
    rounds = int(os.environ.get("ROUNDS", 3))
    python = os.environ.get("WEBPY", sys.prefix + "/peers/bin/python")
    process = Process(
        python, "-m", "gunicorn", APPLICATION + "()", "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "4",
        *without_control_socket(), folder=tmp_path, name="web", settings={"CELERY_NOTIFY_REDIS_URL": own_redis.url})
    web = WebServer(process, r"Listening at: http://127\.0\.0\.1:(\d+)").start()
    worker = make_worker("--include", "tests.benchmarks.paced", concurrency=n, notify_redis_url=own_redis.url, notify_min_interval=0, notify_history_size=200)
    size = 400
    def run(kind, seconds):
        nonlocal size
        calls = int(seconds * rate / n)
        journal = uuid.uuid4().hex
        if kind == "ours":
            stream = web.stream(user); stream.ready(); sock = stream.socket
        else:
            client = own_redis.client()
            pubsub = client.pubsub(); pubsub.subscribe("raw")
            while pubsub.get_message(timeout=1) is None: pass
            sock = pubsub.connection._sock
        reader = Reader(sock)
        from tests.benchmarks import cpu
        import psutil
        def spent():
            with own_redis.client() as c:
                i = c.info("cpu")
            return {"web": cpu.seconds(process.pid), "worker": cpu.seconds(worker.process.pid), "redis": i["used_cpu_user"] + i["used_cpu_sys"]}
        b = spent()
        if kind == "ours":
            ids = [tasks.app.send_task("telling", (user, journal, calls, n / rate), queue=worker.worker_queue).id for _ in range(n)]
        else:
            ids = [tasks.app.send_task("publishing", (own_redis.admin_url, "raw", journal, calls, n / rate, size), queue=worker.worker_queue).id for _ in range(n)]
        notes = [gates.read(journal, timeout=60) for _ in range(n)]
        time.sleep(0.3)
        a = spent()
        arrived = reader.arrivals()
        if kind == "ours":
            with own_redis.client() as c: size = len(c.hget(channel(user) + ":entries", ids[0]))
            stream.close()
        else:
            pubsub.close(); client.close()
        print(kind, len(reader.chunks), {k: (v[0], len(v)) for k, v in arrived.items()}, [x[0] for x in notes]) if not arrived or os.environ.get("DBG") else None
        # which journal belongs to which: match by first
        out = []
        got = sum(len(v) for v in arrived.values())
        for note, id in zip(notes, ids):
            pass
        # assign
        notes.sort(key=lambda x: x[0])
        arr = sorted(arrived.values(), key=lambda v: v[0][1])
        best = []
        for note in notes:
            # choose the arr with min positive median
            cands = []
            for v in arr:
                try:
                    l = latencies(note, [x for x in v])
                except StopIteration:
                    continue
                if min(l) > 0: cands.append(l)
            best += min(cands, key=statistics.median)
        best.sort()
        p = lambda q: best[min(len(best) - 1, int(q * len(best)))] * 1e6
        print(f"{kind:5} calls {calls*n} arrived {got} min {best[0]*1e6:.0f} p50 {p(.5):.0f} p90 {p(.9):.0f} p99 {p(.99):.0f} max {best[-1]*1e6:.0f}  size {size} cpu us/call " + " ".join(f"{k} {(a[k]-b[k])/calls/n*1e6:.0f}" for k in a))
    for kind in ("ours", "raw"): run(kind, 0.3)
    for _ in range(rounds):
        for kind in ("ours", "raw"): run(kind, secs)
    web.stop()
