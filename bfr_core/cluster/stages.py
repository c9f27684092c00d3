"""Faces and pseudo targets of a run on a Ray cluster: each task is a shard, done as a process of its own would do it.

The photos, the run and all files of networks must be there under the same paths on every machine. What is done lies in
the run, so that the same command given again goes on, on Ray or on one machine.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adaptation.config import AdaptConfig
from ..adaptation.faces import StageCallback, collect_shard, faces_of
from ..adaptation.run import Run
from ..adaptation.target_stage import draw_shard, settled_target_config
from ..diffusion.prior import Prior
from ..files.photos import look_through, printable
from ..files.shards import Shard
from ..restorers import Restorer
from .pool import ATTEMPTS, Pool, absolute_path, connected, room_for, rows_of

log = logging.getLogger(__name__)

SHARDS_A_WORKER = 8  # at most: each reads the list of all photos or faces anew
DIED = "its worker died, or was lost, each time it was tried; give the command without --workers to see why"


@dataclass(frozen=True)
class StageOrder:
    """What every worker is told.

    run: the folder. config: settings of the whole run. restorer: name or file. device: see `choose_device`. threads: of
    a worker; with as many as on one machine, the results are the same to the bit. photos, size: of the faces that are
    collected, see `collect_faces`.
    """

    run: Path
    config: AdaptConfig
    restorer: str = "embedded"
    device: str = "auto"
    threads: int = 1
    photos: Path = Path()
    size: int = 0

    def absolute(self) -> StageOrder:
        """This order for processes that have another working folder."""
        prior = absolute_path(self.config.prior)
        return replace(
            self, run=self.run.absolute(), photos=self.photos.absolute(), restorer=absolute_path(self.restorer),
            config=replace(self.config, prior=prior),
        )  # fmt: skip


class ShardWorker:
    """An actor that does one shard after the other, each under its lock; what is wrong with a shard is in its row."""

    def __init__(self, order: StageOrder) -> None:
        import torch

        torch.set_num_threads(order.threads)
        logging.getLogger("bfr_core").setLevel(logging.ERROR)  # the command says what is wrong with a photo
        self.order, self.run = order, Run(order.run)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"row": [self._row(str(task)) for task in batch["task"]]}

    def _row(self, task: str) -> str:
        shard = Shard.read(task)
        try:
            with self.run.locked_shard(shard):
                return json.dumps({"shard": task, "problem": "", "files": self.work(shard)})
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            reason = printable(str(error)) or type(error).__name__
            return json.dumps({"shard": task, "problem": reason, "errno": getattr(error, "errno", None)})

    def work(self, shard: Shard) -> list[dict[str, str]]:
        """Do a shard; returns photo, status and reason of its files, if it has any."""
        raise NotImplementedError


class FaceWorker(ShardWorker):
    """Collects the faces of shards."""

    def work(self, shard: Shard) -> list[dict[str, str]]:
        from ..device import choose_device

        order, device = self.order, choose_device(self.order.device)
        return collect_shard(order.photos, self.run, order.size, order.config.faces, shard, device=device)[1]


class TargetWorker(ShardWorker):
    """Draws the pseudo targets of shards, with one restorer and one prior for all of them."""

    def __init__(self, order: StageOrder) -> None:
        from ..device import choose_device
        from ..diffusion.prior import load_prior
        from ..restorers import load_restorer

        super().__init__(order)
        device = choose_device(order.device)
        self.restorer = load_restorer(order.restorer).to(device)
        self.prior = load_prior(order.config.prior).to(device)

    def work(self, shard: Shard) -> list[dict[str, str]]:
        draw_shard(
            self.run, faces_of(self.run, self.restorer.size), self.restorer, self.prior, self.order.config, shard
        )
        return []


def collect_on_ray(order: StageOrder, pool: Pool | None = None, callback: StageCallback | None = None) -> None:
    """The part of `collect_faces` that takes long, by as many workers as `pool` has room for.

    Then `collect_faces` has nothing left to examine but photos that failed, and makes the run's list of faces. Raises
    what `collect_faces` does; ValueError if Ray is not installed, or no machine has room for a worker; OSError or
    ValueError if a shard could not be finished, which it names.
    """
    pool = pool or Pool()
    order = replace(order.absolute(), threads=pool.threads)
    photos, _ = look_through(order.photos)

    def tell(row: dict[str, Any]) -> None:
        for file in row["files"]:
            if file["status"] in ("failed", "no_face"):
                log.warning("%s: %s", printable(file["photo"]), file["reason"])

    _all_shards(FaceWorker, order, pool, "faces", len(photos), 1, callback, tell)


def draw_on_ray(
    order: StageOrder,
    restorer: Restorer,
    prior: Prior,
    pool: Pool | None = None,
    callback: StageCallback | None = None,
) -> None:
    """The part of `make_targets` that takes long, by as many workers as `pool` has room for.

    Then `make_targets` finds nothing left to draw; it checks the targets, and draws refused ones again.
    restorer, prior: those that the order names; with them, what is left to the faces is resolved once, before the
    workers begin. Raises as `collect_on_ray`, or ValueError if the run has no faces.
    """
    pool = pool or Pool()
    order = replace(order.absolute(), threads=pool.threads)
    run = Run(order.run)
    with run.locked():
        faces = faces_of(run, restorer.size)
        settled_target_config(run, faces, restorer, prior, order.config, callback)
    batch = order.config.targets.batch_size
    _all_shards(TargetWorker, order, pool, "targets", len(faces), batch, callback, lambda _: None)


def _all_shards(
    worker: type[ShardWorker],
    order: StageOrder,
    pool: Pool,
    stage: str,
    count: int,
    batch: int,
    callback: StageCallback | None,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Do all shards of `count` photos or faces, which are cut at whole batches; tell: called with the row of each."""
    with Run(order.run).locked():
        pass  # another process that holds the run is named before anything is started
    done, problems = 0, dict[str, tuple[str, int | None]]()
    with connected(pool):
        shards = min(math.ceil(count / batch), SHARDS_A_WORKER * room_for(pool))
        if shards < 2:
            return  # there is nothing to share out
        left = {str(shard): shard for shard in (Shard(number, shards) for number in range(1, 1 + shards))}
        for attempt in range(1, 1 + ATTEMPTS):
            if attempt > 1 and left:
                why = next((problems[name][0] for name in left if name in problems), "their worker or its machine died")
                log.warning("%d of %d shards are tried again: %s", len(left), shards, why)
            for text in rows_of(list(left), worker, order, pool, room_for(pool)):
                row = json.loads(text)
                if row["problem"]:
                    problems[row["shard"]] = (row["problem"], row["errno"])
                elif row["shard"] in left:  # a row may come twice, where a shard was done and its answer lost
                    done += len(left.pop(row["shard"]).of(range(count), batch))
                    tell(row)
                    if callback:
                        callback(stage, done, count, None)
    if left:
        raise _not_finished(list(left), problems)


def _not_finished(left: list[str], problems: dict[str, tuple[str, int | None]]) -> Exception:
    """What to raise for shards that were not finished, from the reason and the number of the error of some of them."""
    reason, errno = problems.get(left[0], (DIED, None))
    said = f"{len(left)} shards were not finished, the first of them {left[0]}: {reason}"
    if errno is None:
        return ValueError(said)
    error = OSError(said)
    error.errno = errno
    return error
