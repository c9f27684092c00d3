"""How many of OpenMP's threads pay, and whether they should sleep while they wait instead of spinning.

    python benchmarks/threads.py [--seconds 6] [--rounds 3] [--networks small,embedded,prior] [--busy 0,2]

It compares, in the same time, steps with one thread, with all threads that spin (OpenMP's own way) and with all threads
that sleep: steps of training (forward and backward) of a small network and of the embedded restorer, and steps of the
embedded prior, each alone and beside busy processes, as many as there are cores. Each count is of a process of its own,
because OpenMP reads its settings once. The three take turns, so that other work meets all of them alike. Printed are
the median of the rounds' ratios to the spinning threads, all of the ratios, and the processor time (CPU) that a step
takes. On a machine with other work "alone" is not alone: the load at the start is printed, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.threads import POLICY, load_of_others

NETWORKS = ("small", "embedded", "prior")
BATCH = 4
CORES = os.cpu_count() or 1


class Setting(NamedTuple):
    """How OpenMP's threads are set. words: what the table calls it. threads: how many. policy: how they wait."""

    words: str
    threads: int
    policy: str


SPINNING = Setting(f"{CORES} threads, spinning", CORES, "ACTIVE")
OTHERS = (Setting("1 thread", 1, "PASSIVE"), Setting(f"{CORES} threads, sleeping", CORES, "PASSIVE"))


class Count(NamedTuple):
    """steps: how many were made. cpu: seconds of all processors together that one of them took."""

    steps: int
    cpu: float


def step_of(network: str) -> Callable[[], None]:
    """A function that makes one step: of training, or of sampling for the prior."""
    import torch

    torch.manual_seed(0)
    if network == "prior":
        from bfr_core import load_prior

        prior = load_prior()
        x_t, t = torch.randn(BATCH, 3, prior.size, prior.size), torch.full((BATCH,), 100)

        def sample() -> None:
            with torch.no_grad():
                prior(x_t, t)

        return sample
    if network == "small":
        module: torch.nn.Module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
        )
        size = 32
    else:
        from bfr_core import load_restorer

        restorer = load_restorer()
        module, size = restorer.module.requires_grad_(True), restorer.size
    lq = torch.rand(BATCH, 3, size, size)

    def train() -> None:
        module.zero_grad()
        (module(lq) - lq).abs().mean().backward()

    return train


def count_steps(network: str, seconds: float) -> Count:
    """Steps in so many seconds, after three that are not counted."""
    step = step_of(network)
    for _ in range(3):
        step()
    end, cpu, count = time.monotonic() + seconds, time.process_time(), 0
    while time.monotonic() < end:
        step()
        count += 1
    return Count(count, (time.process_time() - cpu) / max(1, count))


def counted(network: str, setting: Setting, seconds: float) -> Count:
    """`count_steps` in a process of its own with this setting."""
    command = [sys.executable, __file__, "--count", network, "--seconds", str(seconds)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environ |= {POLICY: setting.policy, "OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    steps, cpu = done.stdout.split()[-2:]
    return Count(int(steps), float(cpu))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def compare(network: str, where: str, seconds: float, rounds: int) -> Iterator[str]:
    """Lines of the table for a network: the settings take turns for so many rounds."""
    found: dict[Setting, list[Count]] = {}
    for _ in range(rounds):
        for setting in (SPINNING, *OTHERS):
            found.setdefault(setting, []).append(counted(network, setting, seconds))
    for setting in (SPINNING, *OTHERS):
        pairs = zip(found[setting], found[SPINNING], strict=True)
        ratios = [own.steps / max(1, spinning.steps) for own, spinning in pairs]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        cpu = 1000 * statistics.median(count.cpu for count in found[setting])
        steps = statistics.median(count.steps for count in found[setting]) / seconds
        yield (
            f"{network:<9} {where:<22} {setting.words:<20} {statistics.median(ratios):5.2f} ({each}) "
            f"{steps:8.1f} steps/s {cpu:8.1f} ms CPU a step"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each count")
    parser.add_argument("--rounds", type=int, default=3, help="counts of each kind")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which of small, embedded and prior")
    parser.add_argument("--busy", default=f"0,{CORES}", help="beside how many busy processes, one number or several")
    parser.add_argument("--count", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        print(*count_steps(args.count, args.seconds))
        return
    print(f"{CORES} cores, load {load_of_others():.1f} at the start", flush=True)
    for network in args.networks.split(","):
        for processes in map(int, args.busy.split(",")):
            with busy(processes):
                where = f"beside {processes} busy" if processes else "alone"
                for line in compare(network, where, args.seconds, args.rounds):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
