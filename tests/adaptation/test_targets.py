"""Pseudo targets: what the restorer is shown, and what the low band is taken from."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bfr_core.adaptation.targets import (
    MAX_GAIN,
    TargetConfig,
    Targets,
    best_sampler,
    detail_gain,
    draw_in_batches,
    make_pseudo_targets,
    resolved_settings,
    samplers_to_try,
)
from bfr_core.diffusion.noise_level import estimate_noise_level
from bfr_core.diffusion.prior import load_prior
from bfr_core.diffusion.sampler import SamplerConfig, denoise_once
from bfr_core.metrics.detail import high_band
from bfr_core.restorers import load_restorer

SAMPLER = SamplerConfig(t_start=20, t_constrain_end=5, factor=2, calls=2)


@pytest.fixture
def networks(tiny_restorer, tiny_prior):
    return load_restorer(tiny_restorer), load_prior(tiny_prior)


def test_restored_is_what_the_base_makes_of_the_damaged_face_itself(networks):
    restorer, prior = networks
    lq = torch.rand(2, 3, 32, 32)
    for level in (0, 12):
        config = TargetConfig(SAMPLER, t_clean=level, precision="float32")
        made = make_pseudo_targets(lq, ["a", "b"], restorer, prior, config)
        assert torch.allclose(made.restored, restorer.restore(lq), atol=1e-6)


def test_targets_are_drawn_from_what_the_restorer_makes_of_the_cleaned_face(networks):
    restorer, prior = networks
    lq = torch.rand(2, 3, 32, 32)
    config = TargetConfig(SAMPLER, t_clean=12, precision="float32")
    made = make_pseudo_targets(lq, ["a", "b"], restorer, prior, config)
    cleaned = (denoise_once(prior, lq * 2 - 1, 250, 12) + 1) / 2
    by_hand = make_pseudo_targets(cleaned.clamp(0, 1), ["a", "b"], restorer, prior, replace(config, t_clean=0))
    assert torch.allclose(made.pseudo_target, by_hand.pseudo_target, atol=1e-4)
    assert not torch.allclose(made.restored, by_hand.restored, atol=1e-3)


def test_settings_are_searched_for_on_faces_from_the_whole_folder(networks, monkeypatch):
    seen: list[torch.Tensor] = []

    def best(lq, *_):
        seen.append(lq[:, 0, 0, 0])
        return SAMPLER

    monkeypatch.setattr("bfr_core.adaptation.targets.SEARCH_FACES", 8)
    monkeypatch.setattr("bfr_core.adaptation.targets.best_sampler", best)
    lq = torch.arange(16.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 16
    resolved_settings(TargetConfig(SAMPLER, t_clean=0, detail=1.0, search=("t_start",)), lq, *networks)
    assert (seen[0] * 16).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_the_damaged_faces_are_left_as_they_were(networks):
    lq = torch.rand(1, 3, 32, 32)
    before = lq.clone()
    make_pseudo_targets(lq, ["a"], networks[0], networks[1], TargetConfig(SAMPLER, t_clean=12))
    assert torch.equal(lq, before)


def test_a_face_has_the_same_target_in_any_batch(networks):
    lq = torch.rand(3, 3, 32, 32)
    config = TargetConfig(SAMPLER, t_clean=12, precision="float32")
    together = make_pseudo_targets(lq, ["a", "b", "c"], networks[0], networks[1], config).pseudo_target
    alone = make_pseudo_targets(lq[1:2], ["b"], networks[0], networks[1], config).pseudo_target
    assert torch.allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("level", [-1, 250, "some"])
def test_a_level_outside_the_schedule_is_refused(level):
    with pytest.raises(ValueError, match="t_clean"):
        TargetConfig(SAMPLER, t_clean=level)


def test_too_little_memory_halves_the_batch_and_gives_the_same(networks, monkeypatch):
    lq, names = torch.rand(3, 3, 32, 32), ["a", "b", "c"]
    config = TargetConfig(SAMPLER, t_clean=12, precision="float32")
    whole = make_pseudo_targets(lq, names, networks[0], networks[1], config)
    real = networks[1].forward

    def small(x_t, t):
        if len(x_t) > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return real(x_t, t)

    monkeypatch.setattr(networks[1], "forward", small)
    parts = make_pseudo_targets(lq, names, networks[0], networks[1], config)
    assert torch.allclose(parts.pseudo_target, whole.pseudo_target, atol=1e-4)


def test_network_calls_are_those_of_the_sampler_and_the_cleaning():
    assert TargetConfig(SAMPLER).network_calls == 2 and TargetConfig(SAMPLER, t_clean=5).network_calls == 3


def test_auto_is_the_noise_level_of_the_faces_themselves(networks):
    lq = torch.rand(2, 3, 32, 32)
    auto = TargetConfig(SAMPLER, t_clean="auto", precision="float32")
    level = estimate_noise_level(networks[1], lq * 2 - 1, SAMPLER.num_steps)
    assert resolved_settings(auto, lq, networks[0], networks[1]) == replace(auto, t_clean=level)
    found = make_pseudo_targets(lq, ["a", "b"], networks[0], networks[1], auto)
    same = make_pseudo_targets(lq, ["a", "b"], networks[0], networks[1], replace(auto, t_clean=level))
    assert torch.equal(found.pseudo_target, same.pseudo_target)


def test_a_level_that_is_given_is_not_looked_for(networks, monkeypatch):
    monkeypatch.setattr(networks[1], "forward", None)
    config = TargetConfig(SAMPLER, t_clean=3)
    assert resolved_settings(config, torch.rand(1, 3, 32, 32), networks[0], networks[1]) is config


def test_detail_makes_the_high_band_stronger_and_nothing_else(networks):
    lq = 0.4 + 0.2 * torch.rand(1, 3, 32, 32)
    config = TargetConfig(SAMPLER, precision="float32")
    plain = make_pseudo_targets(lq, ["a"], networks[0], networks[1], config).pseudo_target
    more = make_pseudo_targets(lq, ["a"], networks[0], networks[1], replace(config, detail=1.5)).pseudo_target
    inside = (more > 0) & (more < 1)
    assert inside.float().mean() > 0.5
    assert torch.allclose(more[inside], (plain + 0.5 * high_band(plain, 1.5 * 32 / 128))[inside], atol=1e-5)
    with pytest.raises(ValueError, match="detail"):
        TargetConfig(SAMPLER, detail=3)


def natural(power):
    """Something with as much at every scale as `power` says; at 0.75 about as much as in faces."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(4, 3, 128 // n, 128 // n, generator=generator) * n**power for n in (1, 2, 4, 8, 16)]
    made = torch.stack([F.interpolate(x, (128, 128), mode="bilinear") for x in scales]).sum(0)
    return made / made.amax()


def test_faces_that_were_made_soft_get_back_what_they_lost():
    crisp = natural(0.75)
    soft = crisp - 0.15 * high_band(crisp)
    assert detail_gain(crisp) == 1
    regained = soft + (detail_gain(soft) - 1) * high_band(soft)
    assert high_band(regained).std() / high_band(crisp).std() == pytest.approx(1, abs=0.05)
    assert high_band(soft).std() / high_band(crisp).std() < 0.9


def test_the_gain_is_never_below_1_nor_without_bound():
    assert detail_gain(torch.rand(2, 3, 64, 64)) == 1  # noise: more fine detail than a face has
    assert detail_gain(natural(2.0)) == MAX_GAIN
    assert detail_gain(torch.full((2, 3, 64, 64), 0.5)) == 1  # nothing to make stronger


def test_detail_left_to_the_faces_is_a_number_in_the_end(networks):
    lq = torch.rand(2, 3, 32, 32)
    config = TargetConfig(SAMPLER, detail="auto", precision="float32")
    found = resolved_settings(config, lq, networks[0], networks[1])
    plain = make_pseudo_targets(lq, ["settled 0", "settled 1"], networks[0], networks[1], replace(config, detail=1.0))
    assert found == replace(config, detail=detail_gain(plain.pseudo_target))


# ---------------------------------------------------------------- sampler settings left to the faces


def test_samplers_lie_around_the_one_given():
    tried = samplers_to_try(SAMPLER, ("t_start", "factor"), 32)
    assert [(s.t_start, s.factor) for s in tried] == [(k, n) for k in (5, 10, 20, 40) for n in (2, 4, 8)]
    assert [s.t_constrain_end for s in tried[::3]] == [1, 2, 5, 10]
    assert {s.t_start for s in samplers_to_try(SAMPLER, ("factor",), 32)} == {20}
    assert [s.factor for s in samplers_to_try(SAMPLER, ("factor",), 36)] == [2, 4]  # 8 does not divide 36
    assert samplers_to_try(replace(SAMPLER, t_start=200), ("t_start",), 32)[-1].t_start == 249
    with pytest.raises(ValueError, match="targets.search is \\('eta',\\); each must be t_start or factor"):
        TargetConfig(SAMPLER, search=("eta",))


def test_the_sampler_whose_targets_come_nearest_to_known_answers_is_taken(networks, monkeypatch):
    """Targets are clean pictures here, off by more the further t_start is from 40; damage is a change of tone."""
    restorer, prior = networks
    clean = F.interpolate(torch.rand(4, 3, 8, 8), (32, 32), mode="bicubic").clamp(0.2, 0.6)
    seen = []

    def made(lq, names, restorer, prior, config, callback):
        seen.append(lq)
        target = clean if len(seen) == 1 else clean.roll(1, 0) + abs(config.sampler.t_start - 40) / 200
        return Targets(lq, target)

    monkeypatch.setattr("bfr_core.adaptation.targets.make_pseudo_targets", made)
    config = TargetConfig(SAMPLER, search=("t_start",))
    assert best_sampler(clean + 0.2, restorer, prior, config).t_start == 40
    assert all(torch.allclose(lq, clean.roll(1, 0) + 0.2, atol=1e-3) for lq in seen[1:])  # the damage, on the next face


def test_nothing_is_left_open_in_the_end(networks):
    lq = torch.rand(3, 3, 32, 32)
    config = TargetConfig(SAMPLER, t_clean="auto", search=("t_start", "factor"), detail="auto")
    clear = resolved_settings(config, lq, *networks)
    assert clear.is_resolved and not config.is_resolved
    assert clear.sampler in samplers_to_try(SAMPLER, config.search, 32)


def test_drawing_in_batches_counts_the_calls_of_all_faces_and_reads_one_batch_at_a_time(networks):
    faces, names = torch.rand(5, 3, 32, 32), [f"face {i}" for i in range(5)]
    restorer, prior = networks
    happened: list[Any] = []

    def batches():
        for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
            happened.append("read")
            yield names[part], faces[part]

    def step(done, calls, preview):
        happened.append((done, calls))

    drawn: list[tuple[str, Any]] = []
    for some, targets in draw_in_batches(batches(), restorer, prior, TargetConfig(SAMPLER), step):
        happened.append("drawn")
        drawn += zip(some, targets.pseudo_target, strict=True)
    calls = SAMPLER.network_calls
    done = [range(size, size * calls + 1, size) for size in (2, 2, 1)]
    expected: list[Any] = []
    for start, counts in zip((0, 2, 4), done, strict=True):
        expected += ["read", *((start * calls + count, calls) for count in counts), "drawn"]
    assert happened == expected
    assert [name for name, _ in drawn] == names and all(target.shape == (3, 32, 32) for _, target in drawn)


def test_the_target_of_a_grey_face_is_grey(networks):
    lq = torch.rand(2, 3, 32, 32)
    lq[0] = lq[0, :1]
    made = make_pseudo_targets(lq, ["a", "b"], networks[0], networks[1], TargetConfig(SAMPLER)).pseudo_target
    assert (made[0] == made[0, :1]).all() and not (made[1] == made[1, :1]).all()
