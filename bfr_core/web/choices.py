"""What a person chose for a run on the page, and how it is read back from the run's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..adaptation.config import LOW_MEMORY, AdaptConfig
from ..adaptation.published import RECOMMENDED
from ..adaptation.run import Run
from ..diffusion import prior
from ..files.records import read_table
from ..restorers.load import SHIPPED

# Settings behind "Advanced", by dotted path of `AdaptConfig`; label and hint are the setting's, the value the recipe's.
# Three lie in a row: how long is learned and how fast; from what; by which losses; how targets are drawn.
ADVANCED = (
    "finetune.iterations",
    "finetune.lr",
    "finetune.batch_size",
    "finetune.sharp",
    "finetune.transplant",
    "finetune.anchor",
    "finetune.perceptual",
    "finetune.texture",
    "finetune.hatching",
    "targets.sampler.t_start",
    "targets.sampler.factor",
    "gate.limit",
    "finetune.seed",
)


@dataclass(frozen=True)
class Choices:
    """What a person chose for a run. minutes: of tuning at most, 0 = until done. changes: see `ADVANCED`.

    mixed: an adaptation for each group of faces that share a damage, see `adapt_mixed`. recipe: one of `RECIPES`.
    real: a folder of good faces of anybody, which only the discriminator sees; "" for none. prior: a name of
    `runs.priors`.
    """

    restorer: str = "embedded"
    minutes: float = 0.0
    aligned: bool = False
    min_face: int = AdaptConfig().faces.min_face
    low_memory: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    recipe: str = RECOMMENDED
    real: str = ""
    prior: str = "embedded"

    def settings(self) -> dict[str, Any]:
        """Changes to the recipe, by dotted path."""
        lean = dict(LOW_MEMORY) if self.low_memory else {}
        own = {"finetune.minutes": float(self.minutes), "faces.aligned": self.aligned, "faces.min_face": self.min_face}
        real = {"album.real": self.real.strip()} if self.real.strip() else {}
        return lean | own | real | dict(self.changes)


NUMBER = (int, float)
CHOSEN: dict[str, Any] = {  # types of what a request.json may hold of `Choices`
    "restorer": str, "minutes": NUMBER, "aligned": bool, "min_face": int, "low_memory": bool, "changes": dict,
    "mixed": bool, "recipe": str, "real": str, "prior": str,
}  # fmt: skip


def chosen_for(run: Run) -> dict[str, Any]:
    """What was chosen for the run last, as `RunFolders.remember` keeps it."""
    return read_table(run.folder / "request.json") or _chosen_elsewhere(run)


def _chosen_elsewhere(run: Run) -> dict[str, Any]:
    """What `RunFolders.remember` would have kept of a run of the command line, from the settings of its stages."""
    config = run.config()
    faces, tuning = config.get("faces", {}), config.get("finetune", {})
    used = config.get("targets", {}).get("restorer", "embedded")
    taught = config.get("targets", {}).get("prior")
    given = {
        "restorer": next((name for name, file in SHIPPED.items() if file.name == used), used),
        "prior": "embedded" if taught == prior.EMBEDDED.name else taught,
        "minutes": tuning.get("minutes"),
        "aligned": faces.get("aligned"),
        "min_face": faces.get("min_face"),
        "mixed": "groups" in tuning,
        "recipe": config.get("recipe", {}).get("name"),
        "real": config.get("recipe", {}).get("real"),
        "changes": {path: value for path in ADVANCED if (value := _at(config, path)) is not None},
    }
    return {name: value for name, value in given.items() if value is not None}


def _at(config: Any, path: str) -> Any:
    """The value at a dotted path of a read config.json; None if it is not there."""
    for part in path.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def value_at(config: Any, path: str) -> Any:
    """The setting at a dotted path."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def changes_of(values: Sequence[Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What was changed among the `ADVANCED` settings, in the settings' own types; an empty field is the default."""
    given = dict(zip(ADVANCED, values, strict=True))
    typed = {path: type(defaults[path])(value) for path, value in given.items() if value is not None}
    return {path: value for path, value in typed.items() if value != defaults[path]}
