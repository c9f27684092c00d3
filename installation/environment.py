"""The project's own `.venv`: made, repaired, filled, and used to run the demo or the tests."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .packages import read_requirements
from .pip_runs import InstallError, NoNetwork, NoRoom, python_environment, run_quietly, run_shown, say, this_python

WORKERS = 3  # of the tests, at most; each may hold two gigabytes
WORKERS_OF_ALL = 2  # with --all; each may hold ten
# With glibc, a process of the tests then keeps memory that it gave back, for the next of many small networks; a tenth
# of the processor's time went into asking the system for it again.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
STAMP = "bfr-adapt-installed"  # in .venv: fingerprint of what was installed, written last
MARK = "bfr-adapt"  # in .venv: that this program made it, so that it may be made again


def demo(root: Path, arguments: Sequence[str]) -> int:
    """Run `bfr demo` in `.venv`; its exit code."""
    return call([prepare(root), "-m", "bfr_core", "demo", *arguments])


def test(root: Path, arguments: Sequence[str]) -> int:
    """Linters, type checker, then pytest (slow and host tests only with --all); exit code of the first that fails.

    A worker runs whole files, whose fixtures are made once so, in the order of `tests/conftest.py`. Without --all there
    is one worker more than there are cores, because tests of pages and processes wait for a good part of their time.
    `arguments` are pytest's and come last: `-n 0` runs the tests in one process, as a debugger needs.
    """
    python = prepare(root)
    cores = os.cpu_count() or 1
    workers = min(WORKERS_OF_ALL, cores) if "--all" in arguments else min(WORKERS, cores + 1)
    checks = [
        ("ruff check", ["ruff", "check", "--output-format", "concise", "."]),
        ("ruff format --check", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy"]),
        ("pytest", ["pytest", "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder", *arguments]),
    ]
    with compiling(python, root) as compiled:
        for title, words in checks:
            say(title)
            if title == "pytest":
                compiled.wait()
            code = call([python, "-m", *words], cwd=root, more=KEPT_MEMORY)
            if code:
                return code
    return 0


@contextlib.contextmanager
def compiling(python: str, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that compiles the tests and all that they import, beside the linters; else every worker would do so."""
    words = [python, "-m", "pytest", "--collect-only", "-q"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, cwd=root, env=python_environment(), stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def call(command: Sequence[str], cwd: Path | None = None, more: Mapping[str, str] | None = None) -> int:
    """Exit code of `command`, whose output the user sees. more: what its environment has beside ours."""
    return subprocess.call(command, cwd=cwd, env={**(more or {}), **python_environment()})


def prepare(root: Path) -> str:
    """Path of the Python in `.venv`, with everything installed; quick when nothing changed. Raises InstallError."""
    folder = root / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    version = working_version(python)
    if version is None:
        make(folder)
        version = working_version(python)
        if version is None:
            raise InstallError(f"{folder} was made but its Python does not start: remove that folder and try again.")
    stamp = folder / STAMP
    wanted = fingerprint(root, version)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        stamp.unlink(missing_ok=True)
        fill(root, str(python))
        stamp.write_text(wanted, encoding="utf-8")
    return str(python)


def working_version(python: Path) -> str | None:
    """Version of `.venv`'s Python if it starts, has pip and is one we support; None if it must be made (again)."""
    code = (
        "import sys, pip; print(sys.prefix != sys.base_prefix, (3, 10) <= sys.version_info[:2] <= (3, 13), sys.version)"
    )
    try:
        answer = run_quietly([str(python), "-I", "-c", code]).strip()
    except (OSError, InstallError):
        return None
    return answer.removeprefix("True True ") if answer.startswith("True True ") else None


def make(folder: Path) -> None:
    """A new virtual environment at `folder`, over a broken one if need be. Raises InstallError."""
    absent = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if absent:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise InstallError(
            f"this Python lacks {' and '.join(absent)}: install it (Debian: apt install {package}) and run this again."
        )
    if folder.is_dir() and not (folder / MARK).exists() and any(path.is_file() for path in folder.rglob("*")):
        raise InstallError(
            f"{folder} was not made by this program, and has no pip or a Python that is not 3.10 to 3.13: move it away "
            "and try again."
        )
    say("repairing .venv ..." if folder.exists() else "making .venv ...")
    # From the base Python: in a virtual environment sys.executable may be the very one that is being replaced.
    make_it = [getattr(sys, "_base_executable", "") or this_python(), "-m", "venv", str(folder)]
    run_quietly([*make_it, "--clear", "--without-pip"])
    (folder / MARK).touch()  # before pip comes, which takes a while: cut off there, it can be made again
    run_quietly(make_it)


def fill(root: Path, python: str) -> None:
    """Install the project, what it needs and the test tools into `.venv`. Raises InstallError."""
    if (root / ".venv" / MARK).exists():
        drop_half_installed(python)
    say("installing packages into .venv (PyTorch is large: minutes, and up to 6 GB of disk the first time) ...")
    # Python compiles what is used when it is used: a part, in half a minute less.
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    if not sys.stdout.isatty():
        pip.append("--quiet")
    run_shown([*pip, "--editable", f"{root}[run,test]"])
    for requirement in read_requirements(root / "requirements-optional.txt"):
        try:
            run_shown([*pip, "--no-deps", requirement.text])
        except (NoNetwork, NoRoom):
            raise
        except InstallError as error:
            say(f"going on without {requirement.name}: {error}")


def drop_half_installed(python: str) -> None:
    """Remove packages whose installation was cut off: pip writes RECORD last, yet does not look for it later."""
    packages = run_quietly([python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    for about in Path(packages).glob("*.dist-info"):
        if not (about / "RECORD").exists():
            shutil.rmtree(about)


def fingerprint(root: Path, version: str) -> str:
    """A digest of the place, the Python, and everything that says what to install."""
    digest = hashlib.sha256(f"{root}\n{version}\n".encode())
    for name in ("pyproject.toml", "requirements.txt", "requirements-optional.txt"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()
