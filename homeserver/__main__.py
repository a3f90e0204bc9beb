"""`python -m homeserver` is the same as `hearth`."""

import gc
import importlib
import sys


def main() -> int:
    """Run one command; returns its exit code."""
    # What is imported stays: Python would look for garbage among it after every 700 objects, and find none.
    gc.set_threshold(20_000, 10, 10)
    exit_code: int = importlib.import_module("homeserver.cli").main()
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
