"""The commands that only study the method: damages, measures, tables, votes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..device import choose_device
from ..files.ownership import free_place, maker_of, note_result
from ..files.photos import printable
from .account import DONE, FACES, Results, each_photo, importable, photos_in, print_account, problems_of
from .flags import (
    FACE_FLAGS,
    SOURCES,
    STUDIES,
    TARGET_FLAGS,
    TUNE_FLAGS,
    Commands,
    base_restorer,
    folder_from,
    on_device,
    or_auto,
    path_from,
    settings_from,
)
from .progress import Bars

GRID_FLAGS = ("--factor", "--start", "--constrain-end", "--clean-level")
GRID_TEXT = {
    "--factors": "values of N: the low band is what survives shrinking by N",
    "--starts": "values of K: the level to which the face is noised",
    "--ends": "values of L: the last level at which the low band is held",
    "--clean-levels": "levels at which the prior cleans the face before it is restored; 0, the default, is not at all",
}
PORTRAITS_IN = {"matplotlib": "matplotlib", "skimage": "scikit-image"}  # two real photographs come with these
REFERENCE_TEXT = "for FID: statistics of a reference set (.npz: mu, sigma; .pth: mean, cov), or a folder of faces"


def demo(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.demo import demo as run_demo
    from ..studies.demo import read_table

    for package, name in PORTRAITS_IN.items():
        importable(package, "demo", name)
    page = run_demo(args.run, bars)
    print(read_table(args.run), file=sys.stderr)
    print(f"\nLook at it: {page}", file=sys.stderr)
    return {"report": str(page)}


def degrade(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..damage.synthetic import check_damage
    from ..damage.synthetic import degrade as damage
    from ..files.photos import png_names, read_photo, write_photo
    from ..files.records import write_json
    from ..randomness import keyed_generator

    def one(file: Path, relative: Path) -> tuple[dict[str, Any], Sequence[str]]:
        key = keyed_generator(args.seed, args.kind, relative.as_posix())
        photo = read_photo(file)
        result = damage(photo.pixels[None], args.kind, key, args.strength)
        place = results.place(file, relative)
        lost = write_photo(place, replace(photo, pixels=result.lq[0]))
        results.written(place)
        return result.parameters[0], (*photo.notes, *lost)

    check_damage(args.kind, args.strength)
    photos, folder, _ = photos_in(args.photos)
    results = Results(args.photos, args.out, "degrade", png_names([file.relative_to(folder) for file in photos]))
    drawn, files = each_photo(args.photos, one, bars.named("degrade"))
    if drawn:
        made = {"kind": args.kind, "seed": args.seed, "strength": args.strength, "images": drawn}
        write_json(results.table("degrade.json"), made)
    print_account(files, DONE, f"results in {printable(args.out)}")
    return {"images": len(drawn), "files": files, "problems": problems_of(files)}


def evaluate(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.evaluate import as_dict, format_table, write_csv, write_plot
    from ..studies.evaluate import evaluate as compare

    if args.plot:
        importable("matplotlib", "--plot")
    result = compare(
        args.restored,
        args.clean,
        args.lq,
        factor=args.factor,
        callback=bars.named("evaluate"),
        reference=args.reference_set,
    )
    print(format_table(result), file=sys.stderr if args.json else sys.stdout)
    if args.csv:
        write_csv(free_place(args.csv, maker=maker_of("evaluate --csv", args.restored)), result)
    if args.plot:
        place = free_place(args.plot, maker=maker_of("evaluate --plot", args.restored))
        write_plot(place, result)
        note_result(place)
    return as_dict(result)


def ablate(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..diffusion.prior import load_prior
    from ..studies.ablation import Grid, ablate, as_table

    restorer = base_restorer(args)
    config = settings_from(args, restorer)
    prior = load_prior(config.prior).to(restorer.device)
    grid = Grid(tuple(args.factors), tuple(args.starts), tuple(args.ends), tuple(args.clean_levels))
    cells = ablate(
        args.lq, args.clean, args.out, restorer, prior, config, grid, args.tune, args.limit, bars.named("ablate")
    )
    print(as_table(cells), file=sys.stderr if args.json else sys.stdout)
    return {"cells": cells}


def bench(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..damage.camera import published_kind
    from ..diffusion.prior import load_prior
    from ..studies.paper_table import SETS, as_dict, bench_paper, format_table

    names = [name for name, of in SETS.items() if published_kind(*of, "ratio") in args.sets]
    restorer = base_restorer(args)
    config = settings_from(args, restorer)
    prior = load_prior(config.prior).to(restorer.device)
    table = bench_paper(
        args.hq,
        args.out,
        restorer,
        prior,
        config,
        names,
        args.faces,
        args.groups,
        bars,
        reading=args.reading,
        split=args.split,
        reference=args.reference_set,
        with_published=args.published,
    )
    print(format_table(table), file=sys.stderr if args.json else sys.stdout)
    print_account(table.files, FACES, f"{table.adapted_to} faces adapted to, {table.measured} measured")
    return as_dict(table)


def verify_real(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.verification import verify_real as check

    for package, name in PORTRAITS_IN.items():
        importable(package, "verify-real", name)
    page, findings = check(args.out, str(choose_device(args.device)), bars.named("verify"), args.prior, args.faces)
    failed = [f.name for f in findings if f.failed]
    print(f"{len(findings)} checks, {len(failed)} failed; attach to an issue: {page}", file=sys.stderr)
    return {"report": str(page), "failed": failed}


def vote(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.vote import make_ballot

    ballot = make_ballot(args.photos, args.a, args.b, args.out, args.seed or 0, args.most)
    page, key = printable(ballot.page), printable(ballot.key)
    print(f"pass round: {page}\nkeep:       {key} (which side is A; count with 'bfr tally')", file=sys.stderr)
    return {"page": str(ballot.page), "key": str(ballot.key), "failed": list(map(printable, ballot.failed))}


def tally(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import asdict

    from ..studies.vote import tally as count

    result = count(args.key, args.votes)
    print(result.sentence(), file=sys.stderr if args.json else sys.stdout)
    return asdict(result)


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    from ..damage.camera import READINGS, published_kind
    from ..damage.synthetic import DAMAGES, STRENGTH_TEXT
    from ..studies.paper_table import SETS, SPLITS

    sub = commands.add(
        demo,
        "See it work with the embedded models, on faces that come with the program and on two real photographs.",
        group=STUDIES,
        goes_on=True,
    )
    sub.add_argument(
        "--run", type=path_from, default=Path("demo_run"), metavar="DIR", help="Folder to work in (demo_run)."
    )
    sub = commands.add(degrade, "Damage clean photos, for trials.", group=STUDIES)
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="Folder of photos, or one photo.")
    sub.add_argument(
        "--out", type=folder_from, required=True, metavar="DIR", help="Folder of results, and of degrade.json."
    )
    sub.add_argument("--kind", required=True, help=f"One of {', '.join(DAMAGES)}.")
    sub.add_argument("--strength", type=float, default=1.0, help=f"{STRENGTH_TEXT} Without it, 1 is taken.")
    sub.add_argument("--seed", type=int, default=0, help="The seed of every random draw (0).")
    text = "Try every combination of low-pass factor, start and constraint end, measured against clean copies."
    sub = on_device(
        commands.add(
            ablate,
            text,
            *SOURCES,
            *(f for f in TARGET_FLAGS + TUNE_FLAGS if f not in GRID_FLAGS),
            group=STUDIES,
            goes_on=True,
        )
    )
    sub.add_argument("lq", type=path_from, metavar="LQ", help="Folder of aligned damaged faces.")
    sub.add_argument("--clean", type=path_from, required=True, metavar="DIR", help="The same faces, clean.")
    sub.add_argument(
        "--out", type=folder_from, required=True, metavar="DIR", help="Folder of ablation.json, from which it goes on."
    )
    for flag, text in GRID_TEXT.items():
        kind = or_auto(int) if flag == "--clean-levels" else int
        sub.add_argument(flag, type=kind, nargs="+", required=flag != "--clean-levels", default=[0], help=text)
    sub.add_argument("--limit", type=int, default=64, help="How many faces are used at most (64).")
    sub.add_argument("--tune", action="store_true", help="Also tune on half of the faces, measure on the other half.")
    sub.add_argument("--seed", type=int, metavar="N", help="The seed of every random draw (0).")
    text = (
        "Make the paper's synthetic sets from clean faces, run base, controls, adapted and oracle, and print its table."
    )
    sub = on_device(
        commands.add(bench, text, *FACE_FLAGS, *SOURCES, *TARGET_FLAGS, *TUNE_FLAGS, group=STUDIES, goes_on=True)
    )
    sub.add_argument("table", choices=("paper",), help="arXiv:2410.04618.")
    sub.add_argument("--hq", type=path_from, required=True, metavar="DIR", help="Clean photos; with --aligned, faces.")
    sub.add_argument(
        "--out",
        type=folder_from,
        required=True,
        metavar="DIR",
        help="Folder of tables, pictures, and what it goes on from.",
    )
    kinds = [published_kind(*of, "ratio") for of in SETS.values()]
    text = f"Some of {', '.join(kinds)} (all)."
    sub.add_argument("--sets", nargs="+", choices=kinds, default=kinds, metavar="SET", help=text)
    text = (
        "How faces that are not 512 pixels wide are shrunk: ratio, by as much as the published ones; pixels, to as "
        "many pixels of the face (ratio)."
    )
    sub.add_argument("--reading", choices=tuple(READINGS), default="ratio", help=text)
    sub.add_argument("--faces", type=int, default=200, metavar="N", help="How many faces are used at most (200).")
    text = (
        "Also tune by the published recipe: as many steps as ours, in the same precision, without LPIPS where its file "
        "is not here."
    )
    sub.add_argument("--published", action="store_true", help=text)
    text = "Halves of the faces, or published: 2,500 to adapt to and 500 to measure on, always the same (halves)."
    sub.add_argument("--split", choices=SPLITS, default="halves", help=text)
    sub.add_argument("--reference-set", type=path_from, metavar="FILE", help=REFERENCE_TEXT)
    text = "CSV file with the columns name (of a photo or face) and group, for gains by group of people."
    sub.add_argument("--groups", type=path_from, metavar="FILE", help=text)
    sub.add_argument("--seed", type=int, metavar="N", help="The seed of every random draw (0).")
    sub = on_device(
        commands.add(
            verify_real, "Check the published weights on this machine, and write a report to share.", group=STUDIES
        )
    )
    sub.add_argument("--out", type=folder_from, default="verify_real", metavar="DIR", help="Folder of the report.")
    text = "Check this prior instead, such as a Stable Diffusion checkpoint: a .safetensors file or a diffusers folder."
    sub.add_argument("--prior", type=path_from, metavar="FILE", help=text)
    text = "Compare the restorers that are here, and the embedded one, on the damaged faces of these clean photos, too."
    sub.add_argument("--faces", type=path_from, metavar="DIR", help=text)
    sub = commands.add(
        vote, "Make a page on which people choose blindly between two sets of restored photos.", group=STUDIES
    )
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="The damaged photos.")
    sub.add_argument(
        "--a", type=path_from, required=True, metavar="DIR", help="One set of results, named like the photos."
    )
    sub.add_argument("--b", type=path_from, required=True, metavar="DIR", help="The other set.")
    sub.add_argument("--out", type=folder_from, required=True, metavar="DIR", help="Folder of vote.html and key.json.")
    sub.add_argument("--most", type=int, default=100, metavar="N", help="How many photos are shown at most (100).")
    sub.add_argument("--seed", type=int, metavar="N", help="The seed of order and sides (0).")
    sub = commands.add(tally, "Count the votes that people sent back.", group=STUDIES)
    sub.add_argument("key", type=path_from, metavar="KEY", help="The vote's key.json.")
    sub.add_argument("votes", type=path_from, nargs="+", metavar="VOTES", help="Files that voters saved.")
    sub = commands.add(
        evaluate, "Measure restored faces against clean faces of the same names, or without any.", group=STUDIES
    )
    sub.add_argument("restored", type=path_from, metavar="RESTORED", help="Folder of restored faces.")
    text = "Clean faces of the same names; without them, only what needs no clean face is measured."
    sub.add_argument("--clean", type=path_from, metavar="DIR", help=text)
    text = (
        "For FID: statistics of a reference set (.npz with mu and sigma, .pth with mean and cov), or a folder of faces."
    )
    sub.add_argument("--reference-set", type=path_from, metavar="FILE", help=text)
    sub.add_argument("--lq", type=path_from, metavar="DIR", help="The damaged faces, for a row of their own.")
    sub.add_argument("--factor", type=int, default=8, help="Factor of the low band that is compared with --lq (8).")
    sub.add_argument("--csv", type=path_from, metavar="FILE", help="Write one line per face.")
    sub.add_argument("--plot", type=path_from, metavar="FILE", help="Draw means and intervals, as PNG.")
