"""The tasks that do nothing, in an application that shows the marked ones."""

from __future__ import annotations

import celery_notify
from tests.benchmarks.noop import app, main

celery_notify.init_app(app)

if __name__ == "__main__":
    main()
