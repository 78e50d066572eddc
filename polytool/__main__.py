"""`python -m polytool` is the `polytool` command."""

import sys

from polytool.cli import main

if __name__ == "__main__":
    sys.exit(main())
