"""Threads wait as the machine is busy, are as many as the networks are worth, and torch is loaded after that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bfr_core.cli import main
from bfr_core.threads import load_of_others, prepare_threads


@pytest.mark.parametrize(("load", "cores", "passive"), [(0.2, 2, False), (1.6, 2, True), (1.6, 8, False)])
def test_threads_sleep_on_a_busy_machine(load: float, cores: int, passive: bool) -> None:
    environ: dict[str, str] = {}
    prepare_threads(["adapt"], environ, load, cores)
    assert environ == ({"OMP_WAIT_POLICY": "PASSIVE"} if passive else {})


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("1.90 1.20 0.60 1/99 1234", 0.0),  # a large job has just ended
        ("1.90 1.20 0.60 3/99 1234", 1.9),
        ("1.90 1.20 0.60 2/99 1234", 1.0),
        ("1.90 1.20 0.60", 1.9),  # another system's
        (None, 1.9),
    ],
)
def test_what_has_just_ended_is_no_load(table: str | None, expected: float, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 1.2, 0.6), raising=False)
    if table is not None:
        (tmp_path / "loadavg").write_text(table, encoding="ascii")
    assert load_of_others(tmp_path / "loadavg") == expected


def test_a_servers_threads_sleep_whatever_the_load_at_its_start() -> None:
    environ: dict[str, str] = {}
    prepare_threads(["ui"], environ, 0.0, 8)
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_the_command_line_decides_by_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("bfr_core.threads.prepare_threads", seen.append)
    monkeypatch.setattr("bfr_core.cli.commands.main", lambda arguments: 0)
    assert main(["ui", "--port", "1"]) == 0 and seen == [["ui", "--port", "1"]]


def files(folder: Path) -> dict[str, str]:
    """Networks as files, by what they are called in the tests below; "many" has many weights, "wide" much to do."""
    weights = {"small": (torch.zeros(300), 32), "many": (torch.zeros(300_000), 32), "wide": (torch.zeros(3000), 512)}
    for name, (tensor, size) in weights.items():
        save_file({"w": tensor}, folder / name, {"size": str(size)})
    save_file({"w": torch.zeros(300)}, folder / "guided", {"unet": json.dumps({"image_size": 32})})
    (folder / "other").write_bytes(bytes(5000))
    (folder / "diffusers").mkdir()
    (folder / "diffusers/config.json").write_text('{"sample_size": 16}')
    (folder / "diffusers/weights").write_bytes(bytes(5000))
    return {name: str(folder / name) for name in (*weights, "guided", "other", "diffusers")}


@pytest.mark.parametrize("load", [0.0, 9.0])
@pytest.mark.parametrize(
    ("words", "one"),
    [
        ("adapt photos --restorer small --prior small", True),
        ("adapt photos --restorer=small --prior diffusers", True),
        ("adapt photos --restorer small --prior guided", True),
        ("adapt photos --restorer small --prior many", False),
        ("adapt photos --restorer small --prior wide", False),
        ("adapt photos --restorer small --prior other", False),  # says no size, so it is one of published files
        ("adapt photos --restorer many --restorer small --prior small", True),
        ("adapt photos --restorer small", False),  # its prior is the embedded one
        ("adapt photos", False),
        ("adapt photos --restorer small --prior nowhere", False),
        ("restore photos --restorer small", True),
        ("restore photos --restorer many", False),
        ("export small", False),
        ("", False),
    ],
)
def test_small_networks_get_one_thread_whatever_the_load(tmp_path: Path, words: str, one: bool, load: float) -> None:
    line = words.split()
    for name, file in files(tmp_path).items():
        line = [file if word == name else word.replace(f"={name}", f"={file}") for word in line]
    environ: dict[str, str] = {}
    prepare_threads(line, environ, load, 2)
    assert environ.get("OMP_NUM_THREADS") == ("1" if one else None)


def test_networks_in_the_home_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    environ: dict[str, str] = {}
    prepare_threads(["restore", "photos", "--restorer=~/small"], environ, 0.0, 2)
    assert environ.get("OMP_NUM_THREADS") == "1"


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    line = ["restore", "photos", "--restorer", files(tmp_path)["small"]]
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environ = {name: "7", "OMP_NUM_THREADS": "3"}
        prepare_threads(line, environ, 9.0, 2)
        assert environ == {name: "7", "OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize("module", ["bfr_core", "bfr_core.cli", "bfr_core.threads"])
def test_the_command_can_decide_before_torch_is_loaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
