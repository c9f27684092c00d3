"""The published 512 x 512 restorers, with random weights: their files in exactly their shape, and their own steps.

The steps are those of the published inference scripts, written out here: image / 255, normalized with mean and
deviation 0.5, through the network, clamped to [-1, 1], moved back to [0, 1]. The same layers, fewer and for 64 x 64,
prove them; whole networks take a minute and run with the slow tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from published_shapes import RESTORERS, narrow_codeformer, restorer_state, small_network
from safetensors.torch import load_file, save_file
from torch import Tensor

from bfr_core.restorers import ADAPTERS, Restorer, export_pth, load_restorer, save_restorer
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import finetune, prepare

ONE_STEP = FinetuneConfig(iterations=1, batch_size=1, micro_batch=1, perceptual=0, adversarial=0, precision="float32")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Files of the networks by name, made when first asked for, under the keys that the published files have."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("published") / f"{name}.safetensors"
            save_file(restorer_state(name), made[name])
        return made[name]

    return make


def small(name: str) -> Any:
    """The adapter with a small network, as untyped as spandrel leaves it."""
    module = small_network(name).eval().requires_grad_(False)
    for weight in module.parameters():
        if weight.numel() == 1:  # of the noise that GFPGAN adds; 0 as it begins
            weight.fill_(0.5)
    return ADAPTERS[name](module, name, 64, name)


@dataclass(frozen=True, eq=False)
class Whole:
    """A narrow CodeFormer, whose network takes 512 x 512 only; a face; what each of the two calls made of it."""

    restorer: Any
    lq: Tensor
    restored: Tensor
    out: Tensor
    logits: Tensor


@pytest.fixture(scope="module")
def codeformer():
    module = narrow_codeformer().eval().requires_grad_(False)
    restorer, lq = ADAPTERS["CodeFormer"](module, "CodeFormer", 512, "CodeFormer"), torch.rand(1, 3, 512, 512)
    with torch.no_grad():
        return Whole(restorer, lq, restorer.restore(lq), *restorer.module((lq - 0.5) / 0.5, weight=0.5))


def published_steps(name: str, net: torch.nn.Module, lq: Tensor) -> Tensor:
    if name == "SwinIR":
        return net(lq).clamp(0, 1)
    x = (lq - 0.5) / 0.5
    if name == "GFPGAN":
        return moved_back(net(x, return_rgb=False, randomize_noise=False)[0])
    return moved_back(net(x)[0] if name == "RestoreFormer" else net(x, weight=0.5)[0])


def moved_back(out: Tensor) -> Tensor:
    return (out.clamp(-1, 1) + 1) / 2


def follows_the_steps(name: str, restorer: Restorer) -> None:
    lq = torch.rand(1, 3, restorer.size, restorer.size)
    restored = restorer.restore(lq)
    are_alike(restored, published_steps(name, restorer.module, lq))
    assert torch.equal(restored, restorer.restore(lq)), "a face always gives one result"


def are_alike(restored: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    inside = (restored > 0) & (restored < 1)
    assert inside.float().mean() > 0.2 and restored[inside].std() > 0.01, "not all is clamped, so they could differ"
    assert (restored - expected).abs().max() < limit


@pytest.mark.parametrize("name", [name for name in RESTORERS if name != "CodeFormer"])
@torch.no_grad()
def test_restoring_equals_the_published_steps(name):
    follows_the_steps(name, small(name))


def test_restoring_with_codeformer_equals_the_published_steps(codeformer):
    are_alike(codeformer.restored, moved_back(codeformer.out), 2e-3)  # its normalizations enlarge what is rounded


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
@torch.no_grad()
def test_restoring_with_the_whole_network_equals_the_published_steps(name, files):
    follows_the_steps(name, load_restorer(files(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_a_batch_is_its_faces_one_by_one(name, files):
    restorer, lq = load_restorer(files(name)), torch.rand(3, 3, 512, 512)
    one_by_one = torch.cat([restorer.restore(face[None]) for face in lq])
    assert (restorer.restore(lq) - one_by_one).abs().max() < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_saved_under_the_files_own_keys_and_read_by_spandrel(name, files, tmp_path, monkeypatch):
    import spandrel
    import spandrel_extra_arches

    original = load_file(files(name))
    for init in ("kaiming_uniform_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, init, lambda tensor, *_, **__: tensor)  # what is read from files stands

    registry = spandrel.MAIN_REGISTRY.copy()
    registry.add(*spandrel_extra_arches.EXTRA_REGISTRY, ignore_duplicates=True)
    base = load_restorer(files(name))
    assert (base.architecture, base.size) == (name, 512)
    save_restorer(tmp_path / "saved.safetensors", base, {})
    export_pth(tmp_path / "saved.pth", base)
    assert set(load_file(tmp_path / "saved.safetensors")) == set(original)
    assert set(torch.load(tmp_path / "saved.pth", weights_only=True)["params_ema"]) == set(original)
    for file in ("saved.safetensors", "saved.pth"):
        descriptor = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / file)
        assert descriptor.architecture.id == name
        for key, value in base.module.state_dict().items():
            assert torch.equal(descriptor.model.state_dict()[key], value)


@torch.no_grad()
def test_codeformers_logits_are_those_of_its_full_forward(codeformer):
    assert (codeformer.restorer.codes(codeformer.lq).logits - codeformer.logits).abs().max() < 1e-4


@torch.no_grad()
def test_codeformers_target_codes_are_the_quantizers():
    restorer, hq = small("CodeFormer"), torch.rand(1, 3, 64, 64)
    feature = restorer.module.encoder(hq * 2 - 1)
    _, _, stats = restorer.module.quantize(feature)
    assert torch.equal(restorer.target_codes(hq).flatten(), stats["min_encoding_indices"].flatten())


def test_fidelity_weight_changes_the_result_and_is_checked(codeformer):
    free = replace(codeformer.restorer, fidelity_weight=0.0).restore(codeformer.lq)
    assert not torch.equal(codeformer.restored, free)
    with pytest.raises(ValueError, match=r"fidelity_weight is 1.5"):
        replace(codeformer.restorer, fidelity_weight=1.5)


@pytest.mark.parametrize("name", RESTORERS)
def test_a_file_of_changes_has_a_few_megabytes(name, files):
    _, tuned = prepare(load_restorer(files(name)), replace(ONE_STEP, trainable="lora"))
    assert 1e6 < 2 * sum(p.numel() for p in tuned) < 5e6, "bytes, in half precision"


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTORERS)
def test_every_parameter_that_should_move_moves_and_no_other(name, files):
    restorer = load_restorer(files(name))
    pairs = [(torch.rand(3, 512, 512), torch.rand(3, 512, 512))]
    tuned, progress = finetune(restorer, pairs, replace(ONE_STEP, recompute=True, ema=0.0))
    assert progress.step == 1
    net, _ = prepare(restorer, ONE_STEP)
    wanted = {key for key, _ in restorer.tuned_parameters(net)}
    before, after = restorer.module.state_dict(), tuned.module.state_dict()
    assert {key for key in after if not torch.equal(before[key], after[key])} == wanted
