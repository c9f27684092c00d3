"""The state of a tuning is written and read unchanged; a file that does not fit is refused."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from bfr_core.training.checkpoint import Tuning, load, save, weights_of
from bfr_core.training.config import FinetuneConfig

CONFIG = FinetuneConfig()


def tuning(features: int) -> Tuning:
    net, ema = nn.Linear(2, features), nn.Linear(2, features)
    return Tuning(net, ema, torch.optim.Adam(net.parameters()), weights_of(ema))


def test_a_state_comes_back_as_it_was(tmp_path):
    one, other = tuning(3), tuning(3)
    one.net(torch.ones(1, 2)).sum().backward()
    one.optimizer.step()
    one.progress.step, one.progress.seconds, one.progress.best_step = 7, 1.5, 4
    one.progress.losses, one.progress.held_out = {"l1": [(7, 0.5)]}, [(0, 1.0), (4, 0.25)]
    one.best["weight"] = torch.full((3, 2), 4.0)
    save(one, tmp_path / "last.pt", "a", CONFIG)
    load(other, tmp_path / "last.pt", "a", CONFIG)
    assert asdict(one.progress) == asdict(other.progress)
    assert one.parts.keys() == other.parts.keys() == {"net", "ema", "optimizer"}
    for a, b in ((one.best, other.best), (weights_of(one.net), weights_of(other.net))):
        assert all(torch.equal(a[name], b[name]) for name in a)
    moments = [part.optimizer.state_dict()["state"][0]["exp_avg"] for part in (one, other)]
    assert torch.equal(*moments)


def test_a_state_of_another_network_is_refused_by_name(tmp_path):
    save(tuning(3), tmp_path / "last.pt", "a", CONFIG)
    with pytest.raises(ValueError, match=r"last\.pt: does not fit this tuning .*; delete it to tune anew"):
        load(tuning(4), tmp_path / "last.pt", "a", CONFIG)


def test_a_file_of_something_else_is_refused_by_name(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: not a checkpoint of a tuning; delete it to tune anew"):
        load(tuning(3), tmp_path / "last.pt", "a", CONFIG)
