"""Measure restored faces against clean copies of them, or without any: folders in, a table with intervals out."""

from __future__ import annotations

import csv
import io
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..faces.arcface import find_recogniser, likeness
from ..faces.landmarks import landmark_distance, load_landmark_net, read_aligned
from ..faces.likeness import likeness_distance
from ..faces.recognise import RecogniserNet, embed_faces, feature_distance, load_recogniser
from ..files.photos import list_images, printable, read_image, replace_atomically
from ..metrics.fid import FeatureStatistics
from ..metrics.intervals import Interval
from ..metrics.optional import find_inception, find_quality, read_statistics
from ..pixels import resized
from ..training.losses import find_vgg, lpips_loss

log = logging.getLogger(__name__)

PairMeasure = Callable[[Tensor, Tensor], Tensor]  # restored and clean faces, (B, 3, H, W) both -> (B,)


@dataclass(frozen=True)
class Measure:
    """A measure in the table: its title, which values are good, and how many of its decimals mean something."""

    title: str
    goal: str
    decimals: int


MEASURES = {
    "psnr": Measure("PSNR (dB)", "higher is better", 2),
    "psnr_affine": Measure("PSNR after affine colour fit (dB)", "higher is better", 2),
    "psnr_matched": Measure("PSNR, colour-matched as published (dB)", "higher is better", 2),
    "ssim": Measure("SSIM", "higher is better", 3),
    "ssim_matched": Measure("SSIM, colour-matched as published", "higher is better", 3),
    "gmsd": Measure("GMSD", "lower is better", 4),
    "vif": Measure("VIF", "higher is better", 3),
    "fsim": Measure("FSIM", "higher is better", 3),
    "detail_energy": Measure("Detail energy", "best at 1", 3),
    "detail_correlation": Measure("Detail correlation", "higher is better", 3),
    "landmarks": Measure("Landmark distance (% of eye distance)", "lower is better", 2),
    "feature_distance": Measure("Feature distance, recogniser", "lower is better", 4),
    "likeness_distance": Measure("Likeness distance", "lower is better", 3),
    "identity": Measure("Identity, ArcFace IR-SE50 (degrees)", "lower is better", 1),
    "lpips": Measure("LPIPS, VGG", "lower is better", 3),
    "niqe": Measure("NIQE, against its authors' natural images", "lower is better", 2),
    "musiq": Measure("MUSIQ, trained on KonIQ-10k", "higher is better", 1),
    "maniqa": Measure("MANIQA, trained on KonIQ-10k", "higher is better", 3),
    "kid": Measure("KID, random convolutions, against the clean faces", "lower is better", 3),
    "fid": Measure("FID, Inception 2015-12-05, against the clean faces", "lower is better", 2),
    "fid_reference": Measure("FID, Inception 2015-12-05, against the reference set", "lower is better", 2),
    "low_band": Measure("Low band against damaged", "lower is better", 4),
    "likeness": Measure("Identity against damaged, ArcFace IR-SE50 (degrees)", "lower is better", 1),
    "sharpness": Measure("Sharpness", "about 1 in a clean face of 128 pixels, 1.7 in a larger one", 2),
}
BY_NETWORKS = ("identity", "lpips", "niqe", "musiq", "maniqa")  # measured where package and file are there
WITHOUT_TRUTH = ("niqe", "musiq", "maniqa")  # those among them that need no clean face
NO_REFERENCE = "FID against the reference set is left out: its network's package or file is not on this machine"
AT_ONCE = 16  # faces that are measured together
FACE_SCORE = 0.2  # score of a standard crop, from which its landmarks mean something
DAMAGED, RESTORED, CLEAN, DIFFERENCE = "damaged", "restored", "clean", "restored - damaged"


@dataclass(frozen=True)
class Row:
    """One set of faces against the clean ones: key of `MEASURES` -> mean over faces and its interval."""

    name: str
    values: dict[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    faces: names (relative, without suffix) of the faces that every folder holds. per_face: row -> measure -> one
    number per face, NaN where it is undefined. notes: one line each on what was left out. failed: names of the faces
    that every folder holds and that could not be compared.
    """

    rows: list[Row]
    faces: list[str]
    per_face: dict[str, dict[str, np.ndarray]]
    notes: list[str]
    failed: list[str] = field(default_factory=list)


def evaluate(
    restored: Path,
    clean: Path | None = None,
    lq: Path | None = None,
    factor: int = 8,
    seed: int = 0,
    callback: Callable[[int, int, Tensor | None], None] | None = None,
    reference: Path | None = None,
) -> Evaluation:
    """How close the faces in `restored` are to those in `clean`, and, given `lq`, how much was gained on those.

    Without `clean`, as for real photographs, only what needs no clean face is measured: quality by networks, sharpness
    and, given `lq`, low band and identity against the photo, which is resized to the result. reference: for FID, a file
    of statistics or a folder of faces, see `reference_statistics`.
    Files match by relative path without suffix; a face counts if every folder has it, readable, in one size. Others
    are named in a note and left out. factor: of the low band that restored and lq are compared in. seed: of the
    bootstrap. callback(step, total, None) is called per face and may raise to cancel.
    Raises FileNotFoundError or ValueError, in one line, for a folder without images, when nothing matches, or for a
    factor below 1.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be 1 or more")
    given = {RESTORED: restored, CLEAN: clean, DAMAGED: lq}
    folders = {role: Path(folder) for role, folder in given.items() if folder is not None}
    matches, notes = match_files(folders)
    sets = [DAMAGED, RESTORED] if lq is not None else [RESTORED]
    networks = network_measures() if clean is not None else {}
    alone = without_truth()
    per_face: dict[str, list[dict[str, float]]] = {name: [] for name in sets}
    large = clean is not None and len(matches) >= metrics.FID_MIN_FACES
    inception = find_inception() if large or reference is not None else None
    wanted = reference_statistics(reference, inception) if reference is not None and inception else None
    roles = [*sets, *([CLEAN] if clean is not None else [])]
    features: dict[str, list[Tensor]] = {name: [] for name in roles}
    seen: dict[str, list[Tensor]] = {name: [] for name in roles}
    faces, failed, sizes = [], [], set()
    for step, (face, paths) in enumerate(matches.items()):
        if callback:
            callback(step, len(matches), None)
        try:
            images = _read(face, paths)
        except ValueError as error:
            log.warning("left out: %s", error)
            notes.append(f"left out: {error}")
            failed.append(face)
            continue
        faces.append(face)
        sizes.add(images[RESTORED].shape[-2:])
        for name in sets:
            found = all_measures(images[name], images[CLEAN], networks) if clean is not None else {}
            if clean is None:
                found = {key: measure(images[name]) for key, measure in alone.items()}
            if lq is not None:
                found |= against_damaged(images[name], images[DAMAGED], factor, clean is None)
            per_face[name].append({key: float(value[0]) for key, value in found.items()})
        for name in roles:
            if clean is not None and min(images[name].shape[-2:]) >= metrics.KID_MIN_SIDE:
                features[name].append(metrics.kid_features(images[name])[0])
            if inception and (large or name != CLEAN):
                seen[name].append(inception(images[name])[0])
    if callback:
        callback(len(matches), len(matches), None)
    if not faces:
        raise ValueError(f"no face could be compared: {notes[-1]}")

    values = {name: _columns(numbers) for name, numbers in per_face.items()}
    rows = [Row(name, summarise(values[name], seed)) for name in sets]
    if clean is not None:
        notes += _against_the_clean_set(rows, features, seen, len(faces), sizes, seed)
        notes += notes_on_networks(networks, len(faces), bool(seen[CLEAN]))
        if not _has_piq():
            notes.append("VIF and FSIM are left out: they need the package piq (pip install piq)")
    else:
        notes += _notes_without_truth(alone, lq is not None)
    if reference is not None:
        notes += _against_the_reference(rows, seen, wanted)
    if lq is not None:
        rows.append(Row(DIFFERENCE, differences(values[RESTORED], values[DAMAGED], seed)))
    for note in notes:
        log.info("%s", note)
    return Evaluation(rows, faces, values, notes, failed)


def _against_the_clean_set(
    rows: list[Row],
    features: dict[str, list[Tensor]],
    seen: dict[str, list[Tensor]],
    faces: int,
    sizes: set[torch.Size],
    seed: int,
) -> list[str]:
    """Add KID and FID against the clean faces to the rows; returns notes on what is left out."""
    notes = []
    if len(sizes) > 1 or len(features[CLEAN]) != faces or faces < 2:
        notes.append("KID is left out: it needs two faces or more, all of one size, no smaller than 32 x 32 pixels")
    else:
        clean_features = torch.stack(features[CLEAN])
        for row in rows:
            row.values["kid"] = metrics.paired_kid(torch.stack(features[row.name]), clean_features, seed)
    if len(seen[CLEAN]) >= metrics.FID_MIN_FACES:
        for row in rows:
            distance = metrics.fid(torch.stack(seen[row.name]), torch.stack(seen[CLEAN]))
            row.values["fid"] = Interval(distance, math.nan, math.nan)
    return notes


def _against_the_reference(
    rows: list[Row], seen: dict[str, list[Tensor]], wanted: FeatureStatistics | None
) -> list[str]:
    """Add FID against a reference set's statistics to the rows; returns notes on how far it can be trusted."""
    if wanted is None:
        return [NO_REFERENCE]
    count = len(seen[RESTORED])
    if count < 2:
        return ["FID against the reference set is left out: it needs two faces or more"]
    for row in rows:
        distance = metrics.frechet_distance(metrics.statistics_of(torch.stack(seen[row.name])), wanted)
        row.values["fid_reference"] = Interval(distance, math.nan, math.nan)
    if count >= metrics.FID_MIN_FACES:
        return []
    return [f"FID against the reference set is measured on {count} faces: compare it only with that of as many faces"]


def reference_statistics(reference: Path, inception: Callable[[Tensor], Tensor]) -> FeatureStatistics:
    """Statistics of a reference set: from a file, see `read_statistics`, or of the faces in a folder.

    Raises FileNotFoundError or ValueError, in one line.
    """
    if not Path(reference).is_dir():
        return read_statistics(reference)
    return metrics.statistics_of(torch.stack([inception(read_image(path)[None])[0] for path in list_images(reference)]))


def without_truth() -> dict[str, Callable[[Tensor], Tensor]]:
    """The available measures that need no clean face: key of `MEASURES` -> ((B, 3, H, W) -> (B,))."""
    return {**find_quality(), "sharpness": metrics.sharpness}


def against_damaged(restored: Tensor, lq: Tensor, factor: int, likeness_too: bool) -> dict[str, Tensor]:
    """How much of the damaged photo is kept: its low band and, if asked for and measurable here, its identity."""
    found = {}
    if lq.shape != restored.shape:
        lq = resized(lq, restored.shape[-2:]).clamp(0, 1)
    height, width = (side // factor * factor for side in restored.shape[-2:])  # but for a rest at two of the edges
    if height and width:
        whole = (..., slice(height), slice(width))
        found["low_band"] = metrics.low_band_consistency(restored[whole], lq[whole], factor)
    if likeness_too and (recogniser := find_recogniser()):
        found["likeness"] = likeness(recogniser(restored), recogniser(lq)).arccos().rad2deg().double()
    return found


def _notes_without_truth(alone: Mapping[str, object], has_lq: bool) -> list[str]:
    """What is not measured without clean faces, and why, a line each."""
    notes = ["without clean faces nothing here shows that a detail is right, only that it is clear and agrees"]
    missing = [MEASURES[key].title for key in WITHOUT_TRUTH if key not in alone]
    if has_lq and find_recogniser() is None:
        missing.append(MEASURES["likeness"].title)
    if missing:
        notes.append(f"not measured, because their packages or files are not on this machine: {'; '.join(missing)}")
    if not has_lq:
        notes.append("low band and identity are not compared with the damaged faces: give them with --lq")
    return notes


def face_measures(restored: Tensor, hq: Tensor, only: Sequence[str] = tuple(MEASURES)) -> dict[str, Tensor]:
    """Every per-image measure that this installation and image size allow: key of `MEASURES` -> (B,).

    restored, hq: (B, 3, H, W) in [0, 1]. only: those that are wanted. VIF and FSIM need piq and are absent
    without it; SSIM needs 11 x 11 pixels, VIF and FSIM 41 x 41, landmarks and what the recogniser sees a square of 64.
    The recogniser is in no loss, so that nothing was tuned to please it. Of many faces some are measured at a time, so
    that memory does not grow with them. Raises ValueError if the shapes differ.
    """
    if len(restored) > AT_ONCE and len(restored) == len(hq):
        pairs = zip(restored.split(AT_ONCE), hq.split(AT_ONCE), strict=True)
        parts = [face_measures(*pair, only) for pair in pairs]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    measures: dict[str, PairMeasure] = {
        "psnr": metrics.psnr,
        "psnr_affine": metrics.psnr_after_affine_fit,
        "psnr_matched": metrics.psnr_matched,
        "detail_energy": metrics.high_band_energy_ratio,
        "detail_correlation": metrics.high_band_correlation,
    }
    side = min(hq.shape[-2:])
    if side >= 11:
        measures["ssim"], measures["ssim_matched"] = metrics.ssim, metrics.ssim_matched
    if side >= 6:
        measures["gmsd"] = metrics.gmsd
    if side >= 41 and _has_piq():
        measures["vif"], measures["fsim"] = metrics.vif, metrics.fsim
    if hq.shape[-1] == hq.shape[-2] >= 64:
        measures["landmarks"] = _landmark_distance
        measures["feature_distance"] = lambda a, b: feature_distance(_recogniser(), a, b)
        measures["likeness_distance"] = _likeness_distance
    return {key: measures[key](restored, hq) for key in MEASURES if key in measures and key in only}


def network_measures() -> dict[str, PairMeasure]:
    """The available measures by networks: key of `MEASURES` -> ((restored, hq), both (B, 3, H, W), -> (B,)).

    identity: angle between ArcFace's directions; lpips: arXiv:1801.03924; niqe, musiq, maniqa: see `find_quality`.
    """
    found: dict[str, PairMeasure] = {}
    if recogniser := find_recogniser():
        found["identity"] = lambda a, b: likeness(recogniser(a), recogniser(b)).arccos().rad2deg()
    if vgg := find_vgg():
        found["lpips"] = _one_by_one(lpips_loss(vgg))
    for key, scores in find_quality().items():
        found[key] = lambda a, b, scores=scores: scores(a)  # type: ignore[misc]
    return found


def all_measures(restored: Tensor, hq: Tensor, networks: Mapping[str, PairMeasure]) -> dict[str, Tensor]:
    """`face_measures` and those of `networks`: key of `MEASURES` -> (B,)."""
    return face_measures(restored, hq) | {
        key: measure(restored, hq).cpu().double() for key, measure in networks.items()
    }


def notes_on_networks(networks: Mapping[str, PairMeasure], faces: int, has_fid: bool) -> list[str]:
    """What is not measured, and why, a line each."""
    notes = []
    if missing := [MEASURES[key].title for key in BY_NETWORKS if key not in networks]:
        notes.append(f"not measured, because their packages or files are not on this machine: {'; '.join(missing)}")
    if faces < metrics.FID_MIN_FACES:
        notes.append(f"FID is left out: it needs {metrics.FID_MIN_FACES} faces or more")
    elif not has_fid:
        notes.append("FID is left out: its network's file is not on this machine")
    return notes


def _one_by_one(mean: PairMeasure) -> PairMeasure:
    """A measure that returns a value for every face, from one that returns the mean over its batch."""
    return lambda a, b: torch.stack([mean(*pair) for pair in zip(a.split(1), b.split(1), strict=True)])


@lru_cache(maxsize=1)
def _recogniser() -> RecogniserNet:
    return load_recogniser()


def _likeness_distance(restored: Tensor, hq: Tensor) -> Tensor:
    """Distance of the recogniser's embeddings; two photos of one person are mostly nearer than 0.6."""
    return likeness_distance(*(embed_faces(_recogniser(), faces) for faces in (restored, hq))).double()


def _landmark_distance(restored: Tensor, hq: Tensor) -> Tensor:
    """Landmark distance by the embedded network, in % of the clean face's eye distance.

    Where no face is left in the restored picture they are off by all of it; NaN where the clean one shows none.
    """
    net = load_landmark_net(device=hq.device)
    ours, clean = (read_aligned(net, x) for x in (restored, hq))
    off = torch.where(ours.score >= FACE_SCORE, landmark_distance(ours.points, clean.points), 1.0)
    return torch.where(clean.score >= FACE_SCORE, 100 * off, torch.nan).cpu().double()


def summarise(values: Mapping[str, Sequence[float] | np.ndarray | Tensor], seed: int = 0) -> dict[str, Interval]:
    """Mean and interval of each measure over the faces for which it is defined; measures without any are dropped."""
    finite = {key: np.asarray(numbers)[np.isfinite(np.asarray(numbers))] for key, numbers in values.items()}
    return {key: metrics.bootstrap_interval(numbers, seed) for key, numbers in finite.items() if numbers.size}


def differences(
    values_a: Mapping[str, Sequence[float] | np.ndarray | Tensor],
    values_b: Mapping[str, Sequence[float] | np.ndarray | Tensor],
    seed: int = 0,
) -> dict[str, Interval]:
    """`summarise` of a - b, face by face, for the measures that both have."""
    common = [key for key in values_a if key in values_b]
    return summarise({key: np.asarray(values_a[key]) - np.asarray(values_b[key]) for key in common}, seed)


# ---------------------------------------------------------------- output


def format_table(evaluation: Evaluation) -> str:
    """The rows as plain text, a measure per line, a set of faces per column, with 95% intervals; then the notes."""
    cells = [["", *(row.name for row in evaluation.rows)]]
    for key, measure in MEASURES.items():
        if any(key in row.values for row in evaluation.rows):
            shown = [format_interval(row.values.get(key), measure.decimals) for row in evaluation.rows]
            cells.append([f"{measure.title}, {measure.goal}", *shown])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    faces = f"{len(evaluation.faces)} face{'s' if len(evaluation.faces) != 1 else ''}, mean (95% interval over faces)"
    return "\n".join([faces, *lines, *evaluation.notes])


def format_interval(interval: Interval | None, decimals: int) -> str:
    """ "mean (low to high)"; the mean alone where no interval can be told; "-" for nothing."""
    if interval is None:
        return "-"
    if math.isnan(interval.low):
        return f"{interval.mean:.{decimals}f}"
    return f"{interval.mean:.{decimals}f} ({interval.low:.{decimals}f} to {interval.high:.{decimals}f})"


def as_dict(evaluation: Evaluation) -> dict[str, object]:
    """`evaluation` for JSON: means and intervals per row, names of faces, notes; null where undefined."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "faces": [printable(face) for face in evaluation.faces],
        "rows": {
            row.name: {
                key: {part: number(value) for part, value in interval._asdict().items()}
                for key, interval in row.values.items()
            }
            for row in evaluation.rows
        },
        "notes": evaluation.notes,
        "failed": [printable(face) for face in evaluation.failed],
    }


def write_csv(path: Path, evaluation: Evaluation) -> None:
    """Write one line per face, with a column per set and measure, empty where undefined.

    Raises OSError as `replace_atomically`.
    """
    columns = [(name, key) for name, values in evaluation.per_face.items() for key in MEASURES if key in values]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["face", *(f"{name} {key}" for name, key in columns)])
    for i, face in enumerate(evaluation.faces):
        numbers = [float(evaluation.per_face[name][key][i]) for name, key in columns]
        writer.writerow([_cell(face), *(f"{n:.6g}" if math.isfinite(n) else "" for n in numbers)])
    replace_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def write_plot(path: Path, evaluation: Evaluation) -> None:
    """Write a PNG with a panel per measure: mean and interval of each set of faces.

    Raises ValueError where matplotlib is missing, OSError as `replace_atomically`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a plot needs the package matplotlib: pip install matplotlib") from None
    rows = [row for row in evaluation.rows if row.name != DIFFERENCE]
    keys = [key for key in MEASURES if any(key in row.values for row in rows)]
    columns = min(4, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.2 * columns, 0.8 + lines * (0.9 + 0.35 * len(rows))), layout="constrained")
    for number, key in enumerate(keys, 1):
        axes = figure.add_subplot(lines, columns, number)
        for place, row in enumerate(rows):
            value = row.values.get(key)
            if value is not None:
                reach = [[max(0.0, value.mean - value.low)], [max(0.0, value.high - value.mean)]]
                axes.errorbar(value.mean, place, xerr=None if math.isnan(value.low) else reach, fmt="o", capsize=3)
        axes.set_title(f"{MEASURES[key].title}\n{MEASURES[key].goal}", fontsize=8)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel(f"{len(evaluation.faces)} faces; mean and 95% interval", fontsize=8)
    replace_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


# ---------------------------------------------------------------- parts


def match_files(folders: dict[str, Path]) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Face -> folder's role -> path for the faces that every folder has, and a note on each folder's others.

    Raises FileNotFoundError or ValueError, in one line, for a folder without images or when nothing matches.
    """
    found = {
        role: [(path.relative_to(folder), path) for path in list_images(folder, with_results=True)]
        for role, folder in folders.items()
    }
    stems = {role: Counter(_stem(relative) for relative, _ in paths) for role, paths in found.items()}
    doubled = {stem for counts in stems.values() for stem, count in counts.items() if count > 1}

    def key(relative: Path) -> str:
        """a.jpg and a.png in one folder are told apart by their suffix, in every folder."""
        stem = _stem(relative)
        return stem + relative.suffix if stem in doubled else stem

    keyed = {role: {key(relative): path for relative, path in paths} for role, paths in found.items()}
    common = [face for face in next(iter(keyed.values())) if all(face in paths for paths in keyed.values())]
    shared = set(common)
    notes = []
    for role, paths in keyed.items():
        others = [face for face in paths if face not in shared]
        if others:
            named = ", ".join(printable(face) for face in others[:3]) + (", ..." if len(others) > 3 else "")
            notes.append(f"{len(others)} of {len(paths)} in the {role} folder have no counterpart: {named}")
    for note in notes:
        log.warning("%s", note)
    if not common:
        named = " and ".join(printable(folder) for folder in folders.values())
        raise ValueError(f"no file in {named} has the same name, suffix aside")
    return {face: {role: paths[face] for role, paths in keyed.items()} for face in common}, notes


def _stem(relative: Path) -> str:
    """Relative path without suffix, the same whichever system wrote it."""
    return unicodedata.normalize("NFC", relative.with_suffix("").as_posix())


def _read(face: str, paths: dict[str, Path]) -> dict[str, Tensor]:
    """Role -> (1, 3, H, W). Raises ValueError, in one line, if one cannot be read or is not of the clean one's size."""
    images = {role: read_image(path)[None] for role, path in paths.items()}
    if CLEAN in images and len({image.shape for image in images.values()}) > 1:
        sizes = ", ".join(f"{role} {image.shape[-1]} x {image.shape[-2]}" for role, image in images.items())
        raise ValueError(f"{printable(face)}: sizes differ ({sizes} pixels)")
    return images


def _columns(faces: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Measure -> one number per face; NaN for a face on which it could not be taken."""
    keys = [key for key in MEASURES if any(key in numbers for numbers in faces)]
    return {key: np.array([numbers.get(key, math.nan) for numbers in faces]) for key in keys}


def _has_piq() -> bool:
    return find_spec("piq") is not None


def _cell(name: str) -> str:
    """A file name made safe for a spreadsheet, which would run what begins like a formula."""
    name = printable(name)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name
