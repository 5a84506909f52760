// @ts-check
/// <reference path="./client.d.ts" />
/**
 * celery_notify in the browser: the tasks of the person who looks at the page, as they move.
 *
 *     import { TaskNotifications } from "/notifications/client.js";
 *
 *     const notifications = new TaskNotifications("/notifications/stream");
 *     notifications.addEventListener("task-done", ({ detail }) => console.log(detail.title, detail.state));
 *
 * Importing this file also defines `<task-list>` and `<task-progress>`. Types: client.d.ts.
 *
 * @module
 */

/** @typedef {import("./client.js").TaskEvent} TaskEvent */
/** @typedef {import("./client.js").Job} Job */
/** @typedef {import("./client.js").Change} Change */
/** @typedef {import("./client.js").ConnectionState} ConnectionState */

// Milliseconds.
const FIRST_WAIT = 1000; // the first wait before a reconnection is drawn from 0 to this, later ones from more,
const LONGEST_WAIT = 30_000; // up to this
const LONGEST_RETRY_AFTER = 300_000; // no longer one is believed
const LONGEST_RECONNECTION = 120_000; // the browser's own, the wait that `retry:` asks for included
const LONGEST_ANSWER = 10_000;
const LONGEST_DRAWING = 10; // in one frame, what is left is for the next one
/** A stream that is silent for so many heartbeats is dead, whatever the socket says. */
const HEARTBEATS_MISSED = 2.5;

/** Members of one job that have ended and stay on the page, the last ones; its counts speak of all. */
const MEMBERS_KEPT = 300;

const FINAL = new Set(["SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"]);
const FAILED = ["FAILURE", "REJECTED"];
/** In one of these a task has something to say of what it is doing. */
const TELLING = ["STARTED", "PROGRESS", "RETRY"];
const STREAM_EVENTS = ["task-progress", "task-done", "removed", "ready", "heartbeat", "degraded"];
/** Names that no custom event has. */
const RESERVED = new Set([...STREAM_EVENTS, "change", "connection", "open", "error"]);

/** Beside this file. */
const DEFAULT_STREAM = new URL("stream", import.meta.url).href;

/** What the elements say; assign other texts before the first element is shown to have another language. */
export const strings = {
  list: "Tasks",
  empty: "Nothing here yet. What you start shows up here.",
  untitled: "Task",
  open: "Open",
  remove: "Remove",
  cancel: "Cancel",
  cancelling: "Cancelling…",
  /** @param {string} current @param {string} total */
  of: (current, total) => `${current} of ${total}`,
  /** @param {string} time */
  retryAt: (time) => `Trying again at ${time}`,
  /** @param {string} title @param {string} state */
  ended: (title, state) => `${title}: ${state}`,
  /** @type {Record<string, string>} */
  states: {
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
  },
  /** @type {Record<ConnectionState, string>} */
  connection: {
    connecting: "Connecting…",
    live: "Live",
    degraded: "Updates are delayed",
    waiting: "Connection lost, trying again…",
    refused: "Signed out",
    closed: "Not connected",
  },
};

// ---------------------------------------------------------------------------------------------- pure functions

/** @param {string} text @returns {any} undefined for what is no JSON */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Says whether an event moves its task on. Nothing goes backwards on the screen, not even when Redis has come back
 * from an older snapshot or with a clock that is behind, so that ids alone do not tell.
 * @param {TaskEvent} shown @param {TaskEvent} next @param {boolean} newer whether the next one's id is the higher
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

/** @param {Pick<TaskEvent, "state" | "current" | "total">} task @returns {number | null} 0 to 1, null when it has not said how far it is */
function fractionOf({ state, current, total }) {
  if (state === "SUCCESS") return 1;
  if (typeof current !== "number" || typeof total !== "number" || !(total > 0)) return null;
  return Math.min(1, Math.max(0, current / total));
}

/** @param {unknown} value */
const textOf = (value) => (typeof value === "string" && value) || null;

/** @param {TaskEvent} task */
const jobOf = (task) => textOf(task.job_id) ?? task.task_id;

/** @param {TaskEvent["job"]} job the numbers that an event tells of its job */
function areNumbers(job) {
  if (!job) return false;
  const { tasks, ended, failed, revoked, hidden } = job;
  return tasks > 0 && [tasks, ended, failed, revoked, hidden].every((n) => Number.isSafeInteger(n) && n >= 0);
}

/** @param {unknown} text @returns {string | null} a link to this origin, or anywhere over https */
function safeLink(text) {
  if (typeof text !== "string" || !URL.canParse(text, document.baseURI)) return null;
  const url = new URL(text, document.baseURI);
  // The scheme is asked too: a blob: URL has the origin that made it.
  const own = url.protocol === location.protocol && url.origin === location.origin;
  return own || url.protocol === "https:" ? url.href : null;
}

/** @param {string | null} text seconds or a date @returns {number} milliseconds */
function retryAfter(text) {
  if (!text) return 0;
  const wait = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Math.min(LONGEST_RETRY_AFTER, Math.max(0, wait || 0));
}

/** Keeps a job up to date, each event at the same small cost, by the rules of jobs.py. */
class Fold {
  /** @type {Map<string, TaskEvent>} */
  tasks = new Map();
  /** Those that have ended, the first to end first. @type {Set<string>} */
  ended = new Set();
  state = "";
  /** What the newest event that has numbers says. @type {TaskEvent["job"]} */
  told = null;
  /** How many tasks are in a state, or can be or are being cancelled. @type {Map<string, number>} */
  #numbers = new Map();
  /** Those that have something to say of what they do, the newest last. @type {Map<string, TaskEvent>} */
  #telling = new Map();
  /** Why tasks failed. @type {Map<string, string>} */
  #errors = new Map();
  /** What successful tasks link to: of two, none is the job's. @type {Set<string>} */
  #urls = new Set();
  /** The task that names the job, and how little speaks for it. @type {TaskEvent | undefined} */
  #namer;
  #rank = 3;
  #title = textOf(null);
  #at = textOf(null);
  /** @type {number | null} */
  #fraction = null;

  /** @param {string} job_id */
  constructor(job_id) {
    this.job_id = job_id;
  }

  /** @param {TaskEvent} event @param {boolean} newest */
  put(event, newest) {
    const { task_id: id, state, job } = event;
    const [title, error, url] = [event.title, event.error, event.url].map(textOf);
    this.#takeBack(id);
    this.#errors.delete(id);
    this.tasks.set(id, event);
    this.#count(event, 1);
    if (FINAL.has(state)) this.ended.add(id);
    if (TELLING.includes(state)) this.#telling.set(id, event);
    if (error && FAILED.includes(state)) this.#errors.set(id, error);
    if (url && state === "SUCCESS" && this.#urls.size < 2) this.#urls.add(url);
    const rank = id === this.job_id ? 0 : textOf(event.group_id) ? 2 : 1;
    if (id === this.#namer?.task_id || (title && rank < this.#rank)) {
      this.#namer = event;
      this.#rank = rank;
      this.#title = title ?? this.#title;
    }
    if (newest || !this.told) {
      if (areNumbers(job)) this.told = job;
      this.#at = textOf(event.at) ?? this.#at;
    }
    this.#settle();
  }

  /** What the job has learnt from it stays. @param {string} id @returns whether a task is left */
  remove(id) {
    this.#takeBack(id);
    this.tasks.delete(id);
    if (this.#errors.size > 1) this.#errors.delete(id);
    if (this.tasks.size) this.#settle();
    return this.tasks.size > 0;
  }

  /** @param {string} id */
  #takeBack(id) {
    const before = this.tasks.get(id);
    if (before) this.#count(before, -1);
    this.ended.delete(id);
    this.#telling.delete(id);
  }

  /** @param {TaskEvent} task @param {number} by */
  #count({ state, cancelling, cancellable }, by) {
    const more = cancelling === true ? "cancelling" : cancellable === true ? "cancellable" : "";
    for (const name of FINAL.has(state) ? [state] : [state, more]) this.#numbers.set(name, this.#n(name) + by);
  }

  /** @param {string[]} names */
  #n(...names) {
    return names.reduce((sum, name) => sum + (this.#numbers.get(name) ?? 0), 0);
  }

  #counts() {
    const known = { tasks: this.tasks.size, ended: this.ended.size, failed: this.#n(...FAILED), hidden: 0 };
    const { tasks, ended, failed, revoked, hidden } = this.told ?? { ...known, revoked: this.#n("REVOKED") };
    return { tasks, ended, failed, revoked, hidden };
  }

  #settle() {
    const { tasks, ended, failed, revoked, hidden } = this.#counts();
    const [first] = this.tasks.values();
    const { told } = this;
    const said = told ? fractionOf({ state: "", current: told.fraction, total: 1 }) : tasks > 1 ? null : fractionOf(first);
    const now = said ?? (told || tasks > 1 ? Math.min(1, ended / tasks) : null);
    if (now !== null) this.#fraction = Math.max(now, this.#fraction ?? 0);
    if (tasks === 1) this.state = first.state;
    else if (this.ended.size === this.tasks.size && ended >= tasks && !hidden) {
      this.state = failed ? "FAILURE" : revoked ? "REVOKED" : this.#n("SUCCESS") ? "SUCCESS" : first.state;
    } else if (this.#n("STALLED") && !this.#n("STARTED", "PROGRESS")) this.state = "STALLED";
    else if (ended || this.#n("PROGRESS")) this.state = "PROGRESS";
    else this.state = ["STARTED", "RETRY"].find((state) => this.#n(state)) ?? "PENDING";
  }

  /** @returns {Job} */
  get job() {
    const { job_id, state } = this;
    const last = [...this.#telling.values()].at(-1);
    const [error = state === "RETRY" ? textOf(last?.error) : null] = this.#errors.values();
    const [url = null, another] = this.#urls;
    const named = this.#namer?.state === "SUCCESS" ? textOf(this.#namer.url) : null;
    return {
      job_id,
      title: this.#title,
      state,
      fraction: this.#fraction,
      counts: this.#counts(),
      description: textOf(last?.description),
      error,
      url: named ?? (another ? null : url),
      cancellable: this.#n("cancellable") > 0,
      cancelling: this.#n("cancelling") > 0,
      at: this.#at,
      tasks: [...this.tasks.values()],
    };
  }
}

// ------------------------------------------------------------------------------------------- TaskNotifications

/** The stream of one person's task events, and the newest state of each of their tasks: see client.d.ts. */
export class TaskNotifications extends EventTarget {
  /** @type {Map<string, TaskEvent>} */
  tasks = new Map();

  /** The id of the newest event of each key, tasks and custom entries alike. @type {Map<string, number>} */
  #ids = new Map();
  /** Keys of custom entries nobody here listens for. @type {Set<string>} */
  #unheard = new Set();
  /** Custom events somebody listens for. @type {Set<string>} */
  #names = new Set();
  /** By job id, in the order in which this page learnt of them. @type {Map<string, Fold>} */
  #folds = new Map();

  /** @type {EventSource | undefined} */
  #source;
  /** @type {ConnectionState} */
  #state = "connecting";
  #lastEventId = "";
  /** The highest id since this connection's catch-up began. */
  #highest = 0;
  /** Until the first catch-up has ended. */
  #history = true;
  /** The browser is reconnecting by itself. */
  #reconnecting = false;
  #failures = 0;
  /** Goes up with each connection, so that an answer that is too late is known to be. */
  #turn = 0;
  #silentAt = 0;
  #silence;
  #watchdog = 0;
  #timer = 0;
  #leaving = new AbortController();

  /** @param {string | URL} [url] the stream's @param {{heartbeat?: number}} [options] seconds */
  constructor(url = DEFAULT_STREAM, { heartbeat = 15 } = {}) {
    super();
    this.url = new URL(url, document.baseURI).href;
    this.#silence = heartbeat * HEARTBEATS_MISSED * 1000;
    const { signal } = this.#leaving;
    const look = () => this.#look();
    window.addEventListener("online", () => this.#resume(), { signal });
    window.addEventListener("pagehide", () => this.#disconnect(), { signal });
    window.addEventListener("pageshow", ({ persisted }) => persisted && this.#resume(true), { signal });
    document.addEventListener("visibilitychange", look, { signal });
    document.addEventListener("resume", look, { signal });
    this.#connect();
  }

  get connected() {
    return this.#state === "live";
  }

  get state() {
    return this.#state;
  }

  /** @returns {Job[]} the newest first */
  jobs() {
    return [...this.#folds.values()].map((fold) => fold.job).reverse();
  }

  /** @param {string} id */
  job(id) {
    return this.#folds.get(id)?.job;
  }

  close() {
    this.#leaving.abort();
    this.#disconnect();
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
      // Another tab was first, or the history has let go of it: it is gone, as was wished.
      if (/** @type {any} */ (error).status !== 404) throw error;
    }
    this.#forget(key);
  }

  /**
   * A custom event is known by its listener: EventSource hands on only what it was told the name of.
   * @param {string} name @param {any} listener @param {boolean | AddEventListenerOptions} [options] @override
   */
  addEventListener(name, listener, options) {
    super.addEventListener(name, listener, options);
    if (RESERVED.has(name) || this.#names.has(name)) return;
    this.#names.add(name);
    this.#listen(name);
  }

  // The connection. EventSource reconnects by itself when a stream breaks off, after the time that the server's
  // `retry:` gave it, which no script can read; that is left to it, once. It gives up for ever at any answer but
  // 200, and its waits do not grow: from there on, reconnecting is done here.

  #connect() {
    this.#disconnect();
    const url = new URL(this.url);
    if (this.#lastEventId) url.searchParams.set("last_event_id", this.#lastEventId);
    const source = (this.#source = new EventSource(url));
    source.onopen = () => this.#opened();
    source.onerror = () => this.#failed(source);
    for (const name of [...STREAM_EVENTS, ...this.#names]) this.#listen(name);
    this.#expect(this.#silence);
    this.#become("connecting");
  }

  /** @param {string} name */
  #listen(name) {
    this.#source?.addEventListener(name, (event) => this.#receive(name, event));
  }

  #opened() {
    this.#reconnecting = false;
    this.#highest = 0;
    this.#expect(this.#silence);
  }

  /** @param {EventSource} source */
  #failed(source) {
    if (source.readyState === EventSource.CLOSED || this.#reconnecting) {
      this.#later();
      return;
    }
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

  /** Full jitter: any wait up to a limit that doubles. @param {number} [atLeast] milliseconds the server asked for */
  #later(atLeast = 0) {
    this.#disconnect();
    const limit = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures);
    this.#failures += 1;
    const wait = atLeast + Math.random() * limit;
    this.#timer = setTimeout(() => this.#again(), wait);
    this.#become("waiting", { wait: wait / 1000 });
  }

  /** Asks before it connects, since EventSource does not tell the status of an answer it refused. */
  async #again() {
    const turn = this.#turn;
    let answer;
    try {
      answer = await this.#fetch(`tasks${this.#lastEventId && `?after=${this.#lastEventId}`}`);
      answer.body?.cancel().catch(() => {}); // only the head is of interest
    } catch {
      answer = Response.error(); // status 0: nobody there
    }
    if (turn !== this.#turn) return;
    const { status, headers } = answer;
    if (status === 401 || status === 403) {
      this.#disconnect();
      this.#become("refused", { status });
    } else if (status === 0 || status === 429 || status >= 500) {
      this.#later(retryAfter(headers.get("Retry-After")));
    } else {
      this.#connect();
    }
  }

  /** Connects at once. @param {boolean} [refused] even after that: the person may have logged in since */
  #resume(refused = false) {
    if (this.#state === "refused" && !refused) return;
    this.#failures = 0;
    this.#connect();
  }

  /** The page is being looked at again: timers may have slept for hours. */
  #look() {
    if (document.hidden || this.#state === "refused") return;
    if (this.#state === "waiting" || Date.now() > this.#silentAt) this.#resume();
  }

  /** The next thing has to come within so many milliseconds. @param {number} limit */
  #expect(limit) {
    this.#silentAt = Date.now() + limit;
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#later(), limit);
  }

  /** @param {ConnectionState} state @param {{wait?: number, status?: number}} [more] */
  #become(state, more = {}) {
    if (state === this.#state && state !== "waiting") return;
    this.#state = state;
    this.#tell("connection", { state, connected: this.connected, ...more });
  }

  // What the stream says.

  /** @param {string} name @param {MessageEvent} event */
  #receive(name, event) {
    this.#expect(this.#silence);
    this.#lastEventId = event.lastEventId || this.#lastEventId;
    const data = parse(event.data);
    if (!data) return;
    if (name === "ready") return this.#ready(data.keys);
    if (name === "degraded") {
      this.#highest = 0; // Redis may come back with less than it had: another catch-up begins
      this.#become("degraded");
    }
    if (name === "heartbeat" || name === "degraded") return;
    const id = Number(event.lastEventId);
    if (id && id <= this.#highest) return;
    this.#highest = id;
    if (name === "removed") this.#forget(data.key);
    else if (STREAM_EVENTS.includes(name)) this.#task(id, data);
    else this.#custom(name, id, data);
  }

  /** @param {number} id @param {TaskEvent} event */
  #task(id, event) {
    const { task_id: key, state } = event;
    if (!textOf(key) || !textOf(state)) return;
    const shown = this.tasks.get(key);
    const known = this.#ids.get(key) ?? 0;
    this.#ids.set(key, Math.max(id, known));
    // What is known and not shown has left a large job for newer members.
    if (shown ? !movesOn(shown, event, id > known) : id && id <= known) return;
    const job_id = jobOf(event);
    if (shown && jobOf(shown) !== job_id) this.#drop(key);
    const fold = this.#folds.get(job_id) ?? new Fold(job_id);
    const before = fold.state;
    this.#folds.set(job_id, fold);
    this.tasks.set(key, event);
    fold.put(event, id > 0);
    this.#tell(FINAL.has(state) ? "task-done" : "task-progress", event);
    this.#tell("change", { key, task: event, job_id, ended: FINAL.has(fold.state) && !FINAL.has(before) });
    const [oldest] = fold.ended;
    if (fold.told && fold.ended.size > MEMBERS_KEPT) this.#drop(oldest);
  }

  /** @param {string} name @param {number} id @param {Record<string, any>} event */
  #custom(name, id, { key, data, at }) {
    if (typeof key !== "string") return;
    // Key by key: the ids of a Redis that came back from an older snapshot may all lie below the last one seen.
    if (id && id <= (this.#ids.get(key) ?? 0)) return;
    this.#ids.set(key, id);
    this.#tell(name, data, { key, at });
  }

  /** The catch-up is complete: what the history no longer holds leaves the page. @param {unknown} keys */
  #ready(keys) {
    const listed = new Set(Array.isArray(keys) ? keys : this.#ids.keys());
    for (const key of [...this.#ids.keys()]) if (!listed.has(key)) this.#forget(key);
    const unknown = [...listed].filter((key) => !this.#ids.has(key) && !this.#unheard.has(key));
    if (unknown.length && this.#lastEventId) this.#fill(unknown);
    this.#history = false;
    this.#failures = 0;
    this.#become("live");
  }

  /**
   * Gets what is older than the last event id and this page has not seen: another person has logged in in another
   * tab, or Redis was filled from elsewhere.
   * @param {string[]} keys
   */
  async #fill(keys) {
    const turn = this.#turn;
    try {
      const answer = await this.#fetch("tasks");
      const { tasks, events = [] } = await answer.json();
      if (turn !== this.#turn) return;
      const before = this.#history;
      this.#history = true;
      for (const task of tasks) if (keys.includes(task.task_id)) this.#task(0, task);
      for (const { event, data } of events) if (keys.includes(data.key)) this.#custom(event, 0, data);
      this.#history = before;
      for (const key of keys) if (!this.#ids.has(key)) this.#unheard.add(key);
    } catch {
      // The next `ready` asks again.
    }
  }

  /** @param {string} key */
  #forget(key) {
    this.#ids.delete(key);
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
    this.dispatchEvent(Object.assign(new CustomEvent(name, { detail }), { history: this.#history, ...more }));
  }

  /** @param {string} path below the blueprint's prefix @param {string} [method] */
  #fetch(path, method = "GET") {
    return fetch(new URL(path, this.url), {
      method,
      cache: "no-store",
      credentials: "same-origin",
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

/** One connection for all elements with the same src.
 * @type {Map<string, {notifications: TaskNotifications, users: number}>} */
const shared = new Map();

/** @param {string} src */
function acquire(src) {
  const url = new URL(src, document.baseURI).href;
  let entry = shared.get(url);
  if (!entry || ["closed", "refused"].includes(entry.notifications.state)) {
    entry = { notifications: new TaskNotifications(url), users: 0 };
    shared.set(url, entry);
  }
  entry.users += 1;
  return entry.notifications;
}

/** @param {TaskNotifications} notifications */
function release(notifications) {
  const entry = shared.get(notifications.url);
  if (entry?.notifications !== notifications) return;
  entry.users -= 1;
  // Not at once: an element that moves within the page leaves it for a moment.
  setTimeout(() => {
    if (entry.users > 0 || shared.get(notifications.url) !== entry) return;
    shared.delete(notifications.url);
    notifications.close();
  });
}

// ------------------------------------------------------------------------------------------------ the elements

// Constructed, so that a content security policy without 'unsafe-inline' lets it through.
const sheet = new CSSStyleSheet();
sheet.replaceSync(`
  :host {
    --_accent: var(--task-accent, light-dark(#2f5fd0, #8db0ff));
    --_success: var(--task-success, light-dark(#1b7a48, #6fd3a0));
    --_failure: var(--task-failure, light-dark(#b3261e, #ffa59c));
    --_warning: var(--task-warning, light-dark(#8a5a00, #f0c070));
    --_muted: var(--task-muted, color-mix(in srgb, currentColor 66%, transparent));
    --_line: var(--task-line, color-mix(in srgb, currentColor 14%, transparent));
    --_track: var(--task-track, color-mix(in srgb, currentColor 12%, transparent));
    --_gap: var(--task-gap, 1rem);
    display: block;
    line-height: 1.4;
  }
  :host([hidden]), [hidden] { display: none !important; }
  ul { list-style: none; margin: 0; padding: 0; }
  [part~="task"] {
    --_color: var(--_muted);
    display: grid;
    grid-template-columns: minmax(0, 1fr) auto;
    align-items: center;
    gap: .25rem .75rem;
    padding-block: var(--_gap);
  }
  li + li { border-block-start: 1px solid var(--_line); }
  li { content-visibility: auto; contain-intrinsic-size: auto 4.5rem; }
  [part~="started"], [part~="progress"] { --_color: var(--_accent); }
  [part~="success"] { --_color: var(--_success); }
  [part~="failure"], [part~="rejected"] { --_color: var(--_failure); }
  [part~="retry"], [part~="stalled"] { --_color: var(--_warning); }
  [part~="title"], [part~="description"], [part~="error"] { overflow-wrap: anywhere; }
  [part~="title"] { font-weight: 600; }
  [part~="state"] { color: var(--_color); font-size: .875em; font-variant-numeric: tabular-nums; text-align: end; }
  [part~="state"]::before {
    content: "";
    display: inline-block;
    inline-size: .5em;
    block-size: .5em;
    margin-inline-end: .5em;
    border-radius: 50%;
    background: currentColor;
    vertical-align: .1em;
  }
  [part~="text"], [part~="bar"], details { grid-column: 1 / -1; }
  details { --_gap: .5rem; font-size: .875em; }
  summary { inline-size: fit-content; border-radius: .25rem; color: var(--_muted); cursor: pointer; }
  details ul { padding-inline-start: 1rem; }
  [part~="text"] { display: flex; flex-wrap: wrap; gap: .25rem .75rem; font-size: .875em; color: var(--_muted); }
  [part~="words"] { flex: 1 1 10rem; min-inline-size: 0; }
  [part~="error"] { color: var(--_failure); }
  [part~="error"], [part~="description"] { display: block; }
  [part~="bar"] {
    block-size: var(--task-bar-height, .375rem);
    border-radius: 1rem;
    background: var(--_track);
    overflow: hidden;
  }
  [part~="fill"] {
    block-size: 100%;
    inline-size: calc(var(--_fraction, 0) * 100%);
    border-radius: inherit;
    background: var(--_color);
    transition: inline-size .25s ease-out;
  }
  [part~="indeterminate"] [part~="fill"] { inline-size: 30%; animation: go 1.6s ease-in-out infinite alternate; }
  @keyframes go { from { margin-inline-start: 0; } to { margin-inline-start: 70%; } }
  a, button { border-radius: .25rem; padding: .375rem .25rem; margin: -.375rem -.25rem; }
  a { color: var(--_accent); font-weight: 600; text-underline-offset: .2em; }
  button { border: 0; background: none; color: inherit; font: inherit; cursor: pointer; text-decoration: underline;
    text-decoration-color: transparent; text-underline-offset: .2em; }
  button:hover { text-decoration-color: currentColor; }
  button:disabled { opacity: .5; cursor: default; }
  :focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
  ul:focus { outline: none; }
  [part~="empty"] { margin: 0; padding-block: var(--_gap); color: var(--_muted); }
  [part~="connection"] { margin: 0; font-size: .8125em; color: var(--_muted); }
  [part~="connecting"], [part~="waiting"] { animation: appear 0s 1.5s backwards; }
  [part~="degraded"], [part~="waiting"] { color: var(--_warning); }
  @keyframes appear { from { visibility: hidden; } }
  .spoken { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%);
    white-space: nowrap; }
  @media (prefers-reduced-motion: reduce) {
    [part~="fill"] { transition: none; }
    [part~="indeterminate"] [part~="fill"] { inline-size: 100%; opacity: .4; animation: none; }
  }
  @media (forced-colors: active) {
    [part~="bar"] { border: 1px solid; }
    [part~="fill"] { background: Highlight; }
  }
`);

/** @template {keyof HTMLElementTagNameMap} Tag @param {Tag} tag @param {string} part @param {Node[]} children */
function make(tag, part, ...children) {
  const element = document.createElement(tag);
  element.setAttribute("part", part);
  if (["title", "description", "error"].includes(part)) element.dir = "auto"; // which also isolates it
  element.append(...children);
  return element;
}

/** @param {Element} element @param {string} name @param {string | null} value null: none */
function setAttribute(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** Shows a text, or hides the element if there is none. @param {HTMLElement} element @param {unknown} text */
function setText(element, text) {
  const shown = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== shown) element.textContent = shown;
  element.hidden = !shown;
}

/** @param {unknown} text RFC 3339 @returns {string} the local time, empty if that is none */
function clockTime(text) {
  const time = new Date(String(text ?? ""));
  return Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString([], { timeStyle: "short" });
}

/** @param {string} state */
const stateText = (state) => strings.states[state] ?? state;

let rows = 0;
/** @type {WeakMap<Element, Row>} */
const rowOf = new WeakMap();

/** One task or job on the screen: made once, then only what differs is touched. */
class Row {
  /** What it shows: a job of one task as that task. @type {TaskEvent | Job} */
  item = /** @type {any} */ (null);
  /** @type {TaskEvent[]} */
  tasks = [];
  final = false;
  removable = false;
  at = "";
  /** @type {{summary: HTMLElement, details: HTMLDetailsElement, list: List} | undefined} */
  #members;

  /** @param {"li" | "div"} tag @param {NotificationsElement} owner @param {boolean} [nested] in the row of its job, which has the button */
  constructor(tag, owner, nested = false) {
    this.owner = owner;
    this.nested = nested;
    this.title = make("span", "title");
    this.title.id = `title-${(rows += 1)}`;
    this.state = make("span", "state");
    this.description = make("span", "description");
    this.error = make("span", "error");
    this.link = make("a", "link");
    this.link.rel = "noopener";
    this.link.target = owner.getAttribute("target") ?? "";
    this.button = make("button", "button");
    this.button.type = "button";
    this.button.onclick = () => owner.act(this);
    this.fill = make("div", "fill");
    this.bar = make("div", "bar", this.fill);
    for (const [name, value] of Object.entries({ role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" })) {
      this.bar.setAttribute(name, value);
    }
    this.bar.setAttribute("aria-labelledby", this.title.id);
    const words = make("span", "words", this.error, this.description);
    this.text = make("div", "text", words, this.link, this.button);
    this.element = make(tag, "task", this.title, this.state, this.text, this.bar);
    rowOf.set(this.element, this);
  }

  /** @param {TaskEvent | Job} given */
  update(given) {
    const job = "task_id" in given ? null : given;
    const several = job && job.counts.tasks > 1;
    const item = several ? given : (job?.tasks[0] ?? given);
    const { state } = item;
    this.item = item;
    this.final = FINAL.has(state);
    this.removable = this.final || (state === "STALLED" && !several); // it may never end
    this.at = String(item.at ?? "");
    const title = item.title || strings.untitled;
    setText(this.title, title);
    setAttribute(this.element, "part", `task ${state.toLowerCase()}`);
    this.#showProgress(item, "task_id" in given ? fractionOf(given) : given.fraction);
    setText(this.description, this.#describe(item));
    setText(this.error, state === "SUCCESS" ? null : item.error);
    const link = state === "SUCCESS" ? safeLink(item.url) : null;
    setAttribute(this.link, "href", link);
    setText(this.link, link && strings.open);
    setAttribute(this.link, "aria-label", `${strings.open} ${title}`);
    const cancel = item.cancellable && (several || !item.cancelling) ? strings.cancel : null;
    setText(this.button, this.nested ? null : this.removable ? strings.remove : cancel);
    setAttribute(this.button, "aria-label", `${this.button.textContent} ${title}`);
    this.text.hidden = [this.description, this.error, this.link, this.button].every((part) => part.hidden);
    if (several) this.#showMembers(job);
  }

  /** @param {Job} job */
  #showMembers(job) {
    const { summary, details, list } = (this.#members ??= this.#makeMembers());
    setText(summary, this.#count(job));
    setAttribute(summary, "aria-label", `${summary.textContent} ${job.title || strings.untitled}`);
    const tasks = details.open ? job.tasks : []; // those that nobody looks at take no room
    list.keep(tasks.map(({ task_id }) => task_id));
    for (const task of tasks) list.show(task.task_id, task);
  }

  #makeMembers() {
    const summary = make("summary", "count");
    const list = new List("members", this.owner, true);
    const details = make("details", "details", summary, list.element);
    details.ontoggle = () => this.update(this.item);
    this.element.append(details);
    return { summary, details, list };
  }

  /** @param {TaskEvent | Job} item */
  #describe(item) {
    if (this.final) return clockTime(item.at);
    const retry = item.state === "RETRY" && "retry_at" in item && clockTime(item.retry_at);
    return retry ? strings.retryAt(retry) : item.description;
  }

  /** @param {TaskEvent | Job} item @param {number | null} fraction */
  #showProgress(item, fraction) {
    const percent = fraction === null ? null : Math.floor(fraction * 100);
    const text = item.cancelling && !this.final ? strings.cancelling : stateText(item.state);
    const moving = !this.final && !["PENDING", "RETRY", "STALLED"].includes(item.state);
    const shown = moving && percent !== null && !item.cancelling;
    setText(this.state, shown ? `${text} ${(percent / 100).toLocaleString([], { style: "percent" })}` : text);
    this.bar.hidden = this.final;
    setAttribute(this.bar, "part", percent === null && moving ? "bar indeterminate" : "bar");
    setAttribute(this.bar, "aria-valuenow", percent === null ? null : String(percent));
    setAttribute(this.bar, "aria-valuetext", [this.#count(item) || text, item.description].filter(Boolean).join(", "));
    this.fill.style.setProperty("--_fraction", String(fraction ?? 0));
  }

  /** @param {TaskEvent | Job} item */
  #count(item) {
    const [current, total] = "task_id" in item ? [item.current, item.total] : [item.counts.ended, item.counts.tasks];
    if (typeof current !== "number" || typeof total !== "number") return "";
    return strings.of(current.toLocaleString(), total.toLocaleString());
  }
}

/** Rows, by key. */
class List {
  /** @type {Map<string, Row>} */
  rows = new Map();

  /** @param {string} part @param {NotificationsElement} owner @param {boolean} [nested] */
  constructor(part, owner, nested) {
    this.owner = owner;
    this.nested = nested;
    this.element = make("ul", part);
    this.element.setAttribute("role", "list"); // Safari takes it away where there are no bullets
    this.element.tabIndex = -1;
  }

  /** @param {string} key @param {TaskEvent | Job | undefined} item none: the row goes */
  show(key, item) {
    if (!item) return this.#remove(key);
    const known = this.rows.get(key);
    const row = known ?? new Row("li", this.owner, this.nested);
    const was = row.final;
    row.update(item);
    this.rows.set(key, row);
    if (!known || was !== row.final) this.#place(row);
  }

  /** What runs stands above what has ended, in the order of the endings: the same in each tab. @param {Row} row */
  #place(row) {
    const above = (/** @type {Row | undefined} */ other) => other === row || !other?.final || other.at > row.at;
    const focused = /** @type {HTMLElement | null} */ (this.owner.root.activeElement);
    let next = this.element.firstElementChild;
    if (row.final) while (next && above(rowOf.get(next))) next = next.nextElementSibling;
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
    // The focus stays in the list: whoever works with the keyboard goes on with the next one.
    if (focused) /** @type {HTMLElement} */ (next?.querySelector("a[href], button:not([hidden])") ?? this.element).focus();
  }
}

/** What the elements share: the connection, the frame in which changes are drawn, and speaking of endings. */
class NotificationsElement extends HTMLElement {
  static observedAttributes = ["src", "task-id"];

  /** @type {TaskNotifications | null} */
  #notifications = null;
  #drawing = 0;
  #listening = new AbortController();
  #spoken = make("div", "");
  /** @type {string[]} */
  #toSay = [];

  constructor() {
    super();
    this.root = this.attachShadow({ mode: "open" });
    this.root.adoptedStyleSheets = [sheet];
    this.#spoken.className = "spoken";
    this.#spoken.setAttribute("role", "status");
    this.#spoken.ariaLive = "polite";
    this.root.append(this.#spoken);
  }

  get notifications() {
    return this.#notifications;
  }

  connectedCallback() {
    const notifications = (this.#notifications = acquire(this.getAttribute("src") ?? DEFAULT_STREAM));
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const on = (/** @type {string} */ name, /** @type {(event: any) => void} */ listener) =>
      notifications.addEventListener(name, listener, { signal });
    on("change", ({ detail, history }) => {
      this.changed(detail.job_id);
      if (!history) this.#say(this.news(detail));
    });
    on("connection", () => this.schedule());
    for (const { job_id } of notifications.jobs().reverse()) this.changed(job_id);
    this.schedule();
  }

  disconnectedCallback() {
    this.#listening.abort();
    if (this.#notifications) release(this.#notifications);
    this.#notifications = null;
  }

  attributeChangedCallback() {
    if (!this.#notifications) return;
    this.disconnectedCallback();
    this.reset();
    this.connectedCallback();
  }

  /** Draws in the next frame; a page in the background gets no frames, so that a timer stands in. */
  schedule() {
    if (this.#drawing) return;
    const draw = () => {
      cancelAnimationFrame(frame);
      clearTimeout(this.#drawing);
      this.#drawing = 0;
      if (this.#notifications) this.draw(this.#notifications);
      this.#speak();
    };
    const frame = requestAnimationFrame(draw);
    this.#drawing = setTimeout(draw, 250);
  }

  /** @param {TaskEvent | Job | null | undefined} item */
  #say(item) {
    if (!item) return;
    const text = [stateText(item.state), item.error].filter(Boolean).join(". ");
    this.#toSay.push(strings.ended(item.title || strings.untitled, text));
  }

  #speak() {
    if (!this.#toSay.length) return;
    this.#spoken.replaceChildren(
      ...this.#toSay.splice(0).map((text) => {
        const line = document.createElement("p");
        line.textContent = text;
        return line;
      }),
    );
  }

  /** Does what the row's button says. @param {Row} row */
  async act({ button, item, removable, tasks }) {
    const notifications = this.#notifications;
    button.disabled = true;
    try {
      if (removable) await Promise.all(tasks.map(({ task_id }) => notifications?.remove(task_id)));
      else await notifications?.cancel("task_id" in item ? item.task_id : item.job_id);
    } catch {
      // It stays, and with it the button to try again.
    } finally {
      button.disabled = false;
    }
  }

  /** @param {string} _job_id */
  changed(_job_id) {
    this.schedule();
  }

  /**
   * What has ended and is to be spoken of: a job once, not each of its tasks.
   * @param {Change} change @returns {TaskEvent | Job | null | undefined}
   */
  news({ ended, job_id }) {
    return ended ? this.#notifications?.job(job_id) : null;
  }

  /** @param {TaskNotifications} _notifications */
  draw(_notifications) {}

  reset() {}
}

/** `<task-list src="/notifications/stream" label="..." target="_blank">`: the person's jobs. */
class TaskList extends NotificationsElement {
  #list = new List("list", this);
  #empty = make("p", "empty");
  #connection = make("p", "connection");
  /** @type {Set<string>} */
  #changed = new Set();

  constructor() {
    super();
    this.#empty.hidden = true;
    this.root.prepend(this.#connection, this.#list.element, this.#empty);
  }

  /** @param {string} job_id @override */
  changed(job_id) {
    this.#changed.add(job_id);
    this.schedule();
  }

  /** @param {TaskNotifications} notifications @override */
  draw(notifications) {
    const { rows, element } = this.#list;
    element.ariaLabel = this.getAttribute("label") ?? strings.list;
    const end = performance.now() + LONGEST_DRAWING;
    for (const id of this.#changed) {
      if (performance.now() > end) {
        this.schedule();
        break;
      }
      this.#changed.delete(id);
      this.#list.show(id, notifications.job(id));
    }
    const { state } = notifications;
    setText(this.#connection, strings.connection[state]);
    setAttribute(this.#connection, "part", `connection ${state}`);
    // Nothing is said to be empty before the history has come.
    const known = rows.size > 0 || !["live", "refused", "closed"].includes(state);
    setText(this.#empty, known && this.#empty.hidden ? null : strings.empty);
    this.#empty.hidden = rows.size > 0 || (known && this.#empty.hidden);
  }

  /** @override */
  reset() {
    this.#list.keep([]);
    this.#changed.clear();
  }
}

/** `<task-progress task-id="...">`: one task, or one job or group by its id. */
class TaskProgress extends NotificationsElement {
  /** @type {Row | null} */
  #row = null;

  get #id() {
    return this.getAttribute("task-id") ?? "";
  }

  /** @param {TaskNotifications} notifications @override */
  draw(notifications) {
    const item = this.#find(notifications);
    if (!item) return this.reset();
    if (!this.#row) {
      this.#row = new Row("div", this);
      this.root.prepend(this.#row.element);
    }
    this.#row.update(item);
  }

  /** @param {TaskNotifications} notifications @returns {TaskEvent | Job | undefined} */
  #find(notifications) {
    const id = this.#id;
    const named = notifications.job(id) ?? notifications.tasks.get(id);
    return named ?? notifications.jobs().find(({ tasks }) => tasks.some((task) => task.group_id === id));
  }

  /** @param {Change} change @override */
  news({ ended, job_id, task }) {
    const item = this.notifications && this.#find(this.notifications);
    if (!item || "task_id" in item) return item && item === task && FINAL.has(task.state) ? task : null;
    return ended && item.job_id === job_id ? item : null;
  }

  /** @override */
  reset() {
    this.#row?.element.remove();
    this.#row = null;
  }
}

export { TaskList, TaskProgress };

customElements.get("task-list") ?? customElements.define("task-list", TaskList);
customElements.get("task-progress") ?? customElements.define("task-progress", TaskProgress);
