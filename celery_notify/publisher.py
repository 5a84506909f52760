"""From a task to Redis: one background thread in each process, which no task ever waits for while it runs."""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from celery_notify import config, events, liveness, transport
from celery_notify.events import Publication
from celery_notify.exceptions import TransportError
from celery_notify.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery_notify.events import State
    from celery_notify.liveness import Worker
    from celery_notify.progress import Run
    from celery_notify.transport import Transport

logger = logging.getLogger(__name__)

#: Events in one round trip.
BATCH = 200
#: Seconds between two tries while Redis does not answer: at first, and at the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Seconds that the end of a task, and the end of a process, wait for what is still to be published.
TASK_END, PROCESS_END = 1.0, 2.0
#: Seconds that a task has to end in before it is told that it has begun: as most are that do nothing long. The thread
#: looks by itself as long after a beginning, so that it is woken once for such a task, at its end.
SHORT = 0.005
#: Seconds of a round trip beyond which no task's end waits for one, and how much a single one counts, since the first
#: has to connect. https://datatracker.ietf.org/doc/html/rfc6298#section-2
SLOW, WEIGHT = 0.04, 1 / 8


class Look(Protocol):
    """What else is looked for at Redis now and then, by the publisher's thread."""

    def left(self) -> float | None:
        """Return the seconds until it is due, None if there is nothing to look for."""

    def look(self, at: Transport) -> None:
        """Look. Raises TransportError."""


#: Cancels, in a process that has tasks (cancel.py).
also: Look | None = None


class Publisher:
    """Publishes what is put into its outbox, and the newest progress of the runs it looks after.

    Events keep their order. While Redis does not answer they wait, within bounds; progress does not wait, since the
    newest value is all that counts when Redis is back.
    """

    def __init__(self, to: Transport, *, min_interval: float, worker_ttl: float) -> None:
        self._transport = to
        self._min_interval = min_interval
        self._worker_ttl = worker_ttl
        self._looked = -math.inf
        self._connections = 0
        self._outbox = Outbox()
        self._in_flight: list[Publication] = []
        self._runs: set[Run] = set()
        #: Whether the thread will look at nothing before it is woken, and until when it goes on to look by itself.
        self._asleep = False
        self._awake_until = -math.inf
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._settled = threading.Condition(self._lock)
        self._put = self._done = self._given_up = 0
        self._pause = 0.0
        self._round_trip = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="celery-notify-publisher", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether the last try to publish failed."""
        return self._pause > 0

    @property
    def failing_or_slow(self) -> bool:
        """Whether it is known that waiting for Redis would take long."""
        return self.failing or self._round_trip > SLOW

    def put(self, publications: Iterable[Publication]) -> None:
        """Have these published soon, in this order. Returns at once."""
        added = list(publications)
        with self._lock:
            given_up = self._outbox.add(added)
            self._put += len(added)
            self._done += given_up
            self._given_up += given_up
            asleep = self._asleep
        if asleep:
            self._news.set()

    def wake(self) -> None:
        """Look for something to do."""
        self._news.set()

    def look_after(self, run: Run) -> None:
        """Publish the progress of `run` from now on."""
        run.wake = lambda: self._wake(run)
        with self._lock:
            self._runs.add(run)
        if run.has_news:
            self._wake(run)

    def begin(self, run: Run) -> None:
        """Publish that `run` has begun, unless it ends at once."""
        run.begun, run.quiet, run.due = False, False, time.monotonic() + SHORT
        with self._lock:
            self._awake_until = run.due
            asleep = self._asleep
        if asleep:
            self._news.set()

    def _wake(self, run: Run) -> None:
        run.quiet = False
        self._news.set()

    def leave(self, run: Run) -> None:
        """Publish no more progress of `run`: it ends."""
        with self._lock:
            self._runs.discard(run)

    def flush(self, timeout: float, *, patient: bool = False) -> bool:
        """Wait until all that was put before is published, as `wait_for` does."""
        if patient and self.failing:
            self._pause = FIRST_PAUSE
        wanted = self._put
        return self.wait_for(lambda: self._done >= wanted, timeout, patient=patient)

    def wait_for(self, done: Callable[[], bool], timeout: float, *, patient: bool = False) -> bool:
        """Wait until the publisher has done something, but while Redis fails or is slow only if `patient`.

        Returns whether it has.
        """
        self._news.set()
        with self._settled:
            if self.failing_or_slow and not patient:
                return done()
            self._settled.wait_for(lambda: done() or (self.failing_or_slow and not patient) or self._stopped, timeout)
            if not done() and not self.failing:
                self._round_trip = max(self._round_trip, timeout)  # the next one need not find it out by waiting
            return done()

    def unsent(self) -> list[Publication]:
        """Take all that is not known to be published: what is being published now may be so twice."""
        with self._lock:
            return [*self._in_flight, *self._outbox.take(len(self._outbox))]

    def stop(self) -> None:
        """Publish no more, and end the thread."""
        self._stopped = True
        self._news.set()
        self._thread.join()

    def _work(self) -> None:
        """Run the thread: publish, then wait for news, or until a run's progress is due again."""
        wait = self._until_next_look(None)
        while not self._stopped:
            if self.failing:
                failed = time.monotonic()
                while not self._stopped and (left := failed + self._pause - time.monotonic()) > 0:
                    self._news.wait(left)
                    self._news.clear()
            else:
                self._news.wait(wait)
                self._news.clear()
            try:
                wait = self._until_next_look(self._sign_and_publish())
            except Exception:  # the thread must live: nobody would start another
                logger.exception("Publishing failed")
                wait = FIRST_PAUSE

    def _until_next_look(self, wait: float | None) -> float | None:
        """Return how long to wait, sooner than what is due where something came meanwhile; note if that is long."""
        with self._lock:
            left = 0.0 if len(self._outbox) else self._awake_until - time.monotonic()
            if left >= 0:
                wait = left if wait is None else min(wait, left)
            self._asleep = wait is None or wait > SHORT
        return wait

    def _sign_and_publish(self) -> float | None:
        """Do all that is due; return the seconds until more of it will be, None if nothing is known to come."""
        try:
            self._look_around()
        except TransportError as error:
            self._settle(0, [], error)
            return None
        wait = self._publish_what_is_there()
        look, left = self._regular_look()
        waits = (wait, None if look is None else left, None if also is None else also.left())
        return min((max(0.0, each) for each in waits if each is not None), default=None)

    def _look_around(self) -> None:
        """Take those looks that are due. Raises TransportError."""
        look, left = self._regular_look()
        if look is not None and left <= 0:
            look(liveness.worker())
            self._looked = time.monotonic()
        if also is not None and (due := also.left()) is not None and due <= 0:
            also.look(self._transport)
            with self._settled:
                self._settled.notify_all()

    def _regular_look(self) -> tuple[Callable[[Worker], None] | None, float]:
        """Return what this process has to do at Redis now and then, if anything, and the seconds until it is due."""
        worker = liveness.worker()
        since = time.monotonic() - self._looked
        if worker.is_here and (worker.has_pool or self._runs):
            return self._sign, config.LEASE * self._worker_ttl / liveness.SIGNS - since
        return self._look if self._outbox.ends else None, self._worker_ttl - since

    def _sign(self, worker: Worker) -> None:
        with self._lock:
            runs = list(self._runs)
        self.take_over()
        worker.sign(self._transport, runs, self._worker_ttl)

    def take_over(self) -> None:
        """Have what this worker's children left to it published."""
        worker = liveness.worker()
        if worker.is_here and worker.handover is not None:
            self.put(worker.handover.take())

    def _look(self, worker: Worker) -> None:
        """Find out whether Redis is still the same, for the sake of what it has been told."""
        self._transport.signs([worker.id])
        self._tell_again_if_redis_is_another()

    def _tell_again_if_redis_is_another(self) -> None:
        """Queue the ends that were told, if there is a new connection since: Redis may have come back older."""
        connections, self._connections = self._connections, self._transport.connections
        if 0 < connections < self._connections:
            self.put(self._outbox.ends)

    def _publish_what_is_there(self) -> float | None:
        """Publish a batch, with the last one all progress that is due; return the seconds until more will be."""
        with self._lock:
            waiting = self._in_flight = self._outbox.take(BATCH)
            more = len(self._outbox) > 0
            runs = list(self._runs)
        due, wait = ([], 0.0) if more else self._due(runs)
        if not waiting and not due:
            self._pause = 0.0  # nothing is known to fail any more
        elif not self._publish_or_drop(waiting, due):
            return None
        return wait

    def _due(self, runs: list[Run]) -> tuple[list[Run], float | None]:
        """Return the runs whose progress is to be published now, and the seconds until another's will be."""
        now = time.monotonic()
        due, wait = [], None
        for run in runs:
            run.quiet = True
            if run.begun and not run.has_news:
                continue
            run.quiet = False
            left = run.due - now
            if left <= 0:
                due.append(run)
            else:
                wait = left if wait is None else min(wait, left)
        return due, wait

    def _publish_or_drop(self, waiting: list[Publication], due: list[Run]) -> bool:
        """Publish as `_publish`; an error that nobody foresaw loses these, and nobody waits for them."""
        try:
            return self._publish(waiting, due)
        except Exception:
            self._settle(len(waiting), [], None)
            raise

    def _publish(self, waiting: list[Publication], due: list[Run]) -> bool:
        """Publish in one round trip; keep what failed for another time and return whether nothing did."""
        told = {run: run.said() if run.has_news else run.told for run in due}
        progress = [item for run in due for item in _news_of(run)]
        begun = time.monotonic()
        answers = self._transport.publish([*waiting, *progress])
        self._round_trip += WEIGHT * (time.monotonic() - begun - self._round_trip)
        later = _to_be_repeated(waiting, answers)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        unreachable = next((error for error in errors if isinstance(error, TransportError)), None)
        for error in errors:
            if not isinstance(error, TransportError):
                logger.error("Redis refused an event: %s", error)
        if unreachable is None:
            self._tell_again_if_redis_is_another()
            self._outbox.keep(
                (item, answer)
                for item, answer in zip(waiting, answers, strict=False)
                if isinstance(answer, int) and answer
            )
            now = time.monotonic()
            for run, said in told.items():
                run.due = now + self._min_interval if said is not run.told else now
                run.begun, run.told, run.quiet = True, said, True
                if run.has_news:
                    self._wake(run)
        self._settle(len(waiting) - len(later), later, unreachable)
        return unreachable is None

    def _settle(self, done: int, later: list[Publication], unreachable: TransportError | None) -> None:
        """Count what is done, put the rest back to the front, and note whether Redis answered."""
        with self._settled:
            self._done += done
            self._outbox.put_back(later)
            self._in_flight = []
            was_failing, self._pause = self.failing, self._next_pause() if unreachable else 0.0
            given_up, self._given_up = self._given_up, 0 if not unreachable else self._given_up
            self._settled.notify_all()
        if unreachable and not was_failing:
            logger.warning("Redis does not take events, they wait: %s", unreachable)
        elif was_failing and not unreachable:
            logger.warning("Redis takes events again; %d were given up meanwhile", given_up)

    def _next_pause(self) -> float:
        """Return the seconds until the next try: doubled each time, not the same in all processes."""
        # A Redis that comes back must have this worker's sign before anybody misses it.
        longest = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE, self._worker_ttl / 4)
        return random.uniform(longest / 2, longest)  # noqa: S311 - no secret


def _news_of(run: Run) -> list[Publication]:
    """Return what is to be told of a run: that it has begun, if that was not yet, and how far it is."""
    begun = [] if run.begun else publications_of(run, "STARTED")
    return [*begun, *(publications_of(run, "PROGRESS") if run.has_news else [])]


def _to_be_repeated(items: list[Publication], answers: list[int | Exception]) -> list[Publication]:
    """Return what failed for now, without what a newer event of its key has replaced: it would replace that one."""
    later: list[Publication] = []
    replaced: set[tuple[str, str]] = set()
    for item, answer in reversed(list(zip(items, answers, strict=False))):
        if not isinstance(answer, Exception):
            replaced.add((item.user, item.key))
        elif isinstance(answer, TransportError) and (not item.key or (item.user, item.key) not in replaced):
            later.insert(0, item)
    return later


def publications_of(run: Run, state: State, **fields: Any) -> list[Publication]:
    """Return the state of a run as it is published to each of its users."""
    worker = liveness.name_of(run) if state in events.RUNNING_STATES else ""
    return publications(run.users, run.state(state, **fields), worker=worker)


def publications(users: Iterable[str], event: events.TaskEvent, *, worker: str = "") -> list[Publication]:
    """Return a task event as it is published to each of `users`; none, and a log line, if it cannot be."""
    try:
        return [events.publication(user, event, worker=worker) for user in users]
    except (TypeError, ValueError) as error:
        logger.error("Task %s (%s): the event %s is not sent: %s", event.task, event.task_id, event.state, error)  # noqa: TRY400
        return []


_publisher: Publisher | None = None
#: Until when the process's end waits; set when it begins.
_end: float | None = None
_making = threading.Lock()


def current() -> Publisher:
    """Return the process's publisher; it starts at the first call in the process that makes it."""
    global _publisher  # noqa: PLW0603 - one for each process is the point
    if _publisher is None:
        with _making:
            if _publisher is None:
                settings = config.settings()
                _publisher = Publisher(
                    transport.connect(settings), min_interval=settings.min_interval, worker_ttl=settings.worker_ttl
                )
                _flush_at_a_childs_exit()
    return _publisher


def send(user: str | int, event: str, data: object, *, key: str | None = None) -> None:
    """Send a custom event to a user's browsers, from any process. Returns at once.

    `data` is a JSON value. With a `key` the event replaces the one before it under that key; without, it has a key of
    its own. Raises ValueError for a user, a name or a key that cannot be one; data that cannot be sent is logged, since
    it may come from anywhere and must not harm what the caller is doing.
    """
    user, event = events.check_user(user), events.check_name(event)
    key = None if key is None else events.check_key(key)
    try:
        publication = events.custom(user, event, data, key=key)
    except (TypeError, ValueError) as error:
        logger.error("The event %s is not sent: %s", event, error)  # noqa: TRY400 - the text says it all
        return
    current().put([publication])


def close_streams(user: str | int) -> None:
    """End the user's open streams in every web process: after a logout, or a new password. Returns at once."""
    current().put([Publication(user=events.check_user(user), event=events.CLOSE_STREAMS)])


def reset() -> None:
    """Stop the process's publisher and its transports, for tests."""
    global _publisher  # noqa: PLW0603
    if _publisher is not None:
        _publisher.stop()
    _publisher = None
    transport.reset()
    liveness.reset()


def _forget_after_fork() -> None:
    """In a forked child: what the parent's thread was doing is the parent's business."""
    global _publisher, _making, _end
    _publisher, _making, _end = None, threading.Lock(), None


def _flush_at_a_childs_exit() -> None:
    """Have what is sent last go out also in a child of multiprocessing or of Celery's pool, which runs no atexit."""
    for name in ("multiprocessing.util", "billiard.util"):
        if name in sys.modules:
            sys.modules[name].Finalize(None, flush_at_exit, exitpriority=0)


def hand_over() -> None:
    """Have what a pool's child said last go out, or leave it to the worker's main process."""
    handover = liveness.worker().handover
    if _publisher is not None and not _publisher.flush(TASK_END, patient=True) and handover is not None:
        handover.give(_publisher.unsent())


def flush_at_exit() -> None:
    """Wait for what is still to be published; a process comes here up to three times and waits once."""
    global _end
    if _publisher is None:
        return
    _publisher.take_over()
    first, _end = _end is None, _end or time.monotonic() + PROCESS_END
    if not _publisher.flush(max(0.0, _end - time.monotonic()), patient=True) and first:
        logger.warning("The process ends with events that Redis has not taken within %s s", PROCESS_END)


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(flush_at_exit)
