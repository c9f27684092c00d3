"""Does adapting help real people's faces? The table of the README, against controls and an oracle.

    python benchmarks/adaptation.py --portraits DIR [--seeds 3] [--damages sensor halftone] [--work DIR]

150 portraits that no embedded model has seen: half to adapt on (damaged copies only), half to measure on. Every row of
the table that is tuned is tuned with the same recipe and differs only in its targets. Results are kept per cell in the
work folder, with a fingerprint of networks and recipe: the command can be stopped and goes on (after a change of the
code: with another --work). Without --portraits it prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core import metrics
from bfr_core.adaptation import SMALL
from bfr_core.degradations import degrade
from bfr_core.draws import keyed_generator
from bfr_core.evaluate import MEASURES, face_measures, format_interval
from bfr_core.faces.align import Face, crop_face
from bfr_core.finetuning import FinetuneConfig, finetune
from bfr_core.images import read_image, replace_atomically, to_signed, to_unit
from bfr_core.lowpass import low_pass
from bfr_core.prior import Prior, load_prior
from bfr_core.pseudo_targets import TargetConfig, make_pseudo_targets, settled
from bfr_core.restorers import Restorer, load_restorer, save_restorer
from bfr_core.runs import fingerprint
from bfr_core.sampler import denoise_once

DAMAGES = ("sensor", "motion_jpeg", "halftone", "film_grain")
TEACHER = "prior, then base"  # what the targets are drawn from; it would need the diffusion network at use time
ROWS = (
    "damaged",
    "denoiser",
    "base",
    "denoiser, then base",
    TEACHER,
    "tuned on own outputs",
    "tuned on low-pass targets",
    "adapted",
    "oracle",
)
CONTROLS = tuple(row for row in ROWS if row not in (TEACHER, "adapted", "oracle"))
COLUMNS = ("psnr", "ssim", "gmsd", "vif", "detail_energy", "detail_correlation")


# ---------------------------------------------------------------- data


def held_out_faces(portraits: Path) -> tuple[Tensor, Tensor]:
    """Aligned held-out portraits, those to adapt on and those to measure on: (75, 3, 128, 128) each, in [0, 1]."""
    names = (Path(__file__).parents[1] / "bfr_core/embedded/held_out.txt").read_text().split()
    landmarks = json.loads((portraits / "landmarks.json").read_text())
    crops = [crop_face(read_image(portraits / n), Face(np.array(landmarks[n]["landmarks"])), 128) for n in names]
    faces = torch.stack(crops).clamp(0, 1)
    return faces[::2], faces[1::2]


def damaged(faces: Tensor, kind: str, seed: int, part: str, strength: float = 1.0) -> Tensor:
    keys = [keyed_generator(seed, kind, part, i) for i in range(len(faces))]
    return torch.cat([degrade(f[None], kind, key, strength).lq for f, key in zip(faces, keys, strict=True)])


# ---------------------------------------------------------------- classical denoisers


def denoisers() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Every setting that is tried, by name; each maps (H, W, 3) to (H, W, 3)."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for sigma in (0.5, 0.8, 1.2, 1.6):
        found[f"Gaussian {sigma}"] = lambda x, s=sigma: gaussian_filter(x, (s, s, 0))
    for weight in (0.04, 0.08, 0.12, 0.2):
        found[f"total variation {weight}"] = lambda x, w=weight: denoise_tv_chambolle(x, w, channel_axis=-1)
    for h in (0.04, 0.07, 0.1, 0.15):
        found[f"non-local means {h}"] = lambda x, h=h: denoise_nl_means(
            x, patch_size=5, patch_distance=6, h=h, sigma=h, channel_axis=-1
        )
    return found


def best_denoiser(lq: Tensor, hq: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The setting with the highest mean PSNR on a fifth of the measured faces: chosen in the control's favour."""

    def batch(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
        def apply(images: Tensor) -> Tensor:
            results = [function(x.permute(1, 2, 0).numpy().astype(np.float64)) for x in images]
            return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).float().clamp(0, 1)

        return apply

    tried = {name: batch(function) for name, function in denoisers().items()}
    score = {name: metrics.psnr(function(lq[::5]), hq[::5]).mean().item() for name, function in tried.items()}
    best = max(score, key=score.__getitem__)
    return best, tried[best]


# ---------------------------------------------------------------- one cell: a damage and a seed


def restored_by(restorer: Restorer, lq: Tensor) -> Tensor:
    return torch.cat([restorer.restore(some) for some in lq.split(16)])


def cleaned(lq: Tensor, prior: Prior, config: TargetConfig) -> Tensor:
    steps, index = config.sampler.num_steps, config.t_clean
    if not index:
        return lq
    return torch.cat([to_unit(denoise_once(prior, to_signed(some), steps, index)) for some in lq.split(16)])


def tuned(restorer: Restorer, lq: Tensor, targets: Tensor, config: FinetuneConfig) -> Restorer:
    return finetune(restorer, list(zip(lq, targets, strict=True)), config)[0]


def targets_of(lq: Tensor, restorer: Restorer, prior: Prior, config: TargetConfig) -> Tensor:
    parts = []
    for start in range(0, len(lq), config.batch_size):
        names = [str(i) for i in range(start, min(start + config.batch_size, len(lq)))]
        parts.append(make_pseudo_targets(lq[start : start + config.batch_size], names, restorer, prior, config)[1])
    return torch.cat(parts)


def run_cell(
    kind: str,
    seed: int,
    adapt_hq: Tensor,
    hq: Tensor,
    restorer: Restorer,
    prior: Prior,
    done: dict,
    keep,
    weights: Path | None = None,
) -> None:
    """Restored measure faces of every row not yet in `done`, handed to `keep(row, faces)`; adapted weights kept."""
    lq, adapt_lq = damaged(hq, kind, seed, "measure"), damaged(adapt_hq, kind, seed, "adapt")
    config = replace(SMALL.finetune, seed=seed)
    target_config = settled(replace(SMALL.targets, seed=seed), adapt_lq[::5], restorer, prior)
    base_adapt = restored_by(restorer, adapt_lq)
    row: dict[str, Callable[[], Tensor]] = {
        "damaged": lambda: lq,
        "base": lambda: restored_by(restorer, lq),
        TEACHER: lambda: restored_by(restorer, cleaned(lq, prior, target_config)),
        "tuned on own outputs": lambda: restored_by(tuned(restorer, adapt_lq, base_adapt, config), lq),
        "tuned on low-pass targets": lambda: restored_by(
            tuned(restorer, adapt_lq, low_pass(base_adapt, target_config.sampler.factor).clamp(0, 1), config), lq
        ),
        "oracle": lambda: restored_by(tuned(restorer, adapt_lq, adapt_hq, config), lq),
    }
    if "adapted" not in done:
        targets = targets_of(adapt_lq, restorer, prior, target_config)
        adapted = tuned(restorer, adapt_lq, targets, config)
        if weights:
            save_restorer(weights / f"{kind}-{seed}.safetensors", adapted, {}, half=True)
        blind = damaged(hq, "blind", seed, "measure")
        old = [metrics.psnr(restored_by(r, blind), hq).tolist() for r in (restorer, adapted)]
        teacher = {k: v.tolist() for k, v in face_measures(targets, adapt_hq).items()}
        extra = {"old damage": old, "targets": teacher, "noise level": target_config.t_clean}
        keep("adapted", restored_by(adapted, lq), extra)
    for name, make in row.items():
        if name not in done:
            keep(name, make(), {})
    if not {"denoiser", "denoiser, then base"} <= set(done):
        setting, denoise = best_denoiser(lq, hq)
        clean = denoise(lq)
        keep("denoiser", clean, {"setting": setting})
        keep("denoiser, then base", restored_by(restorer, clean), {"setting": setting})


# ---------------------------------------------------------------- the table


def departures(config: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not its defaults: a setting added later changes nothing that was made."""
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        if is_dataclass(value):
            if inner := departures(value):
                found[field.name] = inner
        elif value != default:
            found[field.name] = value
    return found


def read_cell(path: Path, made_from: str) -> dict:
    """Rows of a cell that is there and belongs to these networks and this recipe."""
    cell = json.loads(path.read_text()) if path.exists() else {}
    return cell.get("rows", {}) if cell.get("made_from") == made_from else {}


def table(work: Path, made_from: str, brief: bool = False) -> str:
    """Markdown. brief: intervals of PSNR and detail correlation only."""
    cells: dict[str, dict[str, list[dict]]] = {}
    for path in sorted(work.glob("*.json")):
        kind, _ = path.stem.rsplit("-", 1)
        for name, record in read_cell(path, made_from).items():
            cells.setdefault(kind, {}).setdefault(name, []).append(record)
    lines = []
    for kind, rows in cells.items():
        lines.append(f"\n### {kind} ({max(len(r) for r in rows.values())} seeds)\n")
        titles = [MEASURES[c].title for c in COLUMNS] + ["KID"]
        lines += ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        for name in ROWS:
            if name in rows:
                lines.append(f"| {name} | {' | '.join(shown(rows[name], brief))} |")
        if {"adapted", "oracle", "base"} <= set(rows):
            lines += ["", *judgement(rows)]
    return "\n".join(lines)


def summary(work: Path, made_from: str) -> str:
    """The README's table: the rows that matter most, of the first seed."""
    titles = [MEASURES[c].title for c in COLUMNS] + ["KID"]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for kind in ("motion_jpeg", "halftone", "film_grain", "sensor"):
        rows = read_cell(work / f"{kind}-0.json", made_from)
        for name in ("damaged", "base", "denoiser, then base", "adapted", "oracle"):
            if name in rows:
                lines.append(f"| {kind}: {name} | {' | '.join(shown([rows[name]], brief=True))} |")
    return "\n".join(lines)


def shown(records: list[dict], brief: bool) -> list[str]:
    """The cells of a row. brief: intervals of PSNR and detail correlation only."""
    intervals = {c: metrics.bootstrap_interval(_mean(records, c)) for c in COLUMNS}
    cells = [
        f"{found.mean:.{MEASURES[c].decimals}f}"
        if brief and c not in ("psnr", "detail_correlation")
        else format_interval(found, MEASURES[c].decimals)
        for c, found in intervals.items()
    ]
    return [*cells, f"{np.mean([r['kid'][0] for r in records]):.3f}"]


def judgement(rows: dict[str, list[dict]]) -> list[str]:
    """The goals, one line each, met or not."""

    def difference(a: str, b: str, column: str) -> metrics.Interval:
        n = min(len(rows[a]), len(rows[b]))
        return metrics.bootstrap_difference(_mean(rows[a][:n], column), _mean(rows[b][:n], column))

    lines = []
    for column, sign in (("detail_correlation", 1), ("gmsd", -1), ("vif", 1)):
        for who in ("adapted", "oracle"):
            worst = []
            for control in CONTROLS:
                if control in rows:
                    d = difference(who, control, column)
                    if (d.low if sign > 0 else -d.high) <= 0:
                        worst.append(control)
            answer = f"no, not {'; '.join(worst)}" if worst else "yes"
            lines.append(f"- {who} beats every control on {MEASURES[column].title}: {answer}")
    for column in ("psnr", "ssim"):
        gain = difference("adapted", "base", column).mean
        best = difference("oracle", "base", column).mean
        lines.append(
            f"- share of the oracle's gain in {MEASURES[column].title}: {gain / best:.0%} ({gain:+.3f} of {best:+.3f})"
        )
    fitted = {who: np.mean(_mean(rows[who], "psnr_affine")) for who in ("base", "adapted", "oracle")}
    lines.append(
        f"- PSNR after an affine colour fit: {', '.join(f'{who} {value:.2f}' for who, value in fitted.items())}"
    )
    energy = np.mean(_mean(rows["adapted"], "detail_energy"))
    lines.append(f"- detail energy of adapted: {energy:.2f} (goal 0.85 to 1.15)")
    old = [np.subtract(r["old damage"][1], r["old damage"][0]).mean() for r in rows["adapted"]]
    lines.append(f"- old damage, adapted less base: {np.mean(old):+.2f} dB (goal at least -0.1)")
    return lines


def _mean(records: list[dict], column: str) -> np.ndarray:
    """Per face, the mean over seeds."""
    return np.mean([r["faces"][column] for r in records], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--damages", nargs="+", default=DAMAGES, choices=DAMAGES)
    parser.add_argument("--work", type=Path, default=Path(".training/adaptation"))
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="also keep the first eight restored faces of each row, and the adapted restorers",
    )
    parser.add_argument("--brief", action="store_true", help="print fewer intervals")
    parser.add_argument("--summary", action="store_true", help="print the README's table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, prior = load_restorer(), load_prior()
    made_from = fingerprint(restorer.sha256, prior.sha256, departures(SMALL))
    if args.portraits:
        adapt_hq, hq = held_out_faces(args.portraits)
        clean = metrics.kid_features(hq)
        for seed in range(args.seeds):
            for kind in args.damages:
                path = args.work / f"{kind}-{seed}.json"
                done = read_cell(path, made_from)

                def keep(name: str, faces: Tensor, extra: dict, path: Path = path, done: dict = done) -> None:
                    values = {k: v.double().numpy().round(5).tolist() for k, v in face_measures(faces, hq).items()}
                    done[name] = {
                        "faces": values,
                        "kid": metrics.paired_kid(metrics.kid_features(faces), clean),
                    } | extra
                    cell = {"made_from": made_from, "rows": done}
                    replace_atomically(path, lambda part: part.write_text(json.dumps(cell)))
                    shown = {k: round(float(np.mean(v)), 4) for k, v in values.items()}
                    print(path.stem, name, shown, {k: v for k, v in extra.items() if k == "setting"}, flush=True)
                    if args.pictures:
                        torch.save(faces[:8].clone(), path.with_suffix(f".{name}.pt"))

                run_cell(kind, seed, adapt_hq, hq, restorer, prior, done, keep, args.work if args.pictures else None)
    print(summary(args.work, made_from) if args.summary else table(args.work, made_from, args.brief))


if __name__ == "__main__":
    main()
