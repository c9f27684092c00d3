"""A Ray cluster of this machine, two nodes that are processes with one core each: is anything lost, what does it cost?

    python benchmarks/two_nodes.py lose --work DIR --photos 2000
    python benchmarks/two_nodes.py speed --work DIR --photos 2000 --turns 3
    python benchmarks/two_nodes.py speed --work DIR --photos 120 --turns 3 --embedded

`lose` restores the photos in one process, and then on the cluster, where one worker is killed after a fifth of them and
one node, with all that runs on it, after half. Each photo must be told of once, and all results must have the bytes of
the one process.

`speed` restores them in turns in one process, by one worker and by two, and prints seconds for a photo, by the clock
and of processor time, with the efficiency of two workers against one and the overhead of a photo: what it takes by one
worker less what it takes in one process. Loading libraries and networks is left out: a process counts from the first
photo that it has done, a worker from its first task on. The processor time of the cluster is that of the workers in
their tasks and between them, of the driver, and of all of Ray's own processes. The one process, and each worker, have
one core (on Linux), although their threads for reading and writing could use more. On a machine that does other work,
only processor time is to be believed; the driver and Ray's own processes use some for every second that workers wait.

Photos and network are those of `soak.py --small`: aligned faces of 32 pixels and a network of a few thousand
parameters, so that nearly all of the time is the program's own. With --embedded they are photos with one face to find,
and the embedded restorer: what a user's photos take.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.soak import SMALL_SIDE, make_photos, make_small_restorer, results_in
from bfr_core.cluster.pool import Pool, connected, rows_of
from bfr_core.cluster.restore import Order, Worker, cut, restore_on_ray, result_of
from bfr_core.restoration.folder import plan_folder, restore_folder
from bfr_core.restoration.record import RestorationRecord
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.restorers import load_restorer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = RestoreConfig(likeness="off")


@contextmanager
def two_nodes(setup: str = "") -> Iterator[Any]:
    """The cluster, with a connection to it. setup: a function, by its dotted name, that each worker calls first."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = started()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": path}}
    if setup:
        environment["worker_process_setup_hook"] = setup
    try:
        ray.init(address=cluster.address, runtime_env=environment, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def started(attempts: int = 5) -> Any:
    """Two nodes; Ray gives up on one that does not answer within half a minute, as on a machine that is very busy."""
    from ray.cluster_utils import Cluster

    for attempt in range(1, 1 + attempts):
        cluster = Cluster()
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
            return cluster
        except Exception as error:  # Ray raises nothing narrower
            cluster.shutdown()
            if attempt == attempts or "timed out" not in str(error):
                raise


def actors() -> list[int]:
    """Processes of the workers of the cluster that this process started, the newest first."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "MapWorker" in str(process.cmdline()):
                found.append((process.create_time(), process.pid))
    return [pid for _, pid in sorted(found, reverse=True)]


def kill_actor() -> int:
    """Kill the newest worker; returns its process."""
    newest = actors()[0]
    os.kill(newest, signal.SIGKILL)
    return newest


def kill_node(cluster: Any) -> None:
    """Kill the node that was added last, with all that runs on it."""
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def living_nodes(cluster: Any) -> int:
    """How many nodes are left."""
    return sum(1 for node in cluster.list_all_nodes() if node.all_processes)


def at(moments: dict[int, Callable[[], object]]) -> Callable[[int], None]:
    """A function of the number of photos done that does something once, when so many are done or more."""

    def moment(step: int) -> None:
        for due in [due for due in moments if step >= due]:
            moments.pop(due)()

    return moment


# ---------------------------------------------------------------- lose


def lose(work: Path, photos: int) -> list[str]:
    """The lines that say how it went; SystemExit if a photo is lost, told of twice, or not as from one process."""
    folder, restorer, aligned = prepared(work, photos)
    started = time.monotonic()
    expected = restore_folder(folder, work / "one", load_restorer(restorer), CONFIG, aligned=aligned)
    alone = time.monotonic() - started
    steps: list[int] = []
    with two_nodes() as cluster:
        moments = at({photos // 5: kill_actor, photos // 2: lambda: kill_node(cluster)})

        def callback(step: int, total: int, preview: Any) -> None:
            steps.append(step)
            moments(step)

        order = Order(folder, work / "two", restorer, CONFIG, aligned=aligned)
        result = restore_on_ray(order, callback=callback)
        left = living_nodes(cluster)
    told = [(file.path, file.status, file.reason) for file in result.files]
    if told != [(file.path, file.status, file.reason) for file in expected.files]:
        raise SystemExit("the photos are not told of as by one process")
    if steps != list(range(1, 1 + photos)):
        raise SystemExit(f"{len(steps)} photos were told of, not each of {photos} once")
    if results_in(work / "one") != results_in(work / "two"):
        raise SystemExit("the results are not those of one process")
    return [
        f"{photos} photos, {result.count('restored')} restored: {alone:.0f} s in one process; {result.seconds:.0f} s "
        f"on two nodes, of which {left} was left after a worker and a node were killed",
        "each photo was told of once, and all results have the bytes of the one process",
    ]


class Task(NamedTuple):
    """A folder of photos, aligned or not, and the name or file of the restorer for them."""

    folder: Path
    restorer: str
    aligned: bool


def prepared(work: Path, photos: int, embedded: bool = False) -> Task:
    """Small photos and a small network; or photos with a face each, and the embedded one."""
    if embedded:
        make_photos(work / "photos", photos, aligned=False)
        return Task(work / "photos", "embedded", aligned=False)
    make_photos(work / "photos", photos, aligned=True, side=SMALL_SIDE)
    make_small_restorer(work / "small.safetensors")
    return Task(work / "photos", str(work / "small.safetensors"), aligned=True)


# ---------------------------------------------------------------- speed


@dataclass(frozen=True)
class Spent:
    """Seconds for a photo: by the clock, times the workers, and of processor time.

    tasks, between: of the workers, in their tasks and between them; of one process all is in tasks. driver: of this
    process. ray: of Ray's own processes.
    """

    clock: float
    tasks: float
    between: float = 0.0
    driver: float = 0.0
    ray: float = 0.0

    @property
    def processor(self) -> float:
        """Processor time in all."""
        return self.tasks + self.between + self.driver + self.ray


@contextmanager
def on_one_core(number: int) -> Iterator[None]:
    """Keep this process, with all its threads, on one of the cores it may use; counted from 0 and around."""
    allowed = os.sched_getaffinity(0)
    _move_to({core(number)})
    try:
        yield
    finally:
        _move_to(allowed)


def core(number: int) -> int:
    """One of the cores that this process may use, counted from 0 and around."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[number % len(allowed)]


def _move_to(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(int(thread), cores)


class TimedWorker(Worker):
    """A worker on the core of its node, whose rows say which process made them, and its clock and processor time before
    and after the task."""

    def __init__(self, order: Order) -> None:
        import ray

        nodes = sorted(node["NodeID"] for node in ray.nodes())
        _move_to({core(nodes.index(ray.get_runtime_context().get_node_id()))})
        super().__init__(order)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        before = (time.monotonic(), time.process_time())
        rows = super().__call__(batch)["row"]
        after = (time.monotonic(), time.process_time())
        return {"row": [json.dumps({"row": row, "by": os.getpid(), "times": (*before, *after)}) for row in rows]}


def of_ray(but: set[int]) -> float:
    """Seconds of processor time of all processes that this one started, but for some."""
    import psutil

    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if process.pid not in but:
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
    return total


def in_one_process(task: Task, out: Path) -> Spent:
    """What a photo takes in this process, from the first that is done on."""
    times: list[tuple[float, float]] = []

    def callback(step: int, total: int, preview: Any) -> None:
        times.append((time.monotonic(), time.process_time()))

    with on_one_core(0):
        restore_folder(task.folder, out, load_restorer(task.restorer), CONFIG, aligned=task.aligned, callback=callback)
    clock, processor = (last - first for first, last in zip(times[0], times[-1], strict=True))
    return Spent(clock / (len(times) - 1), processor / (len(times) - 1))


def by_workers(task: Task, out: Path, workers: int) -> Spent:
    """What a photo takes on a pool of so many workers, from the first task of each on."""
    order = Order(task.folder, out, task.restorer, CONFIG, aligned=task.aligned).absolute()
    jobs, _ = plan_folder(task.folder, out)
    orders = cut(jobs, RestorationRecord(out), order, workers)
    spans: dict[int, list[float]] = {}
    others: list[tuple[int, float, float]] = []  # photos done, processor time of the driver and of Ray's own processes
    in_tasks: dict[tuple[int, float], float] = {}  # processor time of each task, by its process and beginning
    with connected(Pool()):
        for done, text in enumerate(rows_of(orders, TimedWorker, order, Pool(), workers), 1):
            told = json.loads(text)
            result_of(told["row"], out)
            span = spans.setdefault(told["by"], told["times"])
            spans[told["by"]] = [*span[:2], *told["times"][2:]] if told["times"][2] > span[2] else span
            in_tasks[told["by"], told["times"][0]] = told["times"][3] - told["times"][1]
            if done in (len(jobs) // 4, len(jobs)):
                others.append((done, time.process_time(), of_ray(set(actors()))))
    clock = sum(end - begin for begin, _, end, _ in spans.values()) / len(jobs)
    of_workers = sum(end - begin for _, begin, _, end in spans.values()) / len(jobs)
    tasks = sum(in_tasks.values()) / len(jobs)
    driver, ray = ((others[1][i] - others[0][i]) / (others[1][0] - others[0][0]) for i in (1, 2))
    return Spent(clock, tasks, of_workers - tasks, driver, ray)


def speed(work: Path, photos: int, turns: int, embedded: bool) -> list[str]:
    """The lines of a table of what a photo takes, each figure the median of the turns, and what follows from it."""
    task = prepared(work, photos, embedded)
    spent: dict[str, list[Spent]] = {"one process": [], "one worker": [], "two workers": []}
    for turn in range(turns):
        spent["one process"].append(in_one_process(task, work / f"{turn}-0"))
        with two_nodes():
            spent["one worker"].append(by_workers(task, work / f"{turn}-1", 1))
            spent["two workers"].append(by_workers(task, work / f"{turn}-2", 2))
    kinds = ("clock", "processor", "tasks", "between", "driver", "ray")
    lines = [f"{photos} photos, {turns} turns; milliseconds a photo:", ""]
    lines += [f"| | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for name, of_turns in spent.items():
        cells = [f"{1000 * median(getattr(one, kind) for one in of_turns):.2f}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for kind in kinds[:3]:
        alone, one, two = ([getattr(one, kind) for one in of_turns] for of_turns in spent.values())
        share = median(a / b for a, b in zip(one, two, strict=True))
        more = median(1000 * (b - a) for a, b in zip(alone, one, strict=True))
        lines.append(f"{kind}: efficiency of two workers against one {share:.2f}; overhead of a photo {more:.2f} ms")
    return lines


def main() -> None:
    torch.set_num_threads(1)  # as a worker of one core has
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("lose", "speed"))
    parser.add_argument("--work", type=Path, required=True, help="An empty folder to work in.")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3, help="Of speed.")
    parser.add_argument("--embedded", action="store_true", help="Of speed: photos with a face, the embedded restorer.")
    args = parser.parse_args()
    work = args.work.absolute()
    lines = lose(work, args.photos) if args.mode == "lose" else speed(work, args.photos, args.turns, args.embedded)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
