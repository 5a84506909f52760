// @ts-check
/** The demo's page: the orders, and buttons that have something made. What becomes of it the elements show. */

/** @import { TaskEvent, TaskNotifications } from "/notifications/client.js" */

/** @type {HTMLElement & {notifications: TaskNotifications}} */
const list = find("task-list");
const problem = find("#problem");
const orders = find("#orders");
/** @type {HTMLTemplateElement} */
const template = find("#order");

/** States of a task that goes on. */
const GOING_ON = ["PENDING", "STARTED", "PROGRESS", "RETRY"];

/** @param {string} selector @returns {any} */
function find(selector, within = /** @type {ParentNode} */ (document)) {
  return within.querySelector(selector);
}

/**
 * Asks the server; an answer that is an error becomes one here, in words for people.
 * @param {string} path @param {object} [body] sent as JSON by POST
 */
async function ask(path, body) {
  const json = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, body && json).catch(() => {
    throw new Error("The server cannot be reached. Please try again.");
  });
  if (answer.status === 401) location.reload(); // logged out in another tab: the page becomes the login page
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error ?? `The server answered ${answer.status}.`);
  return data;
}

/** Says in the page what goes wrong. @param {() => Promise<void>} work */
async function attempt(work) {
  problem.hidden = true;
  try {
    await work();
  } catch (error) {
    problem.textContent = /** @type {Error} */ (error).message;
    problem.hidden = false;
  }
}

/** @param {{order_id: string, date: string, lines: number, total: string, invoice: string | null}} order */
function makeCard({ order_id, date, lines, total, invoice }) {
  const card = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
  const [time, link, button] = ["time", ".open", "button"].map((selector) => find(selector, card));
  find(".number", card).textContent = `Order ${order_id}`;
  find(".lines", card).textContent = lines === 1 ? "1 item" : `${lines} items`;
  find(".total bdi", card).textContent = total;
  find("task-progress", card).dataset.title = `Invoice ${order_id}`;
  time.dateTime = date;
  time.textContent = new Date(date).toLocaleDateString([], { dateStyle: "medium", timeZone: "UTC" });
  link.href = `/invoices/${encodeURIComponent(order_id)}.pdf`;
  link.ariaLabel = `Open PDF of order ${order_id}`;
  link.hidden = !invoice;
  button.ariaLabel = `Make invoice for order ${order_id}`;
  button.dataset.orderId = order_id;
  return card;
}

async function showOrders() {
  /** @type {any[]} */
  const all = await ask("/orders").finally(() => {
    orders.replaceChildren();
    orders.ariaBusy = "false";
  });
  orders.append(...all.map(makeCard));
  for (const task of list.notifications.tasks.values()) follow(task);
}

/**
 * Shows a task where it was started: an invoice in its order's card, a statement below its button. Wherever it was
 * started, in another tab or as a part of a statement, its title says which it is.
 * @param {TaskEvent} task
 */
function follow({ title, task_id, job_id, state }) {
  for (const place of document.querySelectorAll("task-progress")) {
    if (!(place instanceof HTMLElement) || place.dataset.title !== title) continue;
    const id = (place.closest(".order") ? task_id : job_id) ?? task_id; // a statement is made by all of its job
    const shown = place.getAttribute("task-id") ?? "";
    const { state: before = "" } = list.notifications.job(shown) ?? list.notifications.tasks.get(shown) ?? {};
    if (shown !== id && !GOING_ON.includes(before)) place.setAttribute("task-id", id);
    const link = place.parentElement?.querySelector(".open");
    if (link && state === "SUCCESS") link.removeAttribute("hidden");
  }
}

document.addEventListener("click", async ({ target }) => {
  const button = target instanceof Element ? target.closest("button") : null;
  const { path, orderId } = button?.dataset ?? {};
  if (!button || !path || button.ariaDisabled === "true") return;
  button.ariaDisabled = "true"; // not `disabled`, which would take the focus away
  await attempt(() => ask(path, { order_id: orderId }));
  button.ariaDisabled = "false";
});

find("#faults").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const { service, latency, failures } = Object.fromEntries(new FormData(form));
  const answer = ask(`/services/${service}`, { latency: Number(latency), failures: Number(failures) });
  const [said, failed] = ["Done. Make an invoice to see what happens.", (/** @type {Error} */ { message }) => message];
  find("output", form).textContent = await answer.then(() => said, failed);
});

list.notifications.addEventListener("change", ({ detail: { task } }) => task && follow(task));
list.notifications.addEventListener("connection", ({ detail: { state } }) => {
  if (state === "refused") attempt(() => ask("/orders"));
});
attempt(showOrders);
