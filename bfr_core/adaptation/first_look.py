"""A first look before an adaptation: three faces, a few minutes, before and after.

It calls the adaptation's own stages on a run of its own inside the run, in which nothing else changes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.prior import Prior, load_prior
from ..files.photos import list_images, read_image, replace_atomically, write_image
from ..files.records import fingerprint, read_json, read_table, write_json
from ..files.stages import remove, stage_folder
from ..pixels import resized
from ..reports.html import Gallery, ReportData, write_report
from ..restorers import Restorer, load_restorer
from ..settings import changed
from ..training.checkpoint import TuningProgress
from .config import AdaptConfig
from .faces import FaceSet, StageCallback, collect_faces, face_index, faces_of, holds_photos_of, leave_out
from .forecast import Forecast, Pace, duration, forecast, measure
from .good_faces import AlbumConfig
from .run import Run
from .target_stage import make_targets
from .tuning import judge_tuning, save_tuned, tune

log = logging.getLogger(__name__)

FACES = 3
SECONDS = 120.0  # that it is to take; the search for the damage may leave the tuning its least
MIN_SECONDS = 20.0  # that are spent on the tuning at least
MAX_PHOTOS = 24  # photos that are searched for faces at most
PICTURES = ("damaged", "before", "after", "target")  # the folders that its pictures are in
COLUMNS = ("damaged", "base restorer", "adapted for a first look", "pseudo target")


@dataclass(frozen=True)
class FirstLook:
    """run: where it lies, with report.html. rows: each face's name, and its pictures under `COLUMNS`.

    forecast: of the whole adaptation. said: what was done, in words. steps, seconds: of the tuning.
    """

    run: Run
    rows: list[tuple[str, list[Tensor]]]
    forecast: Forecast
    said: str
    steps: int
    seconds: float


def place_of(run: Run) -> Run:
    """Where the first look of a run lies: a run of its own."""
    return Run(run.first_look)


def first_look(
    photos: Path | None,
    run: Run,
    config: AdaptConfig,
    callback: StageCallback | None = None,
    device: str = "cpu",
    restorer: Restorer | None = None,
    prior: Prior | None = None,
    seconds: float = 0.0,
) -> FirstLook:
    """What the adaptation makes of three faces: of the run if it has some, else of those found in `photos`.

    seconds: about how long it takes; `SECONDS` if 0.
    The recipe is that of the whole adaptation, except that no target is refused, since three faces do not say what is
    typical, that no sampler is searched for, and that the tuning ends when the time is up. If a single step takes
    longer, so does the first look. Other arguments and errors as in `adaptation.adapt`; the run itself is only read.
    """
    started = time.monotonic()
    place = place_of(run)
    base = (restorer or load_restorer(config.restorer)).to(device)
    prior = (prior or load_prior(config.prior)).to(device)
    with place.locked():
        faces, own, count = few_faces(photos, run, place, base.size, config, callback)
        lq = faces.batch(0, FACES)
        pace = measure(lq, base, prior, config, callback)
        targets, made_from = make_targets(place, faces, base, prior, own, callback)
        prior.to("cpu")  # frees its memory for the tuning
        left = max(MIN_SECONDS, (seconds or SECONDS) - (time.monotonic() - started))
        tuning = changed(own, {"finetune.minutes": left / 60}).finetune
        tuned, progress = tune(place, faces, targets, made_from, base, tuning, prior, callback)
        judgement = judge_tuning(place, base, tuned, faces, targets, tuning, progress, callback)
        save_tuned(place, base, tuned, prior, tuning, progress, judgement, len(targets))
        remove([place.checkpoint])  # another first look starts another tuning
        made = [lq, *(one.restore_without_colour(lq) for one in (base, tuned)), _targets(targets, faces, base.size)]
        rows = [(name, list(pictures)) for name, *pictures in zip(faces.names, *made, strict=True)]
        return write_first_look(place, rows, _forecast(pace, count, len(faces), config, photos), config, progress)


def few_faces(
    photos: Path | None, run: Run, place: Run, size: int, config: AdaptConfig, callback: StageCallback | None
) -> tuple[FaceSet, AdaptConfig, int]:
    """`FACES` faces, the settings for adapting to them, and how many there are in all, 0 if unknown.

    They are the run's own if it has some, cut from the folder `photos` where that is given, which are only read; else
    photos are copied to `place` and searched.
    Raises FileNotFoundError or ValueError if there are none.
    """
    own = changed(config, {"gate.limit": 0.0, "targets.search": (), "album": AlbumConfig()})
    of_size = read_table(run.faces / "faces.json").get("size") == size
    if photos is None or (of_size and holds_photos_of(run, photos)):
        known = faces_of(run, size)
        names = [known.names[i] for i in spread(len(known), FACES)]
        return replace(known, names=names, fingerprint=fingerprint(known.fingerprint, names)), own, len(known)
    remove([place.left_out])  # by an earlier look, which may have had other photos
    files, found, count = list_images(photos), None, FACES
    while found is None or (len(found) < FACES and count <= min(MAX_PHOTOS, 2 * len(files))):
        copy_photos(place, [files[i] for i in spread(len(files), count)], photos)
        try:
            found = collect_faces(place.photos, place, size, own.faces, callback)
        except ValueError:  # no face in any of these
            if count >= min(MAX_PHOTOS, len(files)):
                raise
        count *= 2
    leave_out(place, [face["name"] for face in face_index(place)["faces"]][FACES:])  # some are left out already
    return faces_of(place), own, 0


def copy_photos(place: Run, files: Sequence[Path], folder: Path) -> None:
    """Copy these files of `folder`, under their own names, as the only photos of the first look."""
    copies = {place.photos / file.relative_to(folder): file for file in files}
    stamps = [(str(copy), file.stat().st_size, file.stat().st_mtime_ns) for copy, file in copies.items()]
    stage_folder(place.photos, fingerprint(stamps))
    for copy, file in copies.items():
        if not copy.exists():
            replace_atomically(copy, partial(shutil.copy2, file))


def spread(count: int, some: int) -> list[int]:
    """At most `some` of the indices 0 ... count - 1, evenly spread."""
    some = min(some, count)
    return [i * count // some for i in range(some)]


def write_first_look(
    place: Run,
    rows: list[tuple[str, list[Tensor]]],
    whole: Forecast,
    config: AdaptConfig,
    progress: TuningProgress,
) -> FirstLook:
    """Write the first look's pictures, first_look.json and report.html."""
    tuning = config.finetune
    steps = f"{progress.step} of {tuning.iterations} steps, {duration(progress.seconds)} of tuning"
    said = (
        f"{len(rows)} faces and {steps}: this shows the direction and is no verdict. "
        "The adaptation learns from all faces, and judges itself."
    )
    for name, pictures in rows:
        for folder, picture in zip(PICTURES, pictures, strict=True):
            write_image(place.folder / folder / f"{name}.png", picture)
    data = ReportData(
        title="A first look",
        verdict="not_judged",
        verdict_sentence=said,
        galleries=[Gallery("Before and after", "", COLUMNS, rows)],
        notes=whole.lines(),
        settings=place.config(),
        measurements={"steps": progress.step, "forecast": whole.as_record()},
    )
    write_report(place.folder, data)
    record: dict[str, Any] = {"names": [name for name, _ in rows], "said": said, "lines": whole.lines()}
    write_json(place.folder / "first_look.json", record)
    return FirstLook(place, rows, whole, said, progress.step, progress.seconds)


def read_first_look(run: Run) -> tuple[list[tuple[str, list[Tensor]]], list[str]] | None:
    """Rows and lines of the run's last first look; None if it has no complete one."""
    place = place_of(run)
    record = read_json(place.folder / "first_look.json")
    if not isinstance(record, dict) or not isinstance(record.get("names"), list):
        return None
    rows = []
    for name in record["names"]:
        files = [place.folder / folder / Path(f"{name}.png").name for folder in PICTURES]
        if not all(file.is_file() for file in files):
            return None
        rows.append((str(name), [read_image(file) for file in files]))
    return rows, [str(line) for line in [record.get("said", ""), *record.get("lines", [])]]


def _targets(targets: dict[str, Path], faces: FaceSet, size: int) -> Tensor:
    pictures = torch.stack([read_image(targets[name]) for name in faces.names])
    return resized(pictures, size, "area")


def _forecast(pace: Pace, count: int, seen: int, config: AdaptConfig, photos: Path | None) -> Forecast:
    """The forecast of the whole adaptation, for the known faces, else for one face a photo."""
    if count or photos is None:
        return forecast(pace, count or seen, config)
    return forecast(pace, max(seen, len(list_images(photos))), config, guessed=True)
