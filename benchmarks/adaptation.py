"""Does adapting help real people's faces? The table of docs/results.md, against controls and an oracle.

    python benchmarks/adaptation.py --portraits DIR [--seeds 0 1 2] [--damages sensor halftone] [--work DIR]

150 portraits that no embedded model has seen: half to adapt on (damaged copies only), half to measure on. Every row of
the table that is tuned is tuned with the same recipe and differs only in its targets; --iterations shortens it. Results
are kept per cell in the work folder, with a fingerprint of networks and recipe: the command can be stopped and goes on
(after a change of the code: with another --work). Without --portraits it prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core import metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.tuning import perceptual_by, perceptual_term
from bfr_core.device import choose_device
from bfr_core.diffusion.prior import Prior, load_prior
from bfr_core.faces.align import Face, crop_face
from bfr_core.files.photos import read_image, replace_atomically, write_image
from bfr_core.files.records import fingerprint
from bfr_core.restorers import Restorer, load_restorer, save_restorer
from bfr_core.settings import changed
from bfr_core.studies.benchmark import (
    ALONE,
    FORMER,
    GENERIC,
    ROWS,
    TEACHER,
    make_cell_faces,
    own_settings,
    read_cell,
    run_cell,
    tuned_on_generic_damage,
)
from bfr_core.studies.evaluate import MEASURES, face_measures, format_interval
from bfr_core.studies.paper_table import strip
from bfr_core.training.config import FinetuneConfig

DAMAGES = (
    "camera_x4_iso1500",
    "camera_x8_iso1500",
    "camera_x4_iso1500_pixels",
    "camera_x8_iso1500_pixels",
    "motion_jpeg",
    "halftone",
    "film_grain",
    "sensor",
    *("smeared", "tape", "screen"),  # made when every setting had been decided
)
CONTROLS = tuple(row for row in ROWS if row not in (TEACHER, "adapted", "oracle"))
COLUMNS = ("psnr", "ssim", "gmsd", "vif", "detail_energy", "detail_correlation")
SUMMARISED = ("damaged", "base", "denoiser, then base", GENERIC, FORMER, ALONE, "adapted", "oracle")
BY_RECOGNISER = ("feature_distance", "likeness_distance")  # older records have none


# ---------------------------------------------------------------- data


def held_out_faces(portraits: Path, size: int) -> tuple[Tensor, Tensor]:
    """Aligned held-out portraits, those to adapt on and those to measure on: (75, 3, size, size) each, in [0, 1]."""
    names = (Path(__file__).parents[1] / "bfr_core/embedded/held_out.txt").read_text().split()
    landmarks = json.loads((portraits / "landmarks.json").read_text())
    crops = [crop_face(read_image(portraits / n), Face(np.array(landmarks[n]["landmarks"])), size) for n in names]
    faces = torch.stack(crops).clamp(0, 1)
    return faces[::2], faces[1::2]


def other_loss(config: FinetuneConfig, prior: Prior) -> list[str]:
    """What took the place of the prior's encoder in the perceptual term on this machine; [] if nothing did."""
    return [name for name in [perceptual_by(config, prior)] if name not in ("", prior.sha256)]


# ---------------------------------------------------------------- the table


def cells_in(work: Path) -> dict[str, dict[str, list[dict]]]:
    """Records of every seed by damage and row, whatever networks made them, the damages in the order of `DAMAGES`."""
    cells: dict[str, dict[str, list[dict]]] = {}
    for kind in DAMAGES:
        for path in sorted(work.glob(f"{kind}-*.json")):
            for name, record in json.loads(path.read_text())["rows"].items():
                cells.setdefault(kind, {}).setdefault(name, []).append(record)
    return cells


def table(work: Path, brief: bool = False) -> str:
    """Markdown. brief: intervals of PSNR and detail correlation only."""
    lines = []
    for kind, rows in cells_in(work).items():
        lines.append(f"\n#### {kind} ({max(len(r) for r in rows.values())} seeds)\n")
        columns = columns_of(rows)
        lines += heading(columns)
        for name in ROWS:
            if name in rows:
                lines.append(f"| {name} | {' | '.join(shown(rows[name], brief, columns))} |")
        if {"adapted", "oracle", "base"} <= set(rows):
            lines += ["", *judgement(rows)]
    return "\n".join(lines)


def summary(work: Path) -> str:
    """The table of docs/results.md: the rows that matter most."""
    cells = cells_in(work)
    every = [columns_of(rows) for rows in cells.values()]
    columns = tuple(c for c in (*COLUMNS, *BY_RECOGNISER) if all(c in some for some in every))
    lines = heading(columns)
    for kind, rows in cells.items():
        most = max(map(len, rows.values()))
        for name in SUMMARISED:
            if name in rows:
                few = "" if (count := len(rows[name])) == most else f" ({count} of {most} draws)"
                lines.append(f"| {kind}: {name}{few} | {' | '.join(shown(rows[name], True, columns))} |")
    return "\n".join(lines)


def columns_of(rows: dict[str, list[dict]]) -> tuple[str, ...]:
    """The measures that every record of the rows has."""
    records = [record for some in rows.values() for record in some]
    return COLUMNS + tuple(c for c in BY_RECOGNISER if all(c in record["faces"] for record in records))


def heading(columns: Sequence[str]) -> list[str]:
    titles = [MEASURES[c].title for c in columns] + ["KID"]
    return ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]


def shown(records: list[dict], brief: bool, columns: Sequence[str] = COLUMNS) -> list[str]:
    """The cells of a row. brief: intervals of PSNR and detail correlation only."""
    intervals = {c: metrics.bootstrap_interval(_mean(records, c)) for c in columns}
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
    n = min(len(rows[name]) for name in ("base", "adapted", "oracle"))  # the draws that all three have
    for column in ("psnr", "ssim"):
        base, adapted, oracle = (np.mean(_mean(rows[name][:n], column)) for name in ("base", "adapted", "oracle"))
        gain, best = adapted - base, oracle - base
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one cell each (0 1 2)")
    parser.add_argument("--damages", nargs="+", default=DAMAGES, choices=DAMAGES)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="leave out the others (all)")
    parser.add_argument(
        "--iterations", type=int, default=SMALL.finetune.iterations, help="of each tuning (%(default)s)"
    )
    parser.add_argument("--work", type=Path, default=Path(".training/adaptation"))
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also keep some restored faces of each row")
    parser.add_argument("--restorers", type=Path, metavar="DIR", help="also keep the adapted restorers")
    parser.add_argument("--brief", action="store_true", help="print fewer intervals")
    parser.add_argument("--summary", action="store_true", help="print the table of docs/results.md")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="where the networks run (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    restorer, prior = load_restorer().to(device), load_prior().to(device)
    recipe = changed(SMALL, {"finetune.iterations": args.iterations})
    made_from = fingerprint(restorer.sha256, prior.sha256, own_settings(recipe), *other_loss(recipe.finetune, prior))
    if args.portraits:
        adapt_hq, hq = held_out_faces(args.portraits, restorer.size)
        clean = metrics.kid_features(hq)
        for seed in args.seeds:
            config = changed(recipe, {"targets.seed": seed, "finetune.seed": seed})
            term = perceptual_term(config.finetune, prior, restorer.device)
            generic = cache(partial(tuned_on_generic_damage, restorer, config, term))  # for all damages
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
                        write_image(args.pictures / f"{path.stem} {name}.png".replace(" ", "_"), strip(faces))

                def save(adapted: Restorer, path: Path = path) -> None:
                    save_restorer(
                        args.restorers / f"{path.stem}.safetensors", adapted, {"steps": args.iterations}, half=True
                    )

                cell_faces = make_cell_faces(adapt_hq, hq, kind, seed)
                there = set(done) | (set(ROWS) - set(args.rows))
                store = save if args.restorers else None
                run_cell(cell_faces, restorer, prior, config, there, keep, term, store, generic)
    if any(not read_cell(path, made_from) for path in args.work.glob("*-*.json")):
        print("made by other networks or another recipe than the present ones", file=sys.stderr)
    print(summary(args.work) if args.summary else table(args.work, args.brief))


if __name__ == "__main__":
    main()
