/** What a user may get wrong, each once: every line that says so is refused, and no other. */
import { TaskNotifications, strings, taskNotifications } from "../../../celery_notify/static/client.js"; // wrong

const notifications = new TaskNotifications(8000); // wrong
new TaskNotifications("/stream", { hearbeat: 5 }); // wrong

notifications.addEventListener("task-done", ({ detail }) => detail.taskId); // wrong
notifications.addEventListener("task-progress", ({ detail }) => detail.current.toFixed()); // wrong
notifications.addEventListener("connection", ({ detail }) => detail.state === "open"); // wrong
notifications.addEventListener("change", ({ detail }) => detail.task.state); // wrong
notifications.addEventListener("change", ({ job_id }) => job_id); // wrong

notifications.state = "closed"; // wrong
notifications.jobs[0]; // wrong
notifications.job("id").title; // wrong
notifications.cancel(1); // wrong
const removed: boolean = await notifications.remove("id"); // wrong

strings.empty = null; // wrong
strings.states = { SUCCESS: "Fertig" }; // wrong
strings.of = (current: string, total: string) => `${current}/${total}`; // wrong
strings.left = ({ seconds }) => `noch ${seconds}`; // wrong

document.createElement("task-list").notifications.close(); // wrong
document.querySelector("task-list")?.tasks; // wrong
