"""The `bfr` command: one file for each family of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command in a process of our own; returns the exit status. Threads are prepared before torch is loaded.

    Ctrl-C while that is loaded, or before the command has begun, ends it like one that has.
    """
    try:
        from ..threads import prepare_threads

        words = sys.argv[1:] if arguments is None else arguments
        prepare_threads(words)
        from .commands import main as run

        return run(arguments)
    except KeyboardInterrupt:
        print("bfr: cancelled; nothing was under way", file=sys.stderr)
        return 130
