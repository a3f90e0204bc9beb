"""`python -m homeserver` is the same as `hearth`."""

import sys

from homeserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
