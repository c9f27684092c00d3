"""The command that serves the web page."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ..files.names import printable
from .flags import MAIN, Commands, folder_from, path_from
from .progress import Bars

MAX_PORT = 65535


def ui(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..web.gradio_page import serve

    for folder in args.allow:
        if not folder.is_dir():
            said = "is a file; name the folder that it lies in" if folder.exists() else "no such folder; name another"
            raise ValueError(f"--allow {printable(folder)}: {said}")
    page, server, address = serve(args.runs, args.allow, args.port, args.listen, args.auth)
    try:
        print(f"the page is at {address} (Ctrl-C ends it; next time, runs go on where they stopped)", file=sys.stderr)
        while True:
            time.sleep(0.2)
            bars.cancel.check()
    finally:
        page.jobs.stop_all()
        server.close()


def port_from(text: str) -> int:
    """The number of a port. Raises ArgumentTypeError for what is none."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to {MAX_PORT}")
    return int(text)


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    sub = commands.add(ui, "Serve the web page, to this machine only unless told otherwise.", group=MAIN, goes_on=True)
    sub.add_argument(
        "--runs", type=folder_from, default="bfr_runs", metavar="DIR", help="Where runs are kept (bfr_runs)."
    )
    text = "Folder that may be named on the page, with all below it; may be given several times."
    sub.add_argument("--allow", type=path_from, action="append", default=[], metavar="DIR", help=text)
    sub.add_argument("--port", type=port_from, default=7860, help="Port of the page (7860).")
    sub.add_argument("--listen", action="store_true", help="Answer other machines, too.")
    text = "File with a line user:password for each who may use the page; or set BFR_UI_AUTH to one such line."
    sub.add_argument("--auth", type=path_from, metavar="FILE", help=text)
