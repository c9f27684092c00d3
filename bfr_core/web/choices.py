"""What a person chose for a run on the page, and how it is read back from the run's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..adaptation.config import LOW_MEMORY, AdaptConfig
from ..adaptation.published import RECOMMENDED
from ..adaptation.run import Run
from ..diffusion import prior
from ..files.names import typed_path
from ..files.records import read_table
from ..restorers.load import SHIPPED
from ..settings import settings_of

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
    `runs.priors`. others: settings of a run of the command line for which the page has no field, by dotted path.
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
    others: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Changes to the recipe, by dotted path."""
        lean = dict(LOW_MEMORY) if self.low_memory else {}
        own = {"finetune.minutes": float(self.minutes), "faces.aligned": self.aligned, "faces.min_face": self.min_face}
        real = {"album.real": typed_folder(self.real)} if self.real.strip() else {}
        return dict(self.others) | lean | own | real | dict(self.changes)


def typed_folder(text: str) -> str:
    """The path of a folder that was typed, see `typed_path`; "~" is the home of whoever runs the server."""
    return os.path.expanduser(typed_path(text))


GOOD = "album.good"  # a folder of good photos of the run's people, which only the command line takes
NUMBER = (int, float)
CHOSEN: dict[str, Any] = {  # types of what a request.json may hold of `Choices`
    "restorer": str, "minutes": NUMBER, "aligned": bool, "min_face": int, "low_memory": bool, "changes": dict,
    "mixed": bool, "recipe": str, "real": str, "prior": str, "others": dict,
}  # fmt: skip


def chosen_for(run: Run) -> dict[str, Any]:
    """What was chosen for the run last, as `RunFolders.remember` keeps it."""
    return read_table(run.folder / "request.json") or _chosen_elsewhere(run)


def _chosen_elsewhere(run: Run) -> dict[str, Any]:
    """What `RunFolders.remember` would have kept of a run of the command line, from the settings of its stages."""
    config = run.config()
    # What was asked for; config["targets"] has what was resolved of it.
    asked = {name: part for name, part in config.pop("asked", {}).items() if isinstance(part, dict)}
    others = without_a_field(partial(_at, {"faces": config.get("faces"), "finetune": config.get("finetune"), **asked}))
    low_memory = all(_at(config, path) == value for path, value in LOW_MEMORY.items())
    config |= asked | {"targets": config.get("targets", {}) | asked.get("targets", {})}
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
        "low_memory": low_memory,
        "others": {path: value for path, value in others.items() if not (low_memory and path in LOW_MEMORY)},
    }
    return {name: value for name, value in given.items() if value is not None}


FIELDS = (*ADVANCED, "finetune.minutes", "faces.aligned", "faces.min_face")  # of the page, among a stage's settings
KEPT_STAGES = ("faces", "targets", "gate", "finetune", "album", "people")  # whose settings config.json has


def without_a_field(value_of: Callable[[str], Any]) -> dict[str, Any]:
    """Those settings of a run's stages, by dotted path, for which the page has no field and `value_of` has a value.

    What a run folder says is not trusted: a value that is not allowed is left out, and so is a text that is no choice,
    but for the folder `GOOD`, of which `RunFolders.checked` asks whether it may be read.
    """
    found: dict[str, Any] = {}
    for known in settings_of(AdaptConfig):
        if known.path.split(".")[0] not in KEPT_STAGES or known.path in FIELDS:
            continue
        value = value_of(known.path)
        value = tuple(value) if isinstance(value, list) else value
        if known.path == GOOD:
            found |= {GOOD: value} if isinstance(value, str) and value.strip() else {}
        elif value is not None and not (isinstance(value, str) and value not in (*known.choices, "auto")):
            with suppress(ValueError, TypeError):
                known.check(value)
                found[known.path] = value
    return found


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
