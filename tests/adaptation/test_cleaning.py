"""The level at which faces are cleaned is the one that is best for faces whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bfr_core.adaptation import cleaning, target_stage
from bfr_core.adaptation.cleaning import LEVELS, Answer, level_by_known_answers
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.folder_damage import estimated, restored_for_estimate
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_stage import make_targets, settled_target_config
from bfr_core.damage.synthetic import degrade
from bfr_core.diffusion.noise_level import estimate_noise_level
from bfr_core.diffusion.prior import load_prior
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import to_signed
from bfr_core.metrics.psnr import psnr
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import load_restorer


@pytest.mark.parametrize(("best", "own", "expected"), [(6, 0, 6), (12, 10, 13), (0, 8, 0), (25, 16, 24), (62, 0, 32)])
def test_the_best_level_is_found_between_those_that_are_tried(best: int, own: int, expected: int) -> None:
    steps: list[tuple[int, int]] = []
    found = cleaning._best_level(
        lambda t: Answer(30 - 0.1 * abs(t - best), 0.1), own, 250, lambda *said: steps.append(said)
    )
    assert found == expected
    assert steps[-1][0] == steps[-1][1] and len(steps) <= len(LEVELS) + 4


def test_a_level_that_is_hardly_better_changes_nothing_and_few_steps_have_few_levels() -> None:
    assert cleaning._best_level(lambda t: Answer(30 - 0.004 * abs(t - 8), 0.1), 5, 250) == 5
    tried: list[int] = []

    def answer(level: int) -> Answer:
        tried.append(level)
        return Answer(30.0, 0.1)

    assert cleaning._best_level(answer, 1, 20) == 1
    assert max(tried) < 20 // 4 and len(tried) == len(set(tried))


@pytest.mark.parametrize(("harmless_to", "own", "expected"), [(32, 0, 32), (10, 0, 8), (3, 0, 2), (0, 0, 0), (2, 4, 2)])
def test_a_level_that_spoils_edges_is_not_taken_however_high_its_psnr(harmless_to, own, expected) -> None:
    """PSNR rises with every level here, but beyond one of them the prior draws wisps."""
    found = cleaning._best_level(lambda t: Answer(25 + 0.03 * t, 0.14 + 0.01 * (t > harmless_to)), own, 250)
    assert found == expected


def test_the_level_is_kept_in_the_run_and_is_that_of_the_targets(
    photos, config, tiny_restorer, tiny_prior, tmp_path, monkeypatch
):
    asked: list[int] = []

    def level(*_):
        asked.append(1)
        return 3

    monkeypatch.setattr(target_stage, "level_by_known_answers", level)
    restorer, prior, run = load_restorer(tiny_restorer), load_prior(tiny_prior), Run(tmp_path)
    faces = collect_faces(photos, run, 32, FaceConfig(aligned=True))
    auto = replace(config, targets=replace(config.targets, t_clean="auto"))
    assert make_targets(run, faces, restorer, prior, auto) and not asked, "without sharp faces none is asked"
    sharp = replace(auto, finetune=replace(auto.finetune, sharp=0.5))
    for _ in range(2):
        assert settled_target_config(run, faces, restorer, prior, sharp).t_clean == 3
    assert asked == [1] and json.loads(run.resolved_settings.read_text())["chosen_t_clean"] == 3
    make_targets(run, faces, restorer, prior, sharp)
    assert run.config()["targets"]["t_clean"] == 3
    given = replace(sharp, targets=replace(sharp.targets, t_clean=2))
    assert settled_target_config(run, faces, restorer, prior, given).t_clean == 2 and asked == [1]


@pytest.mark.slow
def test_noise_that_was_enlarged_is_cleaned() -> None:
    """The estimate that reads the noise finds too little; the known answers find it, and the truth agrees."""
    restorer, prior = load_restorer(), load_prior()
    clean = SharpFaces(256).stacked(24)
    lq = degrade(clean, "camera_x4_iso1500", keyed_generator(0)).lq
    own = estimate_noise_level(prior, to_signed(lq[:4]), SMALL.targets.sampler.num_steps)
    config = replace(SMALL.targets, t_clean=own)
    damage = estimated(lq, restored_for_estimate(lq, restorer, prior, config), 256)
    level = level_by_known_answers(damage, lq[:16], restorer, prior, config)
    plain, cleaned = (
        psnr(restored_for_estimate(lq, restorer, prior, replace(config, t_clean=t)), clean) for t in (own, level)
    )
    assert level > own and cleaned.mean() > plain.mean() + 0.1


def test_with_few_levels_none_is_missing() -> None:
    assert cleaning._best_level(lambda t: Answer(30 - t, 0.1), 1, 2) == 0
