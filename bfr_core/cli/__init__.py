"""The `bfr` command: one file for each family of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command in a process of our own; returns the exit status. Threads are prepared before torch is loaded."""
    from ..threads import prepare_threads

    words = sys.argv[1:] if arguments is None else arguments
    prepare_threads(words)
    from .commands import main as run

    return run(arguments)
