"""Runs of pip (or uv), and its long complaints made into one line."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

NO_NETWORK = re.compile(
    r"Retrying \(Retry|Max retries exceeded|NewConnectionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
    r"|getaddrinfo failed|Name or service not known|Temporary failure in name resolution|error sending request"
)
NO_ROOM = re.compile(r"No space left on device|\[Errno 28\]|not enough space on the disk|[Qq]uota exceeded")
FULL = (errno.ENOSPC, errno.EDQUOT)  # what the disk says to this program itself


class InstallError(Exception):
    """Setting up cannot go on; its text is the one line for the user."""


class NoNetwork(InstallError):
    """The package index did not answer."""


class NoRoom(InstallError):
    """The disk, or the user's share of it, is full."""

    def __init__(self) -> None:
        super().__init__("the disk is full: free some room (a complete .venv takes about 6 GB) and run this again.")


def say(text: str) -> None:
    """A line of progress, shown at once even when output goes to a file."""
    print(f"BFR Adapt: {text}", flush=True)


def python_environment() -> dict[str, str]:
    """The environment without what would make another Python look for packages in this one's places."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}


def install_command(python: str) -> list[str]:
    """Command that adds packages to the running `python`: its pip, or uv where a host was made without pip."""
    if importlib.util.find_spec("pip"):
        return [python, "-m", "pip", "install", "--retries", "2", "--timeout", "30"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", python]
    raise InstallError(
        f"this Python has no pip: run `{python} -m ensurepip --upgrade` (Debian: apt install python3-pip)."
    )


def run_quietly(command: Sequence[str]) -> str:
    """Output of `command`, unseen by the user. Raises InstallError (one line) when it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )
    if done.returncode:
        raise failure(done.stdout)
    return done.stdout


def run_shown(command: Sequence[str]) -> None:
    """Run pip with its progress shown and its complaints kept back. Raises InstallError (one line) when it fails."""
    done = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=python_environment(),
    )
    if done.returncode:
        raise failure(done.stderr)


def failure(output: str) -> InstallError:
    """What went wrong, as an error with one line, from all that pip or uv wrote."""
    if NO_ROOM.search(output):
        return NoRoom()
    pins = list(dict.fromkeys(re.findall(r"\(constraint\) (\S+)", output)))
    if pins:
        reasons = [pin.replace("<0", " (never added here)").replace("==", " other than ") for pin in pins]
        return InstallError("needs " + ", ".join(reasons))
    if "No solution found" in output:  # uv
        return InstallError("needs other versions than the installed ones")
    if NO_NETWORK.search(output):
        return NoNetwork("the package index does not answer: check the network or proxy and run this again.")
    errors = [line for line in output.splitlines() if re.match(r"(ERROR|error|.*No module named)", line.strip())]
    lines = errors or output.strip().splitlines()
    return InstallError(
        lines[0].strip().removeprefix("ERROR: ").removeprefix("error: ") if lines else "pip stopped without a word"
    )


def this_python() -> str:
    """Path of the running interpreter."""
    if not sys.executable:
        raise InstallError("this Python does not know its own path: start it by its full path.")
    return sys.executable
