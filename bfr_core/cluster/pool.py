"""A pool of workers on a Ray cluster, each an actor, to which Ray Data hands out tasks."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..files.photos import printable
from ..restorers.load import SHIPPED

TASKS_A_WORKER = 4  # so many at least, that no worker waits long for another one at the end
MAX_BLOCKS = 10_000  # of Ray Data; each has several tasks if there are more
ATTEMPTS = 3  # for tasks whose worker died
RETRIES = 3  # of one task by Ray, as long as its actor is started again


@dataclass(frozen=True)
class Pool:
    """Where the workers are, and what each has.

    address: of a cluster that runs already; "" takes that of RAY_ADDRESS, or one that runs on this machine already, and
    otherwise starts one here. cpus, gpus: cores and graphics cards of each worker.
    """

    address: str = ""
    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, int(self.cpus))

    @classmethod
    def read(cls, text: str, cpus: float = 1, gpus: float = 0) -> Pool:
        """The pool that a text such as "ray:10.0.0.5:6379" names. Raises ValueError if it names none."""
        engine, _, address = text.partition(":")
        if engine != "ray":
            raise ValueError(f"--workers {printable(text)}: must be ray, or ray:ADDRESS for a cluster that runs")
        for flag, wanted in (("--cpus-per-worker", cpus), ("--gpus-per-worker", gpus)):
            if not 0 <= wanted < math.inf:
                raise ValueError(f"{flag} is {wanted:g}; it must be a number that is not below 0")
        return cls(address, cpus, gpus)


def absolute_path(name: str) -> str:
    """The absolute path of a file or folder that is here; any other name as it is, and what the project calls its own,
    whatever else is called so."""
    return name if name in SHIPPED or not Path(name).exists() else str(Path(name).absolute())


@contextmanager
def connected(pool: Pool) -> Iterator[None]:
    """A connection to Ray, ended at the end if it was made here. Raises ValueError if there can be none."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--workers ray: Ray is not installed; install the packages of the extra 'cluster'") from None
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.max_errored_blocks, context.print_on_execution_start
    context.enable_progress_bars, context.max_errored_blocks, context.print_on_execution_start = False, -1, False
    rays = logging.getLogger("ray.data")
    level = rays.level
    rays.setLevel(logging.CRITICAL)  # what it says of tasks is said of their photos
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(
                address=pool.address or None,
                logging_level=logging.ERROR,
                include_dashboard=None if pool.address else False,
            )
        yield
    except ConnectionError as error:
        raise ValueError(
            f"--workers ray:{printable(pool.address)}: {first_line(error)}; start a cluster there"
        ) from None
    except ray.exceptions.RayError as error:
        raise ValueError(f"--workers ray: the workers failed ({last_line(error)})") from error
    finally:
        context.enable_progress_bars, context.max_errored_blocks, context.print_on_execution_start = before
        rays.setLevel(level)
        if mine:
            ray.shutdown()


def last_line(error: BaseException) -> str:
    """What an error that Ray passes on ends in: the error of the worker itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1]) if lines else type(error).__name__


def room_for(pool: Pool) -> int:
    """How many workers the machines of the cluster have room for. Raises ValueError if for none."""
    import ray

    count = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_kind = [has.get(kind, 0) // wanted for kind, wanted in (("CPU", pool.cpus), ("GPU", pool.gpus)) if wanted]
        count += int(min(by_kind, default=1))
    if not count:
        wanted = f"--cpus-per-worker {pool.cpus:g} and --gpus-per-worker {pool.gpus:g}"
        raise ValueError(f"{wanted}: no machine of the cluster has so many; ask for fewer")
    return count


def rows_of(tasks: list[str], worker: type, order: Any, pool: Pool, workers: int) -> Iterator[str]:
    """The rows of all tasks as they are done by `workers` actors; none of tasks whose actors died.

    worker: a class made with `order`, whose objects turn {"task": [...]} into {"row": [...]}.
    """
    import ray

    if not tasks:
        return
    workers = min(workers, len(tasks))
    actors = ray.data.ActorPoolStrategy(
        min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=2
    )
    dataset = ray.data.from_items(
        [{"task": task} for task in tasks], override_num_blocks=min(len(tasks), MAX_BLOCKS)
    ).map_batches(
        worker, batch_size=1, fn_constructor_args=(order,), compute=actors, num_cpus=pool.cpus, num_gpus=pool.gpus,
        max_restarts=-1, max_task_retries=RETRIES,
    )  # fmt: skip
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(str, batch["row"])
