"""Tuning the published restorers: at their full shape (slow), and made of the same layers for 64 x 64 faces.

The small ones have the published code and kinds of layers, fewer of them, and no file: they show what does not depend
on size, such as gradients.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from published_shapes import RESTORERS, prior_state, restorer_state, small_network
from safetensors.torch import save_file

from bfr_core.diffusion.prior import load_prior
from bfr_core.restorers import ADAPTERS, Restorer, load_restorer
from bfr_core.restorers.low_rank import apply_change, factor_change, matrix
from bfr_core.training import finetune as finetuning
from bfr_core.training.batches import micro_batches
from bfr_core.training.checkpoint import TuningProgress
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import finetune, prepare, recompute
from bfr_core.training.losses import perceptual_loss
from bfr_core.training.objectives import objective_of, weighted

CONFIG = FinetuneConfig(
    iterations=3, batch_size=2, micro_batch=1, perceptual=0, adversarial=0, texture=0.1, held_out=0, precision="float32"
)


def small(name: str) -> Restorer:
    module = small_network(name).eval().requires_grad_(False)
    return ADAPTERS[name](module=module, architecture=name, size=64, name=name)


def pairs(size: int, count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(count, 3, 16, 16, generator=generator), (size, size))
    return [((0.5 * x + 0.1 * torch.rand(x.shape, generator=generator)).clamp(0, 1), x) for x in clean]


def weights(restorer: Restorer) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in restorer.module.state_dict().items()}


@pytest.fixture
def gradients(monkeypatch):
    """(restorer, config) -> the gradients that the first step of tuning it takes, one flat tensor a parameter."""
    seen: list[list[torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def look(parameters: list[Any], limit: float) -> Any:
        seen.append([p.grad.flatten().clone() for p in parameters])
        return clip(parameters, limit)

    monkeypatch.setattr(finetuning.nn.utils, "clip_grad_norm_", look)

    def run(restorer: Restorer, config: FinetuneConfig, **more: Any) -> list[torch.Tensor]:
        seen.clear()
        finetune(restorer, pairs(restorer.size), replace(config, iterations=1), **more)
        return seen[0]

    return run


def difference(some: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest distance of a parameter's gradients, relative to the largest gradient of all."""
    largest = max(float(g.abs().max()) for g in some)
    return max(float((a - b).abs().max()) for a, b in zip(some, other, strict=True)) / largest


@pytest.mark.parametrize("name", RESTORERS)
def test_recomputing_gives_the_same_gradients(name, gradients):
    kept, again = (gradients(small(name), replace(CONFIG, recompute=r)) for r in (False, True))
    assert difference(kept, again) < 1e-5


@pytest.mark.parametrize("name", RESTORERS)
def test_only_those_tuned_on_pixels_need_a_perceptual_term(name, gradients):
    restorer, config = small(name), replace(CONFIG, perceptual=1.0)
    if restorer.tuned_by_codes:
        assert difference(gradients(restorer, config), gradients(small(name), CONFIG)) == 0
    else:
        with pytest.raises(ValueError, match="perceptual"):
            gradients(restorer, config)


@pytest.mark.parametrize("name", RESTORERS)
def test_recomputing_keeps_less(name):
    """What the network keeps for the backward pass, in bytes."""

    def kept(config: FinetuneConfig) -> int:
        restorer, total = small(name), 0
        net, _ = prepare(restorer, config)
        if config.recompute:
            recompute(restorer.blocks(net))

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes if not isinstance(tensor, torch.nn.Parameter) else 0
            return tensor

        objective = objective_of(restorer, config.weights, None)
        batch = next(iter(micro_batches(pairs(64), [0, 1], 0, config)))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            weighted(objective.terms(replace(restorer, module=net), batch).losses, config.weights)
        return total

    assert kept(replace(CONFIG, recompute=True)) < 0.6 * kept(CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_micro_batches_give_the_gradients_of_the_whole_batch(name, gradients):
    config = replace(CONFIG, batch_size=4)
    whole, *others = (gradients(small(name), replace(config, micro_batch=n)) for n in (4, 3, 1))
    assert all(difference(whole, other) < 1e-4 for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_bfloat16_comes_near_the_gradients_of_float32(name, gradients):
    """Mixed precision: weights and optimizer stay float32, and the gradients point the same way."""
    full, mixed = (gradients(small(name), replace(CONFIG, precision=p)) for p in ("float32", "bfloat16"))
    assert all(g.dtype == torch.float32 for g in mixed)
    a, b = torch.cat(full), torch.cat(mixed)
    assert float(a @ b / (a.norm() * b.norm())) > 0.95 and not torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RESTORERS)
def test_the_result_is_the_moving_average_of_the_steps(name, precision, monkeypatch):
    restorer = small(name)
    nets: list[dict[str, Any]] = []
    step = finetuning.average_into

    def note(ema: Any, net: Any, decay: float) -> None:
        assert decay == min(CONFIG.ema, (2 + len(nets)) / (11 + len(nets)))
        nets.append({k: v.detach().float().clone() for k, v in net.state_dict().items()} | {"decay": decay})
        step(ema, net, decay)

    monkeypatch.setattr(finetuning, "average_into", note)
    tuned, _ = finetune(restorer, pairs(64), replace(CONFIG, precision=precision, lr=1e-3, lr_end=1e-3))
    average, moved = weights(restorer), 0
    for net in nets:
        average = {k: v + (1 - net["decay"]) * (net[k] - v) for k, v in average.items()}
    for key, value in weights(tuned).items():
        assert torch.allclose(value, average[key], atol=1e-6), key
        moved += not torch.equal(value, nets[-1][key])
    assert len(nets) == 3 and moved > 10


@pytest.mark.parametrize("name", RESTORERS)
def test_what_is_tuned_is_what_the_losses_depend_on(name):
    """Every parameter may move; those that get a gradient are those that tuning moves, and no other."""
    restorer = small(name)
    restorer.module.requires_grad_(True)
    batch = next(iter(micro_batches(pairs(64), [0, 1], 0, CONFIG)))
    weighted(objective_of(small(name), CONFIG.weights, None).terms(restorer, batch).losses, CONFIG.weights).backward()
    reached = {key for key, p in restorer.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {key for key, _ in restorer.tuned_parameters(restorer.module)} and len(reached) > 30


@pytest.mark.parametrize("name", RESTORERS)
def test_low_rank_changes_learn_and_are_all_that_a_file_of_them_needs(name, gradients):
    restorer, config = small(name), replace(CONFIG, trainable="lora", rank=2, lr=1e-3, lr_end=1e-3, ema=0.0)
    kept, again = (gradients(small(name), replace(config, recompute=r)) for r in (False, True))
    assert difference(kept, again) < 1e-5 and sum(bool(g.any()) for g in kept) >= len(kept) // 2, "U first, V later"
    tuned, progress = finetune(restorer, pairs(64), replace(config, iterations=3, recompute=True))
    assert progress.step == 3
    before, after = restorer.module.state_dict(), tuned.module.state_dict()
    allowed = {k for k, p in restorer.tuned_parameters(restorer.module) if p.ndim > 1 and min(matrix(p).shape) > 1}
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys() and moved <= allowed and len(moved) > 0.9 * len(allowed)
    rebuilt = apply_change(before, {k: v.half() for k, v in factor_change(before, after, 2).items()})
    for key in moved:
        change = (after[key] - before[key]).abs().max()
        assert (rebuilt[key] - after[key]).abs().max() < 0.02 * change + 1e-6, key


def test_codes_of_a_target_are_found_once(monkeypatch):
    """Each of three faces, as it is and mirrored, though it is seen many times."""
    from bfr_core.restorers.codeformer import CodeFormer

    real, asked = CodeFormer.target_codes, []

    def count(self, hq):
        asked.append(len(hq))
        return real(self, hq)

    monkeypatch.setattr(CodeFormer, "target_codes", count)
    config = replace(CONFIG, iterations=8, anchor=0.5)
    finetune(small("CodeFormer"), pairs(64, 3), config)
    assert sum(asked) <= 6 < config.iterations * config.batch_size


# ---------------------------------------------------------------- at the published shape


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_file(prior_state(), path, {"unet": '{"num_head_channels": 64}'})
    return load_prior(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_stopped_and_gone_on_with_at_full_size_ends_with_the_same_weights(name, prior, tmp_path):
    """Image losses with the prior's features and a discriminator, or code losses; recomputing, in half precision."""
    save_file(restorer_state(name), tmp_path / "base.safetensors")
    restorer = load_restorer(tmp_path / "base.safetensors")
    checkpoint, copy = tmp_path / "last.pt", tmp_path / "copy.pt"
    config = FinetuneConfig(
        iterations=2, batch_size=1, micro_batch=1, recompute=True, discriminator_features=8, held_out=0,
        checkpoint_seconds=0,
    )  # fmt: skip
    faces, perceptual = pairs(512, 2), perceptual_loss(prior.features)

    def pull_the_plug(step: int, steps: int, progress: TuningProgress) -> None:
        if step == 2:  # the file on disk is that of step 1
            shutil.copyfile(checkpoint, copy)

    whole, progress = finetune(
        restorer, faces, config, checkpoint=checkpoint, perceptual=perceptual, callback=pull_the_plug
    )
    expected = {"feature", "code"} if name == "CodeFormer" else {"l1", "perceptual", "adversarial", "discriminator"}
    assert set(progress.losses) == expected and all(len(points) == 2 for points in progress.losses.values())
    wanted = weights(whole)
    base = weights(restorer)
    assert any(not torch.equal(base[k], wanted[k]) for k in wanted)
    del whole
    steps: list[int] = []
    resumed, _ = finetune(
        restorer, faces, config, checkpoint=copy, perceptual=perceptual, callback=lambda step, *_: steps.append(step)
    )
    assert steps == [2], "only the second step was made again"
    assert all(torch.equal(wanted[key], value) for key, value in weights(resumed).items())
