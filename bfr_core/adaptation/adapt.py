"""An adaptation, as the paper tells it: faces, targets, checks, tuning, verdict, report.

Each stage keeps its results in the run folder, can be stopped, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..device import release_memory
from ..diffusion.prior import Prior, load_prior
from ..restorers import Restorer, load_restorer
from ..training.checkpoint import TuningProgress
from ..training.config import FinetuneConfig
from ..training.finetune import Watch
from ..training.team import ALONE, Team
from .config import AdaptConfig
from .faces import FaceSet, StageCallback, collect_faces
from .good_faces import Examples, take_good_faces
from .people import find_people_if_few
from .report import report_adaptation
from .run import Run
from .same_person import FolderLikeness, measure_likeness
from .target_stage import drawn_by, make_targets, record_asked
from .tuning import judge_tuning, learned_from, save_tuned, tune
from .verdict import Judgement

Before = Callable[["Run", "FaceSet", "Restorer", "Prior", "AdaptConfig"], None]  # see `adapt`


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt`. targets: file by face name. prior: None if the targets were made elsewhere.

    faces: those that were adapted to. good: see `take_good_faces`. likeness: whether they are still the people in the
    photos.
    """

    run: Run
    restorer: Restorer
    base: Restorer
    prior: Prior | None
    faces: FaceSet
    targets: dict[str, Path]
    progress: TuningProgress
    judgement: Judgement
    good: Examples = field(default_factory=Examples)
    likeness: FolderLikeness = field(default_factory=FolderLikeness)

    def good_label(self, name: str) -> str:
        """What a good face is called: by `FaceSet.label` if it was found in the folder, else by its own name."""
        return self.faces.label(name) if name in self.good.found else name


def adapt(
    folder: Path,
    run_dir: Path,
    config: AdaptConfig,
    callback: StageCallback | None = None,
    device: str = "cpu",
    restorer: Restorer | None = None,
    prior: Prior | None = None,
    pause_after: float = 0.0,
    before: Before | None = None,
    labels: Mapping[str, str] | None = None,
    good: Examples | None = None,
) -> Adapted:
    """Tune a restorer to the damage of the photos in `folder`; everything is kept in `run_dir`, and resumed from it.

    callback: (stage, step, steps, detail); what it raises ends the adaptation, to be resumed later.
    restorer, prior: config.restorer and config.prior, if they are loaded already. pause_after: see `tune`.
    before: called once the faces are there, unless the tuning is under way already; what it raises ends the adaptation.
    labels: see `learn`. good: the good faces, if they are taken already; by default they are, as config.album says.
    Raises FileNotFoundError or ValueError, in one line, for photos, weights or settings that cannot be used.
    """
    run = Run(run_dir)
    base, prior = restorer or load_restorer(config.restorer), prior or load_prior(config.prior)
    with run.locked(), lent(base, prior, device):
        record_asked(run, config)
        faces = collect_faces(Path(folder), run, base.size, config.faces, callback, base.device)
        if config.people.find:
            find_people_if_few(run, faces, config.people, callback)
        if good is None:
            faces, good = take_good_faces(run, faces, base, prior, config, callback)
        if before and not run.checkpoint.exists():
            before(run, faces, base, prior, config)
        targets, made_from = make_targets(run, faces, base, prior, config, callback)
        prior.to("cpu")  # frees its memory for the tuning
        return learn(
            run, faces, targets, made_from, base, config.finetune, prior, callback,
            pause_after=pause_after, good=good, labels=labels,
        )  # fmt: skip


def learn(
    run: Run,
    faces: FaceSet,
    targets: dict[str, Path],
    made_from: str,
    base: Restorer,
    config: FinetuneConfig,
    prior: Prior | None = None,
    callback: StageCallback | None = None,
    watch: Watch | None = None,
    pause_after: float = 0.0,
    good: Examples | None = None,
    labels: Mapping[str, str] | None = None,
    team: Team = ALONE,
) -> Adapted:
    """Tune on the targets, judge the result, save the restorer in `run`, and write the report.

    Arguments as in `tune`; of a team, the first process calls this, and the others call `tune`. labels: what the report
    calls a photo, by its path below the folder of the photos.
    """
    good = good or Examples()
    tuned, progress = tune(
        run, faces, targets, made_from, base, config, prior, callback, watch, pause_after, good, team
    )
    judgement = judge_tuning(run, base, tuned, faces, targets, config, progress, callback)
    likeness = measure_likeness(faces, base, tuned, callback=callback)  # before anything of an earlier one is replaced
    teacher = drawn_by(run) if any(path.parent == run.targets for path in targets.values()) else {}
    save_tuned(run, base, tuned, prior, config, progress, judgement, len(learned_from(faces, targets)), teacher)
    result = Adapted(run, tuned, base, prior, faces, targets, progress, judgement, good, likeness)
    report_adaptation(replace(result, faces=faces.relabelled(labels or {})), config)
    return result


@contextmanager
def lent(base: Restorer, prior: Prior, device: torch.device | str) -> Iterator[None]:
    """A context in which both networks are on `device`. The prior always returns to its own, the base on an error."""
    places = base.device, prior.device
    base.to(device)
    prior.to(device)
    try:
        yield
    except BaseException:
        base.to(places[0])
        raise
    finally:
        prior.to(places[1])
        release_memory()
