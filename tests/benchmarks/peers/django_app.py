"""django-eventstream with Redis, as its manual says for several processes, and its history in Redis too.

Run by itself it publishes what stands on its standard input.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import include, path

from tests.benchmarks.peers.publishing import publish_lines

_address = urlsplit(os.environ["PEER_REDIS_URL"])
REDIS = {"host": _address.hostname, "port": _address.port, "db": 0}

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django_eventstream"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use to anybody",  # noqa: S106
    EVENTSTREAM_REDIS=REDIS,
    EVENTSTREAM_STORAGE_CLASS="django_eventstream.storage.RedisStorage",
    EVENTSTREAM_STORAGE_CONNECTION=REDIS,
)
app = get_asgi_application()
urlpatterns = [path("events", include("django_eventstream.urls"))]


def main() -> None:
    from django_eventstream import send_event  # noqa: PLC0415 - it wants Django to be set up

    publish_lines(lambda user, data: send_event(user, "task-done", data, json_encode=False))


if __name__ == "__main__":
    main()
