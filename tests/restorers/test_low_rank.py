"""Low-rank changes: they start as nothing, move nothing else, and a file of them rebuilds the tuned network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bfr_core.restorers import load_restorer
from bfr_core.restorers.low_rank import LowRank, add_low_rank, apply_change, factor_change, merge_low_rank
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import finetune, prepare

CONFIG = FinetuneConfig(
    iterations=6, batch_size=2, micro_batch=2, lr=1e-2, lr_end=1e-2, perceptual=0, adversarial=0, held_out=0,
    ema=0.0, trainable="lora", rank=2, precision="float32",
)  # fmt: skip


@pytest.fixture
def pairs():
    clean = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(0.5 * x, x) for x in clean]


def test_nothing_changes_at_first(tiny_restorer):
    restorer = load_restorer(tiny_restorer)
    net, tuned = prepare(restorer, CONFIG)
    lq = torch.rand(1, 3, 32, 32)
    assert torch.equal(net(lq), restorer.module(lq))
    assert tuned and all(p.requires_grad for p in tuned)
    assert sum(p.requires_grad for p in net.parameters()) == len(tuned)


def test_only_low_rank_changes_are_made(tiny_restorer, pairs):
    restorer = load_restorer(tiny_restorer)
    result, _ = finetune(restorer, pairs, CONFIG)
    base, tuned = restorer.module.state_dict(), result.module.state_dict()
    assert base.keys() == tuned.keys(), "merged into plain weights"
    changed = {k for k in base if not torch.equal(base[k], tuned[k])}
    assert changed and all(base[k].ndim >= 2 for k in changed)
    for key in changed:
        values = torch.linalg.svdvals((tuned[key] - base[key]).flatten(1).double())
        assert (values[2:] < 1e-4 * values[0]).all()


def test_factors_rebuild_the_tuned_network(tiny_restorer, pairs):
    restorer = load_restorer(tiny_restorer)
    result, _ = finetune(restorer, pairs, CONFIG)
    base, tuned = restorer.module.state_dict(), result.module.state_dict()
    rebuilt = apply_change(base, factor_change(base, tuned, 2))
    assert all(torch.allclose(rebuilt[k], tuned[k], atol=1e-5) for k in tuned)


def test_a_full_tuning_keeps_its_short_tensors_whole(tiny_restorer, pairs):
    restorer = load_restorer(tiny_restorer)
    result, _ = finetune(restorer, pairs, replace(CONFIG, trainable="full"))
    base, tuned = restorer.module.state_dict(), result.module.state_dict()
    factors = factor_change(base, tuned, 1)
    rebuilt = apply_change(base, factors)
    for key in tuned:
        if f"{key}.change" in factors:
            assert torch.allclose(rebuilt[key], tuned[key], atol=1e-6)
    assert any(key.endswith("bias.change") for key in factors)


def test_convolutions_linear_layers_and_attention_can_change():
    net = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3), "linear": nn.Linear(5, 7), "attn": nn.MultiheadAttention(8, 2)})
    names = ["conv.weight", "conv.bias", "linear.weight", "attn.in_proj_weight"]
    tuned = add_low_rank(net, names, 3, seed=0)
    assert len(tuned) == 6, "biases stay"
    x = torch.rand(2, 1, 8)
    before = net["attn"](x, x, x)[0]
    with torch.no_grad():
        for change in (m for m in net.modules() if isinstance(m, LowRank)):
            change.up.fill_(0.1)
    after = net["attn"](x, x, x)[0]
    assert not torch.allclose(before, after)
    merge_low_rank(net)
    assert torch.allclose(net["attn"](x, x, x)[0], after, atol=1e-6)
    assert {k for k, _ in net.named_parameters()} >= set(names)


def test_a_change_for_another_network_is_refused():
    with pytest.raises(ValueError, match="which its base does not have"):
        apply_change({"a": torch.zeros(3)}, {"b.change": torch.zeros(3)})
    with pytest.raises(ValueError, match="another size"):
        apply_change({"a": torch.zeros(3)}, {"a.change": torch.zeros(4)})


def test_the_factors_are_the_nearest_and_move_no_random_numbers():
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(6, 20, generator=generator)}
    change = torch.randn(6, 2, generator=generator) @ torch.randn(2, 20, generator=generator)
    noise = 1e-3 * torch.randn(6, 20, generator=generator)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    exact = factor_change(base, {"w": base["w"] + change}, rank=2)
    near = factor_change(base, {"w": base["w"] + change + noise}, rank=2)
    assert torch.equal(torch.rand(3), wanted), "the process's random numbers were moved"
    assert torch.allclose(exact["w.up"] @ exact["w.down"], change, atol=1e-4)
    least = torch.linalg.svdvals(change + noise)[2:].square().sum().sqrt()  # Eckart and Young
    assert torch.isclose((near["w.up"] @ near["w.down"] - change - noise).norm(), least, rtol=1e-2)
