"""The nodes of the adaptation: make targets, tune the restorer, save it. Each goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..bfr_core.adaptation.adapt import learn
from ..bfr_core.adaptation.config import FIRST_LOOK_TEXT, LOW_MEMORY, LOW_MEMORY_TEXT, MIXED_TEXT, SMALL, AdaptConfig
from ..bfr_core.adaptation.faces import FaceSet
from ..bfr_core.adaptation.first_look import COLUMNS
from ..bfr_core.adaptation.first_look import first_look as look_first
from ..bfr_core.adaptation.forecast import MEASURED_FACES, forecast, measure_search, measure_targets, measure_tuning
from ..bfr_core.adaptation.good_faces import Examples
from ..bfr_core.adaptation.per_damage import ONE_DAMAGE, adapt_groups, rows_of
from ..bfr_core.adaptation.published import PUBLISHED_RECIPE as PUBLISHED
from ..bfr_core.adaptation.published import RECOMMENDED, recipe_with
from ..bfr_core.adaptation.run import Run
from ..bfr_core.adaptation.same_person import NOT_MEASURED
from ..bfr_core.adaptation.target_stage import make_targets
from ..bfr_core.adaptation.targets import TargetConfig
from ..bfr_core.adaptation.tuning import perceptual_term
from ..bfr_core.diffusion.sampler import SamplerConfig
from ..bfr_core.faces.sharp_faces import SIDE
from ..bfr_core.files.names import numbered
from ..bfr_core.files.ownership import begin_list, delete, is_own
from ..bfr_core.files.photos import printable, read_image, to_unit
from ..bfr_core.files.records import fingerprint, read_table
from ..bfr_core.files.tensors import load_tensors
from ..bfr_core.reports.charts import draw_curve
from ..bfr_core.reports.html import VERDICTS
from ..bfr_core.reports.pictures import sheet, side_by_side
from ..bfr_core.restorers import Restorer, export_pth, load_restorer, save_restorer
from ..bfr_core.restorers.load import save_several
from ..bfr_core.restorers.routed import GROUPS, Routed, group_files
from ..bfr_core.settings import changed
from ..bfr_core.training.batches import split
from ..bfr_core.training.checkpoint import TuningProgress
from ..bfr_core.training.config import FinetuneConfig
from ..bfr_core.training.finetune import fraction_done
from ..bfr_core.training.losses import find_vgg
from . import convert, host, paths
from .faces import (
    FACES_LEFT,
    ROWS,
    TARGETS_LEFT,
    Faces,
    Pairs,
    check_size,
    folded,
    lines,
    paired,
    pauses,
    target_check_widgets,
    target_outputs,
    times_paused,
    triplet,
    with_settings,
)
from .watch import Watch

SAMPLER, TARGETS, TUNING = SamplerConfig(), TargetConfig(), FinetuneConfig()
OWN = "as set below"
SAVED = Watch(host.stamp)  # files of restorers
CURVE_PIXELS = 512  # width of a curve as it is drawn, which is enlarged to the width of the faces below it
READ_BY_REACTOR = ("GFPGAN", "CodeFormer")  # kinds of restorers whose .pth files it reads
RECIPES = [RECOMMENDED, PUBLISHED, OWN]
SETTINGS = (
    "recommended takes what suits the restorer's size and kind, whatever is set below; published follows "
    "arXiv:2410.04618 to the letter; as set below takes the values of the advanced widgets below."
)


class MakePseudoTargets(host.Node):
    """Stage 1: a clean version of every face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_MakePseudoTargets",
            "Make Pseudo Targets (BFR)",
            "Turns each damaged face into a clean one that agrees with it, by the diffusion prior. Restorers of "
            "more than 256 pixels learn from these targets; smaller ones learn from sharp faces under the same damage, "
            "and the targets help to judge them. Poor targets are drawn again or refused.",
            [
                host.FacesType.Input("faces", tooltip="The damaged faces."),
                host.RestorerType.Input("restorer", tooltip="The restorer that is to be tuned."),
                host.PriorType.Input("prior", tooltip="The diffusion prior that knows what faces look like."),
                host.seed_widget(),
                *target_check_widgets(),
                io.Combo.Input("settings", options=RECIPES, default=RECOMMENDED, tooltip=SETTINGS),
                host.widget(SAMPLER, "kind", id="sampler", advanced=True),
                host.widget(SAMPLER, "calls", max=100, advanced=True),
                host.widget(SAMPLER, "t_start", id="start", max=SAMPLER.num_steps - 1, advanced=True),
                host.widget(SAMPLER, "t_constrain_end", id="hold_until", max=SAMPLER.num_steps - 1, advanced=True),
                host.widget(SAMPLER, "factor", max=64, advanced=True),
                host.widget(TARGETS, "batch_size", max=64, advanced=True),
                io.Boolean.Input(
                    "first_look", optional=True, default=False,
                    tooltip=f"{FIRST_LOOK_TEXT} No node after this one runs.",
                ),
                host.advanced(
                    io.Boolean.Input(
                        "known_answers", optional=True, default=True,
                        tooltip="Searches for the damage that all faces share, which takes minutes on a CPU, and tries "
                        "on sharp faces with this damage how much noise to take off. If off, that follows from the "
                        "noise alone.",
                    )
                ),
            ],
            target_outputs(),
            ("diffusion restore", "teacher", "training pairs"),
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """A number that changes when targets were changed or deleted since a node left them, in any run."""
        return TARGETS_LEFT.changes()

    @classmethod
    def work(
        cls,
        faces: Faces,
        restorer: host.Managed,
        prior: host.Managed,
        seed: int,
        gate: float,
        settings: str,
        first_look: bool = False,
        known_answers: bool = True,
        **own: Any,
    ) -> io.NodeOutput:
        asked = {"targets.seed": seed} | ({} if settings == PUBLISHED else {"gate.limit": gate})
        config = recipe_with(restorer.network, PUBLISHED if settings == PUBLISHED else RECOMMENDED, asked)
        if settings == OWN:
            sampler = SamplerConfig(
                kind=own["sampler"],
                calls=min(own["calls"], own["start"]),
                t_start=own["start"],
                t_constrain_end=own["hold_until"],
                factor=own["factor"],
            )
            config = changed(config, {"targets.sampler": sampler, "targets.batch_size": own["batch_size"]})
            config = config if known_answers else changed(config, {"finetune.sharp": 0.0})
        run, found = faces.opened()
        check_size(found, restorer)
        if first_look:
            return cls.show_first_look(run, restorer, prior, config)
        otherwise = [] if config.finetune.sharp or settings != OWN else ["by the noise"]
        own_targets = asdict(replace(config.targets, batch_size=TargetConfig().batch_size))  # which changes no target
        made_with = fingerprint(restorer.network.sha256, prior.network.identity, own_targets, *otherwise)
        faces = replace(faces, folder=with_settings(faces, "targets", made_with).folder)
        run, found = faces.opened()
        progress = host.NodeProgress(cls, "making targets ...")
        with run.locked(), host.on_device(restorer, prior, faces=config.targets.batch_size):
            if not any((run.targets / f"{name}.png").exists() for name in found.names):
                lq = found.batch(0, MEASURED_FACES)
                pace = measure_targets(lq, restorer.network, prior.network, config.targets)
                pace = pace.also(measure_search(lq)) if config.finetune.sharp else pace
                host.say(cls, lines(["making targets ...", *forecast(pace, len(found), config).lines()]))
            accepted, made_from = make_targets(
                run, found, restorer.network, prior.network, config, triplets(progress, run, found)
            )
        return paired(cls, run, found, accepted, Pairs(faces, made_from, prior, config), progress)

    @classmethod
    def show_first_look(
        cls, run: Run, restorer: host.Managed, prior: host.Managed, config: AdaptConfig
    ) -> io.NodeOutput:
        """Show three faces before and after a short tuning on the node; its outputs stay empty."""
        base = host.for_training(restorer, config.finetune.micro_batch)
        teacher = host.for_training(prior, config.targets.batch_size)
        progress = host.NodeProgress(cls, "a first look at three faces ...")
        with torch.enable_grad():
            step = group_by_group(progress)
            seen = look_first(None, run, config, step, str(base.device), base, teacher)
        del base, teacher
        host.free()
        then = "Switch first_look off to go on with all faces."
        text = lines([", ".join(COLUMNS), seen.said, *seen.forecast.lines(), then])
        picture = sheet([pictures for _, pictures in seen.rows])[None]
        progress.end(picture)
        return host.output(cls, *(host.nothing() for _ in target_outputs()), text=text, picture=picture)


def triplets(progress: host.NodeProgress, run: Run, faces: FaceSet) -> Callable[[str, int, int, Any], None]:
    """A stage callback that shows the last face done as damaged, restored, target; until then, the sampling."""
    done_last = ""

    def step(stage: str, done: int, total: int, detail: Any) -> None:
        nonlocal done_last
        if stage == "targets" and detail is None:  # a batch is on disk
            done_last = faces.names[max(1, done * len(faces) // total) - 1]

        def picture() -> Tensor | None:
            if done_last:
                return side_by_side(triplet(run, faces, done_last, run.targets / f"{done_last}.png"))
            return to_unit(detail[0]) if isinstance(detail, Tensor) else None

        progress.show(done, total, picture)

    return step


class FinetuneRestorer(host.Node):
    """Stage 2: the restorer learns from the pairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_FinetuneRestorer",
            "Fine-tune Restorer (BFR)",
            "Tunes the restorer to the damage of the faces. Stopped in any way, it goes on when queued again.",
            [
                host.PairsType.Input("pairs", tooltip="Damaged faces and their targets."),
                host.RestorerType.Input("restorer", tooltip="The restorer to tune; it stays as it is."),
                host.PriorType.Input(
                    "prior",
                    optional=True,
                    tooltip="Needed only for targets from images with a perceptual loss, if LPIPS's file is not there.",
                ),
                io.Float.Input(
                    "minutes_this_run", default=0.0, min=0.0, max=10_000.0, step=1.0,
                    tooltip="Pauses after so many minutes, gives the best so far, and goes on when queued again; 0 "
                    "goes on until it is done.",
                ),
                host.seed_widget(),
                io.Boolean.Input(
                    "low_memory", default=False, tooltip=LOW_MEMORY_TEXT,
                ),
                io.Combo.Input("settings", options=RECIPES, default=RECOMMENDED, tooltip=SETTINGS),
                host.widget(TUNING, "iterations", max=1_000_000, advanced=True),
                host.widget(TUNING, "batch_size", max=256, advanced=True),
                host.widget(TUNING, "micro_batch", max=64, advanced=True),
                host.widget(TUNING, "lr", min=1e-7, max=1e-2, step=1e-7, round=1e-8, advanced=True),
                host.widget(TUNING, "perceptual", max=10.0, step=0.05, advanced=True),
                host.widget(TUNING, "adversarial", max=10.0, step=0.05, advanced=True),
                host.widget(TUNING, "anchor", step=0.05, advanced=True),
                host.widget(TUNING, "transplant", step=0.05, advanced=True),
                io.Boolean.Input(
                    "mixed", optional=True, default=False, tooltip=MIXED_TEXT,
                ),
                host.FacesType.Input(
                    "real",
                    optional=True,
                    tooltip="Good faces of anybody, which only the discriminator takes for real; without them it takes "
                    "the targets.",
                ),
                host.widget(SMALL.finetune, "sharp", step=0.05, optional=True, advanced=True),
            ],
            [
                host.RestorerType.Output(display_name="restorer", tooltip="The tuned restorer: the best found so far."),
                io.String.Output(display_name="verdict", tooltip="Whether tuning helped, as far as that was judged."),
                io.Boolean.Output(display_name="finished", tooltip="False after a pause: queue again to go on."),
                io.Image.Output(display_name="curve", tooltip="The loss over the steps."),
                io.Image.Output(
                    display_name="before_after", tooltip="Faces: damaged, base, target (if not mixed), tuned."
                ),
                io.String.Output(display_name="run_folder", tooltip="Folder of report.html and the rest of the run."),
                io.Boolean.Output(
                    display_name="adopt",
                    tooltip="True if the verdict is to adopt the tuned restorer; to branch on, as with a switch.",
                ),
                io.String.Output(
                    display_name="likeness", tooltip="Whether the faces are still the people in the photos, in words."
                ),
                io.Int.Output(
                    display_name="other_people",
                    tooltip="Faces that no longer look like the same person by the tuned restorer; to branch on.",
                ),
            ],
            ("train", "finetune", "adapt"),
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """A text that changes when a tuning has been paused, so that queuing again goes on with it. That of any run,
        because which one this node works in is not known before."""
        return fingerprint(*pauses())

    @classmethod
    def work(
        cls,
        pairs: Pairs,
        restorer: host.Managed,
        minutes_this_run: float,
        seed: int,
        low_memory: bool,
        settings: str,
        mixed: bool = False,
        prior: host.Managed | None = None,
        real: Faces | None = None,
        **own: Any,
    ) -> io.NodeOutput:
        name = PUBLISHED if settings == PUBLISHED else RECOMMENDED
        own = own if settings == OWN else {}
        config = tuning_config(restorer.network, seed, low_memory, own, name, brought=pairs.prior is None)
        if mixed and real:
            raise ValueError("real is for one restorer; disconnect it, or switch mixed off")
        lasting = asdict(replace(config, iterations=1, micro_batch=1, recompute=False))
        tuned_with = fingerprint(restorer.network.sha256, lasting, mixed, real.folder if real else None)
        check_size(pairs.opened()[1], restorer)
        folder = with_settings(pairs.faces, "finetune", tuned_with).folder
        pairs = replace(pairs, faces=replace(pairs.faces, folder=folder))
        if mixed and (output := cls.by_group(pairs, restorer, config, minutes_this_run)):
            return output
        said = [ONE_DAMAGE] if mixed else []
        needs_prior = bool(config.perceptual) and not restorer.network.tuned_by_codes and find_vgg() is None
        teacher = pairs.prior or (prior if needs_prior else None)
        if needs_prior and teacher is None:
            raise ValueError("the perceptual loss needs a prior: connect one, or set perceptual to 0")
        run, faces, targets = pairs.opened()
        base = host.for_training(restorer, config.micro_batch)
        features = teacher and (host.for_training(teacher, 1) if needs_prior else teacher.network)
        progress = host.NodeProgress(cls, "tuning ...")
        preview = TuningPreview(run, faces, targets, base, config, progress)
        with run.locked(), torch.enable_grad():
            if not run.checkpoint.exists():
                perceptual = None if base.tuned_by_codes else perceptual_term(config, features, base.device)
                lq, searched = faces.batch(0, MEASURED_FACES), not config.sharp or run.damage.exists()
                pace = measure_tuning(lq, base, config, perceptual)
                pace = pace if searched else pace.also(measure_search(lq))
                own_settings = replace(AdaptConfig(), finetune=config)
                whole = forecast(pace, len(targets), own_settings, drawn=True, searched=searched)
                host.say(cls, lines(["tuning ...", *whole.lines()]))
            result = learn(
                run, faces, targets, pairs.made_from, base, config, features,
                progress, preview, minutes_this_run, real_faces_in(real),
            )  # fmt: skip
        rows, done = preview.faces(result.restorer, base), result.progress
        del base, result, features, preview
        return cls.outputs(run, load_restorer(run.restorer), {"": done}, config, rows, said, progress)

    @classmethod
    def by_group(
        cls, pairs: Pairs, restorer: host.Managed, config: FinetuneConfig, minutes: float
    ) -> io.NodeOutput | None:
        """The outputs with a tuning for each group of damages; None if only one damage is found."""
        if pairs.prior is None:
            raise ValueError(
                "mixed draws targets for each group itself, but these pairs came from Targets from Images; connect "
                "Make Pseudo Targets, or switch mixed off"
            )
        run, faces, _ = pairs.opened()
        base = host.for_training(restorer, config.micro_batch)
        prior = host.for_training(pairs.prior, pairs.config.targets.batch_size)
        progress = host.NodeProgress(cls, "finding groups of damages, tuning for each ...")
        settings = replace(pairs.config, finetune=config)
        with run.locked(), torch.enable_grad():
            result = adapt_groups(run, faces, settings, base, prior, group_by_group(progress), minutes)
        if result is None:
            return None
        tuned = load_restorer(run.groups)
        shown = [name for g in result.groups for name in g.shown_names[: max(1, ROWS // len(result.groups))]]
        rows = [pictures for _, pictures in rows_of(faces, shown, [base, tuned])]
        states = {f"group {i}: ": group.progress for i, group in enumerate(result.groups, 1)}
        said = result.lines()
        del base, prior, result
        return cls.outputs(run, tuned, states, config, rows, said, progress)

    @classmethod
    def outputs(
        cls,
        run: Run,
        tuned: Restorer,
        states: dict[str, TuningProgress],
        config: FinetuneConfig,
        rows: list[list[Tensor]],
        said: list[str],
        progress: host.NodeProgress,
    ) -> io.NodeOutput:
        """The node's outputs for a tuned run. states: of its tunings, by the prefix of their curves' names."""
        host.free()
        FACES_LEFT.left(run.folder)
        TARGETS_LEFT.left(run.folder)
        report = read_table(run.folder / "report.json")
        verdict = f"{VERDICTS.get(report['verdict'], 'Not judged')}. {report['verdict_sentence']}"
        said = [verdict, *said, *(note for state in states.values() for note in state.notes)]
        finished = all(fraction_done(state, config) >= 1 for state in states.values())
        if not finished:
            with run.locked():
                run.record("pauses", {"times": times_paused(run) + 1})
            steps = sum(state.step for state in states.values())
            said = [f"Paused at step {steps} of {config.iterations * len(states)}; queue again to go on.", *said]
        picture = host.shrunk(folded(rows)[None], host.RESULT_PIXELS)[0]
        width = picture.shape[-1]
        bigger = max(1, width // CURVE_PIXELS)  # so that its words can be read on the node
        drawn = [[enlarged(one, bigger) for one in row] for row in curves(states, width // bigger)]
        picture = sheet([*drawn, [picture]])[None]
        pictures = convert.to_image(sheet(curves(states))), convert.to_image(sheet(rows))
        adopt = report["verdict"] == "adopt"
        progress.end(picture)
        values = ("\n".join(said), finished, *pictures, str(run.folder), adopt, *likeness_of(run))
        return host.output(cls, host.managed(tuned, not finished), *values, text=lines(said), picture=picture)


def likeness_of(run: Run) -> tuple[str, int]:
    """What the run's report, or the reports of its groups, say of likeness; and of how many faces it is lost."""
    said, others = [], 0
    for one in run.by_group() or [run]:
        kept = read_table(one.folder / "report.json").get("measurements", {}).get("likeness")
        if isinstance(kept, dict):
            said.append(str(kept.get("said", "")))
            others += len(kept.get("unlike", ()))
    return "\n".join(filter(None, said)) or NOT_MEASURED, others


def curves(states: dict[str, TuningProgress], width: int = 512) -> list[list[Tensor]]:
    """The loss of each tuning, a row each."""
    return [[loss_curve(state, width, whose)] for whose, state in states.items()]


def enlarged(picture: Tensor, times: int) -> Tensor:
    """(3, H, W) -> (3, times H, times W), each pixel a square."""
    return picture.repeat_interleave(times, -2).repeat_interleave(times, -1)


def loss_curve(state: TuningProgress, width: int = 512, whose: str = "") -> Tensor:
    """The loss: of held-out faces where there are such, else the first term; (3, 256, width)."""
    if len(state.held_out) > 1:
        return draw_curve(state.held_out, f"{whose}loss on faces not trained on", width)
    name, points = next(iter(state.losses.items()), ("loss", []))
    return draw_curve(points, f"{whose}loss: {name}", width)


def group_by_group(progress: host.NodeProgress) -> Callable[[str, int, int, Any], None]:
    """A stage callback that shows, for each group, a target taking shape, then the loss."""
    whose = ""

    def step(stage: str, done: int, total: int, detail: Any) -> None:
        nonlocal whose
        if stage == "group":
            whose = f"group {done} of {total}: "

        def picture() -> Tensor | None:
            if isinstance(detail, TuningProgress):
                return loss_curve(detail, whose=whose)
            return to_unit(detail[0]) if isinstance(detail, Tensor) else None

        progress.show(done, total, picture)

    return step


def tuning_config(
    restorer: Restorer, seed: int, low_memory: bool, own: dict[str, Any], name: str = RECOMMENDED, brought: bool = False
) -> FinetuneConfig:
    """The recipe of this name for `restorer`, changed by the `own` settings, then for a small card if asked.

    brought: see `recipe_with`.

    A restorer larger than the sharp faces that ship would learn their softness: its share of them is the recipe's.
    """
    counted = {setting: value for setting, value in own.items() if setting != "sharp" or restorer.size <= SIDE}
    values = {f"finetune.{setting}": value for setting, value in counted.items()} | {"finetune.seed": seed}
    return recipe_with(restorer, name, values | (LOW_MEMORY if low_memory else {}), brought).finetune


def real_faces_in(real: Faces | None) -> Examples | None:
    """The faces that the discriminator is to take for real, as `tune` wants them."""
    if real is None:
        return None
    _, found = real.opened()
    files = tuple(found.crop(name) for name in found.names)
    return Examples(real=files, real_fingerprint=found.fingerprint)


class TuningPreview:
    """What a node shows of a tuning as it goes: its loss, and some faces before and after."""

    def __init__(
        self,
        run: Run,
        faces: FaceSet,
        targets: dict[str, Path],
        base: Restorer,
        config: FinetuneConfig,
        progress: host.NodeProgress,
    ) -> None:
        names = [name for name in faces.names if name in targets]
        trained, held = split(len(names), config)
        self.shown = [names[i] for i in (held + trained)[:ROWS]]  # those not trained on first
        self.lq = [read_image(faces.folder / f"{name}.png") for name in self.shown]
        self.target = [read_image(targets[name]) for name in self.shown]
        self.before = base.restore_without_colour(self.lq[0][None])[0]
        self.progress, self.config = progress, config

    def __call__(self, average: Restorer, state: TuningProgress) -> None:
        """Shows the first face and the loss; called after every step."""

        def picture() -> Tensor:
            after = average.restore_without_colour(self.lq[0][None])[0]
            row = side_by_side([self.lq[0], self.before, self.target[0], after])
            return sheet([[row], [loss_curve(state)]])

        self.progress.show(state.step, self.config.iterations, picture)

    def faces(self, tuned: Restorer, base: Restorer) -> list[list[Tensor]]:
        """Rows of damaged, base, target, tuned; (3, S, S) each."""
        rows = []
        for lq, target in zip(self.lq, self.target, strict=True):
            before, after = (restorer.restore_without_colour(lq[None])[0] for restorer in (base, tuned))
            rows.append([lq, before, target, after])
        return rows


class SaveRestorer(host.Node):
    """Write a restorer where ComfyUI looks for restorers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_SaveRestorer",
            "Save Restorer (BFR)",
            f"Writes the restorer into models/{host.RESTORERS}, for Load Restorer and for other programs. One whose "
            "tuning is paused is saved when that is finished.",
            [
                host.RestorerType.Input("restorer", tooltip="The restorer to save."),
                io.String.Input(
                    "name",
                    default="my_restorer",
                    tooltip="Name of the file, without suffix; a taken name gets a number.",
                ),
                host.advanced(
                    io.Boolean.Input(
                        "half",
                        default=False,
                        tooltip="Saves in half precision: the file is half as large, nearly as good.",
                    )
                ),
                host.advanced(
                    io.Boolean.Input(
                        "also_pth",
                        default=False,
                        tooltip="Write a .pth, too, for packs that read only that. ReActor reads those of GFPGAN and "
                        "CodeFormer only; that of a CodeFormer is called NAME_codeformer.pth, by which it is known.",
                    )
                ),
                io.Boolean.Input(
                    "only_adopted",
                    optional=True,
                    default=False,
                    tooltip="Refuses a restorer whose verdict is keep the base or cannot tell. If off, it is saved "
                    "with a warning.",
                ),
            ],
            [
                io.String.Output(
                    display_name="path",
                    tooltip="The file that was written; where none was, the nodes after it do not run.",
                )
            ],
            ("export", "checkpoint"),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """See `host.judged`."""
        return host.judged(file_named, name)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """A number that changes when a file that was saved is gone, or is another one now."""
        return SAVED.changes()

    @classmethod
    def work(
        cls, restorer: host.Managed, name: str, half: bool, also_pth: bool, only_adopted: bool = False
    ) -> io.NodeOutput:
        network, root = restorer.network, host.save_folder()
        wanted = file_named(name)
        if restorer.paused:
            return cls.not_saved("the tuning is paused; the restorer is saved when it is finished")
        if only_adopted and network.caution:
            return cls.not_saved(f"only_adopted is on. {network.caution}")
        begin_list(wanted.parent)
        with_pth = also_pth and not isinstance(network, Routed)
        path = free_name(wanted, network, with_pth)
        pth = pth_beside(path, network)
        if isinstance(network, Routed):
            save_several(path, network, half)
        else:
            save_restorer(path, network, {k: v for k, v in network.metadata.items() if k != "licence"}, half)
        made = [path, pth] if with_pth else [path]
        if with_pth:
            export_pth(pth, network)
        if before := saved_before(wanted, made, network):  # the same graph was run again
            for place in (*made, path.with_suffix(".groups")):
                delete(place)
            path = before
        SAVED.left(path, *([pth_beside(path, network)] if with_pth else []))
        saved = f"saved: {printable(path.relative_to(root).as_posix())} in {printable(root)}"
        said = [saved, *([network.caution] if network.caution else [])]
        if also_pth and not with_pth:
            said.append("also_pth: no .pth is written, which holds one restorer, and this is one for each group")
        elif with_pth and network.architecture not in READ_BY_REACTOR:
            said.append(f"ReActor reads .pth files of {' and '.join(READ_BY_REACTOR)} only, and not this one")
        return host.output(cls, str(path), text=lines(said))

    @classmethod
    def not_saved(cls, why: str) -> io.NodeOutput:
        """The node's outputs where nothing is written."""
        return host.output(cls, host.nothing(), text=f"not saved: {why}")


def file_named(name: str) -> Path:
    """The file that is to be written under this name. Raises ValueError for one that leads elsewhere or is empty."""
    if not name.strip("./ "):
        raise ValueError("name is empty; give the file a name")
    return paths.inside(host.save_folder(), f"{name.removesuffix('.safetensors')}.safetensors")


def pth_beside(path: Path, network: Restorer) -> Path:
    """The .pth that goes with the file `path`; other programs know a CodeFormer by its file's name."""
    named = network.architecture != "CodeFormer" or "codeformer" in path.stem.lower()
    return path.with_suffix(".pth") if named else path.with_name(f"{path.stem}_codeformer.pth")


def saved_before(wanted: Path, made: list[Path], network: Restorer) -> Path | None:
    """`wanted`, or the first number of it, under which the same was saved as in the files `made`; None if nowhere."""
    for number in count(1):
        place = numbered(wanted, number)
        if place == made[0]:
            return None
        before = [place, pth_beside(place, network)][: len(made)]
        if all(is_own(old) and same_content(old, new) for old, new in zip(before, made, strict=True)):
            return place
    raise AssertionError("there is always a number")


def same_content(path: Path, other: Path) -> bool:
    """Whether two files of tensors hold the same tensors and the same metadata, and of groups, the same restorers."""
    (tensors, said), (others, said_too) = load_tensors(path), load_tensors(other)
    same = tensors.keys() == others.keys() and without_place(said) == without_place(said_too)
    if not same or not all(torch.equal(tensor, others[name]) for name, tensor in tensors.items()):
        return False
    try:
        return said.get("kind") != GROUPS or all(map(is_own, group_files(path)))
    except (ValueError, FileNotFoundError):  # a restorer that it names was taken away, or is another one now
        return False


def without_place(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata of a file, in which a file of groups names its restorers without the folder that they are in."""
    if metadata.get("kind") != GROUPS:
        return dict(metadata)
    members = json.loads(metadata["members"])
    return metadata | {"members": [one and [PurePosixPath(one["file"]).name, one["sha256"]] for one in members]}


def free_name(path: Path, network: Restorer, with_pth: bool) -> Path:
    """`path` with the first number under which there is nothing yet, nor a folder of groups, nor a .pth if one is
    wanted."""
    for number in count(1):
        place = numbered(path, number)
        taken = [place, place.with_suffix(".groups"), *([pth_beside(place, network)] if with_pth else [])]
        if not any(map(os.path.lexists, taken)):
            return place
    raise AssertionError("there is always a number")
