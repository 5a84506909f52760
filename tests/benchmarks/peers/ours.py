"""Ours: the smallest application with the blueprint. Who asks is said by the query, as with the peers."""

from __future__ import annotations

from flask import Flask, request

from celery_notify.flask import create_blueprint

app = Flask(__name__)
app.register_blueprint(create_blueprint(lambda: request.args["user"]), url_prefix="/notifications")
