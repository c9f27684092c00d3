"""The stages of an adaptation on a run folder: faces, targets, tuning. Each can be stopped and goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .album import MOST_EXAMPLES, AlbumConfig, Clarity, Examples, clarity, is_good
from .faces.align import crop_face
from .faces.detect import check_detector
from .faces.identity import find_recogniser, may_recognise
from .faces.landmarks import load_landmark_net
from .finetuning import FinetuneConfig, Progress, Watch, finetune, split
from .gate import GateConfig, as_record, checks_of, joined, look_at, refusals
from .images import list_images, photo_names, printable, read_image, write_image
from .losses import ImageLoss, find_vgg, lpips_loss, perceptual_loss
from .prior import Prior, load_prior
from .pseudo_targets import TargetConfig, make_pseudo_targets, settled
from .restore import square
from .restorers import Restorer, load_restorer, save_change, save_restorer
from .runs import Run, fingerprint, read_json, read_table, stage_folder, write_json
from .sampler import SamplerConfig
from .verdict import Judgement, judge, load_usual

log = logging.getLogger(__name__)

StageCallback = Callable[[str, int, int, Any], None]
CACHED_BYTES = 1 << 30
GATE_BATCH = 16
MOST_JUDGED = 64  # held-out faces that the verdict looks at
EXAMINED_FACES = 16  # of a folder, for the settings that are left to it
SETTLED = ("t_start", "t_constrain_end", "factor", "calls")  # of the sampler
REDRAWN_SEED = 7919  # apart, so that the draws of no try are those of a neighbouring seed


@dataclass(frozen=True)
class FaceConfig:
    """How faces are taken from photos.

    aligned: the photos are standard crops already. detector, threshold: see `faces.detect.load_detector`.
    min_face: narrowest face, in photo pixels of its crop, that is used.
    """

    aligned: bool = False
    detector: str = "auto"
    threshold: float = 0.5
    min_face: int = 32

    def __post_init__(self) -> None:
        check_detector(self.detector, self.threshold)
        if self.min_face < 1:
            raise ValueError(f"min_face is {self.min_face}; it must be 1 pixel or more")


@dataclass(frozen=True)
class AdaptConfig:
    """Everything one adaptation depends on. restorer, prior: "embedded" or a file or folder."""

    restorer: str = "embedded"
    prior: str = "embedded"
    faces: FaceConfig = field(default_factory=FaceConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    album: AlbumConfig = field(default_factory=AlbumConfig)


# Recipe for small networks at 128 x 128, where a step takes a quarter of a second on a CPU; the dataclasses' own
# defaults are the paper's, for 512 x 512.
SMALL = AdaptConfig(
    targets=TargetConfig(
        sampler=SamplerConfig(t_start=16, t_constrain_end=2, factor=2, calls=3), t_clean="auto", detail=1.1
    ),
    finetune=FinetuneConfig(
        iterations=1800,
        batch_size=2,
        micro_batch=2,
        lr=8e-4,
        warmup=0.05,
        lr_end=2e-5,
        perceptual=0.0,
        adversarial=0.0,
        texture=0.8,
        anchor=0.5,
        transplant=0.5,
        ema=0.99,
        judged_on="transplanted",
        judge_every=200,
        checkpoint_seconds=20,
    ),
)


# CodeFormer is tuned by its codes; the figures are those of arXiv:2410.04618.
CODES = FinetuneConfig(iterations=40_000, batch_size=8, lr=1e-4, halve_at=(0.875, 0.95), ema=0.995)


# Settings, by dotted path, for a small graphics card; what the user sets by hand comes after them.
LOW_MEMORY = {
    "targets.batch_size": 1,
    "finetune.micro_batch": 1,
    "finetune.recompute": True,
    "finetune.trainable": "lora",
    "finetune.adversarial": 0.0,
}


def recipe(restorer: Restorer) -> AdaptConfig:
    """Default settings for tuning `restorer`: the paper's, or `SMALL` for small networks.

    Raises ValueError for several restorers in one.
    """
    if not restorer.can_be_tuned:
        raise ValueError(f"{restorer.name}: is several restorers in one; give the one to tune, or their base")
    if restorer.size <= 256:
        return SMALL
    default = AdaptConfig()
    if restorer.tuned_by_codes:
        return replace(default, finetune=CODES)
    if restorer.architecture == "SwinIR":
        return replace(default, targets=TargetConfig(sampler=replace(default.targets.sampler, factor=16)))
    return default


def changed(config: Any, values: dict[str, Any]) -> Any:
    """A copy of nested settings dataclasses with `values`, by dotted path, in place of theirs."""
    own = {path: value for path, value in values.items() if "." not in path}
    for name in {path.split(".")[0] for path in values if "." in path}:
        inner = {path.split(".", 1)[1]: value for path, value in values.items() if path.startswith(f"{name}.")}
        own[name] = changed(getattr(config, name), inner)
    return replace(config, **own)


@dataclass(frozen=True)
class FaceSet:
    """Aligned crops on disk. names: one a face, the crop's file name without suffix. fingerprint: of their making.

    Faces that the user left out are in none of these.
    """

    folder: Path
    names: list[str]
    fingerprint: str
    problems: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.folder / f"{self.names[index]}.png"

    def batch(self, start: int, stop: int) -> Tensor:
        """Crops start ... stop - 1 as (B, 3, S, S) RGB in [0, 1]."""
        return torch.stack([read_image(self.path(i)) for i in range(start, min(stop, len(self)))])


def collect_faces(
    photos: Path,
    run: Run,
    size: int,
    config: FaceConfig,
    callback: StageCallback | None = None,
    files: Sequence[Path] | None = None,
) -> FaceSet:
    """Aligned crops of every face under `photos`, in run.faces; a photo that cannot be used is logged and left out.

    files: those photos under it that are used; all that `list_images` finds if left out.
    Raises FileNotFoundError or ValueError if there are no photos, or no face in any of them.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; the side of a crop must be 16 to 2048 pixels")
    files = list_images(photos) if files is None else list(files)
    relatives = [f.relative_to(photos) for f in files]
    stamps = [(r.as_posix(), *_stamp(f)) for r, f in zip(relatives, files, strict=True)]
    print_ = fingerprint(size, asdict(config), stamps)
    stage_folder(run.faces, print_)
    journal = run.faces / "photos.jsonl"
    done = _read_journal(journal)
    detector = None
    with journal.open("a", encoding="utf-8") as stream:
        for step, (file, relative, name) in enumerate(zip(files, relatives, photo_names(relatives), strict=True)):
            if relative.as_posix() not in done:
                record: dict[str, Any] = {"photo": relative.as_posix(), "faces": [], "problem": ""}
                try:
                    if detector is None and not config.aligned:
                        from .faces.detect import load_detector

                        detector = load_detector(config.detector, config.threshold)
                    record["faces"] = _crops_of(file, name, run.faces, size, config, detector)
                    if not record["faces"]:
                        record["problem"] = f"{printable(file.name)}: no face found"
                except ValueError as error:
                    record["problem"] = str(error)
                if record["problem"]:
                    log.warning("%s", record["problem"])
                stream.write(json.dumps(record) + "\n")
                stream.flush()
                done[relative.as_posix()] = record
            if callback:
                callback("faces", step + 1, len(files), None)
    records = [done[r.as_posix()] for r in relatives]
    faces = [face | {"photo": r["photo"]} for r in records for face in r["faces"]]
    problems = [{"photo": r["photo"], "problem": r["problem"]} for r in records if r["problem"]]
    if not faces:
        raise ValueError(f"{printable(photos)}: no face could be taken from its {len(files)} images")
    made = {"size": size, "fingerprint": print_, "found_by": fingerprint(asdict(config), stamps)}
    write_json(run.faces / "faces.json", made | {"faces": faces, "problems": problems})
    run.record("faces", {"photos": str(photos.name), "size": size} | asdict(config))
    return faces_of(run)


def faces_of(run: Run) -> FaceSet:
    """The faces that a run holds, less those left out. Raises ValueError if it has none yet, or none is in use."""
    index = _face_index(run)
    left_out = left_out_of(run)
    names = [face["name"] for face in index["faces"] if face["name"] not in left_out]
    if not names:
        raise ValueError(f"{printable(run.folder)}: all of its {len(left_out)} faces are left out")
    print_ = fingerprint(index["fingerprint"], left_out) if left_out else index["fingerprint"]
    return FaceSet(run.faces, names, print_, index["problems"])


def leave_out(run: Run, names: Iterable[str]) -> None:
    """Use all faces of the run but these from now on; forgotten when other faces are found in the photos."""
    index = _face_index(run)
    known = {face["name"] for face in index["faces"]}
    write_json(run.left_out, {"found_by": index.get("found_by"), "names": sorted(known & set(names))})


def left_out_of(run: Run) -> list[str]:
    """Names of the run's faces that the user left out, sorted; they stay so at another size of the crops."""
    marked = read_table(run.left_out, names=list)
    return marked.get("names", []) if marked.get("found_by") == _face_index(run).get("found_by") else []


def _face_index(run: Run) -> dict[str, Any]:
    index = read_table(run.faces / "faces.json", faces=list, problems=list)
    if not index:
        raise ValueError(f"{printable(run.folder)}: holds no faces yet; start with 'bfr faces PHOTOS --run ...'")
    return index


def _crops_of(
    file: Path, name: str, folder: Path, size: int, config: FaceConfig, detector: Any
) -> list[dict[str, Any]]:
    photo = read_image(file)
    if config.aligned:
        write_image(folder / f"{name}.png", resize_square(photo, size, file))
        return [{"name": name, "width": photo.shape[-1]}]
    found: list[dict[str, Any]] = []
    for face in detector(photo):
        if face.width < config.min_face:
            log.info("%s: a face %.0f pixels wide is too small, left out", printable(file.name), face.width)
            continue
        crop_name = f"{name}_{len(found)}"
        write_image(folder / f"{crop_name}.png", crop_face(photo, face, size).clamp(0, 1))
        found.append(
            {"name": crop_name, "width": round(face.width, 1), "score": round(face.score, 4)}
            | {"landmarks": np.round(face.landmarks, 2).tolist()}
        )
    return found


def resize_square(image: Tensor, size: int, file: Path) -> Tensor:
    """An aligned crop at the restorer's size. Raises ValueError naming `file` if it is not square."""
    try:
        return square(image, size)
    except ValueError as error:
        raise ValueError(f"{printable(file.name)}: {error} (is it an aligned face?)") from None


def take_good_faces(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior,
    config: AdaptConfig,
    callback: StageCallback | None = None,
) -> tuple[FaceSet, Examples]:
    """The faces to adapt to, and the good ones: found among `faces`, as config.album says, or in its folder.

    What was found is kept in run.album. Where none is good, or none would be left to adapt to, `faces` are returned as
    they are. Raises as `collect_faces` for a folder of good photos that gives no face.
    """
    found = find_good_faces(run, faces, base, prior, config.album, callback) if config.album.find else {}
    if len(found) == len(faces):
        log.warning("all %d faces look good already; they are adapted to as they are", len(faces))
        found = {}
    files, made_from = [faces.folder / f"{name}.png" for name in found], [faces.fingerprint, sorted(found)]
    if config.album.good:
        given = collect_faces(Path(config.album.good), Run(run.good), base.size, config.faces, callback)
        files += [given.path(i) for i in range(len(given))]
        made_from += [given.fingerprint]
    if not files:
        return faces, Examples()
    print_ = fingerprint(*made_from)
    log.info("good faces: %d of the folder, %d given", len(found), len(files) - len(found))
    if found:
        left = [name for name in faces.names if name not in found]
        faces = replace(faces, names=left, fingerprint=fingerprint(faces.fingerprint, sorted(found)))
    return faces, Examples(tuple(files), print_, found)


def find_good_faces(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior,
    config: AlbumConfig,
    callback: StageCallback | None = None,
) -> dict[str, Clarity]:
    """Those of `faces` that are good, by name: see `album`. A face that was enlarged to its crop is not."""
    print_ = fingerprint(faces.fingerprint, base.sha256, prior.sha256)
    kept = read_json(run.album, {})
    if kept.get("fingerprint") != print_:
        widths = {face["name"]: face["width"] for face in _face_index(run)["faces"]}
        seen: dict[str, Clarity] = {}
        for start in range(0, len(faces), GATE_BATCH):
            lq = faces.batch(start, start + GATE_BATCH)
            parts = [clarity(face, base, prior)[0] for face in lq.split(1)]
            seen |= dict(zip(faces.names[start : start + GATE_BATCH], parts, strict=True))
            if callback:
                callback("album", start + len(lq), len(faces), None)
        whole = {name: values for name, values in seen.items() if widths[name] >= base.size}
        kept = {"fingerprint": print_, "clarity": {name: values._asdict() for name, values in whole.items()}}
        write_json(run.album, kept)
    known = {name: Clarity(**values) for name, values in kept["clarity"].items()}
    return {name: known[name] for name in faces.names if name in known and is_good(known[name], config)}


def settled_targets(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: StageCallback | None = None,
) -> TargetConfig:
    """`config` with what is left to the faces settled by a sample of them; found once, and kept in settled.json."""
    if config.is_settled:
        return config
    print_ = fingerprint(faces.fingerprint, restorer.sha256, prior.sha256, asdict(config))
    found = read_json(run.settled, {})
    if found.get("fingerprint") != print_:

        def step(call: int, calls: int) -> None:
            if callback:
                callback("examine", call, calls, None)

        some = min(EXAMINED_FACES, len(faces))
        chosen = [i * len(faces) // some for i in range(some)]
        lq = torch.cat([faces.batch(i, i + 1) for i in chosen])
        clear = settled(config, lq, restorer, prior, step)
        found = {"fingerprint": print_, "t_clean": clear.t_clean, "detail": clear.detail, "faces": len(lq)}
        found |= {name: getattr(clear.sampler, name) for name in SETTLED}
        write_json(run.settled, found)
        log.info("settled: %s", ", ".join(f"{name} {found[name]}" for name in ("t_clean", "detail", *SETTLED)))
    sampler = replace(config.sampler, **{name: found[name] for name in SETTLED})
    return replace(config, sampler=sampler, t_clean=found["t_clean"], detail=found["detail"], search=())


def draw_targets(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: StageCallback | None = None,
) -> str:
    """Restored faces and pseudo targets of every face, in run.restored and run.targets; one batch in memory.

    Batches are the same however often the stage is interrupted, so the targets are too. Returns their fingerprint.
    """
    print_ = fingerprint(faces.fingerprint, restorer.sha256, prior.sha256, asdict(config))
    for folder in (run.restored, run.targets):
        stage_folder(folder, print_)
    run.record("targets", asdict(config) | {"restorer": restorer.name, "prior": prior.name})
    calls = config.sampler.network_calls
    total = len(faces) * calls
    for start in range(0, len(faces), config.batch_size):
        stop = min(start + config.batch_size, len(faces))
        names = faces.names[start:stop]
        if not all((run.targets / f"{n}.png").exists() for n in names):
            lq = faces.batch(start, stop)

            def step(call: int, calls: int, preview: Tensor, start: int = start, count: int = len(names)) -> None:
                if callback:
                    callback("targets", start * calls + call * count, total, preview)

            made = make_pseudo_targets(lq, names, restorer, prior, config, step)
            for name, restored, target in zip(names, *made, strict=True):
                write_image(run.restored / f"{name}.png", restored)
                write_image(run.targets / f"{name}.png", target)
        if callback:
            callback("targets", stop * calls, total, None)
    return print_


def make_targets(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    callback: StageCallback | None = None,
) -> tuple[dict[str, Path], str]:
    """The whole stage: settings left to the folder are found, targets drawn, gated, and where refused drawn again.

    Returns the targets that passed, by face name, and the fingerprint of them all.
    """
    clear = settled_targets(run, faces, restorer, prior, config.targets, callback)
    made_from = draw_targets(run, faces, restorer, prior, clear, callback)
    redraw = redraw_with(restorer, prior, clear, callback)
    return gate_targets(run, faces, targets_of(run, faces), made_from, config.gate, redraw, callback), made_from


Redraw = Callable[[Tensor, list[str], int], Tensor]


def redraw_with(
    restorer: Restorer, prior: Prior, config: TargetConfig, callback: StageCallback | None = None
) -> Redraw:
    """(damaged faces, their names, number of the try) -> targets from other noise than `config.seed` gives."""

    def step(call: int, calls: int, preview: Tensor) -> None:
        if callback:
            callback("redraw", call, calls, preview)

    def redraw(lq: Tensor, names: list[str], attempt: int) -> Tensor:
        other = replace(config, seed=config.seed + REDRAWN_SEED * attempt)
        return make_pseudo_targets(lq, names, restorer, prior, other, step).pseudo_target

    return redraw


def gate_targets(
    run: Run,
    faces: FaceSet,
    files: dict[str, Path],
    made_from: str,
    config: GateConfig,
    redraw: Redraw | None = None,
    callback: StageCallback | None = None,
) -> dict[str, Path]:
    """The targets, by face name, that pass the gate; those refused are drawn again where `redraw` is given.

    files: targets by face name. made_from: their fingerprint. What was found of every face is kept in gate.json, and
    taken from there when nothing changed. Raises ValueError if none passes.
    """
    print_ = fingerprint(made_from, sorted(files), asdict(config), redraw is not None, may_recognise())
    found = read_json(run.gate, {})
    if found.get("fingerprint") != print_:
        found = _gated(run, faces, files, config, redraw, callback)
        write_json(run.gate, {"fingerprint": print_, "made_from": made_from} | found)
    accepted = accepted_targets(run, files, made_from)
    if len(accepted) < len(files):
        log.warning("%d of %d targets are left out; the report says why", len(files) - len(accepted), len(files))
    if not accepted:
        raise ValueError(
            f"{printable(run.folder)}: none of the {len(files)} targets is fit to learn from: see gate.json"
        )
    return accepted


def accepted_targets(run: Run, files: dict[str, Path], made_from: str) -> dict[str, Path]:
    """Those of `files` that passed the gate when it last saw them; all of them if it did not."""
    found = read_json(run.gate, {})
    if found.get("made_from") != made_from:
        return files
    redrawn = set(found["redrawn"])
    return {
        name: run.redrawn / f"{name}.png" if name in redrawn else path
        for name, path in files.items()
        if name not in found["refused"]
    }


def _gated(
    run: Run,
    faces: FaceSet,
    files: dict[str, Path],
    config: GateConfig,
    redraw: Redraw | None,
    callback: StageCallback | None,
) -> dict[str, Any]:
    net, recogniser, names, parts = load_landmark_net(), find_recogniser(), list(files), []
    for start in range(0, len(names), GATE_BATCH):
        some = names[start : start + GATE_BATCH]
        lq = torch.stack([read_image(faces.folder / f"{name}.png") for name in some])
        targets = torch.stack([resize_square(read_image(files[name]), lq.shape[-1], files[name]) for name in some])
        parts.append(look_at(lq, targets, net, recogniser))
        if callback:
            callback("gate", start + len(some), len(names), None)
    folder = joined(parts)
    checks = checks_of(folder)
    reasons = dict(zip(names, refusals(checks, config), strict=True))
    records = {name: as_record(checks, i) for i, name in enumerate(names)}
    redrawn = []
    for name in [name for name in names if reasons[name] and redraw]:
        lq = read_image(faces.folder / f"{name}.png")[None]
        for attempt in range(1, config.tries + 1):
            target = redraw(lq, [name], attempt) if redraw else lq
            again = checks_of(look_at(lq, target, net, recogniser), folder)
            if not refusals(again, config, checks)[0]:
                write_image(run.redrawn / f"{name}.png", target[0])
                records[name], reasons[name] = as_record(again, 0), ""
                redrawn.append(name)
                break
    refused = {name: reason for name, reason in reasons.items() if reason}
    return {"refused": refused, "redrawn": redrawn, "checks": records}


class FolderPairs:
    """(lq, pseudo_target) pairs read from disk, kept as bytes up to `CACHED_BYTES`."""

    def __init__(self, lq: list[Path], targets: list[Path], size: int) -> None:
        self.files, self.size = list(zip(lq, targets, strict=True)), size
        self._kept: dict[int, Tensor] = {}
        self._room = CACHED_BYTES // max(1, 2 * 3 * size * size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self._kept.get(index)
        if pair is None:
            pair = torch.stack([resize_square(read_image(f), self.size, f) for f in self.files[index]])
            pair = pair.mul(255).round().byte()
            if len(self._kept) < self._room:
                self._kept[index] = pair
        lq, target = pair.float() / 255
        return lq, target


def match_targets(faces: FaceSet, folder: Path) -> dict[str, Path]:
    """Images of `folder` by the face they belong to: a target has the name of its crop, in any image format.

    Raises ValueError if none matches; what does not match is logged.
    """
    found: dict[str, Path] = {}
    for file in list_images(folder):
        found.setdefault(file.stem, file)
    matched = {name: found[name] for name in faces.names if name in found}
    if not matched:
        example = printable(faces.names[0])
        raise ValueError(f"{printable(folder)}: no target has the name of a face; one would be {example}.png")
    if len(matched) < len(faces):
        log.warning("%d of %d faces have no target and are left out", len(faces) - len(matched), len(faces))
    return matched


def tune(
    run: Run,
    faces: FaceSet,
    targets: dict[str, Path],
    made_from: str,
    restorer: Restorer,
    config: FinetuneConfig,
    prior: Prior | None = None,
    callback: StageCallback | None = None,
    watch: Watch | None = None,
    pause_after: float = 0.0,
    good: Examples | None = None,
) -> tuple[Restorer, Progress, Judgement]:
    """Tune `restorer` on the run's faces, judge it, and save it as restorer.safetensors; low-rank changes also alone.

    made_from: fingerprint of the targets. prior: its encoder is the perceptual term where LPIPS is not at hand.
    watch, pause_after: see `finetune`; a paused tuning saves the best so far. good: see `take_good_faces`.
    """
    names = [name for name in faces.names if name in targets]
    pairs = FolderPairs([faces.folder / f"{n}.png" for n in names], [targets[n] for n in names], restorer.size)
    # Steps and minutes may grow between sessions; everything else must stay, or the tuning starts anew.
    lasting = asdict(replace(config, iterations=1, minutes=0.0, checkpoint_seconds=0.0))
    run.record("finetune", asdict(config) | {"restorer": restorer.name, "prior": prior.name if prior else None})

    def step(done: int, total: int, progress: Progress) -> None:
        if callback:
            callback("finetune", done, total, progress)

    files = good.files[:MOST_EXAMPLES] if good else ()
    examples = [resize_square(read_image(file), restorer.size, file) for file in files]
    held = split(len(pairs), config)[1]
    shown = [good.fingerprint] if good and examples else []
    tuned, progress = finetune(
        restorer,
        pairs,
        config,
        checkpoint=run.checkpoint,
        fingerprint=fingerprint(made_from, names, restorer.sha256, lasting, held, *shown),
        examples=torch.stack(examples) if examples else None,
        perceptual=None if restorer.tuned_by_codes else perceptual_term(config, prior, restorer.device),
        callback=step,
        watch=watch,
        pause_after=pause_after,
    )
    judged = [pairs[i] for i in held[:MOST_JUDGED]]
    judgement = judged_on_faces(restorer, tuned, judged)
    log.info("verdict: %s: %s", judgement.verdict, judgement.sentence)
    base = {"base": restorer.name, "base_sha256": restorer.sha256, "base_licence": restorer.licence}
    teacher = {"prior": prior.name, "prior_sha256": prior.sha256, "prior_licence": prior.licence} if prior else {}
    made = {"finetune": asdict(config), "steps": progress.step, "best_step": progress.best_step, "faces": len(names)}
    made |= {"verdict": judgement.verdict, "verdict_sentence": judgement.sentence}
    save_restorer(run.restorer, tuned, base | teacher | made)
    run.groups.unlink(missing_ok=True)  # of an earlier time, when the faces were adapted to in groups
    if config.trainable == "lora":
        save_change(run.change, restorer, tuned, config.rank, teacher | made)
    return tuned, progress, judgement


def judged_on_faces(base: Restorer, tuned: Restorer, pairs: list[tuple[Tensor, Tensor]]) -> Judgement:
    """The verdict on (lq, pseudo target) pairs that were held out of the tuning."""
    lq, targets = (torch.stack([pair[k] for pair in pairs]) if pairs else torch.empty(0) for k in (0, 1))
    return judge(base.restore_each, tuned.restore_each, lq, targets, load_usual(), load_landmark_net())


def perceptual_term(config: FinetuneConfig, prior: Prior | None, device: torch.device) -> ImageLoss | None:
    """LPIPS where its VGG file is on disk, else distance in the prior's own encoder; which one is logged."""
    if not config.perceptual:
        return None
    vgg = find_vgg()
    if vgg is not None:
        log.info("perceptual term: LPIPS (VGG)")
        return lpips_loss(vgg, device)
    if prior is None:
        raise ValueError("the perceptual term needs LPIPS's VGG file or a prior; give --prior, or set perceptual to 0")
    log.info("perceptual term: features of the prior's encoder, since LPIPS's VGG file is not on this machine")
    return perceptual_loss(partial(prior.encoder_to(device).features, recompute=config.recompute))


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt`. targets: file by face name. prior: None if the targets were made elsewhere.

    faces: those that were adapted to. good: see `take_good_faces`.
    """

    run: Run
    restorer: Restorer
    base: Restorer
    prior: Prior | None
    faces: FaceSet
    targets: dict[str, Path]
    progress: Progress
    judgement: Judgement
    good: Examples = field(default_factory=Examples)


def adapt(
    folder: Path,
    run_dir: Path,
    config: AdaptConfig,
    callback: StageCallback | None = None,
    device: str = "cpu",
    restorer: Restorer | None = None,
    prior: Prior | None = None,
    pause_after: float = 0.0,
) -> Adapted:
    """Tune a restorer to the damage of the photos in `folder`; everything is kept in `run_dir`, and resumed from it.

    callback: (stage, step, steps, detail); what it raises ends the adaptation, to be resumed later.
    restorer, prior: config.restorer and config.prior, where they are loaded already. pause_after: see `tune`.
    Raises FileNotFoundError or ValueError, in one line, for photos, weights or settings that cannot be used.
    """
    run = Run(run_dir)
    base = (restorer or load_restorer(config.restorer)).to(device)
    prior = (prior or load_prior(config.prior)).to(device)
    with run.locked():
        faces = collect_faces(Path(folder), run, base.size, config.faces, callback)
        faces, good = take_good_faces(run, faces, base, prior, config, callback)
        targets, made_from = make_targets(run, faces, base, prior, config, callback)
        prior.to("cpu")  # its memory is the tuning's now
        tuned = tune(
            run, faces, targets, made_from, base, config.finetune, prior, callback, pause_after=pause_after, good=good
        )
        return Adapted(run, tuned[0], base, prior, faces, targets, *tuned[1:], good)


def match_in_order(run: Run, faces: FaceSet, targets: Tensor, first: int = 0) -> dict[str, Path]:
    """Pictures (B, 3, N, N) RGB in [0, 1] of the faces first ... first + B - 1 as targets, kept in run.given.

    Returns all that the run holds by now, by face name. Raises ValueError for more pictures than faces from there on,
    or for such that are not square.
    """
    if not 0 <= first <= len(faces) - len(targets):
        raise ValueError(
            f"{len(targets)} targets from face {first} on were given, but there are {len(faces)} faces; "
            "give one picture for each face, in their order"
        )
    stage_folder(run.given, faces.fingerprint)
    for name, target in zip(faces.names[first:], targets, strict=False):
        path = run.given / f"{name}.png"
        pixels = resize_square(target, targets.shape[-1], path)
        if not (path.exists() and torch.equal(read_image(path), pixels.clamp(0, 1).mul(255).round() / 255)):
            write_image(path, pixels)  # a picture that is there already keeps its time, and a tuning on it goes on
    return {name: path for name in faces.names if (path := run.given / f"{name}.png").exists()}


def targets_of(run: Run, faces: FaceSet) -> dict[str, Path]:
    """Pseudo targets drawn in this run, by face name. Raises ValueError if there are none."""
    found = {name: run.targets / f"{name}.png" for name in faces.names}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        raise ValueError(f"{printable(run.folder)}: holds no targets yet; make them with 'bfr targets --run ...'")
    return found


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Records of the photos done; a last line cut short by a power failure is dropped from the file."""
    if not path.exists():
        return {}
    whole = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            whole.append((line, json.loads(line)))
        except ValueError:
            break
    path.write_text("".join(line for line, _ in whole), encoding="utf-8")
    return {record["photo"]: record for _, record in whole}
