/** celery_notify in the browser; the protocol's sections 2 and 5. */

export type TaskState =
  | "PENDING" | "STARTED" | "PROGRESS" | "RETRY" | "STALLED"
  | "SUCCESS" | "FAILURE" | "REVOKED" | "REJECTED" | "IGNORED"
  | (string & {});

/** The whole state of one task at one moment. */
export interface TaskEvent {
  task_id: string;
  task: string;
  state: TaskState;
  /** 1 on the first run, one more with each retry and each replacement. */
  attempt?: number | null;
  title?: string | null;
  current?: number | null;
  total?: number | null;
  description?: string | null;
  error?: string | null;
  result?: unknown;
  url?: string | null;
  cancellable?: boolean | null;
  /** The person has asked that it, or its job, be cancelled. */
  cancelling?: boolean | null;
  /** How much of its job it is, beside the others. */
  weight?: number | null;
  /** Of a job of several tasks, as it was when this was told. */
  job?: (Counts & { fraction: number }) | null;
  job_id?: string | null;
  root_id?: string | null;
  parent_id?: string | null;
  group_id?: string | null;
  retry_at?: string | null;
  /** RFC 3339 UTC. */
  at?: string | null;
}

/** How many tasks a job has, those still to come included, and how they have ended. */
export interface Counts {
  tasks: number;
  ended: number;
  /** FAILURE or REJECTED. */
  failed: number;
  revoked: number;
  /** Waiting, without an event of their own. */
  hidden: number;
}

/** What a person started: one task, or all tasks of a canvas. */
export interface Job {
  job_id: string;
  title: string | null;
  state: TaskState;
  /** 0 to 1, never falling; null while unknown. */
  fraction: number | null;
  counts: Counts;
  /** Of what it is doing, as told last. */
  description: string | null;
  /** Of the first task that failed. */
  error: string | null;
  url: string | null;
  cancellable: boolean;
  cancelling: boolean;
  at: string | null;
  /** Those that the page knows, in the order in which it learnt of them; of a large job not all. */
  tasks: TaskEvent[];
}

export interface Change {
  key: string;
  /** Null when it is gone from the page. */
  task: TaskEvent | null;
  job_id: string;
  /** Whether this has ended the job. */
  ended: boolean;
}

/**
 * - connecting: no catch-up yet
 * - live: the page is told of changes as they happen
 * - polling: no stream can be had; the server is asked every few seconds
 * - degraded: the server has lost Redis; what is shown may be old
 * - waiting: the connection is lost and will be made again
 * - refused: nobody is logged in (401, 403); it is not tried again
 * - closed: by `close()`
 */
export type ConnectionState = "connecting" | "live" | "polling" | "degraded" | "waiting" | "refused" | "closed";

export interface ConnectionDetail {
  state: ConnectionState;
  connected: boolean;
  /** refused: the status that said so. */
  status?: number;
  /** waiting: seconds until the next try, where that is known. */
  wait?: number;
}

export interface NotificationEvent<Detail> extends CustomEvent<Detail> {
  /** It comes from the history that a fresh page gets, so it may be old. */
  readonly history: boolean;
}

/** A custom event; its detail is what was sent. */
export interface CustomNotificationEvent<Detail = unknown> extends NotificationEvent<Detail> {
  readonly key: string;
  readonly at: string;
}

export interface TaskNotificationsEventMap {
  "task-progress": NotificationEvent<TaskEvent>;
  /** Told once for each task that ends. */
  "task-done": NotificationEvent<TaskEvent>;
  change: NotificationEvent<Change>;
  connection: NotificationEvent<ConnectionDetail>;
}

export class TaskNotifications extends EventTarget {
  /**
   * Opens the stream.
   * @param url the stream's; by default "stream" beside this file
   * @param options heartbeat: the server's CELERY_NOTIFY_HEARTBEAT in seconds, if it is not 15
   */
  constructor(url?: string | URL, options?: { heartbeat?: number });
  readonly url: string;
  /**
   * The newest event of each task, by task id, in the order in which this page learnt of them. Of a job of thousands the
   * page keeps the last few hundred that have ended.
   */
  readonly tasks: Map<string, TaskEvent>;
  /** Whether the page is being told of changes as they happen. */
  readonly connected: boolean;
  readonly state: ConnectionState;
  /** Whether the history has come: an empty `tasks` is truly empty. */
  readonly caughtUp: boolean;
  /** The tasks grouped by what the person started, the newest first. */
  jobs(): Job[];
  job(id: string): Job | undefined;
  /** Ends the connection for good. */
  close(): void;
  /** Asks that a task, or a job with all its tasks, be cancelled. Rejects with an Error with a `status` if that is refused. */
  cancel(id: string): Promise<void>;
  /** Removes a finished task or a custom entry, in all open tabs. Rejects as `cancel` does. */
  remove(key: string): Promise<void>;
  addEventListener<Name extends keyof TaskNotificationsEventMap>(
    name: Name,
    listener: (event: TaskNotificationsEventMap[Name]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /** The name of a custom event makes the stream listen for it from now on. */
  addEventListener(
    name: string,
    listener: ((event: any) => void) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** `<task-list src="/notifications/stream" label="..." target="_blank" strings='{"empty": "..."}'>` */
export class TaskList extends HTMLElement {
  /** The connection, shared by all elements with the same src; null while the element is in no page. */
  readonly notifications: TaskNotifications | null;
}

/** `<task-progress task-id="..." src="...">` */
export class TaskProgress extends HTMLElement {
  readonly notifications: TaskNotifications | null;
}

/**
 * `<task-toast desktop>`: endings, in a corner of the page. While the page is hidden its title counts them; with `desktop` it
 * has a button that asks for permission, then they are shown outside of the browser where no tab of it is seen.
 */
export class TaskToast extends HTMLElement {
  readonly notifications: TaskNotifications | null;
}

/** A text of the elements; `{name}` in it stands for a value, of which a function is given all. */
export type Text<Name extends string = never> = string | ((values: Record<Name, string>) => string);

/**
 * What the elements say, also of states and connections: assign other texts for all of them, or give one of them its own as
 * JSON: `<task-list strings='{"empty": "Noch nichts.", "SUCCESS": "Fertig"}'>`. Numbers, times and durations are in the
 * language of the closest `lang` attribute.
 */
export const strings: {
  [name: string]: Text<any>;
  list: Text;
  empty: Text;
  untitled: Text;
  open: Text;
  remove: Text;
  more: Text<"number">;
  dismiss: Text;
  cancel: Text;
  cancelling: Text;
  of: Text<"current" | "total">;
  left: Text<"time">;
  retryAt: Text<"time">;
  ended: Text<"title" | "state">;
  toasts: Text;
  desktop: Text;
};

declare global {
  interface HTMLElementTagNameMap {
    "task-list": TaskList;
    "task-progress": TaskProgress;
    "task-toast": TaskToast;
  }
}
