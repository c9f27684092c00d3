"""Peak memory and seconds of the published 512 x 512 networks, with random weights of exactly their shape.

    python benchmarks/memory.py [--device cuda] [--batches 1 8 32] [--precisions float32 bfloat16]

For every restorer and the prior: restoring or one sampling step, and one tuning step in its full and its low-memory
form. Every figure is measured in a process of its own, after one run that prepares; a line that ran out of memory says
so. The ratio compares `Restorer.restore` with the bare network in a loop, in the same process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from published_shapes import PRIOR_SETTINGS, RESTORERS, prior_state, restorer_state

from bfr_core.checkpoints import save_tensors
from bfr_core.finetuning import FinetuneConfig, finetune
from bfr_core.precision import autocast
from bfr_core.prior import load_prior
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.verification import peak_memory

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


def measure(name: str, what: str, precision: str, batch: int, device: torch.device) -> dict[str, str]:
    """One line of the table, in this process."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        if name == "prior":
            save_tensors(path, prior_state(), {"unet": json.dumps(PRIOR_SETTINGS)})
            network = load_prior(path).to(device)
        else:
            save_tensors(path, restorer_state(name), {})
            network = load_restorer(path).to(device)
    images, extra = torch.rand(batch, 3, 512, 512), {}
    if what == "sample step":
        x, t = (images * 2 - 1).to(device), torch.full((batch,), 300, device=device)
        with torch.inference_mode(), autocast(device, precision):
            seconds = seconds_of(lambda: network(x, t), device)
    elif what == "restore":
        restorer = replace(network, precision=precision)
        seconds = seconds_of(lambda: restorer.restore(images), device)
        extra["ratio to the bare network"] = f"{seconds / bare(restorer, images, device):.2f}"
    else:
        pairs = [(face, face) for face in images]
        config = replace(LOW if "low memory" in what else TRAIN, precision=precision, batch_size=batch)
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
    parser.add_argument("--one", nargs=4, metavar=("NETWORK", "WHAT", "PRECISION", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, what, precision, batch = args.one
        print(json.dumps(measure(name, what, precision, int(batch), torch.device(args.device))))
        return
    print("| network | what | precision | batch | seconds a face | peak memory | ratio to the bare network |")
    print("|---|---|---|---|---|---|---|")
    for name in args.networks:
        for what in ("sample step",) if name == "prior" else ("restore", "tuning step", "tuning step, low memory"):
            for precision in args.precisions:
                for batch in args.batches:
                    one = [name, what, precision, str(batch)]
                    command = [sys.executable, __file__, "--device", args.device, "--one", *one]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    lines = done.stdout.splitlines() or done.stderr.splitlines() or ["ended without a word"]
                    row = json.loads(lines[-1]) if done.returncode == 0 else {"seconds a face": lines[-1][:80]}
                    cells = [row.get(k, "") for k in ("seconds a face", "peak memory", "ratio to the bare network")]
                    print("| " + " | ".join([*one, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
