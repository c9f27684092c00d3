"""What is gained and lost when OpenMP's threads sleep while they wait, instead of spinning.

    python benchmarks/threads.py [--seconds 10] [--rounds 3]

It compares the steps of training (forward and backward) of sleeping threads with those of spinning ones in the same
time, for a small network and the embedded restorer: alone, and beside as many busy processes as cores. Each count is
of a process of its own, because OpenMP reads its setting once; the two settings take turns, and the median of the
rounds' ratios is printed. On a machine with other work "alone" is not alone: the load at the start is printed, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.threads import POLICY, load_of_others

NETWORKS = ("small", "embedded")
BATCH = 4


def steps_in(network: str, seconds: float) -> int:
    """Steps of training in so many seconds, after three that are not counted."""
    import torch

    from bfr_core import load_restorer

    torch.manual_seed(0)
    if network == "small":
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
        )
        size = 32
    else:
        restorer = load_restorer()
        module, size = restorer.module.requires_grad_(True), restorer.size
    lq = torch.rand(BATCH, 3, size, size)

    def step() -> None:
        module.zero_grad()
        (module(lq) - lq).abs().mean().backward()

    for _ in range(3):
        step()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        step()
        count += 1
    return count


def counted(network: str, policy: str, seconds: float) -> int:
    """`steps_in` in a process of its own with this setting."""
    command = [sys.executable, __file__, "--count", network, "--seconds", str(seconds)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(command, env=environ | {POLICY: policy}, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each count")
    parser.add_argument("--rounds", type=int, default=3, help="counts of each kind")
    parser.add_argument("--count", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        print(steps_in(args.count, args.seconds))
        return
    cores = os.cpu_count() or 1
    print(f"{cores} cores, load {load_of_others():.1f} at the start")
    for network in NETWORKS:
        for words, processes in (("alone", 0), (f"beside {cores} busy processes", cores)):
            ratios = []
            with busy(processes):
                for _ in range(args.rounds):
                    passive, active = (counted(network, policy, args.seconds) for policy in ("PASSIVE", "ACTIVE"))
                    ratios.append(passive / max(1, active))
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{network:<9} {words:<26} passive/active {statistics.median(ratios):.2f}  ({each})", flush=True)


if __name__ == "__main__":
    main()
