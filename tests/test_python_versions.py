"""Every file is valid for every supported Python at hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import install

ROOT = Path(__file__).resolve().parents[1]
COMPILE = """
import sys
for name in sys.stdin.read().splitlines():
    with open(name, encoding="utf-8") as stream:
        compile(stream.read(), name, "exec", dont_inherit=True)
"""


def test_every_file_compiles(pythons: dict[tuple[int, ...], str]) -> None:
    folders = ["bfr_core", "installation", "nodes", "scripts", "tools", "tests", "benchmarks"]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 20
    names = "\n".join(map(str, files))
    for version, python in pythons.items():
        if install.OLDEST <= version <= install.NEWEST:
            command = [python, "-W", "error", "-c", COMPILE]
            done = subprocess.run(command, input=names, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (version, done.stderr)
