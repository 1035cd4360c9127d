"""Train Vision Transformers and their relatives on small images."""

import time

__version__ = "0.1.0"

STARTED = time.monotonic()
"""When the program began, by :func:`time.monotonic`: what ``--max-time`` counts from."""
