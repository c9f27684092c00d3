"""Set up BFR Adapt; needs nothing but Python.

    python3 install.py demo           make .venv beside this file, install into it, run the demo
    python3 install.py test [--all]   the same .venv, then linters, type checker and tests (further words go to pytest)
    python3 install.py                what ComfyUI-Manager and WebUI run: add what is missing to the running Python,
                                      changing no version that is there already

This file stays readable by every Python, so that an old one gets an answer rather than a SyntaxError.
"""

import os
import sys

OLDEST, NEWEST = (3, 10), (3, 13)


def refusal(version, executable):
    """One line for a Python that is too old or too new, "" for one that will do; version: (major, minor, ...)."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ""
    oldest, newest, this = (".".join(map(str, numbers)) for numbers in (OLDEST, NEWEST, version[:3]))
    return "BFR Adapt needs Python {} to {}, and this is Python {} ({}): run install.py with another one.".format(
        oldest, newest, this, executable
    )


def main(arguments):
    line = refusal(sys.version_info, sys.executable)
    if line:
        sys.stderr.write(line + "\n")
        return 2
    root = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, root)  # an embedded Python does not look beside its script
    from installation.main import run

    return run(root, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
