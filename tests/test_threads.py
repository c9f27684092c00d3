"""Threads sleep while they wait where the machine is busy, and torch is not loaded before that is decided."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bfr_core.cli import main
from bfr_core.threads import prepare_threads


@pytest.mark.parametrize(("load", "cores", "passive"), [(0.2, 2, False), (1.6, 2, True), (1.6, 8, False)])
def test_threads_sleep_on_a_busy_machine(load: float, cores: int, passive: bool) -> None:
    environ: dict[str, str] = {}
    assert prepare_threads(environ, load, cores) is passive
    assert environ == ({"OMP_WAIT_POLICY": "PASSIVE"} if passive else {})


def test_a_servers_threads_sleep_whatever_the_load_at_its_start() -> None:
    environ: dict[str, str] = {}
    assert prepare_threads(environ, 0.0, 8, lasting=True) and environ == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(("command", "lasting"), [("ui", True), ("adapt", False)])
def test_the_page_is_a_server(monkeypatch: pytest.MonkeyPatch, command: str, lasting: bool) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("bfr_core.threads.prepare_threads", lambda lasting: seen.append(lasting))
    monkeypatch.setattr("bfr_core.cli.commands.main", lambda arguments: 0)
    assert main([command]) == 0 and seen == [lasting]


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_set_stays(name: str) -> None:
    environ = {name: "7"}
    assert not prepare_threads(environ, 9.0, 2)
    assert environ == {name: "7"}


@pytest.mark.parametrize("module", ["bfr_core", "bfr_core.cli", "bfr_core.threads"])
def test_the_command_can_decide_before_torch_is_loaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
