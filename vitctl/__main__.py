"""Entry point of ``python -m vitctl``."""

import sys

from vitctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
