"""The smallest Flask application with the blueprint: what each WSGI server under test serves."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote

from flask import Flask, Response, jsonify, render_template_string, request

import celery_notify
from celery_notify.flask import create_blueprint
from tests.support.names import PREFIX

if TYPE_CHECKING:
    from typing import Any

    from flask.typing import ResponseReturnValue


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
{{ task_notifications(state=True, nonce=request.args.get("nonce")) }}
</head><body><task-list src="/notifications/stream"></task-list></body></html>
"""


def load_user() -> str | None:
    """Return who is logged in: for once a header says so, percent-encoded, since any text is a user id."""
    user = request.headers.get("X-User")
    return None if user is None else unquote(user)


def ordinary() -> ResponseReturnValue:
    """Answer as any view does, and say which process did."""
    return jsonify(pid=os.getpid())


def page() -> ResponseReturnValue:
    """Show the user's tasks, as they are now; with ?nonce= the page's policy admits scripts by that alone."""
    scripts = f"'nonce-{request.args['nonce']}'" if "nonce" in request.args else "'self'"
    policy = f"default-src 'self'; script-src {scripts}; require-trusted-types-for 'script'"
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store, private"}
    return Response(render_template_string(PAGE), headers=headers, mimetype="text/html")


def send() -> ResponseReturnValue:
    """Send a custom event, JSON {"user", "event", "data", "key"}, and say which process did."""
    order = request.get_json()
    celery_notify.send(order["user"], order["event"], order["data"], key=order.get("key"))
    return jsonify(pid=os.getpid())


def close_streams() -> ResponseReturnValue:
    """End a user's streams, as a logout does: JSON {"user"}."""
    celery_notify.close_streams(request.get_json()["user"])
    return "", 204


def mark(response: Response) -> Response:
    """Put a header and a cookie of the application's own on each response, as sessions do.

    With ?refuse in the request send another response instead, as a late check of the application's may.
    """
    if "refuse" in request.args:
        return Response(status=418)
    response.headers["X-Application"] = "tests"
    response.set_cookie("seen", "yes", httponly=True)
    return response


def create_app(**config: Any) -> Flask:
    """Make the application; `config` is Flask's.

    Where TEST_GREETED_USER names a user it sends an event: an application that does more when it is loaded than to
    define itself.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    app = Flask(__name__)
    app.config.from_mapping(config)
    app.register_blueprint(create_blueprint(load_user), url_prefix=PREFIX)
    app.after_request(mark)
    app.add_url_rule("/ordinary", view_func=ordinary)
    app.add_url_rule("/page", view_func=page)
    app.add_url_rule("/send", view_func=send, methods=["POST"])
    app.add_url_rule("/close-streams", view_func=close_streams, methods=["POST"])
    if "TEST_GREETED_USER" in os.environ:
        celery_notify.send(os.environ["TEST_GREETED_USER"], "note", "hello")
    return app
