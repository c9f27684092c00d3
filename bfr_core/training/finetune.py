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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from ..device import autocast, is_out_of_memory, release_memory
from ..files.photos import printable, replace_atomically
from ..files.tensors import reason_of
from ..restorers import Restorer
from ..restorers.low_rank import add_low_rank, merge_low_rank
from .batches import Faces, Pairs, anchor_faces, batch_of, micro_batches, real_faces, split, with_examples
from .checkpoint import Progress, _progress, _settings_of, _weights, checkpoint_for, note_new_interval
from .config import FinetuneConfig
from .discriminator import UNetDiscriminator, discriminator_loss, generator_loss
from .losses import ImageLoss
from .objectives import Objective, objective_of, weighted
from .stochastic_depth import drawing, switch_on

log = logging.getLogger(__name__)


TuneCallback = Callable[[int, int, Progress], None]
Watch = Callable[[Restorer, Progress], None]


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
    callback: TuneCallback | None = None,
    watch: Watch | None = None,
    pause_after: float = 0.0,
) -> tuple[Restorer, Progress]:
    """A copy of `restorer` tuned on `pairs`, and how it went; the weights are the best of the moving average.

    checkpoint: file that training resumes from, if its `fingerprint` (of everything the tuning depends on, see
    `FinetuneConfig.lasting`) is this one. Another's is kept aside, see `aside_of`; where one of this fingerprint was
    kept aside, training goes on from that.
    perceptual: the term weighted by `config.perceptual`, required unless that is 0 or it is tuned by codes.
    examples: (N, 3, S, S) RGB in [0, 1], good faces. The discriminator takes them for real, in place of the pseudo
    targets, and in up to half of the cases they stand for a pseudo target that is to get another's damage or ordinary
    damage, see `transplant` and `anchor`. They must be part of `fingerprint`. real: faces that the discriminator takes
    for real in place of both, and that serve nothing else; part of `fingerprint`, too.
    callback: (step, steps, progress) after every step and between the faces that checkpoints are compared on; what it
    raises ends the tuning, after a checkpoint. watch: (moving average, progress) after every step, for looking only.
    pause_after: minutes after which this session ends with the best so far, to be gone on with; 0 = never.
    Raises ValueError if there are no pairs or the loss becomes NaN.
    """
    if not len(pairs):
        raise ValueError("there are no faces to tune on")
    if config.perceptual and perceptual is None and not restorer.tuned_by_codes:
        raise ValueError("perceptual is above 0 but no network to measure it with was given")
    device = restorer.device
    train, held = split(len(pairs), config)
    net, tuned = prepare(restorer, config)
    ema = copy.deepcopy(net).requires_grad_(False)
    student, average = replace(restorer, module=net), replace(restorer, module=ema)
    if config.recompute:
        recompute(restorer.blocks(net), config.stochastic_depth)
    if config.stochastic_depth:
        switch_on(net)
    objective = objective_of(restorer, config.weights, perceptual)
    optimizer = torch.optim.Adam(tuned, config.lr, betas=config.betas)
    critic: UNetDiscriminator | None = None
    critic_optimizer: torch.optim.Optimizer | None = None
    if config.adversarial and not restorer.tuned_by_codes:
        critic = _seeded(config.seed, partial(UNetDiscriminator, config.discriminator_features)).to(device).eval()
        critic_optimizer = torch.optim.Adam(critic.parameters(), config.lr, betas=config.critic_betas)
    progress = Progress()
    filters: dict[int, Tensor] = {}
    best = _weights(ema)
    modules: dict[str, Any] = {
        "net": net,
        "ema": ema,
        "optimizer": optimizer,
        "critic": critic,
        "critic_optimizer": critic_optimizer,
    }

    if checkpoint:
        state, started_anew = checkpoint_for(checkpoint, fingerprint, config)
        progress.notes += started_anew
        if state:
            try:
                for name, part in modules.items():
                    if part is not None:
                        part.load_state_dict(state[name])
                progress, best = _progress(state["progress"]), dict(state["best"])
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise ValueError(
                    f"{printable(checkpoint)}: does not fit this tuning ({reason_of(error)}); delete it to tune anew"
                ) from None
            log.info("resumed at step %d after %.1f minutes of tuning", progress.step, progress.seconds / 60)
            note_new_interval(progress, _settings_of(state).get("judge_every"), config)

    def save() -> None:
        if checkpoint is None:
            return
        state = {name: part.state_dict() for name, part in modules.items() if part is not None}
        state |= {"fingerprint": fingerprint, "progress": asdict(progress), "best": best, "settings": asdict(config)}
        replace_atomically(checkpoint, lambda part: torch.save(state, part))

    def tell() -> None:
        if callback:
            callback(progress.step, config.iterations, progress)

    def unjudged() -> bool:
        """Whether the weights of this step are to be compared, and were not: at the start, or where it was ended."""
        judged = (progress.held_out[-1][0] if progress.held_out else -1) if held else progress.best_step
        due = progress.step % config.judge_every == 0 or fraction_done(progress, config) >= 1
        return due and judged != progress.step

    def judge() -> None:
        nonlocal best
        if held:
            score = held_out_score(average, objective, pairs, held, config, tell, filters)
            progress.held_out.append((progress.step, score))
        if not held or progress.held_out[-1][1] <= min(value for _, value in progress.held_out):
            best, progress.best_step = _weights(ema), progress.step

    def gradients(size: int) -> dict[str, float]:
        """Gradients of one step, `size` faces a pass; returns the loss terms."""
        sums: dict[str, float] = {}
        optimizer.zero_grad()
        if critic_optimizer:
            critic_optimizer.zero_grad()
        batches = micro_batches(pairs, train, progress.step, replace(config, micro_batch=size), filters, examples)
        first = 0  # of this pass in the step's batch
        for batch in batches:
            batch = batch.placed(student)
            share = len(batch.lq) / config.batch_size
            with autocast(device, config.precision), drawing(config, device, progress.step, first):
                terms, restored = objective.terms(student, batch)
                if critic is not None and restored is not None:
                    critic.requires_grad_(False)
                    terms["adversarial"] = generator_loss(critic(restored).float())
                    critic.requires_grad_(True)
                loss = weighted(terms, config.weights)
            (loss * share).backward()
            if critic is not None and restored is not None:
                with autocast(device, config.precision):
                    key = (config.seed, "real", progress.step)
                    faces = (
                        real_faces(real, len(batch.lq), config.mirror, *key, first=first).to(batch.target)
                        if real is not None
                        else with_examples(batch.target, examples, 1.0, *key, mirror=config.mirror, first=first)
                    )
                    scores = critic(faces).float(), critic(restored.detach()).float()
                    critic_loss = discriminator_loss(*scores)
                (critic_loss * share).backward()
                terms["discriminator"] = critic_loss
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * share
            first += len(batch.lq)
        if config.anchor:
            faces = anchor_faces(pairs, train, progress.step, config, examples)
            for lq in faces.split(size):
                with autocast(device, config.precision):
                    loss = weighted(objective.anchor(student, student.placed(lq)), config.weights)
                (loss * len(lq) / config.batch_size).backward()
                sums["anchor"] = sums.get("anchor", 0.0) + float(loss.detach()) * len(lq) / len(faces)
        return sums

    if unjudged():
        judge()
    micro_batch = config.micro_batch
    saved = started = time.monotonic()
    earlier = progress.seconds
    between_steps = True
    try:
        while (done := fraction_done(progress, config)) < 1:
            if pause_after and time.monotonic() - started > 60 * pause_after:
                log.info("paused at step %d; started again, the tuning goes on", progress.step)
                break
            try:
                sums = gradients(micro_batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if micro_batch == 1:
                    raise ValueError("too little memory to tune on one face at a time; try --low-memory") from None
                micro_batch //= 2
                log.warning("too little memory; going on with %d faces a pass", micro_batch)
                release_memory()
                continue
            if not all(map(math.isfinite, sums.values())):
                raise ValueError(f"the loss became NaN at step {progress.step}; try a lower lr or precision float32")
            if config.clip:
                nn.utils.clip_grad_norm_(tuned, config.clip)
            between_steps = False  # from here to the end of the step the state is of two steps at once
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, done)
            for group in critic_optimizer.param_groups if critic_optimizer else []:
                group["lr"] = config.critic_lr or learning_rate(config, done)
            optimizer.step()
            if critic is not None and critic_optimizer:
                critic_optimizer.step()
                critic.renew_norms()
            progress.step += 1
            average_into(ema, net, average_decay(config, progress.step))
            for name, total in sums.items():
                progress.losses.setdefault(name, []).append((progress.step, total))
            progress.seconds = earlier + time.monotonic() - started
            between_steps = True
            if unjudged():
                judge()
            tell()
            if watch:
                watch(average, progress)
            if time.monotonic() - saved > config.checkpoint_seconds:
                save()
                saved = time.monotonic()
    finally:
        if between_steps:
            save()
        for part in filter(None, (net, critic)):  # no longer needed, but referring to themselves in circles: recomputed
            part.to("meta")  # blocks and PyTorch's parametrizations would hold their memory until Python's next look
    if fraction_done(progress, config) < 1:  # paused: the checkpoint is of an unbroken tuning, the result may be better
        judge()
    ema.load_state_dict(best)
    merge_low_rank(ema)
    return average, progress


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


def recompute(blocks: list[nn.Module], draws: bool = False) -> None:
    """Keep only the inputs of `blocks` for the backward pass and compute what is inside again. arXiv:1604.06174.

    draws: whether there is chance in the blocks, which must then fall out the same again.
    """
    for block in blocks:
        block.forward = partial(  # type: ignore[method-assign]
            checkpointed, block.forward, use_reentrant=False, preserve_rng_state=draws
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
) -> float:
    """Mean weighted loss on the held-out pairs, lower is better. tell: called between the faces; may raise.

    filters: see `batch_of`.
    """
    scores: list[float] = []
    donors: Sequence[int | None] = [None] * len(held)
    if config.judged_on == "transplanted" and len(held) > 1:
        donors = [*held[1:], held[0]]
    for face, donor in zip(held, donors, strict=True):
        if scores:
            tell()
        batch = batch_of(pairs, [(face, False)], [donor], filters).placed(average)
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


def fraction_done(progress: Progress, config: FinetuneConfig) -> float:
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
    """ema <- decay ema + (1 - decay) net; buffers that are not numbers with a fraction are copied."""
    for kept, new in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _seeded(seed: int, make: Callable[[], UNetDiscriminator]) -> UNetDiscriminator:
    """`make()` with torch's global generator of the CPU seeded for its duration; no other generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()
