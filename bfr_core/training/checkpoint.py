"""The state of a tuning, and the checkpoint file that it resumes from."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.ownership import move, note
from ..files.photos import printable
from ..files.tensors import read_pickle, reason_of, save_pickled
from .config import FinetuneConfig
from .discriminator import UNetDiscriminator

log = logging.getLogger(__name__)


@dataclass
class TuningProgress:
    """What `callback` sees after each step, and what remains of a finished tuning.

    losses: (step, value) per term. held_out: (step, score) of the moving average on the faces kept back, lower is
    better; its first entry is the base restorer's. best_step: the step whose weights are kept. notes: what happened to
    the tuning that its settings do not say, such as a setting changed under way; a line each, for the report.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Tuning:
    """The state of a tuning between two steps: everything that it resumes from.

    net: the network that is tuned. ema: its moving average. critic: the discriminator, where there is an adversarial
    term. best: the weights of `ema` at `progress.best_step`, which become the result.
    """

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    critic: UNetDiscriminator | None = None
    critic_optimizer: torch.optim.Optimizer | None = None
    progress: TuningProgress = field(default_factory=TuningProgress)

    @property
    def moved(self) -> list[nn.Parameter]:
        """The parameters that the optimizers move, always in the same order."""
        optimizers = filter(None, (self.optimizer, self.critic_optimizer))
        return [one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]]

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that have a `state_dict`, by their names in a checkpoint."""
        names = ("net", "ema", "optimizer", "critic", "critic_optimizer")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def save(tuning: Tuning, checkpoint: Path, fingerprint: str, config: FinetuneConfig) -> None:
    """Write the state of `tuning` to `checkpoint`, whole or not at all."""
    state = {name: part.state_dict() for name, part in tuning.parts.items()}
    state |= {"fingerprint": fingerprint, "progress": asdict(tuning.progress), "best": tuning.best}
    state |= {"settings": asdict(config)}
    save_pickled(checkpoint, state)


def load(tuning: Tuning, checkpoint: Path, fingerprint: str, config: FinetuneConfig) -> None:
    """Bring `tuning` to where the checkpoint of this fingerprint left it, if there is one, see `checkpoint_for`.

    Remarks for the report are added to `tuning.progress.notes`. Raises ValueError if the file is not a checkpoint or
    belongs to another network.
    """
    state, started_anew = checkpoint_for(checkpoint, fingerprint, config)
    tuning.progress.notes += started_anew
    if state is None:
        return
    try:
        for name, part in tuning.parts.items():
            part.load_state_dict(state[name])
        tuning.progress, tuning.best = _progress(state["progress"]), dict(state["best"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{printable(checkpoint)}: does not fit this tuning ({reason_of(error)}); delete it to tune anew"
        ) from None
    progress = tuning.progress
    log.info("resumed at step %d after %.1f minutes of tuning", progress.step, progress.seconds / 60)
    note_new_interval(progress, _settings_of(state).get("judge_every"), config)


def checkpoint_for(
    checkpoint: Path, fingerprint: str, config: FinetuneConfig
) -> tuple[dict[str, Any] | None, list[str]]:
    """The state that a tuning of this fingerprint resumes from, now in `checkpoint`, or None; remarks on another's.

    A checkpoint of another fingerprint is moved to where `aside_of` says, and nothing is lost: its tuning goes on from
    there once it is asked for again. Raises ValueError if the file is not a checkpoint.
    """
    state = _read_checkpoint(checkpoint) if checkpoint.exists() else None
    if state and state["fingerprint"] == fingerprint:
        return state, []
    said = []
    if state:
        kept = aside_of(checkpoint, str(state["fingerprint"]))
        note(kept, checkpoint)
        move(checkpoint, kept)
        why, step = changed_since(_settings_of(state), config), _steps_of(state)
        said = [f"{why} changed since the checkpoint of step {step}, which is kept as {printable(kept.name)}"]
    earlier = aside_of(checkpoint, fingerprint)
    if earlier.exists():
        state = _read_checkpoint(earlier)
        if state["fingerprint"] == fingerprint:
            note(checkpoint, earlier)
            move(earlier, checkpoint)
            log.info("%s", "; ".join([*said, f"tuning goes on from {printable(earlier.name)}, which was kept earlier"]))
            return state, []
    if said:
        said = [f"{said[0]}; tuning started anew"]
        log.warning("%s", said[0])
    return None, said


def aside_of(checkpoint: Path, fingerprint: str) -> Path:
    """Where a checkpoint of this fingerprint is kept while `checkpoint` belongs to another: one file a fingerprint."""
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
    return checkpoint.with_name(f"{checkpoint.stem}-{digest}{checkpoint.suffix}")


def changed_since(before: dict[str, Any], config: FinetuneConfig) -> str:
    """Which lasting settings differ from those of a checkpoint, by name; if none does, it was the faces or targets."""
    names = [name for name, value in config.lasting.items() if name in before and before[name] != value]
    return ", ".join(names) or "faces, targets or the base restorer"


def note_new_interval(progress: TuningProgress, before: Any, config: FinetuneConfig) -> None:
    """Note in `progress` that comparisons are made at other steps from here on, if they are."""
    if type(before) is int and before != config.judge_every:
        since = f"judge_every was {before} up to step {progress.step}"
        progress.notes.append(f"{since} and is {config.judge_every} from the next comparison on")
        log.info("%s", progress.notes[-1])


def _settings_of(state: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint names; none in one of an earlier version."""
    settings = state.get("settings")
    return settings if isinstance(settings, dict) else {}


def _steps_of(state: dict[str, Any]) -> int:
    progress = state.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else 0
    return step if type(step) is int else 0


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers of `module`, by name."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _progress(state: dict[str, Any]) -> TuningProgress:
    pairs = {k: [tuple(p) for p in v] for k, v in state["losses"].items()}
    lists = {"losses": pairs, "held_out": [tuple(p) for p in state["held_out"]]}
    return TuningProgress(**{**state, **lists, "notes": [str(note) for note in state.get("notes", [])]})


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state = copy.deepcopy(read_pickle(path))  # a copy in memory, because the file is about to be replaced
    except ValueError as error:
        raise ValueError(f"{printable(path)}: not a readable checkpoint; delete it to tune anew") from error
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise ValueError(f"{printable(path)}: not a checkpoint of a tuning; delete it to tune anew")
    return state
