"""What ComfyUI's registry asks of the pack: the fields of pyproject.toml, pictures, and its own tool's checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PLACES = "https://(raw.githubusercontent|github).com/PUBLISHER/bfr-adapt"


def field(name: str) -> str:
    """The text that a field of pyproject.toml has."""
    found = re.search(rf'^"?{re.escape(name)}"? = "(.*)"$', TEXT, re.M)
    assert found, f"pyproject.toml has no {name}"
    return found[1]


def test_only_the_publisher_is_left_to_fill_in() -> None:
    assert field("PublisherId") == "PUBLISHER"
    for name in ("Repository", "Documentation", "Bug Tracker", "Icon", "Banner"):
        assert re.match(PLACES, field(name)), name
    assert re.fullmatch(r"\d+\.\d+\.\d+", field("version")) and field("license") == "Apache-2.0"
    assert "Operating System :: OS Independent" in TEXT
    for name in ("Icon", "Banner", "Documentation"):
        path = field(name).split("/main/")[1]
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(("name", "width", "height"), [("Icon", 400, 400), ("Banner", 1260, 540)])
def test_pictures_have_the_proportions_that_the_registry_asks_for(name: str, width: int, height: int) -> None:
    text = (ROOT / field(name).split("/main/")[1]).read_text(encoding="utf-8")
    assert f'width="{width}" height="{height}"' in text.splitlines()[0]
    assert width == height <= 400 or width * 9 == height * 21


@pytest.fixture(scope="module")
def comfy() -> str:
    """The registry's tool in an environment of its own; skips where it cannot be installed."""
    folder = ROOT / "build" / "comfy-cli"
    program = folder / ("Scripts/comfy.exe" if os.name == "nt" else "bin/comfy")
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(program.with_name("python")), "-m", "pip", "install", "-q", "comfy-cli"]
        if subprocess.run(pip, check=False).returncode:
            shutil.rmtree(folder)
            pytest.skip("comfy-cli cannot be installed here")
    return str(program)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that git tracks, which is a repository of its own, as the tool needs it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "pack" / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "pack", check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path / "pack", check=True)
    return tmp_path / "pack"


@pytest.mark.slow
def test_the_registrys_own_tool_finds_nothing_to_blame_and_packs_what_is_needed(comfy: str, checkout: Path) -> None:
    environment = os.environ | {"HOME": str(checkout.parent), "DO_NOT_TRACK": "1"}
    for command in ("validate", "pack"):
        asked = [comfy, "--skip-prompt", "--no-enable-telemetry", "node", command]
        done = subprocess.run(asked, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "rror" not in done.stdout, done.stdout
    with zipfile.ZipFile(checkout / "node.zip") as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"__init__.py", "nodes", "bfr_core", "web", "locales", "workflows", "subgraphs", "requirements.txt"} <= tops
    assert not {"install.py", "installation", "tests", "tools", "scripts", "benchmarks", "docs"} & tops
    assert "bfr_core/embedded/restorer256.safetensors" in names and "workflows/02 Tour of the method.json" in names
