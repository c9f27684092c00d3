"""Threads sleep while they wait where the machine is busy, and torch is not loaded before that is decided."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bfr_core.threads import prepare_threads


@pytest.mark.parametrize(("load", "cores", "passive"), [(0.2, 2, False), (1.6, 2, True), (1.6, 8, False)])
def test_threads_sleep_on_a_busy_machine(load: float, cores: int, passive: bool) -> None:
    environ: dict[str, str] = {}
    assert prepare_threads(environ, load, cores) is passive
    assert environ == ({"OMP_WAIT_POLICY": "PASSIVE"} if passive else {})


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_set_stays(name: str) -> None:
    environ = {name: "7"}
    assert not prepare_threads(environ, 9.0, 2)
    assert environ == {name: "7"}


@pytest.mark.parametrize("module", ["bfr_core", "bfr_core.cli", "bfr_core.threads"])
def test_the_command_can_decide_before_torch_is_loaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
