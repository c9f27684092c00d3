"""Options and fixtures of every test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow or host")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all") or config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("host")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def pythons() -> dict[tuple[int, ...], str]:
    """(major, minor) -> path of every Python at hand: pyenv's, and those on the search path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [str(path) for path in sorted(pyenv.glob("*/bin/python"))]
    others = [path for minor in range(6, 20) if (path := shutil.which(f"python3.{minor}"))]
    places += [path for path in others if "shims" not in path] + [sys.executable]
    found = {}
    for place in places:
        code = "import sys; print('%d %d' % sys.version_info[:2])"
        done = subprocess.run([place, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            major, minor = done.stdout.split()
            found[int(major), int(minor)] = place
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with portraits/, faces256/, photos/, reference/: $BFR_SHARED, or `shared` beside or in the checkout."""
    given = os.environ.get("BFR_SHARED")
    places = [Path(given)] if given else [ROOT.parent / "shared", ROOT / "shared"]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no folder of real faces: set BFR_SHARED to one with portraits/, faces256/, photos/ and reference/")
