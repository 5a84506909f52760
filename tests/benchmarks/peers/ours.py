"""Ours: the smallest application with the blueprint. Who asks is said by the query, as with the peers.

Beside the stream stands a view that only answers: what that costs, the server and Flask cost for a stream too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask, request

from celery_notify.flask import create_blueprint

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

app = Flask(__name__)
app.register_blueprint(create_blueprint(lambda: request.args["user"]), url_prefix="/notifications")


@app.get("/answer")
def answer() -> ResponseReturnValue:
    """Say what a stream says when it is live, and no more."""
    return f"event: ready\ndata: {request.args['user']}\n\n", {"Content-Type": "text/event-stream"}
