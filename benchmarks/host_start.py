"""What the extension adds to the start of a WebUI: the host is started without it and with it, in turns.

    python benchmarks/host_start.py A1111 --flags "--use-cpu all"
    python benchmarks/host_start.py FORGE --flags=--always-cpu

FORGE is the host's folder, with its Python in `venv`. Each start has a folder of data of its own, with nothing in it
but a link to this extension, and ends when the host says its "Startup time". The figures are seconds of processor
time of the host until then, which other work on the machine hardly changes, and the time by the clock. A first start
of each kind is not counted: it writes the compiled Python files. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.free_port import free_port

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--ui-debug-mode --skip-prepare-environment --skip-torch-cuda-test --api"
STARTED = "Startup time: "
PATIENCE = 600.0  # seconds


def start(home: Path, flags: str, extension: bool) -> tuple[float, float]:
    """Seconds of processor time and by the clock until the host says that it has started.

    Raises RuntimeError, with the end of the host's output, if it does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder), Path(folder, "log")
        (data / "extensions").mkdir()
        if extension:
            (data / "extensions" / "bfr-adapt").symlink_to(ROOT)
        command = [str(home / "venv/bin/python"), "launch.py", *FLAGS.split(), *flags.split()]
        command += ["--data-dir", folder, "--port", str(free_port())]
        plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "COMMANDLINE_ARGS"}
        plain["PYTHONUNBUFFERED"] = "1"  # the line that is waited for must come at once
        begun = time.monotonic()
        with log.open("wb") as stream:
            process = subprocess.Popen(command, cwd=home, env=plain, stdout=stream, stderr=subprocess.STDOUT)
        try:
            while STARTED not in log.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    raise RuntimeError(f"{home} did not start:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
            return processor_seconds(process.pid), time.monotonic() - begun
        finally:
            process.kill()
            process.wait()


def processor_seconds(pid: int) -> float:
    """What a process and those that it has waited for have used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, metavar="HOST", help="the WebUI's folder")
    parser.add_argument("--flags", default="", help="further flags of the WebUI, which keep it off graphics cards")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="starts of each kind that count (5)")
    args = parser.parse_args()
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for i in range(args.starts + 1):
        for extension, found in seconds.items():
            one = start(args.home.resolve(), args.flags, extension)
            if i:
                found.append(one)
    for kind, title in enumerate(("processor time", "by the clock")):
        without, with_it = ([one[kind] for one in seconds[extension]] for extension in (False, True))
        more = median(b - a for a, b in zip(without, with_it, strict=True))
        print(
            f"{title}: {median(without):.2f} s without, {median(with_it):.2f} s with the extension; "
            f"median difference of {args.starts} pairs of starts {more:+.2f} s"
        )


if __name__ == "__main__":
    main()
