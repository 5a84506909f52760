"""A small site where people log in: its page notes all that the client tells, and the server says who is connected."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from flask import Flask, current_app, jsonify, make_response, redirect, request

import celery_notify
from celery_notify import config, hub
from celery_notify.flask import create_blueprint
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

#: Whose page it is stands in it, as on most sites.
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<script type="module" src="/page.js"></script></head><body>{user}</body></html>"""

#: `told` is all that the client tells, `backwards` what must not be: a task that had ended or was further. The page has
#: a list or the elements that it is asked for, or with ?heartbeat=... only the client. ?careless opens streams that do
#: not say who they are for, ?deaf notes nothing.
SCRIPT = """
import { TaskNotifications } from "/notifications/client.js";
const query = new URLSearchParams(location.search);
const [told, backwards, sources, shown] = [[], [], [], new Map()];
if (window.EventSource) {
  window.EventSource = class extends EventSource {
    constructor(given) {
      const url = new URL(given);
      if (query.has("careless")) url.searchParams.delete("user_tag");
      super(url);
      sources.push(this);
    }
  };
}
const heartbeat = Number(query.get("heartbeat"));
const names = query.get("elements")?.split(" ") ?? ["task-list"];
const elements = heartbeat ? [] : names.map((name) => document.createElement(name));
for (const element of elements) element.setAttribute("task-id", query.get("task-id") ?? "");
document.body.append(...elements);
const notifications = elements[0]?.notifications ?? new TaskNotifications(undefined, { heartbeat });
const heard = query.has("deaf") ? [] : ["task-progress", "task-done", "connection", "note"];
for (const name of heard) {
  notifications.addEventListener(name, ({ detail, history }) => told.push([name, structuredClone(detail), history]));
}
const final = ({ state }) => ["SUCCESS", "FAILURE", "REVOKED"].includes(state);
notifications.addEventListener(query.has("deaf") ? "nothing" : "change", ({ detail: { key, task } }) => {
  const before = shown.get(key);
  if (task && before && (final(before) || task.current < before.current)) backwards.push([before, task]);
  if (task) shown.set(key, task);
  else shown.delete(key);
});
const leads = () => sources.some(({ readyState }) => readyState !== EventSource.CLOSED);
const endings = () => told.filter(([name]) => name === "task-done").map(([, { task_id }]) => task_id);
const notes = () => told.filter(([name]) => name === "note").map(([, detail]) => detail);
const titles = () => [...notifications.tasks.values()].map(({ title }) => title);
Object.assign(window, { notifications, told, backwards, leads, endings, notes, titles });
"""

_idle = threading.Event()


def load_user() -> str | None:
    user = request.cookies.get("user")
    return None if user is None else unquote(user)


def page() -> ResponseReturnValue:
    return PAGE.format(user=load_user())


def script() -> ResponseReturnValue:
    return SCRIPT, {"Content-Type": "text/javascript; charset=utf-8"}


def log_in(user: str) -> ResponseReturnValue:
    """Log in, whoever was logged in before; his streams are left as they are."""
    answer = make_response(redirect(f"/page?{request.query_string.decode()}"))
    answer.set_cookie("user", quote(user, safe=""), httponly=True)
    return answer


def log_out() -> ResponseReturnValue:
    user = load_user()
    if user is not None:
        celery_notify.close_streams(user)
    answer = make_response("", 204)
    answer.delete_cookie("user", httponly=True)
    return answer


def streams() -> ResponseReturnValue:
    """Say how many streams each user has open."""
    admissions = hub.of(config.settings(flask=current_app.config)).admissions
    return jsonify(admissions._open)  # noqa: SLF001 - nobody but a test wants to know


def busy() -> ResponseReturnValue:
    """Answer when `idle` is asked for: who waits for it, and can do nothing else, hangs."""
    _idle.wait()
    return ""


def idle() -> ResponseReturnValue:
    _idle.set()
    return ""


def ordinary() -> ResponseReturnValue:
    return ""


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "the tests'"  # noqa: S105 - it keeps nothing secret
    app.register_blueprint(create_blueprint(load_user), url_prefix=PREFIX)
    app.add_url_rule("/page", view_func=page)
    app.add_url_rule("/page.js", view_func=script)
    app.add_url_rule("/login/<user>", view_func=log_in)
    app.add_url_rule("/logout", view_func=log_out, methods=["POST"])
    app.add_url_rule("/streams", view_func=streams)
    app.add_url_rule("/busy", view_func=busy)
    app.add_url_rule("/idle", view_func=idle)
    app.add_url_rule("/ordinary", view_func=ordinary)
    return app
