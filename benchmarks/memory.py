"""Peak memory and seconds of the published 512 x 512 networks, with random weights of exactly their shape.

    python benchmarks/memory.py [--device cuda] [--batches 1 8 32] [--precisions float32 bfloat16]

For every restorer and the prior: restoring or one sampling step, and one tuning step in its full and its low-memory
form, without the perceptual and adversarial terms. Every figure is measured in a process of its own, which loads a file
made before, after one run that prepares; a line that ran out of memory says so. The ratio compares `Restorer.restore`
with the bare network in a loop, face by face, in the same process: each three times, in turn, the quickest counts.
Memory on a CPU is the most that the process held, Python and PyTorch included. On a shared machine times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from published_shapes import PRIOR_SETTINGS, RESTORERS, prior_state, restorer_state

from bfr_core.checkpoints import save_tensors
from bfr_core.finetuning import FinetuneConfig, finetune
from bfr_core.precision import autocast
from bfr_core.prior import load_prior
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.verification import device_name, peak_memory

TRAIN = FinetuneConfig(iterations=2, batch_size=1, micro_batch=1, perceptual=0, adversarial=0, held_out=0)
LOW = replace(TRAIN, recompute=True, trainable="lora")


def seconds_of(work, device: torch.device) -> float:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def make(name: str, path: Path) -> None:
    """A file of the network."""
    if name == "prior":
        save_tensors(path, prior_state(), {"unet": json.dumps(PRIOR_SETTINGS)})
    else:
        save_tensors(path, restorer_state(name), {})


def measure(path: Path, what: str, precision: str, batch: int, device: torch.device) -> dict[str, str]:
    """One line of the table, in this process."""
    network: Any = (load_prior if what == "sample step" else load_restorer)(path).to(device)
    images, extra = torch.rand(batch, 3, 512, 512), {}
    if what == "sample step":
        x, t = (images * 2 - 1).to(device), torch.full((batch,), 300, device=device)
        with torch.inference_mode(), autocast(device, precision):
            seconds = seconds_of(lambda: network(x, t), device)
    elif what == "restore":
        restorer = replace(network, precision=precision)
        turns = [(seconds_of(lambda: restorer.restore(images), device), bare(restorer, images, device))]
        peak = peak_memory(str(device))
        turns += [
            (seconds_of(lambda: restorer.restore(images), device), bare(restorer, images, device)) for _ in range(2)
        ]
        seconds, alone = (min(times) for times in zip(*turns, strict=True))
        extra = {"ratio to the bare network": f"{seconds / alone:.2f}", "peak memory": peak}
    else:
        pairs = [(face, face) for face in images]
        config = LOW if "low memory" in what else replace(TRAIN, micro_batch=batch)
        config = replace(config, precision=precision, batch_size=batch)
        stamps: list[float] = []
        finetune(network, pairs, config, callback=lambda *_: stamps.append(time.perf_counter()))
        seconds = stamps[1] - stamps[0]
    return {"seconds a face": f"{seconds / batch:.2f}", "peak memory": peak_memory(str(device))} | extra


def bare(restorer: Restorer, images: torch.Tensor, device: torch.device) -> float:
    """Seconds of the network alone, face by face."""
    faces = [restorer.placed(face[None]) for face in images]

    def loop() -> None:
        with torch.inference_mode(), autocast(device, restorer.precision):
            for face in faces:
                restorer(face)

    return seconds_of(loop, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--networks", nargs="+", default=[*RESTORERS, "prior"], choices=[*RESTORERS, "prior"])
    parser.add_argument("--one", nargs=4, metavar=("FILE", "WHAT", "PRECISION", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, metavar=("NETWORK", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make[0], Path(args.make[1]))
        return
    if args.one:
        file, what, precision, batch = args.one
        print(json.dumps(measure(Path(file), what, precision, int(batch), torch.device(args.device))))
        return
    print(f"torch {torch.__version__}, {device_name(args.device)}, {torch.get_num_threads()} threads\n")
    print("| network | what | precision | batch | seconds a face | peak memory | ratio to the bare network |")
    print("|---|---|---|---|---|---|---|")
    for name in args.networks:
        with TemporaryDirectory() as folder:
            file = str(Path(folder) / "weights.safetensors")
            subprocess.run([sys.executable, __file__, "--make", name, file], check=True, capture_output=True)
            parts = ("sample step",) if name == "prior" else ("restore", "tuning step", "tuning step, low memory")
            for what, precision, batch in product(parts, args.precisions, args.batches):
                one = [what, precision, str(batch)]
                command = [sys.executable, __file__, "--device", args.device, "--one", file, *one]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = done.stdout.splitlines() or done.stderr.splitlines() or [f"killed ({done.returncode})"]
                row = json.loads(lines[-1]) if done.returncode == 0 else {"seconds a face": lines[-1][:80]}
                cells = [row.get(k, "") for k in ("seconds a face", "peak memory", "ratio to the bare network")]
                print("| " + " | ".join([name, *one, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
