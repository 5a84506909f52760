// @ts-check
/** The page of the demo: the orders, a button each, and one for all of them. What becomes of them is <task-list>'s part. */

import "/notifications/client.js";

const problem = /** @type {HTMLElement} */ (document.getElementById("problem"));
const orders = /** @type {HTMLElement} */ (document.getElementById("orders"));
const template = /** @type {HTMLTemplateElement} */ (document.getElementById("order"));
const statement = /** @type {HTMLButtonElement} */ (document.getElementById("statement"));
const faults = /** @type {HTMLFormElement} */ (document.getElementById("faults"));
const activity = /** @type {HTMLElement} */ (document.querySelector(".activity"));
const list = /** @type {HTMLElement & {notifications: EventTarget}} */ (document.querySelector("task-list"));

/** @type {Map<string, HTMLElement>} */
const cards = new Map();

/**
 * Asks the server; an answer that is an error becomes one here, in words for people.
 * @param {string} path
 * @param {object} [body] sent as JSON by POST
 */
async function ask(path, body) {
  const answer = await fetch(path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => {
    throw new Error("The server cannot be reached. Please try again.");
  });
  if (answer.status === 401) location.reload(); // logged out in another tab: the page becomes the login page
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error ?? `The server answered ${answer.status}.`);
  return data;
}

/** @param {unknown} [error] */
function showProblem(error) {
  problem.hidden = !error;
  problem.textContent = error instanceof Error ? error.message : "";
}

/**
 * @param {Element} card
 * @param {string} selector
 * @param {string} text
 */
function fill(card, selector, text) {
  const element = /** @type {HTMLElement} */ (card.querySelector(selector));
  element.textContent = text;
  return element;
}

/** @param {{order_id: string, date: string, lines: number, total: string}} order */
function makeCard({ order_id, date, lines, total }) {
  const card = /** @type {HTMLElement} */ (template.content.cloneNode(true)).firstElementChild;
  if (!(card instanceof HTMLElement)) throw new Error("the template holds no card");
  const day = new Date(date);
  const button = /** @type {HTMLButtonElement} */ (card.querySelector("button"));
  fill(card, ".number", `Order ${order_id}`);
  fill(card, "time", day.toLocaleDateString([], { dateStyle: "medium", timeZone: "UTC" })).setAttribute("datetime", date);
  fill(card, ".lines", lines === 1 ? "1 item" : `${lines} items`);
  fill(card, ".total", total);
  button.setAttribute("aria-label", `Make invoice for order ${order_id}`);
  button.addEventListener("click", () => make(button, "/invoices", { order_id }));
  return card;
}

/**
 * Has something made, when its button is pressed.
 * @param {HTMLButtonElement} button
 * @param {string} path
 * @param {object} [body]
 */
async function make(button, path, body = {}) {
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true"; // not `disabled`, which would take the focus away
  showProblem();
  try {
    await ask(path, body);
    // On a phone the list may be out of sight.
    activity.scrollIntoView({ block: "nearest" });
  } catch (error) {
    showProblem(error);
  } finally {
    button.ariaDisabled = "false";
  }
}

/** Shows the orders; those already shown stay, so that the focus does too. */
async function showOrders() {
  try {
    for (const order of await ask("/orders")) {
      const card = cards.get(order.order_id) ?? makeCard(order);
      const link = /** @type {HTMLAnchorElement} */ (card.querySelector(".open"));
      link.hidden = !order.invoice;
      if (order.invoice) link.href = order.invoice;
      link.setAttribute("aria-label", `Open PDF of order ${order.order_id}`);
      cards.set(order.order_id, card);
    }
    showProblem();
    orders.replaceChildren(...cards.values());
  } catch (error) {
    showProblem(error);
    if (!cards.size) orders.replaceChildren();
  } finally {
    orders.ariaBusy = "false";
  }
}

/** @param {SubmitEvent} event */
async function applyFaults(event) {
  event.preventDefault();
  const { service, latency, failures } = Object.fromEntries(new FormData(faults));
  try {
    await ask(`/services/${service}`, { latency: Number(latency), failures: Number(failures) });
    fill(faults, "output", "Done. Make an invoice to see what happens.");
  } catch (error) {
    fill(faults, "output", /** @type {Error} */ (error).message);
  }
}

statement.addEventListener("click", () => make(statement, "/statements"));
faults.addEventListener("submit", applyFaults);
list.notifications.addEventListener("task-done", (event) => {
  const { detail, history } = /** @type {CustomEvent & {history: boolean}} */ (event);
  if (!history && detail.state === "SUCCESS") showOrders();
});
list.notifications.addEventListener("connection", (event) => {
  if (/** @type {CustomEvent} */ (event).detail.state === "refused") showOrders();
});
showOrders();
