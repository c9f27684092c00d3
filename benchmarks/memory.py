"""Peak memory and seconds of the published 512 x 512 networks, with random weights of exactly their shape.

    python benchmarks/memory.py [--device cuda] [--batches 1 8 32] [--precisions float32 bfloat16] [--work FILE]

For every restorer and the prior: restoring or one sampling step, and the second tuning step of the recipe and of
--low-memory, each with its own terms; the perceptual one is the distance in the prior's encoder. Every figure is
measured in a process of its own, which loads files made before, after one run that prepares; seconds are those of the
batch by its faces. A line that ran out of memory says so, also where the tuning went on with fewer faces a pass. The
ratio compares `Restorer.restore` with the network as spandrel builds it in a loop, face by face, in the same process:
each three times, in turn, the quickest counts. The prior is compared, twice, with the same network whose weights lie
as they were saved. Memory on a CPU is the most that the process held, Python and PyTorch included. On a shared machine
times mean nothing. With --work every line is kept as it is measured, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from published_shapes import PRIOR_SETTINGS, RESTORERS, prior_state, restorer_state

from bfr_core.adaptation.config import LOW_MEMORY, recipe
from bfr_core.device import autocast
from bfr_core.diffusion.prior import load_prior
from bfr_core.files.photos import replace_atomically
from bfr_core.files.tensors import save_tensors
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.restorers.load import known_architectures
from bfr_core.settings import changed
from bfr_core.studies.verification import device_name, peak_memory
from bfr_core.training.finetune import finetune
from bfr_core.training.losses import perceptual_loss

COLUMNS = ("network", "what", "precision", "batch", "seconds a face", "peak memory", "ratio to the bare network")
STOPPED = (-2, -15)  # exit codes of a process that was ended from outside; such a line is measured again


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
    if path.exists():
        return
    if name == "prior":
        save_tensors(path, prior_state(), {"unet": json.dumps(PRIOR_SETTINGS)})
    else:
        save_tensors(path, restorer_state(name), {})


def measure(path: Path, what: str, precision: str, batch: int, device: torch.device) -> dict[str, str]:
    """The figures of one line, in this process. path: the network's file, the prior's beside it."""
    network: Any = (load_prior if what == "sample step" else load_restorer)(path).to(device)
    images, extra = torch.rand(batch, 3, 512, 512), {}
    if what == "sample step":
        x, t = (images * 2 - 1).to(device), torch.full((batch,), 300, device=device)
        with torch.inference_mode(), autocast(device, precision):
            network(x, t)
            peak = peak_memory(str(device))
            plain = load_prior(path).to(device)
            plain.network.to(memory_format=torch.contiguous_format)
            turns = [
                (seconds_of(lambda: network(x, t), device), seconds_of(lambda: plain(x, t), device)) for _ in range(2)
            ]
        seconds, alone = (min(times) for times in zip(*turns, strict=True))
        extra = {"ratio to the bare network": f"{seconds / alone:.2f}", "peak memory": peak}
    elif what == "restore":
        restorer = replace(network, precision=precision)
        restorer.restore(images)
        peak = peak_memory(str(device))
        plain = replace(restorer, module=as_spandrel_builds(path).to(device))
        turns = [(seconds_of(lambda: restorer.restore(images), device), bare(plain, images, device)) for _ in range(3)]
        seconds, alone = (min(times) for times in zip(*turns, strict=True))
        extra = {"ratio to the bare network": f"{seconds / alone:.2f}", "peak memory": peak}
    else:
        seconds, extra = tuning_step(network, path, "low memory" in what, precision, images)
    return {"seconds a face": f"{seconds / batch:.2f}", "peak memory": peak_memory(str(device))} | extra


def tuning_step(
    network: Any, path: Path, low_memory: bool, precision: str, images: torch.Tensor
) -> tuple[float, dict[str, str]]:
    """Seconds of the second step of the recipe on these faces, and the batch in words if it did not fit at once."""
    config = changed(recipe(network), LOW_MEMORY if low_memory else {}).finetune
    config = replace(config, precision=precision, batch_size=len(images), iterations=3, held_out=0)
    if not low_memory:
        config = replace(config, micro_batch=len(images))
    term = None
    if not network.tuned_by_codes:
        prior = load_prior(path.with_name(f"prior{path.suffix}")).encoder_to(network.device)
        term = perceptual_loss(partial(prior.features, recompute=config.recompute))
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("bfr_core.device").addHandler(handler)
    stamps: list[float] = []

    def stop_after_two(*_: object) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) == 2:
            raise StopIteration

    with contextlib.suppress(StopIteration):
        finetune(network, [(face, face) for face in images], config, perceptual=term, callback=stop_after_two)
    return stamps[1] - stamps[0], {"batch": f"{len(images)} ({said[-1]})"} if said else {}


def as_spandrel_builds(path: Path) -> Any:
    """The network of this restorer's file, with no change of ours."""
    import spandrel

    loader = spandrel.ModelLoader(registry=known_architectures())
    return loader.load_from_file(path).model.eval().requires_grad_(False)


def bare(restorer: Restorer, images: torch.Tensor, device: torch.device) -> float:
    """Seconds of the network alone, face by face, in the layout of memory in which the faces come."""
    faces = [face[None].to(device) for face in images]

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
    parser.add_argument("--work", type=Path, metavar="FILE", help="measured lines are kept here and not measured again")
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
    here = f"torch {torch.__version__}, {device_name(args.device)}, {torch.get_num_threads()} threads"
    print(f"{here}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with TemporaryDirectory() as folder:
        for name in args.networks:
            parts = ("sample step",) if name == "prior" else ("restore", "tuning step", "tuning step, low memory")
            for what, precision, batch in product(parts, args.precisions, args.batches):
                key = [here, name, what, precision, str(batch)]
                row = finished(args.work).get(tuple(key))
                if row is None:
                    row = measured_apart(Path(folder), args.device, key[1:])
                    if args.work and not failed_otherwise(row):
                        keep(args.work, key, row)
                cells = dict(zip(COLUMNS, key[1:], strict=False)) | row
                print("| " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |", flush=True)


def measured_apart(folder: Path, device: str, line: list[str]) -> dict[str, str]:
    """The figures of a line (network, what, precision, batch) from a process of its own, or why there are none."""
    name, *one = line
    file = folder / f"{name}.safetensors"
    for made in {name, "prior"} if "tuning" in one[0] else {name}:
        command = [sys.executable, __file__, "--make", made, str(folder / f"{made}.safetensors")]
        subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, __file__, "--device", device, "--one", str(file), *one]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in STOPPED:
        raise KeyboardInterrupt
    if done.returncode < 0:
        return {"seconds a face": f"none: ended by signal {-done.returncode}, most likely for want of memory"}
    if done.returncode:
        return {"seconds a face": f"none: {(done.stderr.splitlines() or ['failed'])[-1][:80].replace('|', '/')}"}
    return json.loads(done.stdout.splitlines()[-1])


def finished(work: Path | None) -> dict[tuple[str, ...], dict[str, str]]:
    """Lines measured before, by what was measured and where."""
    if work is None or not work.exists():
        return {}
    lines = [line for line in work.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return {tuple(line["key"]): line["row"] for line in map(json.loads, lines)}


def failed_otherwise(row: dict[str, str]) -> bool:
    """Whether there is no figure, and not for want of memory."""
    return row["seconds a face"].startswith("none") and "memory" not in row["seconds a face"]


def keep(work: Path, key: list[str], row: dict[str, str]) -> None:
    """Add a measured line to the file."""
    whole = "".join(f"{json.dumps({'key': k, 'row': r})}\n" for k, r in (*finished(work).items(), (key, row)))
    replace_atomically(work, lambda part: part.write_text(whole, encoding="utf-8"))


if __name__ == "__main__":
    main()
