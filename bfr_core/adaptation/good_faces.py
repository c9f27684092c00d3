"""Good faces in a folder of damaged ones: how they are found, and what tuning does with them.

A face is taken for good if its crop was not enlarged, its detail is as fine and clean as in a clean face, the prior
finds no noise in it, and the base restorer, whose task is to undo ordinary damage, leaves it as it is. All of these
hold for a clean face; each damage fails one of them. `benchmarks/album.py` measures how often that is right.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..device import Precision, autocast
from ..diffusion.noise_level import noise_ratio
from ..diffusion.prior import Prior
from ..files.ownership import sha256_of
from ..files.photos import to_signed
from ..files.records import fingerprint, read_table, write_json
from ..metrics.detail import SHARPER_AT_256, sharpness, sharpness_of_clean
from ..metrics.psnr import psnr
from ..pixels import resized
from ..restorers import Restorer
from ..settings import check_settings, setting
from .faces import FaceSet, StageCallback, collect_faces, face_index
from .run import Run

if TYPE_CHECKING:
    from .config import AdaptConfig

log = logging.getLogger(__name__)

NUM_STEPS, NOISE_INDEX = 250, 2  # the level of noise that clean faces must stay below
MAX_EXAMPLES = 64
BATCH = 16  # faces between two reports of progress


@dataclass(frozen=True)
class AlbumConfig:
    """Whether good faces are used, and what they must be like."""

    find: bool = setting(
        False, "Whether the folder's own good faces serve as examples of what is wanted, instead of being adapted to."
    )
    good: str = setting(
        "", "A folder of good photos of the same people, whose faces serve as examples, whatever they are like."
    )
    real: str = setting(
        "",
        "A folder of good photos of anybody, whose faces the discriminator alone takes for real. "
        "Without one it takes the pseudo targets for real.",
        label="Folder of good faces of anybody",
    )
    least_sharpness: float = setting(
        0.9,
        "A face of the folder is taken for good only if it is at least this sharp; 1 is an average clean face.",
        low=0,
    )
    most_noise: float = setting(
        0.6,
        "A face of the folder is taken for good only if the prior removes no more noise from it than this share of the "
        "weak noise that it is told to expect.",
        low=0,
    )
    least_kept: float = setting(
        35.0,
        "A face of the folder is taken for good only if it agrees at least this well with what the base restorer makes "
        "of it.",
        unit="dB PSNR",
        low=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "album")


class Clarity(NamedTuple):
    """The figures that decide whether a face is good; their limits are in `AlbumConfig`.

    sharpness: of `metrics.sharpness`, over `sharpness_of_clean`. noise: of `noise_ratio`. kept: PSNR in dB between the
    face and what the base makes of it.
    """

    sharpness: float
    noise: float
    kept: float


@dataclass(frozen=True)
class Examples:
    """Good faces. files: their crops. fingerprint: of what they were made from, "" if there are none.

    found: name -> clarity, of those that were found in the folder. real, real_fingerprint: files and fingerprint of the
    faces that only the discriminator sees.
    """

    files: tuple[Path, ...] = ()
    fingerprint: str = ""
    found: dict[str, Clarity] = field(default_factory=dict)
    real: tuple[Path, ...] = ()
    real_fingerprint: str = ""


@torch.no_grad()
def clarity(faces: Tensor, base: Restorer, prior: Prior, precision: Precision = "auto") -> list[Clarity]:
    """The clarity of each of `faces`, (B, 3, S, S) RGB in [0, 1], S the restorer's size.

    precision: in which the prior computes.
    """
    restored = base.restore(faces).to(faces.device)
    image = resized(to_signed(faces), prior.size)
    with autocast(prior.device, precision):
        noise = noise_ratio(prior, image.to(prior.device), NUM_STEPS, NOISE_INDEX).float()
    columns = sharpness(faces) / sharpness_of_clean(faces.shape[-1]), noise, psnr(restored, faces)
    return [Clarity(*(round(float(v), 4) for v in values)) for values in zip(*columns, strict=True)]


def is_good(found: Clarity, config: AlbumConfig) -> bool:
    """Whether a face of this clarity is taken for good."""
    return (
        found.sharpness >= config.least_sharpness
        and found.noise <= config.most_noise
        and found.kept >= config.least_kept
    )


def take_good_faces(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior,
    config: AdaptConfig,
    callback: StageCallback | None = None,
) -> tuple[FaceSet, Examples]:
    """The faces to adapt to, and the good ones: found among `faces`, as config.album says, or in its folders.

    What was found is kept in run.album. If no face is good, or none would be left to adapt to, `faces` are returned
    unchanged. Raises as `collect_faces` for a folder of good photos that gives no face.
    """
    precision = config.targets.precision
    found = find_good_faces(run, faces, base, prior, config.album, callback, precision) if config.album.find else {}
    if len(found) == len(faces):
        log.warning("all %d faces look good already; they are adapted to as they are", len(faces))
        found = {}
    files, made_from = [faces.crop(name) for name in found], [faces.fingerprint, sorted(found)]
    if config.album.good:
        given = collect_faces(Path(config.album.good), Run(run.good), base.size, config.faces, callback, base.device)
        files += [given.crop(name) for name in given.names]
        made_from += [given.fingerprint]
    good = Examples()
    if files:
        good = Examples(tuple(files), fingerprint(*made_from), found)
        log.info("good faces: %d of the folder, %d given", len(found), len(files) - len(found))
    if found:
        left = [name for name in faces.names if name not in found]
        faces = replace(faces, names=left, fingerprint=fingerprint(faces.fingerprint, sorted(found)))
    return faces, with_real_faces(run, good, base.size, config, callback)


def with_real_faces(
    run: Run, good: Examples, size: int, config: AdaptConfig, callback: StageCallback | None = None
) -> Examples:
    """`good` with the faces of the folder config.album.real, if there is one. Raises as `collect_faces` for it."""
    if not config.album.real:
        return good
    given = collect_faces(Path(config.album.real), Run(run.real), size, config.faces, callback)
    log.info("real faces for the discriminator: %d", len(given))
    files = tuple(given.crop(name) for name in given.names)
    return replace(good, real=files, real_fingerprint=given.fingerprint)


def find_good_faces(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior,
    config: AlbumConfig,
    callback: StageCallback | None = None,
    precision: Precision = "auto",
) -> dict[str, Clarity]:
    """The clarity of those of `faces` that are good, by name. A face that was enlarged to its crop is not good."""
    keys = {n: fingerprint(sha256_of(faces.crop(n)), base.sha256, prior.identity, SHARPER_AT_256) for n in faces.names}
    kept: dict[str, dict[str, Any]] = read_table(run.album, clarity=dict).get("clarity", {})
    seen = {n: kept[n] for n in faces.names if n in kept and kept[n].get("key") == keys[n]}
    missing = [n for n in faces.names if n not in seen]
    for names, crops in faces.batches(BATCH, missing):
        for name, crop in zip(names, crops, strict=True):
            found = clarity(crop[None], base, prior, precision)[0]
            seen[name] = {"key": keys[name], **found._asdict()}
        if callback:
            callback("album", len(seen), len(faces), None)
    if missing:
        write_json(run.album, {"clarity": seen})
    widths = {face["name"]: face["width"] for face in face_index(run)["faces"]}
    known = {n: Clarity(*(seen[n][part] for part in Clarity._fields)) for n in faces.names if widths[n] >= base.size}
    return {name: found for name, found in known.items() if is_good(found, config)}
