// @ts-check
/** celery_notify in the browser; client.d.ts says what it offers. @module */

/** @import { Change, ConnectionState, Job, TaskEvent } from "./client.js" */

// Milliseconds.
const FIRST_WAIT = 1000; // before a reconnection: drawn from 0 to this, later from more,
const LONGEST_WAIT = 30_000; // up to this
const LONGEST_RETRY_AFTER = 300_000;
const LONGEST_RECONNECTION = 120_000; // the browser's own, with the wait that `retry:` asks for
const LONGEST_ANSWER = 10_000;
const LONGEST_SIGN = 3000; // of the tab that leads
const PATIENCE = 8000; // with a stream that gives nothing, until the tasks are asked for instead:
const FIRST_POLL = 2000; // so often, and less often when nothing changes,
const LONGEST_POLL = 10_000; // down to this,
const HIDDEN = 4; // times that where nobody looks
const LONGEST_DRAWING = 10; // in one frame
const PAUSE = 90; // before the next: a frame costs more than what is drawn in it
/** No answer has it. */
const NO_ETAG = '""';
/** A stream that is silent for so many heartbeats is dead. */
const HEARTBEATS_MISSED = 2.5;

/** Ended tasks of one job that stay on the page. */
const ENDED_KEPT = 300;

const FINAL = new Set(["SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"]);
const FAILED = new Set(["FAILURE", "REJECTED"]);
const STREAM_EVENTS = ["task-progress", "task-done", "removed", "ready", "heartbeat", "degraded"];
/** Names that no custom event has. */
const RESERVED = new Set([...STREAM_EVENTS, "change", "connection", "open", "error"]);

/** Beside this file. */
const DEFAULT_STREAM = new URL("stream", import.meta.url).href;

/** What the elements say; `{name}` stands for a value. @type {typeof import("./client.js").strings} */
export const strings = {
  list: "Tasks",
  empty: "Nothing here yet. What you start shows up here.",
  untitled: "Task",
  open: "Open",
  remove: "Remove",
  more: "Show {number} more",
  dismiss: "Dismiss",
  cancel: "Cancel",
  cancelling: "Cancelling…",
  of: "{current} of {total}",
  left: "About {time} left",
  retryAt: "Trying again at {time}",
  ended: "{title}: {state}",
  toasts: "Just ended",
  desktop: "Notify me when it is done",
  PENDING: "Waiting",
  STARTED: "Running",
  PROGRESS: "Running",
  RETRY: "Trying again",
  STALLED: "Interrupted",
  SUCCESS: "Done",
  FAILURE: "Failed",
  REVOKED: "Cancelled",
  REJECTED: "Rejected",
  IGNORED: "Skipped",
  connecting: "Connecting…",
  live: "Live",
  polling: "Updated every few seconds",
  degraded: "Updates are delayed",
  waiting: "Connection lost, trying again…",
  refused: "Signed out",
  closed: "Not connected",
};

// ---------------------------------------------------------------------------------------------- pure functions

/** @param {string | null | undefined} text */
function parse(text) {
  try {
    return JSON.parse(text ?? "");
  } catch {
    // Not JSON.
  }
}

/**
 * Whether a task moves on. Ids alone do not tell: Redis may come back older, or with its clock behind.
 * @param {TaskEvent} shown @param {TaskEvent} next @param {boolean} newer by its id
 */
function movesOn(shown, next, newer) {
  const attempts = (next.attempt ?? 1) - (shown.attempt ?? 1);
  if (attempts !== 0) return attempts > 0;
  if (FINAL.has(shown.state)) return false;
  if (FINAL.has(next.state)) return true;
  if (next.state === "PENDING" && shown.state !== "PENDING") return false;
  if (typeof next.current !== "number" || typeof shown.current !== "number") return newer;
  return newer ? next.current >= shown.current : next.current > shown.current;
}

/** 0 to 1. @param {unknown} part @param {unknown} whole */
function ratio(part, whole) {
  if (typeof part !== "number" || typeof whole !== "number" || !(whole > 0)) return null;
  return Math.min(1, Math.max(0, part / whole));
}

/** @param {TaskEvent} task */
const fractionOf = ({ state, current, total }) => (state === "SUCCESS" ? 1 : ratio(current, total));

/** @param {unknown} value @returns {any[]} */
const arrayOf = (value) => (Array.isArray(value) ? value : []);

/** @param {unknown} value an id */
const numberOf = (value) => (Object(value) === value ? 0 : Number(value) || 0);

/** @param {unknown} value */
const textOf = (value) => (typeof value === "string" && value) || null;

/** @param {TaskEvent} task */
const jobOf = (task) => textOf(task.job_id) ?? task.task_id;

/** @param {any} told */
function countsOf(told) {
  const { tasks, ended, failed, revoked, hidden } = told ?? {};
  const counts = { tasks, ended, failed, revoked, hidden };
  return Object.values(counts).every((n) => Number.isSafeInteger(n) && n >= 0) && tasks ? counts : null;
}

/** @param {unknown} text a link to this origin, or over https */
function safeLink(text) {
  if (typeof text !== "string" || !URL.canParse(text, document.baseURI)) return null;
  const url = new URL(text, document.baseURI);
  // The scheme too: a blob: URL has the origin that made it.
  const own = url.protocol === location.protocol && url.origin === location.origin;
  return own || url.protocol === "https:" ? url.href : null;
}

/** Milliseconds. @param {string | null} text seconds or a date */
function retryAfter(text) {
  const wait = Number(text) * 1000 || Date.parse(text ?? "") - Date.now();
  return Math.min(LONGEST_RETRY_AFTER, Math.max(0, wait || 0));
}

/** Keeps a job up to date, each event at the same cost, by the rules of jobs.py. */
class Fold {
  job_id = "";
  state = "";
  fraction = ratio(null, 1);
  at = textOf(null);
  /** @type {any} */
  counts;
  /** In the order in which the page learnt of them. @type {Map<string, TaskEvent>} */
  #tasks = new Map();
  /** Those that were told of last at the end. @type {Map<string, TaskEvent>} */
  #latest = new Map();
  /** How many are in a state. @type {Map<string, number>} */
  #numbers = new Map();
  /** The first to fail first. @type {Map<string, string>} */
  #errors = new Map();
  /** @type {Set<string>} */
  #urls = new Set();
  /** What the newest event with numbers said. @type {TaskEvent["job"]} */
  #told;
  /** The task that names the job, and how little speaks for it. @type {TaskEvent | undefined} */
  #namer;
  #rank = 3;
  #ended = 0;

  /** @param {TaskEvent} event @param {boolean} newest */
  put(event, newest) {
    const { task_id: id, state } = event;
    const [title, error, url] = [event.title, event.error, event.url].map(textOf);
    this.job_id = jobOf(event);
    this.#count(this.#tasks.get(id), -1);
    this.#count(event, 1);
    for (const known of [this.#latest, this.#errors]) known.delete(id);
    for (const known of [this.#latest, this.#tasks]) known.set(id, event);
    if (error && FAILED.has(state)) this.#errors.set(id, error);
    if (url && this.#urls.size < 2) this.#urls.add(url); // of two, none is the job's
    const rank = id === this.job_id ? 0 : event.group_id && id === event.root_id ? 2 : 1;
    if (title && (rank < this.#rank || id === this.#namer?.task_id)) [this.#namer, this.#rank] = [event, rank];
    if (newest || !this.#told) {
      if (countsOf(event.job)) this.#told = event.job;
      this.at = textOf(event.at) ?? this.at;
    }
    this.#settle();
  }

  /** What the job has learnt from it stays. @param {string} id @returns how many are left */
  remove(id) {
    if (this.#errors.size > 1) this.#errors.delete(id);
    this.#count(this.#tasks.get(id), -1);
    this.#latest.delete(id);
    if (this.#tasks.delete(id) && this.#tasks.size) this.#settle();
    return this.#tasks.size;
  }

  /** @param {TaskEvent | undefined} task @param {number} by */
  #count(task, by) {
    if (task) this.#numbers.set(task.state, (this.#numbers.get(task.state) ?? 0) + by);
  }

  #settle() {
    const all = this.#tasks.size;
    /** @param {string[]} states */
    const n = (...states) => states.reduce((sum, state) => sum + (this.#numbers.get(state) ?? 0), 0);
    const own = { tasks: all, ended: n(...FINAL), failed: n(...FAILED), revoked: n("REVOKED"), hidden: 0 };
    this.#ended = own.ended;
    const { tasks, ended, failed, revoked, hidden } = (this.counts = countsOf(this.#told) ?? own);
    const [first] = this.#tasks.values();
    const now = ratio(this.#told?.fraction, 1) ?? (this.#told || tasks > 1 ? ratio(ended, tasks) : fractionOf(first));
    if (now !== null) this.fraction = Math.max(now, this.fraction ?? 0);
    if (tasks === 1) this.state = first.state;
    else if (own.ended === all && ended >= tasks && !hidden) {
      this.state = failed ? "FAILURE" : revoked ? "REVOKED" : n("SUCCESS") ? "SUCCESS" : first.state;
    } else if (n("STALLED") && !n("STARTED", "PROGRESS")) this.state = "STALLED";
    else if (ended || n("PROGRESS")) this.state = "PROGRESS";
    else this.state = ["STARTED", "RETRY"].find((state) => n(state)) ?? "PENDING";
  }

  /** What ended first, if that is more than a page keeps. */
  get surplus() {
    if (this.#told && this.#ended > ENDED_KEPT) {
      for (const { task_id, state } of this.#latest.values()) if (FINAL.has(state)) return task_id;
    }
  }

  /** @returns {Job} */
  get job() {
    const tasks = [...this.#tasks.values()];
    const open = tasks.filter(({ state }) => !FINAL.has(state));
    const last = [...this.#latest.values()].findLast(({ state }) => ["STARTED", "PROGRESS", "RETRY"].includes(state));
    const [error = this.state === "RETRY" ? textOf(last?.error) : null] = this.#errors.values();
    const [url = null, another] = this.#urls;
    return {
      ...this,
      title: this.#namer?.title ?? null,
      description: textOf(last?.description),
      error,
      url: textOf(this.#namer?.url) ?? (another ? null : url),
      cancellable: open.some(({ cancellable, cancelling }) => cancellable === true && cancelling !== true),
      cancelling: open.some(({ cancelling }) => cancelling === true),
      tasks,
    };
  }
}

// ------------------------------------------------------------------------------------------- TaskNotifications

export class TaskNotifications extends EventTarget {
  /** @type {Map<string, TaskEvent>} */
  tasks = new Map();
  /** The history has come. */
  caughtUp = false;
  /** Elements that show it. */
  users = 0;

  /** The newest id of each key. @type {Map<string, number>} */
  #ids = new Map();
  /** What came under names that nobody here listens for yet, by key. @type {Map<string, [string, number, any]>} */
  #unheard = new Map();
  /** Custom events listened for here. @type {Set<string>} */
  #names = new Set();
  /** And in the other tabs, so that each can lead. @type {Set<string>} */
  #handed = new Set();
  /** @type {Map<string, Fold>} */
  #folds = new Map();
  /** @type {ConnectionState} */
  #state = "connecting";
  #lastEventId = 0;
  /** The highest id since this connection's catch-up began. */
  #highest = 0;

  /** Tells one user's answers from another's. @type {string | null | undefined} */
  #tag;
  /** Of the lock and the channel of all tabs of this user; "" for a tab on its own. @type {string | null} */
  #name = null;
  /** @type {BroadcastChannel | undefined} */
  #channel;
  /** The lock, or a place in its queue, until this is aborted. */
  #place = new AbortController();
  #leading = false;
  /** The leader was asked for a sign. */
  #seeking = false;
  /** As long as something may be missing: the id up to which nothing is. @type {number | null} */
  #gap = null;
  /** The leader's id for which it was asked. */
  #missed = 0;

  /** @type {EventSource | undefined} */
  #source;
  /** The browser is reconnecting by itself. */
  #reconnecting = false;
  // When the stream was opened, may be again, and, by the clock since timers may sleep, is dead.
  #openedAt = 0;
  #retryAt = 0;
  #silentAt = 0;
  #silence;
  /** In a row, of the stream or of what was asked for. */
  #failures = 0;
  /** Answers have overtaken the stream, which somebody has held back: what it tells is too old. */
  #stale = false;
  /** Streams in a row, although the server has answered. */
  #lost = 0;
  /** The answers can stand in for the stream. */
  #usable = false;
  #etag = NO_ETAG;
  /** All there is has been asked for, and not been told. */
  #all = false;
  /** Answers in a row without news. */
  #unchanged = 0;
  /** Of requests: an answer may come when it is no longer wanted. */
  #turn = 0;
  #watchdog = 0;
  #timer = 0;
  #leaving = new AbortController();

  constructor(url = DEFAULT_STREAM, { heartbeat = 15 } = {}) {
    super();
    this.url = new URL(url, document.baseURI).href;
    this.#silence = heartbeat * HEARTBEATS_MISSED * 1000;
    const { signal } = this.#leaving;
    /** @param {EventTarget} target @param {string} name @param {(event: any) => void} listener */
    const on = (target, name, listener) => target.addEventListener(name, listener, { signal });
    on(window, "online", () => this.#resume());
    on(document, "resume", () => this.#resume());
    on(document, "visibilitychange", () => this.#look());
    on(window, "pageshow", ({ persisted }) => persisted && this.#resume(true));
    on(window, "pagehide", () => this.#leave());
    on(document, "freeze", () => this.#leave());
    const block = document.querySelector(`script[data-stream="${new URL(this.url).pathname}"]`);
    const told = parse(block?.textContent);
    block?.remove(); // it is older each time
    if (block && told) this.#learn(block.getAttribute("data-user"), told, true);
    else this.#ask();
  }

  get connected() {
    return this.#state === "live" || this.#state === "polling";
  }

  get state() {
    return this.#state;
  }

  get #streaming() {
    return this.#state === "live" || this.#state === "degraded";
  }

  jobs() {
    return [...this.#folds.values()].map((fold) => fold.job).reverse();
  }

  /** @param {string} id */
  job(id) {
    return this.#folds.get(id)?.job;
  }

  close() {
    this.#leaving.abort();
    this.#leave();
    this.#become("closed");
  }

  /** @param {string} id */
  async cancel(id) {
    await this.#request("POST", `tasks/${encodeURIComponent(id)}/cancel`);
  }

  /** @param {string} key */
  async remove(key) {
    try {
      await this.#request("DELETE", `tasks/${encodeURIComponent(key)}`);
    } catch (error) {
      // 404: another tab was first.
      if (/** @type {any} */ (error).status !== 404) throw error;
    }
    this.#forget(key);
  }

  /**
   * EventSource hands on only what it was told the name of.
   * @param {string} name @param {any} listener @param {AddEventListenerOptions | boolean} [options] @override
   */
  addEventListener(name, listener, options) {
    super.addEventListener(name, listener, options);
    if (RESERVED.has(name) || this.#names.has(name)) return;
    this.#names.add(name);
    if (this.#hand([name]) && !this.#leading) this.#seek();
    for (const [key, told] of this.#unheard) {
      if (told[0] !== name) continue;
      this.#unheard.delete(key);
      queueMicrotask(() => this.#custom(...told, true));
    }
  }

  // Asking: at first, and whenever the stream is not there. EventSource does not tell the status of an answer; and
  // where no stream can be had, the answers stand in for it.

  async #ask(all = !this.caughtUp) {
    all = this.#all ||= all; // also if that is overtaken by another question
    clearTimeout(this.#timer);
    const turn = (this.#turn += 1);
    let answer = Response.error(); // status 0: nobody there
    let told;
    try {
      const after = all ? 0 : (this.#gap ?? this.#lastEventId);
      const path = after ? `tasks?after=${after}` : "tasks";
      answer = await this.#fetch(path, "GET", { "If-None-Match": this.#etag });
      if (answer.status === 200) told = parse(await answer.text());
    } catch {
      answer = Response.error();
    }
    if (turn !== this.#turn) return;
    const { status, headers } = answer;
    this.#usable = Boolean(told) || status === 304;
    if (status === 401 || status === 403) {
      this.#leave();
      this.#forgetAll(); // who comes next at this machine is somebody else
      this.#become("refused", { status });
      return;
    }
    if (status === 0 || status === 429 || status >= 500) {
      if (this.#source && this.#streaming) return; // the stream is well
      this.#lost = 0;
      return this.#later(retryAfter(headers.get("Retry-After")));
    }
    if (told) this.#etag = headers.get("ETag") ?? NO_ETAG;
    if (this.#usable && all) this.#all = false;
    this.#unchanged = told ? 0 : this.#unchanged + 1;
    this.#learn(this.#usable ? headers.get("Celery-Notify-User") : this.#tag, told, all);
  }

  /** @param {string | null | undefined} tag @param {any} told none: no news @param {boolean} all */
  #learn(tag, told, all) {
    if (this.#tag !== undefined && tag !== this.#tag) {
      // Somebody else has logged in: nothing of the one before stays, nor reaches the other's tabs.
      this.#leave();
      this.#forgetAll();
      if (!all) return void this.#ask();
    }
    this.#tag = tag;
    if (told) {
      this.#pass("TASKS", told, all);
      this.#gap = null;
    }
    this.#stale ||= Boolean(told && this.#source && !this.#streaming);
    if (this.#name === null) this.#join();
    else if (this.#leading) this.#goOn();
    else this.#seek();
  }

  /** Has the stream, and until it is there the next answer. */
  #goOn() {
    const now = performance.now();
    clearTimeout(this.#timer);
    if (!this.#source && now >= this.#retryAt) this.#connect();
    if (this.#streaming) return;
    const late = this.#state === "polling" || this.#lost > 1 || !this.#source || now >= this.#openedAt + PATIENCE;
    const polling = late && this.#usable;
    const wait = Math.min(LONGEST_POLL, FIRST_POLL * 1.5 ** this.#unchanged) * (document.hidden ? HIDDEN : 1);
    this.#timer = setTimeout(() => this.#ask(), polling ? wait : PATIENCE);
    if (polling) this.#become("polling");
  }

  #lose() {
    this.#lost += 1;
    this.#later();
  }

  /** Full jitter: any wait up to a limit that doubles. */
  #later(atLeast = 0) {
    this.#disconnect();
    const limit = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures);
    this.#failures += 1;
    const wait = atLeast + Math.random() * limit;
    this.#retryAt = performance.now() + wait;
    if (this.#state === "polling" && !atLeast && this.#usable) return this.#goOn();
    this.#timer = setTimeout(() => this.#ask(), wait);
    this.#become("waiting", { wait: wait / 1000 });
  }

  /** Even when refused, if the person may have logged in since. */
  #resume(refused = false) {
    if (this.#state === "refused" && !refused) return;
    this.#failures = this.#lost = this.#retryAt = this.#unchanged = 0;
    this.#disconnect();
    this.#ask();
  }

  /** Timers may have slept for hours. */
  #look() {
    if (document.hidden || this.#state === "refused") return;
    if (this.#channel && !this.#leading) this.#seek();
    else if (!this.#streaming || Date.now() > this.#silentAt) this.#resume();
  }

  // Sharing: of all tabs of a user the one that holds the lock leads. It alone has a stream, and passes on all it is
  // told; each tab takes that in the same way.

  #join() {
    const tag = this.#tag;
    this.#name = tag && navigator.locks && window.BroadcastChannel ? `celery_notify 1 ${tag} ${this.url}` : "";
    if (!this.#name) return this.#lead();
    this.#gap = this.#lastEventId; // what was told until the channel is there
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => (data[0] === "WHO" || !this.#leading) && this.#hear(data);
    this.#claim();
    this.#seek();
  }

  #claim(steal = false) {
    this.#place.abort();
    const { signal } = (this.#place = new AbortController());
    const hold = () => {
      if (signal.aborted) return;
      this.#lead();
      return new Promise((release) => signal.addEventListener("abort", release));
    };
    navigator.locks.request(this.#name ?? "", steal ? { steal } : { signal }, hold).catch(({ name }) => {
      if (signal.aborted) return;
      this.#leading = false;
      this.#gap ??= this.#lastEventId; // what was passed on was not heard
      this.#disconnect();
      if (name !== "AbortError") return this.#lead(); // no locks in such a frame
      this.#claim(); // another tab took this one for dead
      this.#seek();
    });
  }

  #lead() {
    this.#leading = true;
    this.#seeking = false;
    this.#retryAt = 0;
    this.#lastEventId = this.#gap ?? this.#lastEventId;
    this.#gap = null;
    this.#say();
    this.#goOn();
  }

  /** @param {unknown[]} what */
  #post(...what) {
    this.#channel?.postMessage(what);
  }

  #say() {
    if (this.#leading) this.#post("STATE", this.#state, this.#lastEventId, document.hidden, [...this.#handed]);
  }

  #seek() {
    if (!this.#channel) return;
    this.#seeking = true;
    this.#post("WHO", [...this.#handed]);
    this.#expect(LONGEST_SIGN * (1 + Math.random())); // not all followers at once
  }

  /** @param {string} kind @param {any} [data] @param {any} [id] */
  #pass(kind, data, id) {
    if (this.#leading) this.#post(kind, data, id);
    this.#hear([kind, data, id]);
  }

  /** @param {any[]} told by the leader, in capitals in its own words; or asked of it */
  #hear([kind, data, id, hidden, names]) {
    if (kind === "WHO") {
      this.#hand(data);
      return this.#say();
    }
    this.#seeking = false;
    if (!this.#leading || kind !== "TASKS") this.#expect(this.#silence);
    if (kind === "OPEN") this.#highest = 0;
    else if (kind === "TASKS") this.#snapshot(data, id);
    else if (kind !== "STATE") this.#receive(kind, data, id);
    else {
      this.#become(data);
      // Where nobody looks it is asked for less often.
      if (data === "polling" && hidden && !document.hidden) this.#claim(true);
      this.#hand(names);
      this.#gap ??= this.#lastEventId;
      if (id <= this.#gap) this.#gap = null;
      else if (id !== this.#missed) {
        this.#missed = id;
        this.#ask();
      }
    }
  }

  // The stream. EventSource reconnects once by itself, since no script can read `retry:`. It gives up at any answer
  // but 200, and its waits do not grow: the rest is done here.

  #connect() {
    this.#source?.close();
    this.#stale = false;
    this.#openedAt = performance.now();
    if (this.#state !== "polling") this.#become("connecting");
    if (!window.EventSource) return;
    const url = new URL(this.url);
    if (this.#lastEventId) url.searchParams.set("last_event_id", String(this.#lastEventId));
    if (this.#tag) url.searchParams.set("user_tag", this.#tag);
    const source = (this.#source = new EventSource(url));
    source.onopen = () => {
      this.#reconnecting = false;
      this.#pass("OPEN");
    };
    source.onerror = () => this.#failed(source);
    for (const name of [...STREAM_EVENTS, ...this.#handed]) this.#listen(name);
    this.#expect(this.#silence);
  }

  /** @param {string} name */
  #listen(name) {
    this.#source?.addEventListener(name, ({ data, lastEventId }) => {
      if (this.#stale) return this.#connect();
      clearTimeout(this.#timer);
      this.#pass(name, data, lastEventId);
    });
  }

  /** @param {string[]} names @returns whether any is new: what came before under it is asked for */
  #hand(names) {
    const more = names.filter((name) => !this.#handed.has(name));
    for (const name of more) {
      this.#handed.add(name);
      this.#listen(name);
    }
    if (more.length && this.#source && !this.#all) this.#ask(true);
    return more.length > 0;
  }

  /** @param {EventSource} source */
  #failed(source) {
    if (source.readyState === EventSource.CLOSED || this.#reconnecting) return this.#lose();
    this.#reconnecting = true;
    this.#expect(LONGEST_RECONNECTION);
    this.#become("waiting");
  }

  #disconnect() {
    this.#turn += 1;
    this.#source?.close();
    this.#source = undefined;
    this.#reconnecting = false;
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
  }

  #leave() {
    this.#disconnect();
    this.#place.abort();
    this.#channel?.close();
    this.#channel = undefined;
    this.#name = null;
    this.#leading = false;
  }

  /** @param {number} limit within which something has to come */
  #expect(limit) {
    this.#silentAt = Date.now() + limit;
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => {
      if (this.#leading) this.#lose();
      else if (this.#seeking) this.#claim(true);
      else this.#seek();
    }, limit);
  }

  /** @param {ConnectionState} state @param {{wait?: number, status?: number}} [more] */
  #become(state, more) {
    if (state === this.#state && state !== "waiting") return;
    this.#state = state;
    this.#say();
    this.#tell("connection", { state, connected: this.connected, ...more });
  }

  /** @param {string} name @param {string} text @param {string} lastEventId */
  #receive(name, text, lastEventId) {
    const id = Number(lastEventId);
    this.#lastEventId = id || this.#lastEventId;
    this.#etag = NO_ETAG;
    const data = parse(text);
    if (!data) return;
    if (name === "ready") {
      this.#keep(data.keys);
      this.#failures = this.#lost = 0;
      this.#become("live");
    }
    if (name === "degraded") {
      this.#highest = 0; // another catch-up begins, and Redis may come back older
      this.#become("degraded");
    }
    if (["ready", "heartbeat", "degraded"].includes(name)) return;
    if (id && id <= this.#highest) return;
    this.#highest = id;
    if (name === "removed") this.#forget(data.key);
    else if (STREAM_EVENTS.includes(name)) this.#task(id, data);
    else this.#custom(name, id, data);
  }

  /** All there is at one moment, or what is newer than what was known. @param {any} told @param {boolean} all */
  #snapshot({ tasks, events, keys, last_event_id }, all) {
    const id = numberOf(last_event_id);
    const known = this.caughtUp;
    // What was missing may be older than what is known of its job.
    const jobs = new Set(all ? this.#folds.keys() : []);
    for (const task of arrayOf(tasks)) {
      this.caughtUp = !all || (known && this.#ids.has(task?.task_id));
      this.#task(id, task, jobs);
    }
    this.caughtUp = !all;
    for (const each of arrayOf(events)) this.#custom(each?.event, numberOf(each?.id), each?.data);
    // Meanwhile a stream may have told more. Without one Redis may have come back older.
    const alone = this.#leading && !this.#streaming;
    if (id > this.#lastEventId || (id && alone)) this.#lastEventId = id;
    this.#keep(keys, all, alone ? Infinity : id);
  }

  /** @param {number} id @param {TaskEvent} event @param {Set<string>} [jobs] that know more */
  #task(id, event, jobs) {
    // What should be a text or a number, and is neither, is as good as absent.
    for (const [name, value] of Object.entries(event ?? {})) {
      if (Object(value) === value && name !== "job" && name !== "result") delete event[/** @type {"at"} */ (name)];
    }
    const { task_id: key, state } = event ?? {};
    if (!textOf(key) || !textOf(state)) return;
    const shown = this.tasks.get(key);
    const known = this.#ids.get(key) ?? 0;
    this.#ids.set(key, Math.max(id, known));
    // Known but not shown: surplus.
    if (shown ? !movesOn(shown, event, id > known) : id && id <= known) return;
    const job_id = jobOf(event);
    if (shown && jobOf(shown) !== job_id) this.#drop(key);
    const fold = this.#folds.get(job_id) ?? new Fold();
    const before = fold.state;
    this.#folds.set(job_id, fold);
    this.tasks.set(key, event);
    fold.put(event, !jobs?.has(job_id));
    this.#tell(FINAL.has(state) ? "task-done" : "task-progress", event);
    this.#tell("change", { key, task: event, job_id, ended: FINAL.has(fold.state) && !FINAL.has(before) });
    if (fold.surplus) this.#drop(fold.surplus);
  }

  /** @param {string} name @param {number} id @param {any} event @param {boolean} [history] */
  #custom(name, id, event, history = !this.caughtUp) {
    const { key, data, at } = event ?? {};
    if (typeof key !== "string") return;
    if (!this.#names.has(name)) return void this.#unheard.set(key, [name, id, event]);
    // Key by key: of a Redis that came back older all ids may lie below the last one.
    if (id && id <= (this.#ids.get(key) ?? 0)) return;
    this.#ids.set(key, id);
    this.#tell(name, data, { key, at, history });
  }

  /** The history is complete. @param {unknown} keys all it held @param {boolean} [all] were told @param {number} [at] */
  #keep(keys, all, at = Infinity) {
    const known = new Set([...this.#ids.keys(), ...this.#unheard.keys()]);
    const listed = Array.isArray(keys) ? new Set(keys) : known;
    for (const key of known) if (!listed.has(key) && (this.#ids.get(key) ?? 0) <= at) this.#forget(key);
    this.caughtUp = true;
    // What is older than the last event id: another person may have logged in.
    if (this.#leading && !all && [...listed].some((key) => !known.has(key))) this.#ask(true);
  }

  #forgetAll() {
    this.#lastEventId = 0;
    this.#etag = NO_ETAG;
    this.caughtUp = false;
    for (const key of [...this.#ids.keys(), ...this.#unheard.keys()]) this.#forget(key);
  }

  /** @param {string} key */
  #forget(key) {
    this.#ids.delete(key);
    this.#unheard.delete(key);
    this.#drop(key);
  }

  /** @param {string} key */
  #drop(key) {
    const task = this.tasks.get(key);
    if (!task) return;
    const job_id = jobOf(task);
    this.tasks.delete(key);
    if (!this.#folds.get(job_id)?.remove(key)) this.#folds.delete(job_id);
    this.#tell("change", { key, task: null, job_id, ended: false });
  }

  /** @param {string} name @param {unknown} detail @param {object} [more] */
  #tell(name, detail, more) {
    this.dispatchEvent(Object.assign(new CustomEvent(name, { detail }), { history: !this.caughtUp, ...more }));
  }

  /** @param {string} path @param {string} method @param {Record<string, string>} [headers] */
  #fetch(path, method, headers) {
    return fetch(new URL(path, this.url), {
      method,
      headers,
      cache: "no-store",
      redirect: "manual",
      signal: AbortSignal.timeout(LONGEST_ANSWER),
    });
  }

  /** @param {string} method @param {string} path */
  async #request(method, path) {
    const answer = await this.#fetch(path, method);
    if (answer.ok) return;
    const { error } = parse(await answer.text()) ?? {};
    throw Object.assign(new Error(error ?? `${method} ${path}: ${answer.status}`), { status: answer.status });
  }
}

/** By their url: elements with the same src have one connection. @type {Map<string, TaskNotifications>} */
const shared = new Map();

/** @param {string} src */
function acquire(src) {
  const url = new URL(src, document.baseURI).href;
  let notifications = shared.get(url);
  if (!notifications || ["closed", "refused"].includes(notifications.state)) {
    shared.set(url, (notifications = new TaskNotifications(url)));
  }
  notifications.users += 1;
  return notifications;
}

/** @param {TaskNotifications} notifications */
function release(notifications) {
  notifications.users -= 1;
  // Not at once: an element that moves leaves the page for a moment.
  setTimeout(() => {
    if (notifications.users) return;
    if (shared.get(notifications.url) === notifications) shared.delete(notifications.url);
    notifications.close();
  });
}

// ------------------------------------------------------------------------------------------------ the elements

/** What has come within so many milliseconds, and so much of the whole, does not tell how fast something goes. */
const SHORTEST_SPAN = 5000;
const LEAST_PART = 0.03;
/** Of its marks so many are looked back to: of what moves ten times a second half a minute. */
const MARKS_KEPT = 300;
/** A guess is good for as long as it was watched for, and so many milliseconds. */
const LONGEST_SILENCE = 10_000;
/** Milliseconds that a toast stays, unless it tells of a failure. */
const LINGERS = 8000;
const MOST_TOASTS = 5;
/** That are shown unless more are asked for: a browser is busy for long with thousands. As in the style. */
const ROWS = 200;

// Constructed: a policy without 'unsafe-inline' lets it through.
const sheet = new CSSStyleSheet();
sheet.replaceSync(`
  :host {
    --_accent: var(--task-accent, light-dark(#2f5fd0, #8db0ff));
    --_success: var(--task-success, light-dark(#1b7a48, #6fd3a0));
    --_failure: var(--task-failure, light-dark(#b3261e, #ffa59c));
    --_warning: var(--task-warning, light-dark(#8a5a00, #f0c070));
    --_muted: var(--task-muted, color-mix(in srgb, currentColor 66%, transparent));
    --_line: var(--task-line, color-mix(in srgb, currentColor 14%, transparent));
    --_gap: var(--task-gap, 1rem);
    display: block;
    line-height: 1.4;
  }
  :host([hidden]), [hidden] { display: none !important; }
  ul { list-style: none; margin: 0; padding: 0; outline: none; }
  li { content-visibility: auto; contain-intrinsic-size: auto 4.5rem; }
  [part=list] > :nth-child(n+201) { display: none; }
  li + li { border-block-start: 1px solid var(--_line); }
  [part~=task] {
    --_color: var(--_muted);
    display: grid;
    grid-template-columns: minmax(0, 1fr) fit-content(50%);
    align-items: baseline;
    column-gap: .75rem;
    padding-block: var(--_gap);
    overflow-wrap: anywhere;
  }
  [part~=started], [part~=progress] { --_color: var(--_accent); }
  [part~=success], [part~=live] { --_color: var(--_success); }
  [part~=failure], [part~=rejected] { --_color: var(--_failure); }
  [part~=retry], [part~=stalled] { --_color: var(--_warning); }
  [part~=title] { font-weight: 600; text-align: -webkit-match-parent; text-align: match-parent; }
  [part~=state] {
    color: var(--_color);
    font-size: .875em;
    font-variant-numeric: tabular-nums;
    text-align: end;
  }
  [part~=state]::before, [part~=live]::before {
    content: "";
    display: inline-block;
    inline-size: .5em;
    block-size: .5em;
    margin-inline-end: .5em;
    border-radius: 50%;
    background: var(--_color);
    vertical-align: .1em;
  }
  [part~=text], [part~=bar], details { grid-column: 1 / -1; margin-block-start: .375rem; }
  [part~=text], [part~=words] {
    display: flex;
    flex-wrap: wrap;
    align-items: baseline;
    justify-content: end;
    gap: .25rem .75rem;
  }
  [part~=text], [part~=connection], details { font-size: .875em; }
  [part~=text], [part~=connection], [part~=empty], summary { color: var(--_muted); }
  [part~=words] { flex: 1 1 6rem; justify-content: start; }
  [part~=error] { flex: 1 0 100%; color: var(--_failure); }
  [part~=bar] {
    block-size: var(--task-bar-height, .375rem);
    border-radius: 1rem;
    background: var(--task-track, color-mix(in srgb, currentColor 12%, transparent));
    overflow: hidden;
  }
  [part~=bar]:dir(rtl) { scale: -1 1; direction: ltr; }
  [part~=fill] {
    block-size: 100%;
    border-radius: inherit;
    background: var(--_color);
    transition: translate .25s;
  }
  [part~=indeterminate] [part~=fill] {
    inline-size: 30%;
    animation: go 1.6s ease-in-out infinite alternate;
  }
  @keyframes go { to { translate: 233%; } }
  details { --_gap: .5rem; }
  details ul {
    margin-block-start: .375rem;
    padding-inline-start: .875rem;
    border-inline-start: 2px solid var(--_line);
  }
  summary { inline-size: fit-content; cursor: pointer; }
  a, button {
    padding: .125rem .625rem;
    border: 1px solid var(--_line);
    border-radius: .375rem;
    background: none;
    color: inherit;
    font: inherit;
    text-decoration: none;
    cursor: pointer;
  }
  a { color: var(--_accent); font-weight: 600; }
  a:hover, button:hover { border-color: currentColor; }
  [aria-disabled] { opacity: .5; }
  :focus-visible { outline: 2px solid var(--_accent); }
  p { margin: 0; }
  [part~=empty] { padding-block: var(--_gap); }
  [part~=connecting], [part~=waiting] { animation: appear 0s 1.5s backwards; }
  [part~=degraded], [part~=waiting] { color: var(--_warning); }
  @keyframes appear { from { visibility: hidden; } }
  [part=spoken] {
    position: absolute;
    inline-size: 1px;
    block-size: 1px;
    overflow: hidden;
    clip-path: inset(50%);
  }
  :host(task-toast) {
    position: fixed;
    inset-block-end: 1rem;
    inset-inline-end: 1rem;
    z-index: 99;
    inline-size: min(22rem, 100% - 2rem);
    text-align: end;
    pointer-events: none;
  }
  :host(task-toast) ul {
    margin: -1rem;
    padding: 1rem;
    max-block-size: calc(100dvh - 6rem);
    overflow-y: auto;
    text-align: start;
  }
  :host(task-toast) li, [part=desktop] {
    pointer-events: auto;
    margin-block-start: .5rem;
    font-size: .875em;
    border: 1px solid var(--_line);
    border-radius: .5rem;
    padding: .75rem 1rem;
    background: var(--task-toast, Canvas);
    color: CanvasText;
    box-shadow: 0 .25rem 1rem #0003;
  }
  @media (pointer: coarse) {
    a, button, summary { padding-block: .6875rem; }
  }
  @media (prefers-reduced-motion) {
    [part~=fill] { transition: none; }
    [part~=indeterminate] [part~=fill] { inline-size: 100%; opacity: .4; animation: none; }
  }
  @media (forced-colors: active) {
    [part~=bar] { border: 1px solid; }
    [part~=fill] { background: Highlight; }
  }
`);

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {string} part @param {(Node | string)[]} children
 */
function make(tag, part, ...children) {
  const element = document.createElement(tag);
  element.part = part;
  if (["title", "description", "error"].includes(part)) element.dir = "auto"; // which also isolates it
  element.append(...children);
  return element;
}

/** @param {Element} element @param {string} name @param {string | number | null} value */
function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== `${value}`) element.setAttribute(name, `${value}`);
}

/** @param {HTMLElement} element @param {unknown} text none: it is hidden @param {string} [title] of what it acts on */
function setText(element, text, title) {
  const shown = String(text || "");
  if (element.textContent !== shown) element.textContent = shown;
  element.hidden = !shown;
  if (title) setAttribute(element, "aria-label", `${shown} ${title}`);
}

/** The language that an element stands in, if it is one; else the browser's. @param {Element} element */
function languageOf(element) {
  try {
    const { lang } = /** @type {HTMLElement} */ (element.closest("[lang]"));
    return Intl.getCanonicalLocales(lang)[0];
  } catch {
    // No language.
  }
}

const rowOf = new WeakMap();

/** What the button of a row does with what is over; the tasks of a job have none. @typedef {"remove" | "dismiss" | ""} Use */

/** A task or job: made once, then only what differs is touched. */
class Row {
  /** @type {any} */
  given;
  /** Of a job of several tasks. @type {any} */
  details;
  /** @type {any} */
  members;
  /** What its button does. */
  verb = "";
  /** Where it stands among others. */
  order = "-";
  /** When it was how far in this attempt, of late. @type {any[]} */
  #marks = [];
  #left = 0;
  #until = 0;
  #timer = 0;

  /** @param {"li" | "div"} tag @param {NotificationsElement} owner @param {Use} use */
  constructor(tag, owner, use) {
    this.owner = owner;
    this.use = use;
    this.title = make("div", "title");
    this.state = make("div", "state");
    this.description = make("div", "description");
    this.left = make("div", "left");
    this.error = make("div", "error");
    this.link = make("a", "link");
    this.link.rel = "noopener";
    this.link.target = owner.getAttribute("target") ?? "";
    this.button = make("button", "button");
    this.button.onclick = () => owner.act(this);
    this.fill = make("div", "fill");
    this.bar = make("div", "bar", this.fill);
    this.bar.role = "progressbar";
    const words = make("div", "words", this.error, this.description, this.left);
    const text = make("div", "text", words, this.link, this.button);
    this.element = make(tag, "task", this.title, this.state, this.bar, text);
    rowOf.set(this.element, this);
  }

  /** @param {TaskEvent | Job} given */
  update(given) {
    const { owner, use } = this;
    const job = "task_id" in given ? null : given;
    const several = job && job.counts.tasks > 1;
    /** Of a job of one task that task. @type {any} */
    const item = several ? job : (job?.tasks[0] ?? given);
    const { state, description, error, cancelling } = item;
    const final = FINAL.has(state);
    // What is interrupted may never end; but nothing is removed that may still run.
    const over = (/** @type {TaskEvent} */ task) => task.state === "STALLED" || FINAL.has(task.state);
    this.given = given;
    this.order = final ? String(item.at) : !use && state === "PENDING" ? "~~" : "~";
    const title = item.title || owner.say("untitled");
    setText(this.title, title);
    setAttribute(this.element, "part", `task ${state.toLowerCase()}`);

    const fraction = "task_id" in given ? fractionOf(given) : given.fraction;
    const percent = fraction === null ? null : Math.floor(fraction * 100);
    const moving = !final && !["PENDING", "RETRY", "STALLED"].includes(state);
    const shown = moving && percent !== null && !cancelling;
    const text = owner.say(cancelling && !final ? "cancelling" : state);
    const left = this.#secondsLeft(item, fraction);
    const retry = state === "RETRY" && owner.clock(item.retry_at);
    const [current, total] = several ? [item.counts.ended, item.counts.tasks] : [item.current, item.total];
    const numbers = { current: owner.number(current), total: owner.number(total) };
    const count = numbers.current && numbers.total && owner.say("of", numbers);
    setText(this.state, shown ? `${text} ${owner.number(percent / 100, { style: "percent" })}` : text);
    setText(this.description, final ? owner.clock(item.at) : retry ? owner.say("retryAt", { time: retry }) : description);
    setText(this.left, shown && left && owner.say("left", { time: owner.duration(left) }));
    this.bar.hidden = final;
    const vague = moving && percent === null;
    setAttribute(this.bar, "part", vague ? "bar indeterminate" : "bar");
    setAttribute(this.bar, "aria-label", title);
    setAttribute(this.bar, "aria-valuenow", percent);
    const words = [count || text, description, this.left.textContent];
    setAttribute(this.bar, "aria-valuetext", words.filter(Boolean).join(", "));
    // What a browser moves by `translate` costs the page's thread nothing.
    this.fill.style.translate = vague ? "" : `${100 * (fraction ?? 0) - 100}%`;

    setText(this.error, state !== "SUCCESS" && error);
    const link = state === "SUCCESS" ? safeLink(item.url) : null;
    setAttribute(this.link, "href", link);
    setText(this.link, link && owner.say("open"), title);
    const cancel = item.cancellable && (several || !cancelling) ? "cancel" : "";
    this.verb = use && ([item, ...(job?.tasks ?? [])].every(over) ? use : cancel);
    setText(this.button, this.verb && owner.say(this.verb), title);
    if (!several || use === "dismiss") return;
    if (!this.details) {
      this.members = new List("members", owner, "");
      this.details = make("details", "details", make("summary", "count"), this.members.element);
      this.details.ontoggle = () => this.update(this.given);
      this.element.append(this.details);
    }
    setText(this.details.firstChild, count, title);
    const tasks = this.details.open ? job.tasks : []; // what nobody looks at takes no room
    const end = performance.now() + LONGEST_DRAWING;
    this.members.keep(tasks.map(({ task_id }) => task_id));
    for (const task of tasks) {
      if (performance.now() > end) return requestAnimationFrame(() => this.update(this.given));
      this.members.show(task.task_id, task);
    }
  }

  /**
   * Seconds it will still take, going on as it did of late, by the times of its events, since clocks differ; 0 where
   * nobody knows: too little has been seen of it, or nothing for long.
   * @param {any} item @param {number | null} fraction
   */
  #secondsLeft({ attempt, at }, fraction) {
    const mark = { attempt, time: Date.parse(at), part: fraction ?? 0 };
    const [first] = this.#marks;
    const last = this.#marks.at(-1);
    if (attempt !== last?.attempt || !(mark.time >= last?.time)) {
      this.#marks = [mark];
      this.#until = 0;
    } else if (mark.time > last.time) {
      if (this.#marks.push(mark) > MARKS_KEPT) this.#marks.shift();
      const span = mark.time - first.time;
      const moved = mark.part - first.part;
      this.#left = Math.ceil(((span / moved) * (1 - mark.part)) / 5000) * 5;
      this.#until = span < SHORTEST_SPAN || moved < LEAST_PART ? 0 : performance.now() + span + LONGEST_SILENCE;
    }
    const good = this.#until - performance.now();
    clearTimeout(this.#timer);
    if (good > 0) this.#timer = setTimeout(() => this.update(this.given), good);
    return good > 0 ? this.#left : 0;
  }
}

/** Rows, by key. */
class List {
  /** @type {Map<string, Row>} */
  rows = new Map();

  /** @param {string} part @param {NotificationsElement} owner @param {Use} use */
  constructor(part, owner, use) {
    this.owner = owner;
    this.use = use;
    this.element = make("ul", part);
    this.element.role = "list"; // Safari takes it away where there are no bullets
    this.element.tabIndex = -1;
  }

  /** @param {string} key @param {TaskEvent | Job | undefined} item none: the row goes */
  show(key, item = undefined) {
    if (!item) return this.#remove(key);
    if (this.rows.get(key)?.given === item) return;
    const row = this.rows.get(key) ?? new Row("li", this.owner, this.use);
    const was = row.order;
    row.update(item);
    this.rows.set(key, row);
    if (was !== row.order) this.#place(row);
  }

  /**
   * Jobs: what runs, the newest first, then what has ended, the last to end first. The tasks of one read downwards: what
   * has ended, runs, waits. By the times of the endings, so that it is the same in each tab.
   * @param {Row} row
   */
  #place(row) {
    const below = (/** @type {Row} */ { order }) => (this.use ? order <= row.order : order > row.order);
    const focused = /** @type {HTMLElement | null} */ (this.owner.root.activeElement);
    let next = this.element.firstElementChild;
    while (next && (next === row.element || !below(rowOf.get(next)))) next = next.nextElementSibling;
    this.element.insertBefore(row.element, next);
    if (row.element.contains(focused)) focused?.focus(); // moving took it away
  }

  /** @param {string[]} keys */
  keep(keys) {
    const kept = new Set(keys);
    for (const key of this.rows.keys()) if (!kept.has(key)) this.#remove(key);
  }

  /** @param {string} key */
  #remove(key) {
    const row = this.rows.get(key);
    if (!row) return;
    this.rows.delete(key);
    const focused = row.element.contains(this.owner.root.activeElement);
    const next = row.element.nextElementSibling ?? row.element.previousElementSibling;
    row.element.remove();
    // With the keyboard one goes on with the next.
    /** @type {HTMLElement} */
    const other = next?.querySelector("summary, a[href], button:not([hidden])") ?? this.element;
    if (focused) other.focus();
  }
}

/** Changes that have been spoken: of several elements one is enough. */
const spoken = new WeakSet();

/** What the elements share. */
class NotificationsElement extends HTMLElement {
  static observedAttributes = ["src", "task-id", "lang", "strings"];

  /** @type {TaskNotifications | null} */
  notifications = null;
  #drawing = 0;
  #drawn = 0;
  #listening = new AbortController();
  #spoken = make("div", "spoken");
  /** @type {Node[]} */
  #toSay = [];
  /** @type {any} */
  #strings = strings;
  /** @type {string | undefined} */
  #language;

  constructor() {
    super();
    this.root = this.attachShadow({ mode: "open" });
    this.root.adoptedStyleSheets = [sheet];
    this.root.append(Object.assign(this.#spoken, { role: "status", ariaLive: "polite" }));
  }

  connectedCallback() {
    this.reset(); // it may have shown another person's
    this.#spoken.replaceChildren();
    const notifications = (this.notifications = acquire(this.getAttribute("src") ?? DEFAULT_STREAM));
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const changed = (/** @type {any} */ { detail, history }) => {
      this.changed(detail.job_id);
      const item = history ? null : this.news(detail);
      if (!item) return;
      const title = item.title || this.say("untitled");
      const state = [this.say(item.state), item.state !== "SUCCESS" && item.error].filter(Boolean).join(". ");
      if (!spoken.has(detail) && !document.hidden) this.#toSay.push(make("p", "", this.say("ended", { title, state })));
      spoken.add(detail);
      this.told(item, title, state);
    };
    notifications.addEventListener("change", changed, { signal });
    notifications.addEventListener("connection", () => this.schedule(), { signal });
    for (const { job_id } of notifications.jobs().reverse()) this.changed(job_id);
    this.schedule();
  }

  disconnectedCallback() {
    this.#listening.abort();
    if (this.notifications) release(this.notifications);
    this.notifications = null;
  }

  attributeChangedCallback() {
    if (!this.notifications) return;
    this.disconnectedCallback();
    this.connectedCallback();
  }

  /** In a frame: where nobody looks there is none. */
  schedule(wait = this.#drawn + PAUSE - performance.now()) {
    this.#drawing ||= setTimeout(() => {
      requestAnimationFrame((now) => {
        this.#drawing = 0;
        this.#drawn = now;
        this.#language = languageOf(this);
        this.#strings = { ...strings, ...parse(this.getAttribute("strings") ?? "") };
        if (this.notifications) this.draw(this.notifications);
        if (this.#toSay.length) this.#spoken.replaceChildren(...this.#toSay.splice(0));
      });
    }, wait);
  }

  /** A text; unknown states say themselves. @param {string} name @param {Record<string, any>} [values] */
  say(name, values = {}) {
    if (!Object.hasOwn(this.#strings, name)) return name;
    const text = this.#strings[name];
    return typeof text === "function" ? text(values) : String(text).replace(/{(\w+)}/g, (_, key) => values[key]);
  }

  /** @param {unknown} number @param {Intl.NumberFormatOptions} [options] */
  number(number, options) {
    return typeof number === "number" ? number.toLocaleString(this.#language, options) : "";
  }

  /** @param {number} seconds */
  duration(seconds) {
    const [unit, size] = seconds < 60 ? ["second", 1] : seconds < 5400 ? ["minute", 60] : ["hour", 3600];
    return this.number(Math.round(seconds / size), { style: "unit", unit, unitDisplay: "long" });
  }

  /** With the day, if that is another one. @param {unknown} text RFC 3339 */
  clock(text) {
    const time = new Date(String(text));
    const dateStyle = time.toDateString() === new Date().toDateString() ? undefined : "medium";
    return Number(time) ? time.toLocaleString(this.#language, { dateStyle, timeStyle: "short" }) : "";
  }

  /** Does what the row's button says. @param {Row} row */
  async act({ button, given, verb }) {
    const { task_id, job_id, tasks = [given] } = given;
    if (button.ariaDisabled) return; // `disabled` would take the focus away
    button.ariaDisabled = "true";
    try {
      if (verb === "cancel") await this.notifications?.cancel(task_id ?? job_id);
      else for (const { task_id } of tasks) await this.notifications?.remove(task_id);
    } catch {
      // The button stays.
    }
    button.ariaDisabled = null;
  }

  /** @param {string} _job_id */
  changed(_job_id) {
    this.schedule();
  }

  /** What has just ended. @param {Change} change @returns {TaskEvent | Job | null | undefined} */
  news({ ended, job_id }) {
    return ended ? this.notifications?.job(job_id) : null;
  }

  /** @param {any} _item what has just ended @param {string} _title @param {string} _state */
  told(_item, _title, _state) {}

  /** @param {TaskNotifications} _notifications */
  draw(_notifications) {}

  reset() {}
}

export class TaskList extends NotificationsElement {
  #list = new List("list", this, "remove");
  #empty = make("p", "empty");
  #connection = make("p", "connection");
  #more = make("button", "more");
  /** @type {Set<string>} */
  #changed = new Set();

  constructor() {
    super();
    const { element } = this.#list;
    this.root.prepend(this.#connection, element, this.#more, this.#empty);
    this.#more.onclick = () => {
      element.part = "list all";
      element.focus();
      this.#more.remove();
    };
  }

  /** @param {string} job_id */
  changed(job_id) {
    this.#changed.add(job_id);
    this.schedule();
  }

  /** @param {TaskNotifications} notifications */
  draw(notifications) {
    const { rows, element } = this.#list;
    element.ariaLabel = this.getAttribute("label") ?? this.say("list");
    const end = performance.now() + LONGEST_DRAWING;
    for (const id of this.#changed) {
      if (performance.now() > end) {
        this.schedule(0);
        break;
      }
      this.#changed.delete(id);
      this.#list.show(id, notifications.job(id));
    }
    const { state, caughtUp } = notifications;
    setText(this.#connection, this.say(state));
    setAttribute(this.#connection, "part", `connection ${state}`);
    const more = rows.size - ROWS;
    setText(this.#more, more > 0 && this.say("more", { number: this.number(more) }));
    // Nothing is said to be empty before the history has come.
    setText(this.#empty, caughtUp && !rows.size && this.say("empty"));
  }

  reset() {
    this.#list.keep([]);
    this.#changed.clear();
  }
}

export class TaskProgress extends NotificationsElement {
  /** @type {Row | null} */
  #row = null;

  /** @param {TaskNotifications} notifications */
  draw(notifications) {
    const item = this.#find(notifications);
    if (!item) return this.reset();
    if (!this.#row) {
      this.#row = new Row("div", this, "remove");
      this.root.prepend(this.#row.element);
    }
    this.#row.update(item);
  }

  /** @param {TaskNotifications} notifications */
  #find(notifications) {
    const id = this.getAttribute("task-id") ?? "";
    const named = notifications.job(id) ?? notifications.tasks.get(id);
    if (named) return named;
    for (const task of notifications.tasks.values()) if (task.group_id === id) return notifications.job(jobOf(task));
  }

  /** @param {Change} change */
  news({ ended, job_id, task }) {
    const final = FINAL.has(task?.state ?? "");
    if (!this.notifications || !(final || ended)) return null; // most changes: nothing is looked for
    const item = this.#find(this.notifications);
    return item && (item === task ? final : ended && item.job_id === job_id) ? item : null;
  }

  reset() {
    this.#row?.element.remove();
    this.#row = null;
  }
}

/** Held by each page that somebody sees. */
const SEEN = "celery_notify visible";

/** What the page's title begins with, where jobs have ended unseen. */
let mark = "";
let unseen = 0;

/** The application may have changed the title meanwhile. @param {number} number */
function count(number) {
  const { title } = document;
  const own = title.startsWith(mark) ? title.slice(mark.length) : title;
  unseen = number;
  mark = number ? `(${number})\u2002` : ""; // no application's own space
  document.title = mark + own;
}

/** Until this page is hidden, or seen again. */
const turned = () => new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

function look() {
  if (document.hidden) return;
  if (unseen) count(0);
  navigator.locks?.request(SEEN, { mode: "shared" }, () => document.hidden || turned()).catch(() => {});
}

document.addEventListener("visibilitychange", look);
look();

/** Says it outside of the browser, once for all tabs, if no tab is seen. @param {string} tag @param {string} title @param {string} body */
async function notify(tag, title, body) {
  try {
    const { held = [] } = await navigator.locks.query();
    if (held.some(({ name }) => name === SEEN)) return;
    await navigator.locks.request(`celery_notify ${tag}`, { ifAvailable: true }, (lock) => {
      return lock && new Notification(title, { body, tag }) && turned();
    });
  } catch {
    // Not in this browser, or not here.
  }
}

/** Endings, in a corner of the page. */
export class TaskToast extends NotificationsElement {
  #list = new List("list", this, "dismiss");
  #ask = make("button", "desktop");
  #region = make("section", "toasts", this.#list.element, this.#ask);

  constructor() {
    super();
    this.#ask.onclick = () => Notification.requestPermission().then(() => this.schedule());
    this.root.append(this.#region);
  }

  /** @param {string} job_id */
  changed(job_id) {
    if (!this.notifications?.job(job_id)) this.#list.show(job_id);
    this.schedule();
  }

  /** @param {Job} job @param {string} title @param {string} state */
  told(job, title, state) {
    const { job_id } = job;
    if (document.hidden) {
      count(unseen + 1);
      if (this.hasAttribute("desktop")) notify(job_id, title, state);
    }
    this.#list.show(job_id, job);
    for (const key of [...this.#list.rows.keys()].slice(0, -MOST_TOASTS)) this.#list.show(key);
    const leave = () => {
      if (document.hidden || this.matches(":hover, :focus-within")) setTimeout(leave, LINGERS);
      else if (!FAILED.has(this.#list.rows.get(job_id)?.given.state)) this.#list.show(job_id);
    };
    setTimeout(leave, LINGERS);
  }

  /** @param {Row} row */
  async act({ given }) {
    this.#list.show(given.job_id);
  }

  /** @param {TaskNotifications} notifications */
  draw(notifications) {
    this.#region.ariaLabel = this.say("toasts");
    const asks = this.hasAttribute("desktop") && isSecureContext && window.Notification?.permission === "default";
    const goesOn = asks && [...notifications.tasks.values()].some(({ state }) => !FINAL.has(state));
    setText(this.#ask, goesOn && this.say("desktop"));
  }

  reset() {
    this.#list.keep([]);
  }
}

customElements.get("task-list") ?? customElements.define("task-list", TaskList);
customElements.get("task-progress") ?? customElements.define("task-progress", TaskProgress);
customElements.get("task-toast") ?? customElements.define("task-toast", TaskToast);
