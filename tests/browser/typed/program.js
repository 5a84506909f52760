// @ts-check
/** The same from JavaScript, whose types are in its comments. */
import { TaskNotifications } from "../../../celery_notify/static/client.js";

/** @import { Job, TaskEvent } from "../../../celery_notify/static/client.js" */

const notifications = new TaskNotifications("/notifications/stream");

/** @param {TaskEvent} task @returns {string} */
const describe = ({ title, state }) => `${title ?? "Something"}: ${state}`;

notifications.addEventListener("task-done", ({ detail }) => console.log(describe(detail)));

/** @type {Job[]} */
export const jobs = notifications.jobs();
