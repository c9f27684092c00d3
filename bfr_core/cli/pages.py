"""The command that serves the web page."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .flags import MAIN, Commands, path_from
from .progress import Bars


def ui(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..web.gradio_page import serve

    page, server, address = serve(args.runs, args.allow, args.port, args.listen, args.auth)
    try:
        print(f"the page is at {address} (Ctrl-C ends it; next time, runs go on where they stopped)", file=sys.stderr)
        while True:
            time.sleep(0.2)
            bars.cancel.check()
    finally:
        page.jobs.stop_all()
        server.close()


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    sub = commands.add(ui, "Serve the web page, to this machine only unless told otherwise.", group=MAIN, goes_on=True)
    sub.add_argument(
        "--runs", type=path_from, default=Path("bfr_runs"), metavar="DIR", help="Where runs are kept (bfr_runs)."
    )
    text = "Folder that may be named on the page, with all below it; may be given several times."
    sub.add_argument("--allow", type=path_from, action="append", default=[], metavar="DIR", help=text)
    sub.add_argument("--port", type=int, default=7860, help="Port of the page (7860).")
    sub.add_argument("--listen", action="store_true", help="Answer other machines, too.")
    text = "File with a line user:password for each who may use the page; or set BFR_UI_AUTH to one such line."
    sub.add_argument("--auth", type=path_from, metavar="FILE", help=text)
