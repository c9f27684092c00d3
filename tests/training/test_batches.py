"""The faces of a training step, and those that are held out."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from bfr_core.damage.estimate import KnownDamage
from bfr_core.damage.family import Photographed
from bfr_core.damage.grey import greyed, is_nearly_grey
from bfr_core.damage.spectra import ring_middles
from bfr_core.damage.transplant import transplanted
from bfr_core.training.batches import Material, SharpFaces, anchor_faces, micro_batches, split, taken_for_real
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
    train, held = split(120, CONFIG)
    assert len(held) == 12 and not set(train) & set(held) and sorted(train + held) == list(range(120))


def test_few_faces_are_all_trained_on():
    assert split(5, CONFIG) == ([0, 1, 2, 3, 4], [])
    tenth = replace(CONFIG, held_out=0.1)
    assert [len(split(count, tenth)[1]) for count in (7, 8, 12, 25, 75, 200)] == [0, 2, 4, 8, 8, 20]


def test_every_epoch_uses_each_face_once():
    pairs = [(torch.full((1, 1, 1), float(i)),) * 2 for i in range(8)]
    seen = [float(x) for step in range(2) for b in micro_batches(pairs, list(range(8)), step, CONFIG) for x in b.lq]
    assert sorted(seen) == list(range(8))


@pytest.fixture(scope="module")
def sharp():
    faces = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(3, len(ring_middles(32)), dtype=torch.float64)
    return SharpFaces(faces, KnownDamage(0.5 * ones, ones, ones), held=4)


def test_sharp_faces_of_others_get_the_folders_filter_and_the_rest_of_a_donor(pairs, sharp):
    train = list(range(0, 12, 2))
    config = replace(CONFIG, batch_size=24, micro_batch=24, sharp=0.5)
    (mixed,) = micro_batches(pairs, train, 0, config, sharp=sharp)
    foreign = [i for i, (key, _) in enumerate(mixed.keys) if key >= len(pairs)]
    assert 6 <= len(foreign) <= 18
    for i in foreign:
        key, mirrored = mixed.keys[i]
        face = sharp.faces[key - len(pairs)]
        assert key - len(pairs) < sharp.trained_on  # the others are for the comparison of checkpoints
        assert torch.equal(mixed.target[i], face.flip(-1) if mirrored else face)
        made = [sharp.damage.put_on(face, *pairs[donor]) for donor in train]  # none held out
        assert any(torch.equal(mixed.lq[i], lq.flip(-1) if mirrored else lq) for lq in made)


def test_without_a_share_the_faces_of_a_step_are_those_of_before(pairs, sharp):
    train = list(range(12))
    (plain,) = micro_batches(pairs, train, 3, replace(CONFIG, micro_batch=4, transplant=0.5))
    (offered,) = micro_batches(pairs, train, 3, replace(CONFIG, micro_batch=4, transplant=0.5), sharp=sharp)
    assert torch.equal(plain.lq, offered.lq) and torch.equal(plain.target, offered.target)


def test_a_damage_of_the_family_has_noise_of_its_own_for_each_face_and_donor(pairs, sharp):
    camera = Photographed.at([0.0, 0.1, 0.5, 0.7, 0.5, 0.5, 0.5, 0.3, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    family = SharpFaces(sharp.faces, camera, held=4)
    config = replace(CONFIG, batch_size=24, micro_batch=24, sharp=1.0)
    (first,), (again,) = (micro_batches(pairs, list(range(12)), 0, config, sharp=family) for _ in range(2))
    assert torch.equal(first.lq, again.lq) and not torch.equal(first.lq, first.target)
    by_face: dict[int, list[torch.Tensor]] = {}
    for (key, mirrored), lq in zip(first.keys, first.lq, strict=True):
        by_face.setdefault(key, []).append(lq.flip(-1) if mirrored else lq)
    several = next(lqs for lqs in by_face.values() if len(lqs) > 1)
    assert not torch.equal(several[0], several[1])


def test_good_faces_of_the_user_stand_for_half_of_the_sharp_ones_and_get_the_folders_damage(pairs, sharp):
    examples = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    config, train = replace(CONFIG, batch_size=48, micro_batch=48, sharp=1.0), list(range(0, 12, 2))
    (mixed,) = micro_batches(pairs, train, 0, config, examples=examples, sharp=sharp)
    good = [i for i, (key, _) in enumerate(mixed.keys) if key < 0]
    assert 12 <= len(good) <= 36
    for i in good:
        key, mirrored = mixed.keys[i]
        face = examples[-1 - key]
        assert torch.equal(mixed.target[i], face.flip(-1) if mirrored else face)
        made = [sharp.damage.put_on(face, *pairs[donor]) for donor in train]
        assert any(torch.equal(mixed.lq[i], lq.flip(-1) if mirrored else lq) for lq in made)


def test_old_skills_are_kept_on_sharp_faces_where_there_are_any(pairs, sharp, monkeypatch):
    """Pseudo targets are softer than faces: what the base makes of them would teach softness."""
    monkeypatch.setattr("bfr_core.training.batches.degrade", lambda clean, *_: type("Damaged", (), {"lq": clean}))
    config, train = replace(CONFIG, batch_size=24, anchor=1.0, sharp=0.5), list(range(0, 12, 2))

    def of(faces, known):
        return [any(torch.equal(face, one) for one in known) for face in faces]

    targets = [pairs[i][1] for i in train]
    clean = anchor_faces(Material(pairs, train, [], sharp=sharp), 0, config)
    assert len(clean) == 24 and all(of(clean, sharp.faces[: sharp.trained_on])) and not any(of(clean, targets))
    for faces, settings in (
        (Material(pairs, train, []), config),
        (Material(pairs, train, [], sharp=sharp), replace(config, sharp=0.0)),  # offered, but not asked for
    ):
        assert all(of(anchor_faces(faces, 0, settings), targets))
    examples = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    clean = anchor_faces(Material(pairs, train, [], examples, sharp=sharp), 0, config)
    good = of(torch.cat([clean, clean.flip(-1)]), examples)
    assert 4 <= sum(good) <= 20, "the user's good faces stand for half of them"


def test_what_is_taken_for_real_is_grey_where_the_targets_are(pairs):
    """Or colour alone would tell it apart from what is restored."""
    targets = torch.stack([greyed(target) if i % 2 else target for i, (_, target) in enumerate(pairs)])
    colours = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for faces in (Material(pairs, [0], [], examples=colours), Material(pairs, [0], [], real=colours)):
        taken = taken_for_real(faces, targets, 0, CONFIG)
        assert [is_nearly_grey(face) for face in taken] == [i % 2 == 1 for i in range(len(targets))]
        assert not any(torch.equal(face, target) for face, target in zip(taken, targets, strict=True))


def test_a_sharp_face_loses_its_colour_where_the_donor_of_its_damage_is_grey(pairs, sharp):
    """In colours under a grey face's damage it would be a lesson in colouring."""
    train = list(range(12))
    old = [greyed(lq) if i % 2 else lq for i, (lq, _) in enumerate(pairs)]
    print_pairs = [(lq, target) for lq, (_, target) in zip(old, pairs, strict=True)]
    config = replace(CONFIG, batch_size=48, micro_batch=48, sharp=1.0)
    (mixed,) = micro_batches(print_pairs, train, 0, config, sharp=sharp)
    (coloured,) = micro_batches(pairs, train, 0, config, sharp=sharp)
    grey = [bool((face == face[:1]).all()) for face in mixed.target]
    assert 12 < sum(grey) < 36
    for target, before, is_grey in zip(mixed.target, coloured.target, grey, strict=True):
        assert torch.equal(target, greyed(before) if is_grey else before)


def test_a_sharp_face_has_new_noise_in_every_step(pairs, sharp):
    """Of a folder with one photo the donor is always the same, and so few pictures would soon be known by heart."""
    camera = Photographed.at([0.0, 0.1, 0.5, 0.7, 0.5, 0.5, 0.5, 0.3, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    family = SharpFaces(sharp.faces[:5], camera, held=4)  # one to train on
    config = replace(CONFIG, batch_size=2, micro_batch=2, sharp=1.0, mirror=False)
    first, second, other = (
        next(micro_batches(pairs, [0], step, replace(config, seed=seed), sharp=family))
        for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.target[0], second.target[0])
    seen = [*first.lq, *second.lq, *other.lq]
    assert not any(torch.equal(a, b) for a, b in combinations(seen, 2))


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_some_faces_are_always_left_to_train_on(share):
    for count in (8, 20):
        train, held = split(count, replace(CONFIG, held_out=share))
        assert len(train) >= 2 and len(held) == count - len(train) > 0
