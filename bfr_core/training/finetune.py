"""Stage 2: tune a restorer on (damaged face, pseudo target) pairs. Source: arXiv:2410.04618, section 3.2.

The loop is a straight line and depends on nothing but the pairs, the settings and the step: stopped at any moment and
started again it ends with the same weights.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from ..device import autocast, halving, is_out_of_memory, lay_out
from ..restorers import Restorer
from ..restorers.low_rank import add_low_rank, merge_low_rank
from .batches import Faces, Material, Pairs, SharpFaces, anchor_faces, batch_of, micro_batches, split, taken_for_real
from .checkpoint import Tuning, TuningProgress, load, save, weights_of
from .config import FinetuneConfig
from .discriminator import discriminator_loss, generator_loss, seeded_discriminator
from .losses import ImageLoss
from .objectives import Objective, objective_of, weighted
from .stochastic_depth import drawing, switch_on
from .team import ALONE, Team

NOT_FINITE = "the {} became NaN at step {}; try a lower lr or precision float32"

log = logging.getLogger(__name__)


TuneCallback = Callable[[int, int, TuningProgress], None]
Watch = Callable[[Restorer, TuningProgress], None]


def finetune(
    restorer: Restorer,
    pairs: Pairs,
    config: FinetuneConfig,
    *,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    perceptual: ImageLoss | None = None,
    examples: Tensor | None = None,
    real: Faces | None = None,
    sharp: SharpFaces | None = None,
    callback: TuneCallback | None = None,
    watch: Watch | None = None,
    pause_after: float = 0.0,
    team: Team = ALONE,
) -> tuple[Restorer, TuningProgress]:
    """A copy of `restorer` tuned on `pairs`, and how it went; the weights are the best of the moving average.

    checkpoint: file that training resumes from, if its `fingerprint` (of everything the tuning depends on, see
    `FinetuneConfig.lasting`) is this one. Another's is kept aside, see `aside_of`; where one of this fingerprint was
    kept aside, training goes on from that.
    perceptual: the term weighted by `config.perceptual`, required unless that is 0 or it is tuned by codes.
    examples: (N, 3, S, S) RGB in [0, 1], good faces. The discriminator takes them for real, in place of the pseudo
    targets, and in up to half of the cases they stand for a sharp face or a pseudo target that is to get another's
    damage or ordinary damage, see `sharp`, `transplant` and `anchor`. They must be part of `fingerprint`.
    real: faces that the discriminator takes for real in place of both, and that serve nothing else; part of
    `fingerprint`, too. sharp: sharp faces of other people, which get the damage of the folder in the share of the cases
    that `config.sharp` says; part of it as well.
    callback: (step, steps, progress) after every step and between the faces that checkpoints are compared on; what it
    raises ends the tuning, after a checkpoint. watch: (moving average, progress) after every step, for looking only.
    pause_after: minutes after which this session ends with the best so far, to be continued later; 0 = never.
    team: the processes that tune together, each called with the same arguments; all end with the same weights, those
    of one process but for the order of sums, and only the first one writes the checkpoint.
    Raises ValueError if there are no pairs or the loss becomes NaN.
    """
    if not len(pairs):
        raise ValueError("there are no faces to tune on")
    if config.perceptual and perceptual is None and not restorer.tuned_by_codes:
        raise ValueError("perceptual is above 0 but no network to measure it with was given")
    faces = Material(pairs, *split(len(pairs), config), examples, real, sharp)
    objective = objective_of(restorer, config.weights, perceptual)
    tuning = begin(restorer, config)
    student, average = replace(restorer, module=tuning.net), replace(restorer, module=tuning.ema)
    if checkpoint:
        with team.first_goes_first():
            load(tuning, checkpoint, fingerprint, config)
    progress = tuning.progress

    def tell() -> None:
        if callback:
            callback(progress.step, config.iterations, progress)

    if is_to_be_judged(progress, config, faces):
        judge(tuning, average, objective, faces, config, tell)
    micro_batch = config.micro_batch
    saved = started = time.monotonic()
    earlier = progress.seconds
    between_steps = True
    try:
        while (done := fraction_done(progress, config)) < 1:
            if pause_after and team.as_first(time.monotonic() - started) > 60 * pause_after:
                log.info("paused at step %d; started again, the tuning goes on", progress.step)
                break

            # Forward and backward, one pass after the other; where the memory is too small they get smaller for good.
            passes = partial(gradients, tuning, student, objective, faces, config, team=team)
            try:
                losses, micro_batch = halving(passes, micro_batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ValueError("too little memory to tune on one face at a time; try low_memory") from None
            losses = team.sum_losses(losses)
            team.sum_gradients(tuning.moved)
            if not all(map(math.isfinite, losses.values())):
                raise ValueError(NOT_FINITE.format("loss", progress.step))
            if not all(map(math.isfinite, limited_gradients(tuning, config.clip))):  # else it would be kept in weights
                raise ValueError(NOT_FINITE.format("gradient", progress.step))

            # Step: until it is complete, the state is part of the old step and part of the new one.
            between_steps = False
            take_step(tuning, config, done)
            progress.step += 1
            average_into(tuning.ema, tuning.net, average_decay(config, progress.step))
            for name, value in losses.items():
                progress.losses.setdefault(name, []).append((progress.step, value))
            progress.seconds = earlier + team.as_first(time.monotonic() - started)
            between_steps = True

            # Judge.
            if is_to_be_judged(progress, config, faces):
                judge(tuning, average, objective, faces, config, tell)
            tell()
            if watch:
                watch(average, progress)

            # Save.
            if checkpoint and team.is_first and time.monotonic() - saved > config.checkpoint_seconds:
                save(tuning, checkpoint, fingerprint, config)
                saved = time.monotonic()
    finally:
        if checkpoint and team.is_first and between_steps:
            save(tuning, checkpoint, fingerprint, config)
        # The networks are no longer needed, but they refer to themselves in circles: recomputed blocks and PyTorch's
        # parametrizations would hold their memory until Python next looks for such circles.
        for network in filter(None, (tuning.net, tuning.critic)):
            network.to("meta")
    if fraction_done(progress, config) < 1:  # paused: the checkpoint is of an unbroken tuning, the result may be better
        judge(tuning, average, objective, faces, config, tell)
    tuning.ema.load_state_dict(tuning.best)
    merge_low_rank(tuning.ema)
    return average, progress


def limited_gradients(tuning: Tuning, clip: float) -> list[float]:
    """Norms of the gradients of the restorer, then limited to `clip` unless that is 0, and of the critic, if any."""
    limits = [(tuning.optimizer, clip or math.inf), (tuning.critic_optimizer, math.inf)]
    return [
        float(nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit))
        for optimizer, limit in limits
        if optimizer is not None
    ]


def begin(restorer: Restorer, config: FinetuneConfig) -> Tuning:
    """A tuning of `restorer` before its first step."""
    net, tuned = prepare(restorer, config)
    ema = copy.deepcopy(net).requires_grad_(False)
    if config.recompute:
        recompute(restorer.blocks(net), config.stochastic_depth)
    if config.stochastic_depth:
        switch_on(net)
    tuning = Tuning(net, ema, torch.optim.Adam(tuned, config.lr, betas=config.betas), weights_of(ema))
    if config.adversarial and not restorer.tuned_by_codes:
        critic = seeded_discriminator(config.discriminator_features, config.seed).to(restorer.device)
        tuning.critic = lay_out(critic)
        parameters = tuning.critic.parameters()
        tuning.critic_optimizer = torch.optim.Adam(parameters, config.lr, betas=config.critic_betas)
    return tuning


def gradients(
    tuning: Tuning,
    student: Restorer,
    objective: Objective,
    faces: Material,
    config: FinetuneConfig,
    size: int,
    team: Team = ALONE,
) -> dict[str, float]:
    """The loss terms of this process's part of a step, whose gradients are then in the networks.

    student: the restorer with `tuning.net`. size: of a pass, in faces. Every call starts from zero gradients.
    """
    device, step, critic = student.device, tuning.progress.step, tuning.critic
    losses: dict[str, float] = {}
    for optimizer in filter(None, (tuning.optimizer, tuning.critic_optimizer)):
        optimizer.zero_grad()
    passes = team.passes(config.batch_size, config.micro_batch, size)
    material = (faces.filters, faces.examples, faces.sharp)
    batches = micro_batches(faces.pairs, faces.train, step, config, *material, passes=passes)
    for first, batch in zip((places.start for places in passes), batches, strict=True):
        batch = batch.placed(student)
        share = len(batch.lq) / config.batch_size

        with autocast(device, config.precision), drawing(config, device, step, first):
            terms, restored = objective.terms(student, batch)
            if critic is not None and restored is not None:
                critic.requires_grad_(False)
                terms["adversarial"] = generator_loss(critic(restored).float())
                critic.requires_grad_(True)
            loss = weighted(terms, config.weights)
        (loss * share).backward()

        if critic is not None and restored is not None:
            real = taken_for_real(faces, batch.target, step, config, first)
            with autocast(device, config.precision):
                critic_loss = discriminator_loss(critic(real).float(), critic(restored.detach()).float())
            (critic_loss * share).backward()
            terms["discriminator"] = critic_loss

        for name, value in terms.items():
            losses[name] = losses.get(name, 0.0) + float(value.detach()) * share
    if config.anchor:
        losses["anchor"] = anchor_gradients(student, objective, faces, step, config, size, team)
    return losses


def anchor_gradients(
    student: Restorer,
    objective: Objective,
    faces: Material,
    step: int,
    config: FinetuneConfig,
    size: int,
    team: Team = ALONE,
) -> float:
    """The loss on this process's anchor faces of a step, whose gradients are added to those in the student's network.

    size: of a pass, in faces.
    """
    total = 0.0
    damaged = anchor_faces(faces, step, config)
    own = config.batch_size  # its draws come after those of the step's other faces
    for places in team.passes(len(damaged), config.micro_batch, size):
        lq = damaged[places]
        with autocast(student.device, config.precision), drawing(config, student.device, step, own + places.start):
            loss = weighted(objective.anchor(student, student.placed(lq)), config.weights)
        (loss * config.anchor * len(lq) / len(damaged)).backward()
        total += float(loss.detach()) * len(lq) / len(damaged)
    return total


def take_step(tuning: Tuning, config: FinetuneConfig, done: float) -> None:
    """Move the networks against their gradients. done: 0 to 1, how much of the tuning is over."""
    for group in tuning.optimizer.param_groups:
        group["lr"] = learning_rate(config, done)
    tuning.optimizer.step()
    if tuning.critic is not None and tuning.critic_optimizer is not None:
        for group in tuning.critic_optimizer.param_groups:
            group["lr"] = config.critic_lr or learning_rate(config, done)
        tuning.critic_optimizer.step()
        tuning.critic.renew_norms()


def is_to_be_judged(progress: TuningProgress, config: FinetuneConfig, faces: Material) -> bool:
    """Whether the weights of this step are due for comparison and not yet compared: at intervals and at the end."""
    judged = (progress.held_out[-1][0] if progress.held_out else -1) if faces.held else progress.best_step
    due = progress.step % config.judge_every == 0 or fraction_done(progress, config) >= 1
    return due and judged != progress.step


def judge(
    tuning: Tuning,
    average: Restorer,
    objective: Objective,
    faces: Material,
    config: FinetuneConfig,
    tell: Callable[[], None],
) -> None:
    """Compare the moving average on the held-out faces and keep its weights if they are the best so far.

    average: the restorer with `tuning.ema`. tell: see `held_out_score`. Without held-out faces the last weights count
    as the best.
    """
    progress = tuning.progress
    if faces.held:
        score = held_out_score(average, objective, faces.pairs, faces.held, config, tell, faces.filters, faces.sharp)
        progress.held_out.append((progress.step, score))
    if not faces.held or progress.held_out[-1][1] <= min(value for _, value in progress.held_out):
        tuning.best, progress.best_step = weights_of(tuning.ema), progress.step


def prepare(restorer: Restorer, config: FinetuneConfig) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy of the restorer's network, and those of its parameters that tuning moves.

    The copy stays in eval mode: stochastic depth and dropout would make a resumed tuning differ from an unbroken one.
    """
    net = copy.deepcopy(restorer.module).eval().requires_grad_(False)
    named = list(restorer.tuned_parameters(net))
    if config.trainable == "lora":
        return net, add_low_rank(net, [name for name, _ in named], config.rank, config.seed)
    tuned = [parameter for _, parameter in named]
    for parameter in tuned:
        parameter.requires_grad_(True)
    return net, tuned


def recompute(blocks: list[nn.Module], with_random_numbers: bool = False) -> None:
    """Keep only the inputs of `blocks` for the backward pass and recompute what is inside. Source: arXiv:1604.06174.

    with_random_numbers: whether the blocks draw random numbers, which must be the same when they are recomputed.
    """
    for block in blocks:
        block.forward = partial(  # type: ignore[method-assign]
            checkpointed, block.forward, use_reentrant=False, preserve_rng_state=with_random_numbers
        )


@torch.no_grad()
def held_out_score(
    average: Restorer,
    objective: Objective,
    pairs: Pairs,
    held: list[int],
    config: FinetuneConfig,
    tell: Callable[[], None] = lambda: None,
    filters: dict[int, Tensor] | None = None,
    sharp: SharpFaces | None = None,
) -> float:
    """Mean weighted loss on the held-out pairs, lower is better. tell: called between the faces; may raise.

    filters, sharp: see `batch_of`.
    """
    scores: list[float] = []
    judged = list(held)
    donors: Sequence[int | None] = [None] * len(held)
    if config.judged_on == "sharp" and sharp is not None and sharp.held:
        count = max(len(held), sharp.held)
        judged = [len(pairs) + sharp.trained_on + i % sharp.held for i in range(count)]
        donors = [held[i % len(held)] for i in range(count)]
    elif config.judged_on != "own" and len(held) > 1:
        donors = [*held[1:], held[0]]
    for face, donor in zip(judged, donors, strict=True):
        if scores:
            tell()
        batch = batch_of(pairs, [(face, False)], [donor], filters, sharp=sharp).placed(average)
        with autocast(average.device, config.precision):
            terms = objective.terms(average, batch).losses
        scores.append(float(weighted(terms, config.weights)))
    return sum(scores) / len(scores)


def learning_rate(config: FinetuneConfig, done: float) -> float:
    """The learning rate when `done`, 0 to 1, of the tuning is over."""
    rise = min(1.0, (done + 1 / config.iterations) / config.warmup) if config.warmup else 1.0
    if config.halve_at:
        return rise * config.lr * 0.5 ** sum(done >= share for share in config.halve_at)
    return rise * cosine(config.lr, config.lr_end, done)


def fraction_done(progress: TuningProgress, config: FinetuneConfig) -> float:
    """0 at the start, 1 when the steps or the minutes are used up."""
    by_steps = progress.step / config.iterations
    return max(by_steps, progress.seconds / (60 * config.minutes)) if config.minutes else by_steps


def cosine(start: float, end: float, done: float) -> float:
    """Cosine from `start` at done = 0 to `end` at done = 1. Source: arXiv:1608.03983, eq. 5."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def average_decay(config: FinetuneConfig, step: int) -> float:
    """Decay of the moving average at `step`, counted from 1: less in the first steps if it is to warm up."""
    return min(config.ema, (1 + step) / (10 + step)) if config.ema_warmup else config.ema


@torch.no_grad()
def average_into(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) net; tensors that are not floating point are copied."""
    for kept, new in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
