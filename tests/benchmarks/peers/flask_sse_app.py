"""flask-sse, for gunicorn with gevent; run by itself it publishes what stands on its standard input."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import Flask
from flask_sse import Message, ServerSentEventsBlueprint, json

from tests.benchmarks.peers.publishing import publish_lines

if TYPE_CHECKING:
    from collections.abc import Iterator


class Announcing(ServerSentEventsBlueprint):
    """As it is, but it says when a stream is live, and else nothing: gunicorn sends a head with the first bytes."""

    def messages(self, channel: str = "sse") -> Iterator[Message]:
        subscription = self.redis.pubsub()
        subscription.subscribe(channel)
        try:
            for message in subscription.listen():
                if message["type"] == "message":
                    yield Message(**json.loads(message["data"]))
                else:  # the subscription's confirmation
                    yield Message("{}", type="ready")
        finally:
            subscription.close()


sse = Announcing("sse", __name__)
sse.add_url_rule(rule="", endpoint="stream", view_func=sse.stream)
app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["PEER_REDIS_URL"]
app.register_blueprint(sse, url_prefix="/events")


def main() -> None:
    with app.app_context():
        publish_lines(lambda user, data: sse.publish(data, type="task-done", channel=user))


if __name__ == "__main__":
    main()
