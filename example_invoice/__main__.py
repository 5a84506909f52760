"""`python -m example_invoice` starts the whole demo."""

from __future__ import annotations

import sys

from example_invoice.launcher import main

if __name__ == "__main__":
    sys.exit(main())
