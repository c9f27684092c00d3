"""Restore a folder on a Ray cluster: Ray Data hands out paths, and each worker restores as one machine does.

The folders, the restorer and all other files that are named must be there under the same paths on every machine. What
is done is what lies in the folder of results, so that the same command given again goes on.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from ..files.ownership import claim_results, tidy
from ..files.photos import status_of
from ..restoration.background import ADAPTED, OFF
from ..restoration.folder import FileResult, FolderRestorer, FolderResult, Job, plan_folder, refuse_missing, warn_of
from ..restoration.record import RestorationRecord, line_of, read_line
from ..restoration.restore import RestoreCallback, RestoreConfig, with_known_mask
from ..restoration.same_person import FaceLikeness
from .pool import ATTEMPTS, TASKS_A_WORKER, Pool, absolute_path, connected, room_for, rows_of

log = logging.getLogger(__name__)

PHOTOS_A_TASK = 16  # so many at least, that reading, the network and writing overlap
ALONE = "its worker died, or was lost, each time it was tried; restore it on one machine to see why"


@dataclass(frozen=True)
class Order:
    """What every worker is told. folder, out, aligned and all that follows: see `restore_folder`.

    restorer: name or file. fidelity: CodeFormer's weight, None for its own. device: see `choose_device`. threads: of a
    worker; with as many as on one machine, the results are the same to the bit.
    """

    folder: Path
    out: Path
    restorer: str
    config: RestoreConfig
    device: str = "auto"
    fidelity: float | None = None
    threads: int = 1
    aligned: bool = False
    skip_existing: bool = False
    again: bool = False
    strip_gps: bool = False
    person: Path | None = None
    references: tuple[Path, ...] = ()
    alone: bool = True

    @property
    def together(self) -> int:
        """How many photos of a task are in the network at once; tasks are cut at whole batches."""
        return self.config.batch_size if self.aligned else 1

    def absolute(self) -> Order:
        """This order for processes that have another working folder."""
        folders = {name: getattr(self, name).absolute() for name in ("folder", "out")}
        person = self.person.absolute() if self.person else None
        restorer = absolute_path(self.restorer)
        references = tuple(path.absolute() for path in self.references)
        rest = self.config.background
        config = replace(self.config, background=rest if rest in (OFF, ADAPTED) else absolute_path(rest))
        return replace(self, **folders, person=person, restorer=restorer, references=references, config=config)


class Worker:
    """An actor: one network, which restores the photos of one task after the other."""

    def __init__(self, order: Order) -> None:
        import torch

        from ..device import choose_device
        from ..restorers import load_restorer
        from ..restorers.codeformer import with_fidelity

        torch.set_num_threads(order.threads)
        restorer = load_restorer(order.restorer).to(choose_device(order.device))
        restorer = restorer if order.fidelity is None else with_fidelity(restorer, order.fidelity)
        self.order = order
        self.record = RestorationRecord(order.out, f"worker-{uuid.uuid4().hex[:12]}", known=())
        self.work = FolderRestorer(
            order.out, restorer, order.config, self.record, aligned=order.aligned, skip_existing=order.skip_existing,
            again=order.again, strip_gps=order.strip_gps, person=order.person, references=order.references,
            alone=order.alone,
        )  # fmt: skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """A row for each photo of the tasks in the batch; what is wrong with a photo is in its row."""
        return {"row": [row for task in batch["task"] for row in self._rows(json.loads(str(task)))]}

    def _rows(self, task: list[dict[str, Any]]) -> list[str]:
        jobs = [job_of(self.order.folder, self.order.out, Path(one["photo"])) for one in task]
        self.record.learn(written for one in task for line in one["known"] if (written := read_line(line)))
        before = self.work.network_seconds
        there = {job.relative: result for job in jobs if (result := self.work.there_already(job))}
        made = [result for _, result in self.work.restored(job for job in jobs if job.relative not in there)]
        seconds = (self.work.network_seconds - before) / len(jobs)
        self.record.forget()
        return [row_of(result, seconds) for result in (*there.values(), *made)]


def restore_on_ray(
    order: Order,
    pool: Pool | None = None,
    callback: RestoreCallback | None = None,
) -> FolderResult:
    """`restore_folder` by as many workers as `pool` has room for.

    Photos whose worker or machine died are given to others, the last time each as a task of its own; one that ends
    every worker that tries it is reported as failed. callback: called with no preview. Raises what `restore_folder`
    raises; ValueError if Ray is not installed, or no machine has room for a worker, or the workers cannot be started.
    """
    pool = pool or Pool()
    started = monotonic()
    refuse_missing(order.person, order.references)
    order = order.absolute()
    refuse_faceless(order)
    config = with_known_mask(order.config)  # by the files of this machine: every worker is to do the same
    jobs, left_out = plan_folder(order.folder, order.out)
    folder = order.folder.parent if order.folder.is_file() else order.folder
    order = replace(order, config=config, folder=folder, threads=pool.threads, alone=claim_results(order.out))
    if order.alone:
        tidy(order.out)
    record = RestorationRecord(order.out)
    results: dict[Path, FileResult] = {}
    seconds = 0.0
    with connected(pool):
        for attempt in range(1, 1 + ATTEMPTS):
            missing = [job for job in jobs if job.relative not in results]
            if not missing:
                break
            if attempt > 1:
                log.warning("%d photos are tried again, because their worker or its machine died", len(missing))
            workers = room_for(pool)
            tasks = cut(missing, record, order, 0 if attempt == ATTEMPTS else workers)
            for row in rows_of(tasks, Worker, order, pool, workers):
                result, of_network = result_of(row, order.out)
                seconds += of_network
                if result.path not in results:  # a row may come twice, where a task was done and its answer lost
                    results[result.path] = result
                    warn_of(result)
                    if callback:
                        callback(len(results), len(jobs), None)
    for job in jobs:
        if job.relative not in results:
            results[job.relative] = FileResult(job.relative, "failed", ALONE)
            warn_of(results[job.relative])
    results |= {path: FileResult(path, status_of(reason), reason) for path, reason in left_out.items()}
    files = sorted(results.values(), key=lambda file: file.path.parts)
    return FolderResult(files, monotonic() - started, seconds)


def refuse_faceless(order: Order) -> None:
    """Raise ValueError if a photo of a person, see `restore_folder`, has no face: here, and not in each worker."""
    if order.person is None and not order.references:
        return
    from ..faces.detect import load_detector
    from ..restoration.same_person import load_check
    from ..restorers import load_restorer

    detector = None if order.aligned else load_detector(order.config.detector, order.config.threshold)
    load_check("off", load_restorer(order.restorer), detector, order.person, references=order.references)


def cut(jobs: Sequence[Job], record: RestorationRecord, order: Order, workers: int) -> list[str]:
    """Tasks for so many workers, as JSON: the photos of each, and what is known of results made earlier.

    workers: 0 gives each photo a task of its own, also those that are restored together otherwise.
    """
    size = 1
    if workers:
        least = -(-len(jobs) // (TASKS_A_WORKER * workers))
        size = order.together * max(1, min(PHOTOS_A_TASK, least) // order.together)
    lines = [
        {"photo": str(job.relative), "known": [line_of(written) for written in record.about(job.relative.as_posix())]}
        for job in jobs
    ]
    return [json.dumps(lines[start : start + size]) for start in range(0, len(lines), size)]


def job_of(folder: Path, out: Path, relative: Path) -> Job:
    """The job of a photo, as `plan_folder` makes it."""
    return Job(folder / relative, relative, out / relative)


def row_of(result: FileResult, network_seconds: float) -> str:
    """A result as JSON, and the seconds that the networks took for it."""
    of_file = {
        name: getattr(result, name)
        for name in ("status", "reason", "faces", "failed_faces", "served", "written", "notes")
    }
    place = result.place.name if result.place else None
    likeness = [one.record() for one in result.likeness]
    return json.dumps(
        {"path": str(result.path), "place": place, "likeness": likeness, "seconds": network_seconds} | of_file
    )


def result_of(row: str, out: Path) -> tuple[FileResult, float]:
    """The result that a row tells of, and the seconds that the networks took for it."""
    told = json.loads(row)
    path, place, seconds = Path(told.pop("path")), told.pop("place"), told.pop("seconds")
    told["likeness"] = tuple(FaceLikeness.of(one) for one in told["likeness"])
    told |= {name: tuple(told[name]) for name in ("served", "notes")}
    return FileResult(path, **told, place=out / path.with_name(place) if place else None), seconds
