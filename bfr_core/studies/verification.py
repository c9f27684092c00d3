"""Check the published weights that are on this machine, and write a report that can be attached to an issue.

The published files were not at hand when this program was written; whoever has them checks them with `bfr verify-real`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..adaptation.adapt import adapt
from ..adaptation.config import FaceConfig, recipe
from ..adaptation.faces import collect_faces, write_or_keep
from ..adaptation.run import Run
from ..damage.synthetic import degrade
from ..device import autocast
from ..diffusion.low_pass import low_pass
from ..diffusion.prior import Prior, load_prior
from ..diffusion.sampler import LatentNoisePredictor, SamplerConfig, sample_constrained
from ..faces.align import crop_face
from ..faces.arcface import Recogniser, likeness
from ..faces.detect import load_detector
from ..faces.parse import FaceParser
from ..files.photos import printable, to_signed, to_unit
from ..files.provenance import pathless
from ..files.stages import open_stage
from ..files.tensors import reason_of, sha256_of
from ..files.weights import TABLE, Weights, locate, verify
from ..metrics.detail import high_band_energy_ratio
from ..metrics.psnr import psnr
from ..pixels import gaussian_blur
from ..randomness import keyed_generator, keyed_noise
from ..reports.html import Gallery, ReportData, Table, write_report
from ..restorers import Restorer, load_restorer
from ..spread import evenly
from .demo import real_photos
from .peers import SIZE, compare_restorers, table_of

PICTURES = "Two real faces under ordinary damage"
STEPS = 4  # of the short adaptation
PARSED_SIZE = 512  # side in pixels of the crops that ParseNet and the recogniser are shown
# Limits that a published network fails only if its values are in the wrong range or its layers in the wrong place.
MIN_PSNR = 12.0  # dB, of restored faces; a black picture has about 6 to 10
MAX_ERROR = 0.5  # squared error of the noise; a network that has learned nothing has 1
SHOWN_FACTOR = 16  # of the blur that a given prior is shown, at 512 pixels
MOST_COMPARED = 100  # faces of clean photos on which restorers are compared
MAX_LOW_BAND = 0.02  # mean absolute difference, of 1, between a drawn face's low band and the photo's
Callback = Callable[[int, int, object], None]


@dataclass
class Finding:
    """What the check of one file found. rows: (what, value). pictures: damaged and restored faces, for a restorer.

    table, gallery: of the comparison of restorers, in place of rows and pictures.
    """

    name: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    failed: bool = False
    table: Table | None = None
    gallery: Gallery | None = None

    def judge(self, what: str, holds: object) -> None:
        """Note whether `what` holds; the finding fails if it does not."""
        self.rows.append((what, "yes" if holds else "no"))
        self.failed |= not holds


def verify_real(
    folder: Path,
    device: str = "cpu",
    callback: Callback | None = None,
    prior: Path | None = None,
    faces: Path | None = None,
) -> tuple[Path, list[Finding]]:
    """Check every file of the table that is on this machine; returns report.html in `folder` and the findings.

    prior: a prior that is not in the table, such as a Stable Diffusion checkpoint. Then it alone is checked, what it
    draws is shown, and the adaptation of a few steps is done with it. faces: a folder of clean photos. Their faces are
    damaged in the ordinary way, and the embedded restorer and those of the table that are here are compared on them,
    see `peers`.

    Each is checked for its SHA-256, whether it loads, what it makes of two real faces under ordinary damage, time and
    peak memory; then an adaptation of a few steps follows. No statistics of the published networks are known to compare
    with; the report says so and keeps the numbers. A file that fails is reported and does not stop the rest.
    The report is written after every check, and says so if the last one was not reached.
    """
    Run(folder).claim()
    if prior is not None:
        checks = [partial(_check_given_prior, prior, device)]
        last = partial(_short_adaptation, "embedded", str(prior), folder / "adaptation", device)
        about = f"The prior {prior.name}, checked on this machine"
    else:
        here = [(entry, path) for entry in TABLE if (path := locate(entry.name))]
        checks = [partial(_check, entry, path, device) for entry, path in here]
        networks = _first_here([entry.name for entry, _ in here])
        last = partial(_short_adaptation, *networks, folder / "adaptation", device)
        about = "Published weights, checked on this machine"
    findings: list[Finding] = []
    every: list[Callable[[], Finding]] = [*checks, last]
    if faces:
        every.append(partial(_compare, faces, folder, device, findings))
    for step, check in enumerate(every):
        findings.append(check())
        page = _report(folder, findings, len(checks), len(every), device, about, prior is None)
        if callback:
            callback(step + 1, len(every), None)
    return page, findings


def _compare(faces: Path, folder: Path, device: str, before: Sequence[Finding]) -> Finding:
    """The restorers of the table that are here, and the embedded one, on the faces of clean photos.

    before: what was found of the files; those that failed are left out.
    """
    found = Finding("Restorers against one another")
    failed = {finding.name for finding in before if finding.failed}
    restorers = [entry.name for entry in TABLE if "restorer" in entry.what and entry.name not in failed]
    paths = {Path(name).stem: path for name in restorers if (path := locate(name))}
    try:
        run = Run(folder)
        names = collect_faces(faces, run, SIZE, FaceConfig(), device=device)
        clean = names.read([names.names[i] for i in evenly(len(names), MOST_COMPARED)])
        loaded = {name: partial(_loaded, path, device) for name, path in paths.items()}
        peers = compare_restorers(clean, {"embedded": partial(_loaded, "embedded", device)} | loaded)
        found.table = table_of(peers, len(clean))
        rows = [(f"face {i + 1}", [peer.shown[i] for peer in peers]) for i in range(len(peers[0].shown))]
        found.gallery = Gallery("The same faces", "", [peer.name for peer in peers], rows)
        broken = [file["photo"] for file in names.account() if file["status"] == "failed"]
        if broken:
            found.failed = True
            found.rows.append(("photos that cannot be used", ", ".join(map(printable, broken))))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        found.failed = True
        found.rows.append(("failed", pathless(reason_of(error))))
    return found


def _loaded(path: Path | str, device: str) -> Restorer:
    return load_restorer(path).to(device)


def _report(
    folder: Path, findings: list[Finding], here: int, checks: int, device: str, about: str, of_table: bool
) -> Path:
    """Write what was found so far; here: the number of files to check; checks: of these and of what follows them."""
    pictures = [(found.name, found.pictures) for found in findings if found.pictures]
    failed = sum(found.failed for found in findings)
    missing = [entry.name for entry in TABLE if not locate(entry.name)] if of_table else []
    looked_at = f"{here} of {len(TABLE)} files are here" if of_table else f"{here} file was given"
    so_far = "" if len(findings) == checks else f" Not finished: {len(findings)} of {checks} checks are done."
    data = ReportData(
        title=about,
        verdict="not_judged",
        verdict_sentence=f"{looked_at}; {failed} checks failed.{so_far}",
        galleries=[
            *([Gallery(PICTURES, "", ["damaged", "restored"] * 2, pictures)] if pictures else []),
            *(found.gallery for found in findings if found.gallery),
        ],
        tables=[f.table or Table(f.name, "", ["", ""], [list(row) for row in f.rows]) for f in findings],
        notes=[
            "No statistics of the published inference are known to this program; the numbers above were measured here.",
            f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, device "
            f"{device_name(device)}, {torch.get_num_threads()} threads",
            *(f"not here: {name}" for name in missing),
        ],
        measurements={f.name: dict(f.rows) for f in findings},
    )
    return write_report(folder, data)


def sample_faces(size: int) -> Tensor:
    """Two real faces as standard crops: (2, 3, size, size) RGB in [0, 1]."""
    detector = load_detector("embedded")
    return torch.stack([crop_face(photo, detector(photo)[0], size) for photo in real_photos().values()]).clamp(0, 1)


def _check(entry: Weights, path: Path, device: str) -> Finding:
    found = Finding(entry.name, [("SHA-256", verify(entry, path)), ("licence", entry.licence)])
    found.failed = found.rows[0][1].startswith("wrong")
    forget_peak(device)
    found.rows += [("its SHA-256", sha256_of(path)), ("its bytes", str(path.stat().st_size))]
    try:
        started = time.perf_counter()
        if "restorer" in entry.what:
            _check_restorer(found, path, device, started)
        elif "prior" in entry.what:
            _check_prior(found, path, device, started)
        elif "detector" in entry.what:
            detector = load_detector("retinaface", weights=path.parent)
            counts = [len(detector(photo)) for photo in real_photos().values()]
            found.rows.append(("faces found in two portraits", ", ".join(map(str, counts))))
            found.judge("a face is found in each", min(counts) > 0)
        elif "parsing" in entry.what:
            masks = [FaceParser(device)(face) for face in sample_faces(PARSED_SIZE)]
            shares = [float(mask.mean()) for mask in masks]
            found.rows.append(("share of the crop that is face", ", ".join(f"{share:.2f}" for share in shares)))
            found.judge("the face is part of the crop", all(0.1 < share < 0.9 for share in shares))
        elif "recogniser" in entry.what:
            _check_recogniser(found, device)
        found.rows.append(("seconds in all", f"{time.perf_counter() - started:.2f}"))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        found.failed = True
        found.rows.append(("failed", pathless(reason_of(error))))
    note_memory(found, device)
    return found


def _check_recogniser(found: Finding, device: str) -> None:
    recognise, faces = Recogniser(device), sample_faces(PARSED_SIZE)
    directions, blurred = recognise(faces), recognise(gaussian_blur(faces, PARSED_SIZE / 256))
    own, other = likeness(directions, blurred), likeness(directions[:1], directions[1:])
    found.rows.append(("likeness of a face to itself, blurred", ", ".join(f"{v:.3f}" for v in own.tolist())))
    found.rows.append(("likeness of two people", f"{other.item():.3f}"))
    found.judge("a face is more like itself than like another", own.min().item() > other.item())


def _check_restorer(found: Finding, path: Path, device: str, started: float) -> None:
    restorer = load_restorer(path).to(device)
    found.rows.append(("seconds to load", f"{time.perf_counter() - started:.2f}"))
    hq = sample_faces(restorer.size)
    lq = torch.cat([degrade(f[None], "blind", keyed_generator(0, "verify", i)).lq for i, f in enumerate(hq)])
    restored = []
    for face in lq:
        started = time.perf_counter()
        restored.append(restorer.restore(face[None]).cpu())
        found.rows.append(("seconds for a face", f"{time.perf_counter() - started:.2f}"))
    out = torch.cat(restored)
    found.pictures = [image for pair in zip(lq, out, strict=True) for image in pair]
    for what, values in (
        ("PSNR of the damaged faces", psnr(lq, hq)),
        ("PSNR of the restored faces", psnr(out, hq)),
        ("detail energy of the restored faces", high_band_energy_ratio(out, hq)),
        ("mean of the restored faces", out.mean((1, 2, 3))),
        ("deviation of the restored faces", out.std((1, 2, 3))),
    ):
        found.rows.append((what, ", ".join(f"{v:.4f}" for v in values.tolist())))
    found.judge(f"the restored faces are those faces ({MIN_PSNR} dB or more)", psnr(out, hq).min() >= MIN_PSNR)


def _check_prior(found: Finding, path: Path, device: str, started: float) -> Prior:
    prior = load_prior(path).to(device)
    found.rows.append(("seconds to load", f"{time.perf_counter() - started:.2f}"))
    clean = to_signed(sample_faces(prior.size).to(device))
    clean = prior.encode(clean) if isinstance(prior, LatentNoisePredictor) else clean
    for share in (0.05, 0.3):
        t = round(share * len(prior.alpha_bar))
        alpha_bar = float(prior.alpha_bar[t])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(t)).to(device)
        x_t = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
        started = time.perf_counter()
        with torch.no_grad():
            eps, _ = prior(x_t, torch.full((len(clean),), t, device=device))
        seconds = (time.perf_counter() - started) / len(clean)
        error = (eps - noise).square().mean().item()
        found.rows.append((f"squared error of the noise at t = {t}", f"{error:.4f}"))
        found.rows.append((f"seconds for a face at t = {t}", f"{seconds:.2f}"))
        found.judge(f"it tells noise from face at t = {t} (less than {MAX_ERROR})", error < MAX_ERROR)
    return prior


def _check_given_prior(path: Path, device: str) -> Finding:
    """What a prior that the user named does with two real faces: as any prior's, and targets of blurred ones."""
    found = Finding(path.name)
    forget_peak(device)
    try:
        started = time.perf_counter()
        prior = _check_prior(found, path, device, started)
        found.rows += [("its SHA-256", prior.sha256), ("licence", prior.licence), ("its size", f"{prior.size} pixels")]
        hq = sample_faces(prior.size).to(device)
        factor = max(1, SHOWN_FACTOR * prior.size // 512)
        if isinstance(prior, LatentNoisePredictor):
            factor = max(factor, 2 * prior.shrinks)
            kept = psnr(to_unit(prior.decode(prior.encode(to_signed(hq)))), hq)
            found.rows.append(("PSNR of the faces after its VAE", ", ".join(f"{v:.2f}" for v in kept.tolist())))
            found.judge(f"its VAE gives the faces back ({MIN_PSNR} dB or more)", kept.min() >= MIN_PSNR)
        blurred = low_pass(hq, factor).clamp(0, 1)
        config = SamplerConfig(t_start=125, t_constrain_end=0, factor=factor, calls=10)
        drawn = []
        for i, face in enumerate(blurred):
            started = time.perf_counter()
            noise = keyed_noise(0, "verify", [str(i)], device)
            with autocast(prior.device, "auto"):
                drawn.append(to_unit(sample_constrained(prior, to_signed(face[None]), config, noise))[0].cpu())
            found.rows.append(("seconds to draw a face", f"{time.perf_counter() - started:.2f}"))
        found.pictures = [image for pair in zip(blurred.cpu(), drawn, strict=True) for image in pair]
        made = torch.stack(drawn)
        off = (low_pass(made, factor) - low_pass(blurred.cpu(), factor)).abs().mean((1, 2, 3))
        found.rows.append(("drawn faces, off in their low band", ", ".join(f"{v:.4f}" for v in off.tolist())))
        found.judge(f"the drawn faces have the photo's low band (within {MAX_LOW_BAND})", off.max() < MAX_LOW_BAND)
        energy = high_band_energy_ratio(made, hq.cpu())
        found.rows.append(("detail energy of the drawn faces", ", ".join(f"{v:.4f}" for v in energy.tolist())))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        found.failed = True
        found.rows.append(("failed", pathless(reason_of(error))))
    note_memory(found, device)
    return found


def _first_here(names: list[str]) -> tuple[str, str]:
    """The first restorer and the first prior among these files of the table, else the embedded ones."""
    kinds = {entry.name: entry.what for entry in TABLE}
    restorer = next((n for n in names if "restorer" in kinds[n]), "embedded")
    return restorer, next((n for n in names if "prior" in kinds[n]), "embedded")


def _short_adaptation(restorer: str, prior: str, folder: Path, device: str) -> Finding:
    """A few steps of the whole method with this restorer and this prior."""
    found = Finding(f"{STEPS} steps of adapting {restorer} with {Path(prior).name}")
    forget_peak(device)
    try:
        base, photos = load_restorer(restorer), folder / "photos"
        open_stage(photos, ["[01].png"])
        for i, face in enumerate(sample_faces(base.size)):
            lq = degrade(face[None], "sensor", keyed_generator(0, "verify", i)).lq[0]
            write_or_keep(photos / f"{i}.png", lq)
        config = recipe(base)
        config = replace(
            config,
            restorer=restorer,
            prior=prior,
            faces=replace(config.faces, aligned=True),
            targets=replace(config.targets, sampler=replace(config.targets.sampler, kind="fast")),
            finetune=replace(config.finetune, iterations=STEPS, batch_size=2, micro_batch=1, recompute=True),
        )
        started = time.perf_counter()
        result = adapt(photos, folder / "run", config, device=device, restorer=base)
        found.rows.append(("seconds", f"{time.perf_counter() - started:.1f}"))
        found.rows += [(f"loss: {name}", f"{points[-1][1]:.4f}") for name, points in result.progress.losses.items()]
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        found.failed = True
        found.rows.append(("failed", pathless(reason_of(error))))
    note_memory(found, device)
    return found


def device_name(device: str) -> str:
    """The device, with the GPU's name if it is one."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.device(device).type == "cuda" else device


def forget_peak(device: str) -> None:
    """Reset the recorded peak of a GPU's memory; that of a process cannot be reset."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def note_memory(found: Finding, device: str) -> None:
    """Note the peak memory of this check, or on a CPU of all so far."""
    alone = torch.device(device).type == "cuda"
    found.rows.append(("peak memory" if alone else "peak memory of the process so far", peak_memory(device)))


def peak_memory(device: str) -> str:
    """The most memory this process has held: on the GPU if `device` is one, else in main memory."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "not measured on this system"
    scale = 1e6 if platform.system() == "Darwin" else 1e3
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale:.0f} MB"
