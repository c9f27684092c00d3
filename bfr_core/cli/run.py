"""The commands that adapt a restorer, whole or stage by stage, and the list of their settings."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files.kinds import NO_PICTURE
from ..files.photos import printable
from ..settings import Setting, settings_of
from .account import FACES, print_account, print_face_account
from .flags import (
    ALBUM_FLAGS,
    FACE_FLAGS,
    GATE_FLAGS,
    MAIN,
    SOURCES,
    STAGES,
    TARGET_FLAGS,
    TUNE_FLAGS,
    Commands,
    all_settings,
    base_restorer,
    by_recipe,
    dest_of,
    in_shards,
    on_device,
    on_workers,
    path_from,
    pool_of,
    settings_from,
    tunes,
    with_run,
)
from .progress import Bars

GATHER = "once all shards are done, the same command without --shard puts them together"


def adapt(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.adapt import adapt as run_adaptation
    from ..adaptation.forecast import tell_before

    base = base_restorer(args)
    config = settings_from(args, base)
    if args.first_look:
        return _first_look(args, config, base, bars)
    if args.mixed:
        return _adapt_mixed(args, config, base, bars)
    before = tell_before(bars)
    result = run_adaptation(args.photos, args.run, config, bars, str(base.device), base, before=before)
    return _tuned(result, args.export_pth)


def _first_look(args: argparse.Namespace, config: Any, base: Any, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import faces_of
    from ..adaptation.first_look import first_look
    from ..adaptation.run import Run

    run = Run(args.run)
    look = first_look(args.photos, run, config, bars, str(base.device), base)
    print(f"look at it: {look.run.report}\n{look.said}", file=sys.stderr)
    print("\n".join(look.forecast.lines()), file=sys.stderr)
    if look.forecast.guessed:  # the run has no faces yet; beside the copies of photos lies the record of them
        found = faces_of(look.run)
        found = replace(found, problems=[one for one in found.problems if not one["problem"].endswith(NO_PICTURE)])
    else:
        found = faces_of(run)
    return {
        "report": str(look.run.report),
        "steps": look.steps,
        "forecast": look.forecast.as_record(),
        "files": print_face_account(found),
    }


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
    if result.likeness.said:
        print(f"likeness: {result.likeness.said}", file=sys.stderr)
    return {
        "restorer": str(result.run.groups),
        "report": str(result.run.report),
        "verdict": result.verdict,
        "groups": [{"faces": len(g.names), "verdict": g.judgement.verdict} for g in result.groups],
        "left_to_base": len(result.left),
        "likeness": result.likeness.record(),
        "files": print_face_account(faces_of(result.run)),
    }


def _tuned(result: Any, pth: bool) -> dict[str, Any]:
    from ..reports.html import VERDICTS
    from ..restorers import export_pth, load_restorer

    run, progress = result.run, result.progress
    if pth:
        export_pth(run.exported(result.restorer.architecture), load_restorer(run.restorer))
    print(f"restorer: {run.restorer}\nreport:   {run.report}", file=sys.stderr)
    print(f"{VERDICTS[result.judgement.verdict].lower()}: {result.judgement.sentence}", file=sys.stderr)
    if result.likeness.said:
        print(f"likeness: {result.likeness.said}", file=sys.stderr)
    return {
        "restorer": str(run.restorer),
        "report": str(run.report),
        "steps": progress.step,
        "best_step": progress.best_step,
        "notes": progress.notes,
        "verdict": result.judgement.verdict,
        "verdict_sentence": result.judgement.sentence,
        "likeness": result.likeness.record(),
        "files": print_face_account(result.faces),
    }


def faces(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import collect_faces, collect_shard
    from ..adaptation.people import find_people, people_lines
    from ..adaptation.run import Run

    base = base_restorer(args)
    config = settings_from(args, base)
    run = Run(args.run)
    size = args.size or base.size
    if args.workers:
        from ..cluster.stages import collect_on_ray

        collect_on_ray(_order_of(args, config, size), _as_a_worker(args), bars)
    elif not args.shard.is_whole:
        if config.people.find:
            raise ValueError("--people: needs the faces of all shards; give it when all are done, without --shard")
        with run.locked_shard(args.shard):
            count, files = collect_shard(args.photos, run, size, config.faces, args.shard, bars, base.device)
        print_account(files, FACES, f"{count} faces of shard {args.shard} in {printable(run.faces)}")
        print(GATHER, file=sys.stderr)
        return {"faces": count, "files": files, "problems": [f for f in files if f["status"] != "used"]}
    with run.locked():
        found = collect_faces(args.photos, run, size, config.faces, bars, base.device)
        people = find_people(run, found, config.people, bars) if config.people.find else {}
    files = print_face_account(found)
    for line in people_lines(people, found):
        print(printable(line), file=sys.stderr)
    whose = {"people": people} if people else {}
    return {"faces": len(found), "files": files, "problems": found.problems} | whose


def targets(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.faces import faces_of
    from ..adaptation.run import Run
    from ..adaptation.target_stage import draw_shard, make_targets
    from ..diffusion.prior import load_prior

    restorer = base_restorer(args)
    config = settings_from(args, restorer)
    run = Run(args.run)
    if args.workers:
        from ..cluster.stages import draw_on_ray

        pool, prior = _as_a_worker(args), load_prior(config.prior).to(restorer.device)
        draw_on_ray(_order_of(args, config), restorer, prior, pool, bars)
    elif not args.shard.is_whole:
        with run.locked_shard(args.shard):
            prior = load_prior(config.prior).to(restorer.device)
            drawn = draw_shard(run, faces_of(run, restorer.size), restorer, prior, config, args.shard, bars)
        print(f"{drawn} pseudo targets of shard {args.shard} in {run.targets}; {GATHER}", file=sys.stderr)
        return {"targets": drawn}
    with run.locked():
        found = faces_of(run, restorer.size)
        prior = load_prior(config.prior).to(restorer.device)
        files, _ = make_targets(run, found, restorer, prior, config, bars)
    print(f"{len(files)} pseudo targets in {run.targets}, {len(found) - len(files)} refused", file=sys.stderr)
    return {"targets": len(files), "refused": len(found) - len(files)}


def _order_of(args: argparse.Namespace, config: Any, size: int = 0) -> Any:
    """What the workers of a stage are told, a `StageOrder`."""
    from ..cluster.stages import StageOrder

    device = getattr(args, "device", "cpu")
    return StageOrder(args.run, config, config.restorer, device, photos=getattr(args, "photos", Path()), size=size)


def _as_a_worker(args: argparse.Namespace) -> Any:
    """The pool of --workers; from now on this process rounds as its workers do, for it does the last part itself."""
    import torch

    pool = pool_of(args)
    torch.set_num_threads(pool.threads)
    return pool


def finetune(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..adaptation.adapt import learn
    from ..adaptation.good_faces import Examples, with_real_faces
    from ..adaptation.run import Run
    from ..cluster.processes import Launched, team_of_processes
    from ..diffusion.prior import load_prior

    team = team_of_processes(args.device == "cpu")
    if isinstance(team, Launched):
        args.device = str(team.device) if args.device == "auto" else args.device
    base = base_restorer(args)
    config = settings_from(args, base)
    run = Run(args.run)
    prior = load_prior(config.prior) if config.finetune.perceptual else None
    if team.count > 1 and config.album.real:
        raise ValueError("--real: is not for several processes yet; tune in one process, or leave it out")
    if not team.is_first:
        return _help_to_tune(args, run, base, config, prior, team, bars)
    with run.locked(), _cancelled_together(bars):
        with team.first_goes_first():
            found, files, made_from = _material(args, run, base, config, prior, bars)
        good = with_real_faces(run, Examples(), base.size, config, bars)
        told = _of_team(team, bars)
        result = learn(run, found, files, made_from, base, config.finetune, prior, told, good=good, team=team)
    return _tuned(result, args.export_pth)


def _of_team(team: Any, bars: Bars) -> Any:
    """The callback of a tuning in several processes: Ctrl-C in any of them stops all of them after the same step."""

    def told(stage: str, step: int, total: int, detail: Any) -> None:
        if stage == "finetune":
            bars.cancel.asked = team.any(bars.cancel.asked)
        bars(stage, step, total, detail)

    return told


@contextlib.contextmanager
def _cancelled_together(bars: Bars) -> Iterator[None]:
    """Where Ctrl-C was pressed, an error in what the processes do together only says that another one was faster."""
    try:
        yield
    except ValueError:
        bars.cancel.check()
        raise


def _material(
    args: argparse.Namespace, run: Any, base: Any, config: Any, prior: Any, bars: Bars
) -> tuple[Any, Any, str]:
    """The faces of a run, its targets by face name, and their fingerprint; what is missing is made."""
    from ..adaptation.faces import collect_faces, faces_of
    from ..adaptation.target_stage import check_given, drawn_by, made_targets, match_targets

    if args.photos:
        found = collect_faces(args.photos, run, base.size, config.faces, bars, base.device)
    else:
        found = faces_of(run, base.size)
    if args.targets:
        return found, *check_given(run, found, match_targets(found, args.targets), config.gate, bars)
    if given := [flag for flag in GATE_FLAGS if getattr(args, dest_of(flag), None) is not None]:
        raise ValueError(
            f"{given[0]}: is for targets that --targets brings; those of the run are judged by 'bfr targets'"
        )
    taught = drawn_by(run)
    if prior and taught and taught.get("prior_sha256") != prior.sha256:
        raise ValueError(
            f"--prior: {printable(prior.name)} did not draw the targets of this run, {printable(taught['prior'])} did; "
            "give that one, or draw them anew with 'bfr targets'"
        )
    return found, *made_targets(run, found)


def _help_to_tune(
    args: argparse.Namespace, run: Any, base: Any, config: Any, prior: Any, team: Any, bars: Bars
) -> dict[str, Any]:
    """What a process does that is not the first of its team: it tunes with the others, and writes and says nothing.

    Cancelled, it ends with the status of a command that was, and the first process says it.
    """
    from ..adaptation.faces import faces_of
    from ..adaptation.target_checks import accepted_targets
    from ..adaptation.target_stage import made_targets, match_targets, targets_fingerprint
    from ..adaptation.tuning import tune

    logging.getLogger("bfr_core").setLevel(logging.ERROR)
    args.json = False
    told = _of_team(team, Bars(bars.cancel, silent=True))
    try:
        with _cancelled_together(bars):
            with team.first_goes_first():
                found = faces_of(run, base.size)
            if args.targets:
                given = match_targets(found, args.targets)
                made_from = targets_fingerprint(found, given)
                files = accepted_targets(run, given, made_from)
            else:
                files, made_from = made_targets(run, found)
            tune(run, found, files, made_from, base, config.finetune, prior, told, team=team)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    return {}


def settings(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    """Every setting, or those in whose path or meaning the word stands."""
    found = {heading: settings_about(config, args.word) for heading, config in all_settings().items()}
    if not any(found.values()):
        raise ValueError(f"settings {printable(args.word)}: no setting has this word; 'bfr settings' lists them all")
    for heading, known in found.items():
        if known and not args.json:
            print(f"{heading}\n\n" + "\n".join(line for one in known for line in setting_lines(one)))
    listed = [
        {
            "command": heading.split(":")[0],
            "path": one.path,
            "default": one.default,
            "unit": one.unit,
            "allowed": one.range_text,
            "meaning": one.meaning,
        }
        for heading, known in found.items()
        for one in known
    ]
    return {"settings": listed}


def settings_about(config: Any, word: str) -> list[Setting]:
    """The settings of `config` in whose path or meaning `word` stands."""
    word = word.lower()
    return [one for one in settings_of(config) if word in one.path.lower() or word in one.meaning.lower()]


def setting_lines(one: Setting) -> list[str]:
    """A setting for a terminal: path, default and what is allowed on a line, its meaning below."""
    unit = f" {one.unit}" if one.unit else ""
    allowed = f"  [{one.range_text}]" if one.range_text else ""
    return [
        f"{one.path}={one.default_text}{unit}{allowed}",
        *textwrap.wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    "),
    ]


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    from ..adaptation.config import FIRST_LOOK_TEXT, MIXED_TEXT

    every = (*FACE_FLAGS, "--people", *SOURCES, *TARGET_FLAGS, *GATE_FLAGS, *ALBUM_FLAGS, *TUNE_FLAGS)
    text = "Adapt a restorer to a folder of damaged photos; run again, it goes on where it stopped."
    sub = commands.add(adapt, text, *every, group=MAIN, goes_on=True)
    tunes(with_run(by_recipe(sub)))
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="Folder of damaged photos.")
    sub.add_argument("--mixed", action="store_true", help=f"{MIXED_TEXT} This writes groups.safetensors.")
    sub.add_argument("--first-look", action="store_true", help=FIRST_LOOK_TEXT)
    sub = commands.add(
        faces,
        "Find and align the faces of a folder.",
        *FACE_FLAGS,
        "--people",
        "--restorer",
        group=STAGES,
        goes_on=True,
    )
    on_workers(in_shards(with_run(sub)))
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="Folder of photos.")
    sub.add_argument("--size", type=int, help="Side of the crops in pixels (the restorer's).")
    text = "Draw pseudo targets for the faces of a run, and refuse those that are not fit to learn from."
    flags = (*SOURCES, *TARGET_FLAGS, *GATE_FLAGS, "--precision")
    sub = commands.add(targets, text, *flags, group=STAGES, goes_on=True)
    on_workers(in_shards(on_device(with_run(by_recipe(sub)))))
    flags = (*FACE_FLAGS, *SOURCES, *GATE_FLAGS, "--real", *TUNE_FLAGS)
    sub = commands.add(finetune, "Tune the restorer on a run's faces.", *flags, group=STAGES, goes_on=True)
    tunes(with_run(by_recipe(sub)))
    sub.add_argument(
        "photos", type=path_from, nargs="?", metavar="PHOTOS", help="Folder of photos, if the run has no faces yet."
    )
    sub.add_argument(
        "--targets", type=path_from, metavar="DIR", help="Targets made in another way, named like the faces."
    )
    sub = commands.add(settings, "List every setting that --set changes, or those about a word.", group=MAIN)
    sub.add_argument("word", nargs="?", default="", metavar="WORD", help="Part of a setting's path or meaning.")
