"""The three things install.py can be asked for."""

from __future__ import annotations

import sys
from pathlib import Path

from . import environment, host
from .pip_runs import FULL, InstallError, NoRoom

USAGE = "usage: install.py [demo [arguments] | test [--all] [pytest arguments]]; see the top of install.py"


def run(root: str, arguments: list[str]) -> int:
    """Exit code of `install.py arguments`: its own where something was run, 2 (and one line) where it could not be."""
    folder = Path(root)
    try:
        if not arguments:
            return host.add_missing(folder)
        if arguments[0] == "demo":
            return environment.demo(folder, arguments[1:])
        if arguments[0] == "test":
            return environment.test(folder, arguments[1:])
    except InstallError as error:
        print(f"BFR Adapt: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"BFR Adapt: {NoRoom()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("BFR Adapt: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    print(USAGE, file=sys.stdout if arguments[0] in ("-h", "--help") else sys.stderr)
    return 0 if arguments[0] in ("-h", "--help") else 2
