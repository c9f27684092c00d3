"""The target checks refuse what stands out, say why, and leave the rest alone."""

import json
from typing import cast

import pytest
import torch
from torch.nn import functional as F

from bfr_core.adaptation import target_checks
from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_checks import (
    REASONS,
    TargetCheckConfig,
    as_record,
    check_targets,
    checked_targets,
    flat_noise,
    joined,
    measurements_of,
    refusals,
)
from bfr_core.adaptation.target_stage import targets_of
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.faces.likeness import CANNOT_TELL, OTHER, SAME
from bfr_core.files.photos import write_image
from bfr_core.metrics.detail import high_band
from bfr_core.restoration.same_person import FaceLikeness, LikenessMeter

CHECKED_SIZE = target_checks.CHECKED_SIZE
CHECKERED = (torch.arange(64)[:, None] + torch.arange(64)) % 2.0  # nothing of it is left in the low band

FINE_NOISE = high_band(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)), 0.7)[0]


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), (64, 64), mode="bicubic")
    fine = F.interpolate(torch.rand(count, 3, 32, 32, generator=generator), (64, 64), mode="bicubic")
    return 0.2 + 0.6 * (0.8 * coarse + 0.2 * fine).clamp(0, 1)


@pytest.fixture(scope="module", autouse=True)
def in_full():
    """Faces are checked as large as a user's, in place of those of `few_trials`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_checks, "CHECKED_SIZE", CHECKED_SIZE)
        yield


@pytest.fixture(scope="module")
def net():
    return load_landmark_net()


def test_like_targets_all_pass(net):
    clean = pictures(24)
    lq = (clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert refusals(check_targets(measurements_of(lq, clean, net)), TargetCheckConfig(limit=8)) == [""] * 24


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: (x + 0.3).clamp(0, 1), REASONS["low_band"]),
        (lambda x: x + 0.2 * (CHECKERED - 0.5), (REASONS["unlike"], REASONS["noisy"])),
        (lambda x: x + 0.15 * FINE_NOISE, (REASONS["unlike"], REASONS["noisy"])),
    ],
    ids=["another tone", "a pattern", "noise"],
)
def test_what_stands_out_is_refused_with_its_reason(net, spoil, said):
    clean = pictures(24)
    lq = (clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    targets = clean.clone()
    targets[5] = spoil(targets[5]).clamp(0, 1)
    reasons = refusals(check_targets(measurements_of(lq, targets, net)), TargetCheckConfig())
    assert reasons[5].startswith(said) and not any(reasons[:5] + reasons[6:])


def test_a_few_faces_do_not_say_what_is_typical(net):
    """Of two targets, one is always further from the median."""
    clean = pictures(7)
    lq = (clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    targets = torch.cat([(clean[:1] + 0.3).clamp(0, 1), clean[1:]])
    for count in (2, 7):
        assert (
            refusals(check_targets(measurements_of(lq[:count], targets[:count], net)), TargetCheckConfig())
            == [""] * count
        )


def test_batches_give_what_all_at_once_give(net):
    clean = pictures(10)
    whole = measurements_of(clean, clean.flip(0), net)
    parts = joined([measurements_of(clean[part], clean.flip(0)[part], net) for part in (slice(0, 4), slice(4, 10))])
    for a, b in zip(check_targets(whole), check_targets(parts), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)
    assert set(as_record(check_targets(whole), 3)) == set(REASONS)


def test_faces_that_cannot_be_read_do_not_say_how_far_landmarks_move(net):
    """They count as not moved; where they were the most, every other target was refused."""
    clean = pictures(24)
    measured = measurements_of(clean, clean, net)
    readable = torch.arange(24) < 10
    moved = torch.where(readable, torch.linspace(0.05, 0.08, 24), torch.zeros(24))
    few = check_targets(measured._replace(moved=moved, readable=readable, faceless=torch.zeros(24)))
    assert refusals(few, TargetCheckConfig()) == [""] * 24
    far = moved.clone()
    far[3] = 0.2
    reasons = refusals(few._replace(moved=far), TargetCheckConfig())
    assert reasons[3].startswith(REASONS["moved"]) and not any(reasons[:3] + reasons[4:])


def test_a_new_draw_is_held_to_the_folders_measure(net):
    clean = pictures(24)
    measured = measurements_of(clean, clean, net)
    folder = check_targets(measured)
    again = measurements_of(clean[:1], (clean[:1] + 0.3).clamp(0, 1), net)
    assert refusals(check_targets(again, measured), TargetCheckConfig(), folder)[0]
    assert not refusals(
        check_targets(measurements_of(clean[:1], clean[:1], net), measured), TargetCheckConfig(limit=8), folder
    )[0]


def test_limit_zero_turns_it_off_and_nonsense_is_refused(net):
    clean = pictures(8)
    assert (
        refusals(check_targets(measurements_of(clean, clean.roll(1, 0), net)), TargetCheckConfig(limit=0)) == [""] * 8
    )
    with pytest.raises(ValueError, match="gate.tries is -1"):
        TargetCheckConfig(tries=-1)


def test_on_real_faces_another_persons_target_is_refused(shared, net):
    import json

    import numpy as np

    from bfr_core.damage.synthetic import degrade
    from bfr_core.faces.align import Face, crop_face
    from bfr_core.files.photos import read_image

    landmarks = json.loads((shared / "portraits" / "landmarks.json").read_text())
    names = sorted(landmarks)[:150:5]  # no training has seen them
    faces = torch.stack(
        [crop_face(read_image(shared / "portraits" / n), Face(np.array(landmarks[n]["landmarks"])), 128) for n in names]
    )
    lq = degrade(faces, "sensor", torch.Generator().manual_seed(0)).lq
    targets = faces.clone()
    targets[[3, 17]] = faces[[17, 3]]
    reasons = refusals(check_targets(measurements_of(lq, targets, net)), TargetCheckConfig())
    assert reasons[3] and reasons[17] and sum(map(bool, reasons)) <= 5


def test_a_target_that_became_another_person_is_refused_if_that_is_asked_for(net):
    clean = pictures(24)
    lq = (clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)

    class Meter:
        """Faces 7 and 8 are others; of face 9 nothing can be told."""

        def judge(self, lq, targets):
            said = [FaceLikeness(SAME, 0.3, 0.4, 0.45, 0.02, 0.05)] * len(lq)
            said[7] = said[8] = FaceLikeness(OTHER, 0.6, 0.4, 0.45, 0.02, 0.05)
            said[9] = FaceLikeness(CANNOT_TELL)
            return [said]

    checks = check_targets(measurements_of(lq, clean, net, cast(LikenessMeter, Meter())))
    reasons = refusals(checks, TargetCheckConfig(limit=8))
    assert [i for i, reason in enumerate(reasons) if reason] == [7, 8] and reasons[7] == OTHER
    assert refusals(checks, TargetCheckConfig(limit=8, likeness=False)) == [""] * 24
    assert refusals(checks, TargetCheckConfig(limit=0)) == [""] * 24
    few = check_targets(measurements_of(lq[:4], clean[:4], net))
    assert not few.stranger.any()  # where it is not measured, nobody is


def test_a_trifle_does_not_stand_out_among_faces_that_are_all_alike(net):
    clean = pictures(24)
    targets = clean.clone()
    targets[3] += 0.004  # one level of 256: the others agree with their damaged faces to the last digit
    assert refusals(check_targets(measurements_of(clean, targets, net)), TargetCheckConfig()) == [""] * 24


def test_noise_is_seen_where_a_picture_is_flat_and_edges_are_not_taken_for_it():
    soft = F.interpolate(torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), (64, 64), mode="bicubic")
    edges = soft.clone()
    edges[..., ::32] = 1
    assert flat_noise(edges) < flat_noise(soft) + 0.2
    assert flat_noise(soft + 0.02 * FINE_NOISE) > flat_noise(soft) + 0.5


def spoiled_run(photos, config, folder):
    """A run whose second target is of another tone; its faces, its targets, and the name of that face."""
    run = Run(folder)
    with run.locked():
        faces = collect_faces(photos, run, 32, config.faces)
    for i, name in enumerate(faces.names):
        write_image(run.targets / f"{name}.png", (faces.batch(i, i + 1)[0] + (0.4 if i == 1 else 0.01)).clamp(0, 1))
    return run, faces, targets_of(run, faces), faces.names[1]


def test_the_gate_leaves_out_what_no_new_draw_mends(photos, config, tmp_path):
    run, faces, files, spoiled = spoiled_run(photos, config, tmp_path)
    tries = []

    def redraw(lq, names, attempt):
        tries.append((names, attempt))
        return (lq + 0.4).clamp(0, 1)

    accepted = checked_targets(run, faces, files, "made", TargetCheckConfig(limit=10), redraw)
    assert set(files) - set(accepted) == {spoiled} and tries == [([spoiled], 1), ([spoiled], 2)]
    found = json.loads(run.target_checks.read_text())
    assert "low band" in found["refused"][spoiled] and set(found["checks"]) == set(files)
    assert found["places"] == {spoiled: f"targets/{spoiled}.png"}, "as it is after the run was moved, too"
    assert (
        checked_targets(run, faces, files, "made", TargetCheckConfig(limit=10), redraw) == accepted and len(tries) == 2
    )


def test_the_gate_takes_a_new_draw_that_passes(photos, config, tmp_path):
    run, faces, files, spoiled = spoiled_run(photos, config, tmp_path)
    before = files[spoiled].read_bytes()
    accepted = checked_targets(
        run, faces, files, "made", TargetCheckConfig(limit=10), lambda lq, names, attempt: lq + 0.01
    )
    assert accepted[spoiled] == run.redrawn / f"{spoiled}.png" and accepted[spoiled].exists()
    assert files[spoiled].read_bytes() == before  # so that checks cut short find what they found before


def test_targets_that_are_all_unfit_are_an_error(photos, config, tmp_path, monkeypatch):
    run, faces, files, _ = spoiled_run(photos, config, tmp_path)
    monkeypatch.setattr("bfr_core.adaptation.target_checks.refusals", lambda checks, *_: ["no"] * len(checks.low_band))
    with pytest.raises(ValueError, match="none of the 10 targets is fit"):
        checked_targets(run, faces, files, "made", TargetCheckConfig())


def test_a_redrawn_target_that_is_gone_is_drawn_again(photos, config, tmp_path):
    run, faces, files, spoiled = spoiled_run(photos, config, tmp_path)

    def checked():
        return checked_targets(
            run, faces, files, "made", TargetCheckConfig(limit=10), lambda lq, names, attempt: lq + 0.01
        )

    redrawn = checked()[spoiled]
    redrawn.unlink()
    assert checked()[spoiled] == redrawn and redrawn.exists()
