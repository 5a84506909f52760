/** What a user's program may do: all of it has types, and the right ones. */
import {
  TaskNotifications,
  TaskToast,
  strings,
  type Change,
  type ConnectionState,
  type CustomNotificationEvent,
  type Job,
  type NotificationEvent,
  type TaskEvent,
  type Text,
} from "../../../celery_notify/static/client.js";

const notifications = new TaskNotifications();
const elsewhere = new TaskNotifications(new URL("/elsewhere/stream", location.href), { heartbeat: 5 });

notifications.addEventListener("task-progress", ({ detail, history }) => {
  const { current, total, title, job }: TaskEvent = detail;
  const news: boolean = !history;
  if (news && current != null && total != null) console.log(title ?? detail.task, current / total, job?.fraction);
});
notifications.addEventListener("task-done", (event: NotificationEvent<TaskEvent>) => {
  switch (event.detail.state) {
    case "SUCCESS":
      return location.assign(event.detail.url ?? "/");
    case "a state of a later version":
      return;
    default:
      return alert(event.detail.error);
  }
});
notifications.addEventListener("change", ({ detail: { job_id, task, ended } }) => {
  const job: Job | undefined = notifications.job(job_id);
  const share: number = job?.fraction ?? 0;
  console.log(task?.state, ended, share, job?.counts.failed, job?.tasks.map(({ task_id }) => task_id));
});
notifications.addEventListener("connection", ({ detail: { state, connected, status, wait } }) => {
  const known: ConnectionState = state;
  console.log(known === "waiting" ? (wait ?? 0).toFixed(1) : status?.toString(16), connected);
});
notifications.addEventListener(
  "order-shipped",
  ({ detail, key, at }: CustomNotificationEvent<{ order: number }>) => console.log(detail.order.toFixed(), key.length, at),
  { once: true },
);
notifications.addEventListener("order-shipped", { handleEvent: (event) => console.log(event.type) });

const changes: Change[] = [];
elsewhere.addEventListener("change", (event) => changes.push(event.detail));

export async function tidy(id: string): Promise<Job[]> {
  const known: TaskEvent | undefined = notifications.tasks.get(id);
  if (known?.cancellable) await notifications.cancel(id);
  await notifications.remove(id);
  if (notifications.caughtUp && !notifications.tasks.size) console.log("nothing left");
  if (!notifications.connected) notifications.close();
  return notifications.jobs();
}

strings.SUCCESS = "Fertig";
strings.live = "Verbunden";
strings.empty = () => "Noch nichts.";
strings.left = "noch {time}";
strings.of = ({ current, total }) => `${current} von ${total}`;
const ended: Text<"title" | "state"> = ({ title, state }) => `${title}: ${state.toLowerCase()}`;
strings.ended = ended;

const toast: TaskToast = document.createElement("task-toast");
toast.toggleAttribute("desktop", true);
toast.notifications?.addEventListener("change", () => console.log(toast.notifications?.caughtUp));
const progress = document.createElement("task-progress");
progress.setAttribute("task-id", "some id");
document.querySelector("main")?.append(progress);
document.querySelector("task-list")?.notifications?.addEventListener("task-done", ({ detail }) => console.log(detail.task_id));
