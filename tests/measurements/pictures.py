"""Make README's images: a terminal, a report, and accuracy against time.

    python -m tests.measurements.pictures terminal          # docs/images/terminal.svg, from a comparison that takes minutes
    python -m tests.measurements.pictures report RUN        # docs/images/report.png, with Chromium

``python -m tests.measurements.time_to_accuracy --plot docs/images/time_to_accuracy.svg`` makes the third.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.report.browser import browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"

COMMAND = "compare-optimizers adan adamw muon --dataset digits --epochs 4 --seeds 3"

COLUMNS = 110

HEIGHT = 1150
"""Height of the image of a report, in pixels."""


def terminal() -> None:
    """Run a comparison, and draw what it prints as Rich does."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "vitctl", *COMMAND.split()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=folder,
            env={**os.environ, "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)},
        )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(f"$ vitctl {COMMAND}\n{done.stdout.rstrip()}"))
    console.save_svg(str(IMAGES / "terminal.svg"), title="vitctl")


def report(run: Path) -> None:
    """Write the report of a run, and take a screenshot of its top."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "vitctl", "report", str(run), "-o", str(page)], check=True)
        with browser(Path(folder) / "profile") as tab:
            tab.open(page, width=1100)
            tab.screenshot(IMAGES / "report.png", height=HEIGHT)


def main() -> None:
    """Make the image that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="picture", required=True)
    commands.add_parser("terminal")
    commands.add_parser("report").add_argument("run", type=Path)
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    if args.picture == "terminal":
        terminal()
    else:
        report(args.run)


if __name__ == "__main__":
    main()
