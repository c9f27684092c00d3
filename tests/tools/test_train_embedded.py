"""What may not go wrong in training the embedded models: the held-out portraits, and resuming."""

import argparse
import json
from pathlib import Path

import pytest
import torch
import train_embedded
from safetensors.torch import save_file
from torch import nn

from bfr_core.files.photos import write_image

ROOT = Path(__file__).resolve().parents[2]
FACE = [[40.0, 50.0], [80.0, 50.0], [60.0, 72.0], [45.0, 95.0], [75.0, 95.0]]


def test_the_list_of_held_out_portraits_is_the_rule():
    names = sorted(json.loads((ROOT / "tools" / "faces_landmarks.json").read_text()))
    listed = (ROOT / "bfr_core" / "embedded" / "held_out.txt").read_text().split()
    assert listed == names[::5] and len(listed) == 150


@pytest.fixture
def folders(tmp_path):
    """Ten portraits, each of one brightness, and two other faces."""
    for folder, count in (("portraits", 10), ("faces", 2)):
        marks = {}
        for i in range(count):
            write_image(tmp_path / folder / f"{i}.png", torch.full((3, 140, 120), (i + 1) / 20))
            marks[f"{i}.png"] = {"landmarks": FACE}
        (tmp_path / folder / "landmarks.json").write_text(json.dumps(marks))
    return argparse.Namespace(portraits=tmp_path / "portraits", faces=tmp_path / "faces", work=tmp_path / "work")


def test_held_out_portraits_are_in_no_training_set(folders):
    faces = train_embedded.training_faces(folders)
    held = [round(255 * (i + 1) / 20) for i in (0, 5)]
    assert len(faces) == 4 * (8 + 2)
    shades = set(faces[: 4 * 8].flatten(1).float().mean(1).round().int().tolist())
    assert len(shades) == 8 and not shades & set(held)


def test_training_goes_on_where_it_stopped(tmp_path):
    args = argparse.Namespace(work=tmp_path, minutes=0.02, cooldown=False, fresh=True)
    net = nn.Linear(2, 1)
    seen = []

    def loss_of(step):
        seen.append(step)
        return net(torch.ones(4, 2)).square().mean(), []

    train_embedded.train("toy", net, loss_of, args, lr=1e-3, ema_decay=0.9)
    first = len(seen)
    train_embedded.train("toy", net, loss_of, args, lr=1e-3, ema_decay=0.9)
    assert first > 0 and seen == list(range(len(seen))) and len(seen) > first


def test_without_a_checkpoint_it_goes_on_from_the_shipped_weights(tmp_path, monkeypatch):
    shipped = tmp_path / "toy.safetensors"
    weight = torch.tensor([[3.0, 4.0]])
    save_file({"weight": weight, "bias": torch.zeros(1)}, shipped, {"steps": "70", "minutes": "5"})
    monkeypatch.setitem(train_embedded.SHIPPED, "toy", shipped)
    args = argparse.Namespace(work=tmp_path, minutes=0.01, cooldown=False, fresh=False)
    net, seen = nn.Linear(2, 1), []

    def loss_of(step):
        seen.append((step, net.weight.detach().clone()))
        return net(torch.ones(4, 2)).square().mean(), []

    train_embedded.train("toy", net, loss_of, args, lr=1e-3, ema_decay=0.9)
    assert seen[0][0] == 70 and torch.equal(seen[0][1], weight)
    kept = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert kept["step"] == 70 + len(seen) and kept["seconds"] >= 300
