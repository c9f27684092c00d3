"""The faces of a training step, and those that are held out."""

from dataclasses import replace

import pytest
import torch

from bfr_core.damage.transplant import transplanted
from bfr_core.training.batches import micro_batches, split
from bfr_core.training.config import FinetuneConfig

CONFIG = FinetuneConfig(batch_size=4, micro_batch=2)


@pytest.fixture(scope="module")
def pairs():
    clean = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(0.5 * x, x) for x in clean]  # the damage: half the light


def test_some_faces_get_the_damage_of_another(pairs):
    train = list(range(0, 12, 2))
    config = replace(CONFIG, batch_size=12, micro_batch=12, transplant=0.5)
    (mixed,) = micro_batches(pairs, train, 0, config)
    (plain,) = micro_batches(pairs, train, 0, replace(config, transplant=0))
    assert torch.equal(mixed.target, plain.target) and mixed.keys == plain.keys
    changed = []
    for lq, own, (face, mirrored) in zip(mixed.lq, plain.lq, mixed.keys, strict=True):
        if not torch.allclose(lq, own, atol=1e-5):
            others = [donor for donor in train if donor != face]  # nor any held out
            donors = [transplanted(pairs[face][1], *pairs[donor]) for donor in others]
            changed.append(any(torch.equal(lq, d.flip(-1) if mirrored else d) for d in donors))
    assert 2 <= len(changed) <= 10 and all(changed)


def test_held_out_faces_are_never_trained_on():
    train, held = split(30, CONFIG)
    assert len(held) == 6 and not set(train) & set(held) and sorted(train + held) == list(range(30))


def test_few_faces_are_all_trained_on():
    assert split(5, CONFIG) == ([0, 1, 2, 3, 4], [])
    tenth = replace(CONFIG, held_out=0.1)
    assert [len(split(count, tenth)[1]) for count in (7, 8, 12, 25, 75)] == [0, 2, 3, 6, 8]


def test_every_epoch_uses_each_face_once():
    pairs = [(torch.full((1, 1, 1), float(i)),) * 2 for i in range(8)]
    seen = [float(x) for step in range(2) for b in micro_batches(pairs, list(range(8)), step, CONFIG) for x in b.lq]
    assert sorted(seen) == list(range(8))
