"""Tuning in two processes, joined by accelerate through gloo on this machine's CPU, ends as in one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bfr_core.adaptation.run import Run
from tests.free_port import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(__file__).with_name("tune_together.py"))
# On a CPU, `accelerate launch` starts one process, or leaves several to MPI; PyTorch's own launcher, which it calls for
# graphics cards, starts them here, and accelerate finds them by what that launcher tells them.
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def call(processes: int, *words: str) -> None:
    pytest.importorskip("accelerate")
    start = [*LAUNCH, str(processes)] if processes > 1 else []
    if start and words[0] == "-m":
        words = ("-m", "--", *words[1:])  # so that the launcher does not take --run for an option of its own
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *start, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def tuned(folder: Path, dtype: str, processes: int, stop: int = 0) -> list[torch.Tensor]:
    """Weights after 50 steps, as each process has them, (N,) each; none if it stops."""
    folder.mkdir(exist_ok=True)
    call(processes, SCRIPT, str(folder), dtype, str(stop))
    return [flat(torch.load(file)) for file in sorted(folder.glob(f"tuned * of {processes}.pt"))]


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(weights.items())])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_two_processes_end_with_the_weights_of_one(dtype: str, tmp_path: Path) -> None:
    (one,) = tuned(tmp_path / "one", dtype, 1)
    first, second = tuned(tmp_path / "two", dtype, 2)
    assert torch.equal(first, second), "both have the same weights"
    assert relative(one, flat(torch.load(tmp_path / "one" / "before.pt"))) > 0.01, "they have moved"
    print(f"{dtype}: largest difference {float((first - one).abs().max()):.3g}, relative L2 {relative(first, one):.3g}")
    if dtype == "float64":
        assert (first - one).abs().max() < 1e-9
    else:
        assert relative(first, one) < 1e-4


@pytest.mark.slow
@pytest.mark.cluster
def test_a_tuning_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    (unbroken,) = tuned(tmp_path / "unbroken", "float64", 1)
    assert tuned(tmp_path / "run", "float64", 2, stop=20) == []
    assert tuned(tmp_path / "run", "float64", 3, stop=35) == []
    (resumed,) = tuned(tmp_path / "run", "float64", 1)
    assert (resumed - unbroken).abs().max() < 1e-9


@pytest.mark.slow
@pytest.mark.cluster
def test_the_command_tunes_in_two_processes_and_only_one_writes(
    photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    networks = ["--restorer", str(tiny_restorer), "--prior", str(tiny_prior)]
    one, two = tmp_path / "one", tmp_path / "two"
    call(1, "-m", "bfr_core", "faces", str(photos), "--aligned", "--restorer", str(tiny_restorer), "--run", str(one))
    call(1, "-m", "bfr_core", "targets", *networks, "--calls", "2", "--run", str(one))
    shutil.copytree(one, two)
    few = [
        "--iterations",
        "50",
        "--set",
        "finetune.held_out=0",
        "--batch-size",
        "4",
        "--micro-batch",
        "2",
        "--precision",
        "float32",
    ]
    for run, processes in ((one, 1), (two, 2)):
        call(processes, "-m", "bfr_core", "finetune", *networks, *few, "--device", "cpu", "--run", str(run))
    of_one, of_two = (flat(load_file(run / "restorer.safetensors")) for run in (one, two))
    print(f"command: relative L2 {relative(of_two, of_one):.3g}")
    assert relative(of_two, of_one) < 1e-4
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def two_that_tune(photos: Path, restorer: Path, prior: Path, run: Path) -> list[subprocess.Popen[str]]:
    """Two processes that tune for hours, once they have begun; without a launcher, which would hide how they end."""
    pytest.importorskip("accelerate")
    networks = ["--restorer", str(restorer), "--prior", str(prior)]
    call(1, "-m", "bfr_core", "faces", str(photos), "--aligned", "--restorer", str(restorer), "--run", str(run))
    call(1, "-m", "bfr_core", "targets", *networks, "--calls", "2", "--run", str(run))
    long = ["--iterations", "1000000", "--set", "finetune.held_out=0", "--set", "finetune.checkpoint_seconds=1"]
    long += ["--batch-size", "4", "--micro-batch", "2", "--precision", "float32", "--device", "cpu", "--run", str(run)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    team = []
    for rank in ("0", "1"):
        environment = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "bfr_core", "finetune", *networks, *long]
        team.append(subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    while not Run(run).checkpoint.exists():
        assert [process.poll() for process in team] == [None, None]
        time.sleep(0.2)
    return team


def last_words(process: subprocess.Popen[str]) -> list[str]:
    """What a process that ends says, without its progress bar."""
    said = process.communicate(timeout=600)[1]
    assert "Traceback" not in said, said
    return [line for line in said.replace("\r", "\n").splitlines() if line.startswith("bfr:")]


@pytest.mark.slow
@pytest.mark.cluster
def test_ctrl_c_in_one_process_stops_both_after_the_same_step_and_one_of_them_says_so(
    photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    first, second = two_that_tune(photos, tiny_restorer, tiny_prior, tmp_path / "run")
    before = Run(tmp_path / "run").checkpoint.stat().st_mtime_ns
    second.send_signal(signal.SIGINT)
    assert last_words(first) == ["bfr: cancelled; the same command goes on where this one stopped"]
    assert last_words(second) == []
    assert (first.returncode, second.returncode) == (130, 130)
    assert Run(tmp_path / "run").checkpoint.stat().st_mtime_ns > before, "the last step is kept"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_process_whose_partner_was_killed_ends_in_one_line_and_keeps_the_last_step(
    photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    first, second = two_that_tune(photos, tiny_restorer, tiny_prior, tmp_path / "run")
    before = Run(tmp_path / "run").checkpoint.stat().st_mtime_ns
    time.sleep(3)  # many steps, none of which is kept yet
    second.kill()
    second.communicate()
    (line,) = last_words(first)
    assert line.startswith("bfr: another process of this tuning has ended") and "goes on from the last" in line
    assert first.returncode == 2 and Run(tmp_path / "run").checkpoint.stat().st_mtime_ns > before
