"""The `bfr` command.

Exit status: 0 done; 1 some files failed, or the disk or the memory is too small; 2 bad input, which one line names;
130 cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..device import choose_device, is_out_of_memory
from ..files.kinds import LeftOutError, left_out_lines, without_name
from ..files.ownership import claim_results, free_place, note_result
from ..files.photos import printable
from ..files.tensors import reason_of

log = logging.getLogger(__name__)

# Flag, the setting of `AdaptConfig` it changes, meaning. Types and defaults come from the settings themselves.
OPTIONS = {
    "--aligned": ("faces.aligned", "the photos are aligned square faces already"),
    "--detector": ("faces.detector", "auto, embedded or retinaface"),
    "--min-face": ("faces.min_face", "narrowest face used, pixels of the photo"),
    "--restorer": ("restorer", "restorer file to tune, or 'embedded'"),
    "--prior": ("prior", "diffusion prior, file or folder, or 'embedded'"),
    "--sampler": ("targets.sampler.kind", "paper (every step) or fast (a few)"),
    "--num-steps": ("targets.sampler.num_steps", "noise levels kept of the prior's"),
    "--start": ("targets.sampler.t_start", "K: level the face is noised to, or auto; higher invents more"),
    "--constrain-end": ("targets.sampler.t_constrain_end", "L: last level at which the low band is held"),
    "--factor": ("targets.sampler.factor", "N: the low band is what survives shrinking by N, or auto"),
    "--calls": ("targets.sampler.calls", "network calls of the fast sampler"),
    "--eta": ("targets.sampler.eta", "fresh noise per step of the fast sampler, 0 to 1"),
    "--reference": ("targets.reference", "low band from the 'restored' face or from the damaged one, 'lq'"),
    "--clean-level": ("targets.t_clean", "level at which the prior cleans the face first, or auto; 0 = not"),
    "--target-detail": ("targets.detail", "what the targets' high band is multiplied by, or auto; 1 = as drawn"),
    "--gate": ("gate.limit", "deviations from the folder's median at which a target is refused; 0 = never"),
    "--gate-tries": ("gate.tries", "further draws for a refused target before it is left out"),
    "--album": ("album.find", "use the folder's own sharp faces as examples of what a good face is"),
    "--good": ("album.good", "folder of good photos of the people, used likewise"),
    "--real": ("album.real", "folder of good photos of anybody, which the discriminator alone takes for real"),
    "--iterations": ("finetune.iterations", "tuning steps"),
    "--minutes": ("finetune.minutes", "tune for so long at most; 0 = until the steps are done"),
    "--batch-size": ("finetune.batch_size", "faces per tuning step"),
    "--micro-batch": ("finetune.micro_batch", "faces per pass; less needs less memory"),
    "--lr": ("finetune.lr", "highest learning rate"),
    "--l1": ("finetune.l1", "weight of the pixel term"),
    "--perceptual": ("finetune.perceptual", "weight of the perceptual term"),
    "--adversarial": ("finetune.adversarial", "weight of the adversarial term"),
    "--texture": ("finetune.texture", "weight of the texture term"),
    "--anchor": ("finetune.anchor", "share of each step spent on staying good at ordinary damage"),
    "--transplant": ("finetune.transplant", "share of the faces that get the damage of any other"),
    "--judged-on": ("finetune.judged_on", "damage of the held-out faces: their own, or transplanted"),
    "--feature": ("finetune.feature", "weight of the code feature term (CodeFormer)"),
    "--code": ("finetune.code", "weight of the code prediction term (CodeFormer)"),
    "--trainable": ("finetune.trainable", "full, or lora for low-rank changes only, saved alone as well"),
    "--rank": ("finetune.rank", "of the low-rank changes"),
    "--recompute": ("finetune.recompute", "compute inner values again instead of keeping them: slower, less memory"),
    "--precision": ("finetune.precision", "of sampling and tuning: auto (by the hardware), float32 or bfloat16"),
}
NOT_THE_INPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # errors of the disk that are not bad input
GRID_FLAGS = ("--factor", "--start", "--constrain-end", "--clean-level")
GRID_TEXT = {
    "--factors": "values of N: the low band is what survives shrinking by N",
    "--starts": "values of K: level the face is noised to",
    "--ends": "values of L: last level at which the low band is held",
    "--clean-levels": "levels at which the prior cleans the face before it is restored (0: not, the default; auto)",
}
REFERENCE_TEXT = "of FID: statistics of a reference set (.npz: mu, sigma; .pth: mean, cov), or a folder of faces"
FACE_FLAGS = ("--aligned", "--detector", "--min-face")
TARGET_FLAGS = tuple(f for f, (path, _) in OPTIONS.items() if path.startswith("targets."))
GATE_FLAGS = ("--gate", "--gate-tries")
ALBUM_FLAGS = ("--album", "--good", "--real")
TUNE_FLAGS = tuple(f for f, (path, _) in OPTIONS.items() if path.startswith("finetune."))
SOURCES = ("--restorer", "--prior")


RESTORE_TEXT = {
    "detector": "auto, embedded or retinaface",
    "threshold": "least score of a face, 0 to 1",
    "min_face": "narrowest face restored, pixels of the photo",
    "batch_size": "faces in the network at once",
    "blend": "0 keeps the photo, 1 the restored face",
    "faces": "all, numbered, or one: largest, leftmost, rightmost, topmost, bottommost",
    "numbers": "for numbered: which faces, counted from the left, such as 1,3",
    "skip_sharp": "leave faces alone that are this sharp already, 1 being a clean face; 0 = restore all",
    "mask": "square, or face for face and hair only, which needs ParseNet's file",
    "precision": "auto (by the hardware, never by timing), float32 or bfloat16",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = build_parser().parse_args(arguments)
    handler = _AboveTheBar()
    handler.addFilter(lambda record: record.name.startswith(("bfr_core", "__main__")))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    try:
        with _Cancel() as cancel, contextlib.closing(Bars(cancel)) as bars:
            summary = args.command(args, bars)
    except KeyboardInterrupt:
        print(f"bfr: cancelled; the same command {_when_run_again(args.command)}", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, OSError) as error:
        print(f"bfr: {printable(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, OSError) and error.errno in NOT_THE_INPUT else 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"bfr: too little memory ({reason_of(error)}); try --low-memory, or --device cpu", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(summary))
    return 1 if any(file["status"] == "failed" for file in summary.get("files", ())) else 0


class _AboveTheBar(logging.Handler):
    """Log lines of their own, where a progress bar is on the last line of the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _when_run_again(command: Callable[..., Any]) -> str:
    """What a command that was cancelled does when it is given again."""
    goes_on = (faces, targets, finetune, adapt, restore, demo, ablate, bench, weights, ui)
    return "goes on where this one stopped" if command in goes_on else "starts from the beginning"


class _Cancel:
    """Ctrl-C lets the step under way finish, so that what is saved is whole; a second Ctrl-C stops at once."""

    def __enter__(self) -> _Cancel:
        self.asked = False
        try:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: the caller cancels by itself
            self.previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


class Bars:
    """A progress bar with the time left for each stage; the callback of every long command."""

    def __init__(self, cancel: _Cancel) -> None:
        self.cancel, self.stage, self.bar = cancel, "", tqdm(disable=True)

    def __call__(self, stage: str, step: int, total: int, detail: Any) -> None:
        if stage != self.stage:
            self.bar.close()
            self.stage = stage
            # Nobody has timed what came before the first call; the speed is that of what comes after it.
            self.bar = tqdm(desc=f"{stage:<9}", total=total, initial=step, mininterval=0.5, file=sys.stderr)
        self.bar.update(step - self.bar.n)
        if step >= total:
            self.bar.close()
        if stage == "forecast" and detail is not None:
            print("\n".join(detail.lines()), file=sys.stderr)
        self.cancel.check()

    def close(self) -> None:
        """End the bar, so that what is printed next has a line of its own."""
        self.bar.close()

    def named(self, stage: str) -> Callable[[int, int, Any], None]:
        """This callback for a function that has one stage only."""
        return lambda step, total, detail: self(stage, step, total, detail)


# ---------------------------------------------------------------- commands


def faces(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import collect_faces
    from ..adaptation.run import Run

    base = base_restorer(args)
    config = settings(args, base)
    run = Run(args.run)
    size = args.size or base.size
    with run.locked():
        found = collect_faces(args.photos, run, size, config.faces, bars, base.device)
    return {"faces": len(found), "files": faces_said(found), "problems": found.problems}


def targets(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import faces_of
    from ..adaptation.run import Run
    from ..adaptation.target_stage import make_targets
    from ..diffusion.prior import load_prior

    restorer = base_restorer(args)
    config = settings(args, restorer)
    run = Run(args.run)
    with run.locked():
        found = faces_of(run)
        prior = load_prior(config.prior).to(restorer.device)
        files, _ = make_targets(run, found, restorer, prior, config, bars)
    print(f"{len(files)} pseudo targets in {run.targets}, {len(found) - len(files)} refused", file=sys.stderr)
    return {"targets": len(files), "refused": len(found) - len(files)}


def finetune(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.adapt import learn
    from ..adaptation.faces import collect_faces, faces_of
    from ..adaptation.good_faces import Examples, with_real_faces
    from ..adaptation.run import Run
    from ..adaptation.target_stage import check_given, made_targets, match_targets
    from ..diffusion.prior import load_prior

    base = base_restorer(args)
    config = settings(args, base)
    run = Run(args.run)
    prior = load_prior(config.prior) if config.finetune.perceptual else None
    with run.locked():
        if args.photos:
            found = collect_faces(args.photos, run, base.size, config.faces, bars, base.device)
        else:
            found = faces_of(run)
        if args.targets:
            files, made_from = check_given(run, found, match_targets(found, args.targets), config.gate, bars)
        else:
            files, made_from = made_targets(run, found)
        good = with_real_faces(run, Examples(), base.size, config, bars)
        result = learn(run, found, files, made_from, base, config.finetune, prior, bars, good=good)
    return _tuned(result, args.export_pth)


def adapt(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.adapt import adapt as run_adaptation
    from ..adaptation.forecast import tell_before

    base = base_restorer(args)
    config = settings(args, base)
    if args.first_look:
        return _first_look(args, config, base, bars)
    if args.mixed:
        return _adapt_mixed(args, config, base, bars)
    before = tell_before(bars)
    result = run_adaptation(args.photos, args.run, config, bars, str(base.device), base, before=before)
    return _tuned(result, args.export_pth)


def _first_look(args: argparse.Namespace, config: Any, base: Any, bars: Bars) -> dict[str, Any]:
    from ..adaptation.first_look import first_look
    from ..adaptation.run import Run

    look = first_look(args.photos, Run(args.run), config, bars, str(base.device), base)
    print(f"look at it: {look.run.report}\n{look.said}", file=sys.stderr)
    print("\n".join(look.forecast.lines()), file=sys.stderr)
    return {"report": str(look.run.report), "steps": look.steps, "forecast": look.forecast.as_record()}


def _adapt_mixed(args: argparse.Namespace, config: Any, base: Any, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import faces_of
    from ..adaptation.forecast import tell_before
    from ..adaptation.per_damage import adapt_mixed
    from ..restorers import export_pth, load_restorer

    result = adapt_mixed(args.photos, args.run, config, bars, str(base.device), base, tell_before(bars))
    if result.whole:
        return _tuned(result.whole, args.export_pth)
    for group in result.groups if args.export_pth else ():
        own = load_restorer(group.run.restorer)
        export_pth(group.run.exported(own.architecture), own)
    print(f"restorer: {result.run.groups}\nreport:   {result.run.report}", file=sys.stderr)
    print("\n".join(result.lines()), file=sys.stderr)
    return {
        "restorer": str(result.run.groups),
        "report": str(result.run.report),
        "verdict": result.verdict,
        "groups": [{"faces": len(g.names), "verdict": g.judgement.verdict} for g in result.groups],
        "left_to_base": len(result.left),
        "files": faces_said(faces_of(result.run)),
    }


def _tuned(result: Any, pth: bool) -> dict[str, Any]:
    from ..reports.html import VERDICTS
    from ..restorers import export_pth, load_restorer

    run, progress = result.run, result.progress
    if pth:
        export_pth(run.exported(result.restorer.architecture), load_restorer(run.restorer))
    print(f"restorer: {run.restorer}\nreport:   {run.report}", file=sys.stderr)
    print(f"{VERDICTS[result.judgement.verdict].lower()}: {result.judgement.sentence}", file=sys.stderr)
    return {
        "restorer": str(run.restorer),
        "report": str(run.report),
        "steps": progress.step,
        "best_step": progress.best_step,
        "notes": progress.notes,
        "verdict": result.judgement.verdict,
        "verdict_sentence": result.judgement.sentence,
        "files": faces_said(result.faces),
    }


def faces_said(faces: Any) -> list[dict[str, str]]:
    """The account of the photos that a `FaceSet` comes from; said, too."""
    files = faces.account()
    account(files, FACES, f"{len(faces)} faces in {printable(faces.folder)}")
    return files


def restore(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..restoration.restore import RestoreConfig, restore_folder
    from ..restorers import load_restorer
    from ..restorers.codeformer import with_fidelity

    config = RestoreConfig(**{name: getattr(args, name) for name in RESTORE_TEXT})
    restorer = load_restorer(args.restorer).to(choose_device(args.device))
    if args.fidelity is not None:
        restorer = with_fidelity(restorer, args.fidelity)
        if getattr(restorer, "fidelity_weight", None) is None:
            log.warning("--fidelity %s: %s has none, and is used as it is", args.fidelity, printable(restorer.name))
    result = restore_folder(
        args.photos,
        args.out,
        restorer,
        config,
        aligned=args.aligned,
        skip_existing=args.skip_existing,
        again=args.again,
        strip_gps=args.strip_gps,
        callback=bars.named("restore"),
    )
    counts = {status: result.count(status) for status in RESTORED}
    files = [
        {"photo": f.path.as_posix(), "status": f.status, "reason": "; ".join(filter(None, (f.reason, *f.notes)))}
        for f in result.files
    ]
    account(files, RESTORED, f"results in {printable(args.out)}")
    problems = [{"photo": f["photo"], "reason": f["reason"]} for f in files if f["reason"]]
    served = {f.path.as_posix(): list(f.served) for f in result.files if f.served}
    if served:
        faces = Counter(by for of_photo in served.values() for by in of_photo)
        print("; ".join(f"{by}: {count} faces" for by, count in sorted(faces.items())), file=sys.stderr)
    times = {"seconds": round(result.seconds, 2), "network_seconds": round(result.network_seconds, 2)}
    return counts | times | {"files": files, "problems": problems} | ({"served_by": served} if served else {})


def export(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..restorers import export_pth, load_restorer, save_restorer

    restorer = load_restorer(args.file)
    if args.out.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--out {printable(args.out)}: must end in .pth or .safetensors")
    place = free_place(args.out)
    if place.suffix == ".pth":
        export_pth(place, restorer)
    else:
        save_restorer(place, restorer, restorer.metadata)
    print(f"restorer: {printable(place)}, licence: {printable(restorer.licence)}", file=sys.stderr)
    return {"restorer": str(place), "licence": restorer.licence}


def demo(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.demo import demo as run_demo
    from ..studies.demo import read_table

    page = run_demo(args.run, bars)
    print(read_table(args.run), file=sys.stderr)
    print(f"\nLook at it: {page}", file=sys.stderr)
    return {"report": str(page)}


def degrade(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..damage.synthetic import degrade as damage
    from ..files.photos import read_image, write_image
    from ..files.records import write_json
    from ..randomness import keyed_generator

    def one(file: Path, relative: Path) -> dict[str, Any]:
        key = keyed_generator(args.seed, args.kind, relative.as_posix())
        result = damage(read_image(file)[None], args.kind, key, args.strength)
        place = free_place(args.out / relative.parent / f"{relative.name}.png")
        write_image(place, result.lq[0])
        if not alone:
            note_result(place)
        return result.parameters[0]

    alone = prepare_results(args.photos, args.out)
    drawn, files = each_photo(args.photos, one, bars.named("degrade"))
    if drawn:
        made = {"kind": args.kind, "seed": args.seed, "strength": args.strength, "images": drawn}
        write_json(free_place(args.out / "degrade.json"), made)
    account(files, DONE, f"results in {printable(args.out)}")
    return {"images": len(drawn), "files": files, "problems": problems_of(files)}


def evaluate(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.evaluate import as_dict, format_table, write_csv, write_plot
    from ..studies.evaluate import evaluate as compare

    result = compare(
        args.restored,
        args.clean,
        args.lq,
        factor=args.factor,
        callback=bars.named("evaluate"),
        reference=args.reference_set,
    )
    if args.csv:
        write_csv(free_place(args.csv), result)
    if args.plot:
        place = free_place(args.plot)
        write_plot(place, result)
        note_result(place)
    print(format_table(result), file=sys.stderr if args.json else sys.stdout)
    return as_dict(result)


def ablate(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..diffusion.prior import load_prior
    from ..studies.ablation import Grid, ablate, as_table

    restorer = base_restorer(args)
    config = settings(args, restorer)
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
    config = settings(args, restorer)
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
    return as_dict(table)


def weights(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..files.weights import ALSO, TABLE, fetch, find_entry, locate, search_folders, verify

    if args.action in ("get", "convert") and not args.name:
        raise ValueError(f"weights {args.action}: give a NAME; 'bfr weights list' shows them")
    if args.action == "convert":
        from ..diffusion.prior import convert_prior

        if not args.out:
            raise ValueError("weights convert: say with --out which folder the prior goes to")
        print(f"prior: {convert_prior(args.name, args.out)}", file=sys.stderr)
        return {"prior": str(args.out)}
    entry = find_entry(args.name) if args.name else None
    if args.name and entry is None:
        raise ValueError(f"weights {args.name}: not in the table; 'bfr weights list' shows it")
    if args.action == "get" and entry:
        print(f"{entry.name}: {entry.what}\nlicence: {entry.licence}\nfrom {entry.url}", file=sys.stderr)
        there = locate(entry.name)
        if there and verify(entry, there) == "ok":
            print(f"checked, and used where it lies: {printable(there)}", file=sys.stderr)
            return {"path": str(there)}
        fetched = fetch(entry, callback=lambda have, total: bars("fetch", have, total or have + 1, None))
        print(f"checked: {fetched}", file=sys.stderr)
        return {"path": str(fetched)}
    rows = []
    for one in (entry,) if entry else TABLE:
        path = locate(one.name)
        state = "not here" if path is None else verify(one, path) if args.action == "verify" else "here"
        rows.append({"name": one.name, "state": state, "path": str(path or ""), "licence": one.licence})
        print(f"{one.name:<32} {state:<10} {one.what}; {one.licence}{f'; {path}' if path else ''}", file=sys.stderr)
    if args.action == "list":
        print(f"looked for in: {', '.join(printable(folder) for folder in search_folders())}", file=sys.stderr)
        print(f"other folders, of ComfyUI or WebUI for instance, may be named in {ALSO}, as in PATH", file=sys.stderr)
    return {"weights": rows}


def verify_real(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.verification import verify_real as check

    page, findings = check(args.out, str(choose_device(args.device)), bars.named("verify"))
    failed = [f.name for f in findings if f.failed]
    print(f"{len(findings)} checks, {len(failed)} failed; attach to an issue: {page}", file=sys.stderr)
    return {"report": str(page), "failed": failed}


def ui(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..web.gradio_page import serve

    page, server, address = serve(args.runs, args.allow, args.port, args.listen, args.auth)
    try:
        print(f"the page is at {address} (Ctrl-C ends it; runs go on from there next time)", file=sys.stderr)
        while True:
            time.sleep(0.2)
            bars.cancel.check()
    finally:
        page.jobs.stop_all()
        server.close()


def inspect(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import asdict

    from .inspection import inspect as look
    from .inspection import inspect_picture, is_picture

    found = inspect_picture(args.file) if is_picture(args.file) else look(args.file)
    print("\n".join(map(printable, found.lines())), file=sys.stderr if args.json else sys.stdout)
    return asdict(found)


def tone(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import replace as with_changes

    from ..damage.tone import read_tone, with_tone
    from ..files.photos import read_photo, write_photo
    from ..files.records import write_json

    def one(file: Path, relative: Path) -> dict[str, Any]:
        photo = read_photo(file)
        found = read_tone(photo.pixels, args.strength)
        place = free_place(args.out / relative)
        write_photo(place, with_changes(photo, pixels=with_tone(photo.pixels, found)))
        if not alone:
            note_result(place)
        return found._asdict()

    alone = prepare_results(args.photos, args.out)
    lines, files = each_photo(args.photos, one, bars.named("tone"))
    if lines:
        write_json(free_place(args.out / "tone.json"), {"strength": args.strength, "photos": lines})
    account(files, DONE, f"results in {printable(args.out)}")
    return {"photos": len(lines), "files": files, "problems": problems_of(files)}


def vote(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..studies.vote import make_ballot

    page = make_ballot(args.photos, args.a, args.b, args.out, args.seed or 0, args.most)
    key = page.with_name(page.stem.replace("vote", "key") + ".json")
    print(f"pass round: {page}\nkeep:       {key} (which side is A; count with 'bfr tally')", file=sys.stderr)
    return {"page": str(page), "key": str(key)}


def tally(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import asdict

    from ..studies.vote import tally as count

    result = count(args.key, args.votes)
    print(result.sentence(), file=sys.stderr if args.json else sys.stdout)
    return asdict(result)


def prepare_results(photos: Path, out: Path) -> bool:
    """Make `out` for what is made of `photos`; as `claim_results`. Raises ValueError if it is their own folder."""
    if photos.resolve() == out.resolve():
        raise ValueError(f"--out {printable(out)}: is the folder of the photos; choose another folder for the results")
    return not photos.is_dir() or claim_results(out)


def each_photo(
    folder: Path, work: Callable[[Path, Path], dict[str, Any]], callback: Callable[[int, int, Any], None]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """What work(file, relative path) returns for every photo below `folder`, by relative path; and an account.

    The account has photo, status ("done", "failed" or "left_out") and reason of every file below the folder. A photo
    that cannot be read or written is logged and the others are done.
    """
    from ..files.photos import look_through

    photos, left_out = look_through(folder)
    done: dict[str, dict[str, Any]] = {}
    files = [{"photo": path.as_posix(), "status": "left_out", "reason": reason} for path, reason in left_out.items()]
    for step, file in enumerate(photos):
        relative = file.relative_to(folder)
        name, reason, status = relative.as_posix(), "", "done"
        try:
            done[name] = work(file, relative)
        except (ValueError, OSError) as error:
            reason = without_name(without_name(str(error), printable(relative)), printable(file.name))
            status = "left_out" if isinstance(error, LeftOutError) else "failed"
            if status == "failed":
                log.warning("%s: %s", printable(name), reason)
        files.append({"photo": name, "status": status, "reason": reason})
        callback(step + 1, len(photos), None)
    return done, sorted(files, key=lambda line: Path(line["photo"]).parts)


DONE = {"done": "done", "failed": "failed", "left_out": "left out"}
RESTORED = {
    "restored": "restored",
    "kept": "kept, made before in the same way",
    "no_face": "copied as they are",
    "failed": "failed",
    "skipped": "there already",
    "left_out": "left out",
}
FACES = {"used": "photos give faces", "no_face": "without a face", "failed": "failed", "left_out": "left out"}


def account(files: Sequence[dict[str, str]], words: dict[str, str], end: str) -> None:
    """Say how many of the files ended how, and name those that were left out."""
    counts = Counter(file["status"] for file in files)
    left_out = {printable(f["photo"]): printable(f["reason"]) for f in files if f["status"] == "left_out"}
    for line in left_out_lines(left_out):
        print(line, file=sys.stderr)
    said = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
    print(f"{said}; {end}", file=sys.stderr)


def problems_of(files: Sequence[dict[str, str]]) -> list[str]:
    """The files with a reason, a line each."""
    return [f"{printable(file['photo'])}: {file['reason']}" for file in files if file["reason"]]


# ---------------------------------------------------------------- settings and flags


def base_restorer(args: argparse.Namespace) -> Any:
    """The restorer that --restorer names, on --device."""
    from ..restorers import load_restorer

    return load_restorer(args.restorer or "embedded").to(choose_device(getattr(args, "device", "cpu")))


def settings(args: argparse.Namespace, restorer: Any) -> Any:
    """The recipe that --recipe names for `restorer`, changed by the flags that were given."""
    from ..adaptation.config import LOW_MEMORY
    from ..adaptation.published import RECOMMENDED, settings_of

    given = {path: getattr(args, _dest(flag), None) for flag, (path, _) in OPTIONS.items()}
    if getattr(args, "low_memory", False):
        given |= {path: value for path, value in LOW_MEMORY.items() if given.get(path) is None}
    given |= dict.fromkeys(("targets.seed", "finetune.seed"), getattr(args, "seed", None))
    given["targets.precision"] = given["finetune.precision"]
    left = [path for path in SEARCHED if given.get(path) == "auto"]
    given |= dict.fromkeys(left)
    if left:
        given["targets.search"] = tuple(path.rsplit(".", 1)[1] for path in left)
    values = {path: value for path, value in given.items() if value is not None}
    return settings_of(restorer, getattr(args, "recipe", RECOMMENDED), values)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bfr", description="Tune a face restorer to your own damaged photos.")
    from ..adaptation.published import RECIPES, RECOMMENDED
    from ..damage.camera import READINGS, published_kind
    from ..damage.synthetic import DAMAGES
    from ..restoration.restore import RestoreConfig
    from ..studies.paper_table import SETS, SPLITS

    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[..., dict[str, Any]], text: str, *flags: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__.replace("_", "-"), help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print a summary for programs, last")
        for flag in flags:
            _add(sub, flag)
        return sub

    def on_device(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        text = "auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps, ..."
        sub.add_argument("--device", default="auto", help=text)
        return sub

    def tunes(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        text = "tune low-rank changes, one face a pass, without the adversarial term, computing inner values again"
        sub.add_argument("--low-memory", action="store_true", help=text)
        text = "also write restorer.pth, for programs that read only .pth (ReActor, facerestore_cf)"
        sub.add_argument("--export-pth", action="store_true", help=text)
        return on_device(sub)

    def by_recipe(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        text = "settings to start from: what suits the restorer, or arXiv:2410.04618 to the letter; flags change them"
        sub.add_argument("--recipe", choices=RECIPES, default=RECOMMENDED, help=f"{text} ({RECOMMENDED})")
        return sub

    def with_run(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder that holds the adaptation")
        sub.add_argument("--seed", type=int, metavar="N", help="of every random draw (0)")
        return sub

    every = (*FACE_FLAGS, *SOURCES, *TARGET_FLAGS, *GATE_FLAGS, *ALBUM_FLAGS, *TUNE_FLAGS)
    sub = command(adapt, "Photos in, adapted restorer out; run again, it goes on where it was.", *every)
    sub = tunes(with_run(by_recipe(sub)))
    sub.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of damaged photos")
    text = "find groups of faces that share a damage, and adapt to each by itself; writes groups.safetensors"
    sub.add_argument("--mixed", action="store_true", help=text)
    text = "adapt to three faces for about two minutes, show them before and after, say how long it all will take, stop"
    sub.add_argument("--first-look", action="store_true", help=text)
    sub = with_run(command(faces, "Find and align the faces of a folder.", *FACE_FLAGS, "--restorer"))
    sub.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos")
    sub.add_argument("--size", type=int, help="side of the crops (the restorer's)")
    text = "Draw pseudo targets for the faces of a run, and refuse those that are not fit."
    on_device(with_run(by_recipe(command(targets, text, *SOURCES, *TARGET_FLAGS, *GATE_FLAGS, "--precision"))))
    flags = (*FACE_FLAGS, *SOURCES, *GATE_FLAGS, "--real", *TUNE_FLAGS)
    sub = tunes(with_run(by_recipe(command(finetune, "Tune the restorer on a run's faces.", *flags))))
    sub.add_argument(
        "photos", type=Path, nargs="?", metavar="PHOTOS", help="folder of photos, if the run has no faces yet"
    )
    sub.add_argument("--targets", type=Path, metavar="DIR", help="targets made by anything else, named like the faces")
    sub = on_device(command(restore, "Restore the faces of a folder of photos."))
    sub.add_argument("photos", type=Path, metavar="PHOTOS")
    sub.add_argument("--restorer", default="embedded", metavar="FILE", help="an adapted restorer, or any other")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="results, under the photos' own names")
    sub.add_argument("--aligned", action="store_true", help="the photos are aligned square faces already")
    text = "leave results alone that are there already, whatever they were made with"
    sub.add_argument("--skip-existing", action="store_true", help=text)
    text = "make all results anew; otherwise those made before from the same photo in the same way are kept"
    sub.add_argument("--again", action="store_true", help=text)
    text = "CodeFormer's fidelity_weight: 0 cleaner, 1 closer to the photo (0.5); other restorers have none"
    sub.add_argument("--fidelity", type=float, metavar="FLOAT", help=text)
    text = "leave out where the photos were taken; those without faces are then written anew, not copied"
    sub.add_argument("--strip-gps", action="store_true", help=text)
    for name, text in RESTORE_TEXT.items():
        default = RestoreConfig.__dataclass_fields__[name].default
        sub.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} ({default})")
    sub = command(export, "Write a restorer whole, under its base's own names, for other programs.")
    sub.add_argument("file", metavar="FILE", help="a restorer, or a file of low-rank changes whose base is here")
    text = "NAME.pth for ReActor and facerestore_cf, which read only that, or NAME.safetensors"
    sub.add_argument("--out", type=Path, required=True, metavar="NAME", help=text)
    sub = command(demo, "See it work on embedded models: faces that were drawn, and two real photographs.")
    sub.add_argument("--run", type=Path, default=Path("demo_run"), metavar="DIR", help="where it works (demo_run)")
    sub = command(degrade, "Damage clean photos, for trials.")
    sub.add_argument("photos", type=Path, metavar="PHOTOS")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR")
    sub.add_argument("--kind", required=True, help=f"one of {', '.join(DAMAGES)}")
    sub.add_argument("--strength", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    text = "Every combination of low-pass factor, start and constraint end, measured against clean copies."
    sub = on_device(command(ablate, text, *SOURCES, *(f for f in TARGET_FLAGS + TUNE_FLAGS if f not in GRID_FLAGS)))
    sub.add_argument("lq", type=Path, metavar="LQ", help="folder of aligned damaged faces")
    sub.add_argument("--clean", type=Path, required=True, metavar="DIR", help="the same faces, clean")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="ablation.json, which it goes on from")
    for flag, text in GRID_TEXT.items():
        kind = or_auto(int) if flag == "--clean-levels" else int
        sub.add_argument(flag, type=kind, nargs="+", required=flag != "--clean-levels", default=[0], help=text)
    sub.add_argument("--limit", type=int, default=64, help="faces used at most (64)")
    sub.add_argument("--tune", action="store_true", help="also tune on half of the faces, measure on the other half")
    sub.add_argument("--seed", type=int, metavar="N", help="of every random draw (0)")
    text = "Make the paper's synthetic sets from clean faces, run base, controls, adapted and oracle, print its table."
    sub = on_device(command(bench, text, *FACE_FLAGS, *SOURCES, *TARGET_FLAGS, *TUNE_FLAGS))
    sub.add_argument("table", choices=("paper",), help="arXiv:2410.04618")
    sub.add_argument("--hq", type=Path, required=True, metavar="DIR", help="clean photos; with --aligned, faces")
    sub.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="tables, pictures, and what it goes on from"
    )
    kinds = [published_kind(*of, "ratio") for of in SETS.values()]
    text = f"some of {', '.join(kinds)} (all)"
    sub.add_argument("--sets", nargs="+", choices=kinds, default=kinds, metavar="SET", help=text)
    text = (
        "how faces that are not 512 pixels wide are shrunk: ratio, by as much as the published ones; pixels, to as many"
    )
    sub.add_argument("--reading", choices=tuple(READINGS), default="ratio", help=f"{text} pixels of the face (ratio)")
    sub.add_argument("--faces", type=int, default=200, metavar="N", help="faces used at most, drawn by lot (200)")
    text = "also tune by the published recipe: as many steps as ours, without LPIPS where its file is not here"
    sub.add_argument("--published", action="store_true", help=text)
    text = "halves of the faces, or published: 2,500 to adapt to and 500 to measure on, always the same (halves)"
    sub.add_argument("--split", choices=SPLITS, default="halves", help=text)
    sub.add_argument("--reference-set", type=Path, metavar="FILE", help=REFERENCE_TEXT)
    text = "CSV file with the columns name (of a photo or face) and group, for gains by group of people"
    sub.add_argument("--groups", type=Path, metavar="FILE", help=text)
    sub.add_argument("--seed", type=int, metavar="N", help="of every random draw (0)")
    sub = command(weights, "Published weights: what there is, what is here; fetched only with 'get'.")
    sub.add_argument("action", choices=("list", "get", "verify", "convert"))
    sub.add_argument("name", nargs="?", metavar="NAME", help="one of the list; for convert also a file")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="of convert: where the prior goes")
    sub = on_device(command(verify_real, "Check the published weights that are here, and write a report to share."))
    sub.add_argument("--out", type=Path, default=Path("verify_real"), metavar="DIR", help="where the report goes")
    sub = command(ui, "The web page, for this machine only unless told otherwise.")
    sub.add_argument(
        "--runs", type=Path, default=Path("bfr_runs"), metavar="DIR", help="where runs are kept (bfr_runs)"
    )
    text = "folder that may be named on the page, with all below it; may be given several times"
    sub.add_argument("--allow", type=Path, action="append", default=[], metavar="DIR", help=text)
    sub.add_argument("--port", type=int, default=7860, help="(7860)")
    sub.add_argument("--listen", action="store_true", help="answer other machines, too")
    text = "file with lines user:password who may use it; or set BFR_UI_AUTH to one such line"
    sub.add_argument("--auth", type=Path, metavar="FILE", help=text)
    sub = command(
        inspect, "What a restored picture, or a restorer, says of itself; may the restorer be used commercially?"
    )
    sub.add_argument("file", metavar="FILE")
    sub = command(tone, "Undo fading and yellowing, before faces are restored; nothing else is changed.")
    sub.add_argument("photos", type=Path, metavar="PHOTOS")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="results, and tone.json: what was done")
    sub.add_argument("--strength", type=float, default=1.0, help="0 nothing to 1 all of it (1)")
    sub = command(vote, "Make a page on which people choose blindly between two sets of restored photos.")
    sub.add_argument("photos", type=Path, metavar="PHOTOS", help="the damaged photos")
    sub.add_argument("--a", type=Path, required=True, metavar="DIR", help="one set of results, named like the photos")
    sub.add_argument("--b", type=Path, required=True, metavar="DIR", help="the other set")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="vote.html and key.json")
    sub.add_argument("--most", type=int, default=100, metavar="N", help="photos at most, drawn by lot (100)")
    sub.add_argument("--seed", type=int, metavar="N", help="of order and sides (0)")
    sub = command(tally, "Count the votes that people sent back.")
    sub.add_argument("key", type=Path, metavar="KEY", help="the vote's key.json")
    sub.add_argument("votes", type=Path, nargs="+", metavar="VOTES", help="files that voters saved")
    sub = command(evaluate, "Measure restored faces: against clean ones of the same names, or without such.")
    sub.add_argument("restored", type=Path, metavar="RESTORED")
    text = "clean faces of the same names; without them, what needs no truth is measured"
    sub.add_argument("--clean", type=Path, metavar="DIR", help=text)
    text = (
        "for FID: statistics of a reference set (.npz with mu and sigma, .pth with mean and cov), or a folder of faces"
    )
    sub.add_argument("--reference-set", type=Path, metavar="FILE", help=text)
    sub.add_argument("--lq", type=Path, metavar="DIR", help="the damaged faces, for a row of their own")
    sub.add_argument("--factor", type=int, default=8, help="of the low band that is compared with the damaged faces")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="write one line per face")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="draw means and intervals, as PNG")
    return parser


def _add(parser: argparse.ArgumentParser, flag: str) -> None:
    """A flag for a setting, with the type of the setting; left out means the recipe's value."""
    path, text = OPTIONS[flag]
    kind = PARSED.get(path, type(_default(path)))
    if kind is bool:
        parser.add_argument(flag, dest=_dest(flag), action="store_true", default=None, help=text)
    else:
        parser.add_argument(flag, dest=_dest(flag), type=kind, metavar=kind.__name__.upper(), help=text)


def or_auto(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of `kind` that also knows the word "auto"."""

    def read(text: str) -> Any:
        return text if text == "auto" else kind(text)

    read.__name__ = f"{kind.__name__} or auto"
    return read


SEARCHED = ("targets.sampler.t_start", "targets.sampler.factor")  # may be left to the faces
PARSED = {"targets.t_clean": or_auto(int), "targets.detail": or_auto(float)} | dict.fromkeys(SEARCHED, or_auto(int))


def _default(path: str) -> Any:
    from ..adaptation.config import AdaptConfig

    value: Any = AdaptConfig()
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _dest(flag: str) -> str:
    return flag.strip("-").replace("-", "_")
