"""How long many photos take on 1 to 64 workers, and what stops the growth: a plan from measured inputs, not a trial.

    python benchmarks/many_machines.py --seconds-per-photo 1.2 --start-up 18

Two answers stand side by side. On paper: the start-up of a worker, then the slowest of the work shared by all workers,
the reading and writing through one storage, and what the one driver does for each photo. By simulation: workers take
task after task, each of which takes a random time, and share the storage, so that the wait for the last one shows.
Every input is an option; none but those of the photos and the storage that you have should be believed.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass

WORKERS = (1, 2, 4, 8, 16, 32, 64)
MEGABYTE = 1e6


@dataclass(frozen=True)
class Inputs:
    """photos: how many. seconds: of one worker for a photo. start_up: seconds until a worker's first photo begins.

    read, written: megabytes of a photo and of its result. storage: megabytes a second that all workers share.
    driver: seconds of the driver for a photo. task: photos that a worker takes at once. spread: standard deviation of
    the seconds of a photo, as a share of their mean.
    """

    photos: int = 1_000_000
    seconds: float = 1.0
    start_up: float = 20.0
    read: float = 3.0
    written: float = 3.0
    storage: float = 500.0
    driver: float = 0.0005
    task: int = 16
    spread: float = 1.0


@dataclass(frozen=True)
class Plan:
    """hours: on paper. simulated: hours by the simulation. bound: what the time is spent on. efficiency: 0 to 1."""

    workers: int
    hours: float
    simulated: float
    bound: str
    efficiency: float


def on_paper(inputs: Inputs, workers: int) -> tuple[float, str]:
    """Seconds that all photos take, and what they are spent on."""
    parts = {
        "the workers": inputs.photos * inputs.seconds / workers,
        "the storage": inputs.photos * (inputs.read + inputs.written) / inputs.storage,
        "the driver": inputs.photos * inputs.driver,
    }
    bound = max(parts, key=lambda name: parts[name])
    return inputs.start_up + parts[bound], bound


def simulate(inputs: Inputs, workers: int, seed: int = 0) -> float:
    """Seconds until the last of all tasks is done, each given to the worker that is free first.

    The storage serves one task after the other; reading and writing overlap with the work of the same worker.
    """
    draws, ready = random.Random(seed), [inputs.start_up] * workers
    storage_free = driver_free = 0.0
    left = inputs.photos
    while left:
        photos = min(inputs.task, left)
        left -= photos
        driver_free += photos * inputs.driver
        began = max(heapq.heappop(ready), driver_free)
        storage_free = max(storage_free, began) + photos * (inputs.read + inputs.written) / inputs.storage
        deviation = inputs.spread * inputs.seconds * photos**0.5  # photos are independent of one another
        work = max(0.0, draws.gauss(photos * inputs.seconds, deviation))
        heapq.heappush(ready, max(began + work, storage_free))
    return max(ready)


def plan(inputs: Inputs) -> list[Plan]:
    """A plan for each number of workers."""
    alone = on_paper(inputs, 1)[0]
    plans = []
    for workers in WORKERS:
        seconds, bound = on_paper(inputs, workers)
        plans.append(Plan(workers, seconds / 3600, simulate(inputs, workers) / 3600, bound, alone / workers / seconds))
    return plans


def as_table(plans: list[Plan]) -> str:
    """The plans as a table in Markdown."""
    lines = ["| workers | hours on paper | hours simulated | efficiency | limited by |", "|---|---|---|---|---|"]
    for one in plans:
        cells = f"{one.workers} | {one.hours:.1f} | {one.simulated:.1f} | {one.efficiency:.2f} | {one.bound}"
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Inputs()
    parser.add_argument("--photos", type=int, default=default.photos)
    parser.add_argument("--seconds-per-photo", dest="seconds", type=float, required=True)
    parser.add_argument("--start-up", type=float, required=True, help="Seconds until a worker begins its first photo.")
    parser.add_argument("--read", type=float, default=default.read, help="Megabytes of a photo.")
    parser.add_argument("--written", type=float, default=default.written, help="Megabytes of a result.")
    parser.add_argument("--storage", type=float, default=default.storage, help="Megabytes a second, of all together.")
    parser.add_argument("--driver", type=float, default=default.driver, help="Seconds of the driver for a photo.")
    parser.add_argument("--task", type=int, default=default.task, help="Photos of a task.")
    parser.add_argument("--spread", type=float, default=default.spread, help="Deviation over mean of the seconds.")
    print(as_table(plan(Inputs(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
