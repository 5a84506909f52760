"""Names that the tests share with the workers and web applications under test, and that import nothing."""

from __future__ import annotations

#: The module of the tasks, for `celery --app`.
MODULE = "tests.support.tasks"
#: The environment variable with Celery's configuration as JSON; the broker's URL at least.
CONFIGURATION_VARIABLE = "TEST_CELERY_CONFIGURATION"
#: The queue that the lasting worker reads; other workers have queues of their own.
QUEUE = "celery-notify-tests"
#: Where the blueprint is in the web application.
PREFIX = "/notifications"
