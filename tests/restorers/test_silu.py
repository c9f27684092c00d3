"""Activations that a network's source spells out are computed by one kernel, in the networks that are loaded only."""

import copy
from types import FunctionType
from typing import Any

import pytest
import torch
from published_shapes import small_network
from safetensors.torch import save_file
from torch.nn import functional as F

from bfr_core.restorers import ADAPTERS, load_restorer
from bfr_core.restorers.silu import with_one_kernel

SPELT_OUT = [name for name, adapter in ADAPTERS.items() if adapter.spelt_out_silu]


def spelling(net, name):
    """For each part of `net` whose forward calls a function of this name, that function."""
    forwards = [forward for part in net.modules() if isinstance(forward := type(part).forward, FunctionType)]
    return [forward.__globals__[name] for forward in forwards if name in forward.__code__.co_names]


@pytest.mark.parametrize("name", SPELT_OUT)
def test_it_computes_the_same_and_leaves_other_networks_alone(name):
    word = ADAPTERS[name].spelt_out_silu
    plain: Any = small_network(name).eval()
    state, lq = list(plain.state_dict()), torch.rand(1, 3, 64, 64) * 2 - 1
    ours: Any = with_one_kernel(copy.deepcopy(plain), word)
    found = spelling(ours, word)
    assert len(found) > 2 and all(function is F.silu for function in found)
    assert not any(function is F.silu for function in spelling(plain, word))
    assert list(ours.state_dict()) == state
    assert all(function is F.silu for function in spelling(copy.deepcopy(ours), word))
    assert [type(part).__name__ for part in ours.modules()] == [type(part).__name__ for part in plain.modules()]
    parts = (plain.encoder, ours.encoder) if name == "CodeFormer" else (plain, ours)  # the whole of it takes 512 pixels
    expected, got = (part(lq) if name == "CodeFormer" else part(lq)[0] for part in parts)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_does_not_spell_it_out_stays_as_it_is():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.SiLU())
    kinds = [type(part) for part in net.modules()]
    assert [type(part) for part in with_one_kernel(net, "swish").modules()] == kinds


def test_a_loaded_restorer_computes_it_so(tmp_path):
    save_file(small_network("RestoreFormer").state_dict(), tmp_path / "small.safetensors", {"size": "64"})
    found = spelling(load_restorer(tmp_path / "small.safetensors").module, "nonlinearity")
    assert len(found) > 2 and all(function is F.silu for function in found)
