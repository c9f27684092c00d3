"""The `bfr` command: its parser and its exit status; there is one module for each family of commands.

Exit status: 0 done; 1 some files failed, or the disk or the memory is too small; 2 bad input, which one line names;
130 cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..device import is_out_of_memory
from ..files.photos import printable
from ..files.tensors import reason_of
from . import pages, restore, run, studies, weights
from .flags import Commands
from .progress import AboveTheBar, Bars, Cancel, Nowhere

NOT_THE_INPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # errors of the disk that are not bad input


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if sys.stderr is None:  # it was closed: what is said there is not wanted
        sys.stderr = Nowhere()
    args = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that a Windows code page does not have ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = AboveTheBar()
    handler.addFilter(lambda record: record.name.startswith(("bfr_core", "__main__")))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    try:
        with Cancel() as cancel, contextlib.closing(Bars(cancel)) as bars:
            summary = args.command(args, bars)
        if args.json:
            print(json.dumps(summary))
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"bfr: cancelled; the same command {_when_run_again(args.goes_on)}", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        print(f"bfr: {printable(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, OSError) and error.errno in NOT_THE_INPUT else 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hints = [flag for name, flag in (("low_memory", "--low-memory"), ("device", "--device cpu")) if name in args]
        advice = f"; try {', or '.join(hints)}" if hints else ""
        print(f"bfr: too little memory ({reason_of(error)}){advice}", file=sys.stderr)
        return 1
    return 1 if _has_failed(summary) else 0


def _nobody_reads() -> bool:
    """Whether who read what is printed, such as head, has had enough; what is left to print then goes nowhere."""
    try:
        print(flush=True)  # flushing alone does not fail twice
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _has_failed(summary: dict[str, Any]) -> bool:
    """Whether a file, one of its faces or a check failed, though the command came to its end."""
    files = summary.get("files", ())
    return any(f["status"] == "failed" or f.get("failed_faces") for f in files) or bool(summary.get("failed"))


def _when_run_again(goes_on: bool) -> str:
    """What a command that was cancelled does when it is given again."""
    return "goes on where this one stopped" if goes_on else "starts from the beginning"


class OneLine(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with the arguments of its command, without the list of them all."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; see '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its help lists them by group."""
    parser = OneLine(prog="bfr", formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = Commands(parser)
    for family in (run, restore, pages, weights, studies):
        family.add_commands(commands)
    lines = ["Tune a face restorer to your own damaged photos.", "", *commands.lines()]
    parser.description = "\n".join(lines)
    return parser
