"""Evidence without clean copies: each cue must fall for the failure that it is there to see."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bfr_core.adaptation import target_checks, verdict
from bfr_core.adaptation.verdict import (
    STATISTICS_FILE,
    Agreement,
    Appearance,
    Belief,
    Cues,
    KnownAnswers,
    Limits,
    agreement,
    decide,
    face_statistics_of,
    gather,
    judge,
    load_face_statistics,
    realism,
)
from bfr_core.damage.grey import greyed, is_nearly_grey
from bfr_core.faces import sharp_faces
from bfr_core.faces.align import Face, crop_face
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.files.photos import read_image
from bfr_core.metrics.detail import high_band
from bfr_core.metrics.kid import kid_features
from bfr_core.pixels import gaussian_blur
from bfr_core.randomness import keyed_generator

IN_FULL = {
    "adaptation.verdict.TRIED": verdict.TRIED,
    "adaptation.target_checks.CHECKED_SIZE": target_checks.CHECKED_SIZE,
    "faces.sharp_faces.KEPT_APART": sharp_faces.KEPT_APART,
}


@pytest.fixture(scope="module", autouse=True)
def in_full():
    """As many known faces as a user's verdict tries, and as large, in place of those of `few_trials`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IN_FULL.items():
            patch.setattr(f"bfr_core.{name}", value)
        yield


@pytest.fixture(scope="module")
def scene(in_full):
    """Clean smooth pictures with fine detail, damaged by noise; their targets are the clean ones."""
    generator = torch.Generator().manual_seed(0)

    def pictures(count):
        coarse = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), (64, 64), mode="bicubic")
        fine = F.interpolate(torch.rand(count, 3, 32, 32, generator=generator), (64, 64), mode="bicubic")
        return (0.8 * coarse + 0.2 * fine).clamp(0, 1)

    clean, others = pictures(6), pictures(20)
    lq = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    return clean, lq, face_statistics_of(others, pictures(6)), load_landmark_net()


def gathered(restore, clean, lq, statistics, net):
    return gather(restore, lq, clean, KnownAnswers.of(lq, clean, statistics), statistics, net)


def flat(cues: Cues):
    """(part, name) -> (B,)."""
    return {
        (part, name): v for part, values in cues._asdict().items() if values for name, v in values._asdict().items()
    }


def cues(scene, restore):
    return {name: value.mean().item() for name, value in flat(gathered(restore, *scene)).items()}


def blur(x):
    return x - high_band(x, 2.0)


def test_each_cue_has_one_number_a_face(scene):
    clean, lq, statistics, net = scene
    for value in flat(gathered(blur, clean, lq, statistics, net)).values():
        assert value.shape == (6,) and torch.isfinite(value).all()


def test_a_change_of_tone_is_inconsistent(scene):
    name = ("looks", "consistency")
    assert cues(scene, lambda x: (x + 0.1).clamp(0, 1))[name] < cues(scene, lambda x: x)[name] - 20


def test_noise_left_in_shows_in_energy_and_realism(scene):
    noisy, soft = cues(scene, lambda x: x), cues(scene, lambda x: x - high_band(x, 0.7))
    assert noisy["looks", "energy"] > soft["looks", "energy"] and noisy["looks", "realism"] < soft["looks", "realism"]
    for part in ("teacher", "transfer", "known"):
        assert noisy[part, "fidelity"] < soft[part, "fidelity"]


def test_a_blur_loses_the_detail(scene):
    soft, blurred = cues(scene, lambda x: x - high_band(x, 0.7)), cues(scene, blur)
    assert blurred["looks", "energy"] < soft["looks", "energy"] - 0.5
    for name in (
        ("looks", "kept"),
        ("teacher", "detail"),
        ("transfer", "detail"),
        ("known", "detail"),
        ("looks", "realism"),
    ):
        assert blurred[name] < soft[name], name


@pytest.fixture(scope="module")
def real_faces(shared):
    """Portraits that no embedded model has seen."""
    folder = shared / "portraits"
    landmarks = json.loads((folder / "landmarks.json").read_text())
    names = (STATISTICS_FILE.parent / "held_out.txt").read_text().split()[:12]
    faces = [Face(np.array(landmarks[name]["landmarks"])) for name in names]
    return torch.stack(
        [crop_face(read_image(folder / n), face, 128).clamp(0, 1) for n, face in zip(names, faces, strict=True)]
    )


def test_what_was_taken_from_the_training_faces(real_faces):
    """Clean faces that took no part in it are about as typical as those that did; blurred ones are not."""
    statistics, net = load_face_statistics(), load_landmark_net()
    clean, soft = (
        gathered(lambda x: x, faces, faces, statistics, net).looks for faces in (real_faces, blur(real_faces))
    )
    assert clean.energy.mean().abs() < 0.4 and soft.energy.mean() < -1
    assert clean.realism.mean() > soft.realism.mean() + 0.5
    assert clean.realism.mean().abs() < 0.3, "portraits of officials only, so not quite 0"


def test_realism_is_of_the_set_and_not_of_each_face_alone(real_faces):
    """A slight blur of all faces shows in what they have in common, and hardly in how far each is from the mean."""
    statistics = load_face_statistics()

    def each_alone(faces):
        return -((kid_features(faces) - statistics.mean) / statistics.spread).square().mean(1).sqrt().mean()

    def together(faces):
        return realism(faces, statistics).mean()

    few = [together(real_faces[start : start + 4]) for start in (0, 4, 8)]
    assert abs(sum(few) / 3 - together(real_faces)) < 0.3, "fewer faces are not further away"
    grey = 0.5 * real_faces + 0.25
    assert together(grey) < together(real_faces) - 0.5
    soft = gaussian_blur(real_faces, 0.65)
    assert together(soft) < together(real_faces) - Limits().realism
    assert each_alone(soft) > each_alone(real_faces) - 0.1, "people differ by 0.3, so a mean over them shows less"
    assert realism(real_faces[:1], statistics).tolist() == [0]


# ---------------------------------------------------------------- the verdict


def nothing(x):
    return x


def denoised(x):
    return x - high_band(x, 0.7)


def test_a_restorer_that_undoes_the_damage_is_adopted(scene):
    clean, lq, statistics, net = scene
    found = judge(nothing, denoised, lq, clean, statistics, net)
    assert found.verdict == "adopt" and found.gain.low > 1 and not found.vetoes
    assert judge(denoised, nothing, lq, clean, statistics, net).verdict == "keep_base"


def test_the_same_restorer_twice_cannot_be_told_apart(scene):
    clean, lq, statistics, net = scene
    found = judge(denoised, denoised, lq, clean, statistics, net)
    assert found.verdict == "cannot_tell" and found.gain == (0, 0, 0)


def test_of_too_few_faces_the_base_is_kept(scene):
    clean, lq, statistics, net = scene
    for count in (0, 1):
        found = judge(nothing, denoised, lq[:count], clean[:count], statistics, net)
        assert found.verdict == "keep_base" and "too few" in found.sentence and found.gain is None


def judged(known, transfer, limits=Limits(), folder=None, unlike=9.0, overdone=0.0, detail=None):  # noqa: B008
    """The verdict on faces of which the base and the tuned restorer look the same; gains in dB.

    detail: won on the folder's answers, in correlation.
    """
    nothing = torch.zeros(len(known))
    looks, same = Appearance(*[nothing] * len(Appearance._fields)), Agreement(nothing, nothing)
    base = Cues(looks, same, same, same, same if folder else None)
    known, transfer, by_folder = (
        Agreement(torch.tensor(gains), nothing) for gains in (known, transfer, folder or [0.0])
    )
    by_folder = by_folder._replace(detail=torch.tensor(detail)) if detail else by_folder
    tuned = base._replace(known=known, transfer=transfer, folder=by_folder if folder else None)
    return decide(base, tuned, looks, limits, belief=Belief(unlike, overdone))


def test_two_faces_that_agree_by_chance_prove_nothing():
    """Both gain, one ten times as much as the other: a bootstrap would be sure."""
    assert judged([0.2, 2.0], [1.9, 2.0]).verdict == judged([1.9, 2.0], [0.2, 2.0]).verdict == "cannot_tell"
    assert judged([1.9, 2.0], [1.9, 2.0]).verdict == "adopt"


def test_a_small_gain_proves_nothing():
    small, large = [0.2, 0.21, 0.19, 0.2], [0.9, 0.91, 0.9, 0.89]
    assert "but too little, +0.20 dB" in judged(large, small, Limits(transfer=0.5)).sentence
    for case in ((small, large), (large, small)):
        assert judged(*case, Limits(gain=0.5, transfer=0.5)).verdict == "cannot_tell"
        assert judged(*case, Limits(gain=0.1, transfer=0.1)).verdict == "adopt"


def test_less_than_counts_is_not_called_chance():
    said = judged([0.08, 0.081, 0.079, 0.08], [0.08, 0.081, 0.079, 0.08])
    assert said.verdict == "cannot_tell" and "chance" not in said.sentence and "0.1 dB" in said.sentence
    assert "chance" in judged([0.3, -0.2, 0.1, 0.0], [0.3, -0.2, 0.1, 0.0]).sentence


def test_what_is_gained_on_one_test_and_lost_on_the_other_is_not_adopted():
    gained, lost = [0.9, 0.91, 0.9, 0.89], [-0.5, -0.51, -0.5, -0.49]
    assert judged(lost, gained).verdict == judged(gained, lost).verdict == "keep_base"
    assert "pseudo targets of other faces" in judged(gained, lost).sentence


def test_what_is_no_damage_shows_on_faces_that_owe_nothing_to_the_teacher(scene):
    """Faces without damage and soft targets: the softer restorer is the better one by the targets alone."""
    clean, _, statistics, net = scene
    found = judge(nothing, denoised, clean, denoised(clean), statistics, net, Limits(0, 100, 100, 100))
    measures = found.measures
    assert measures["adapted transfer fidelity"] > measures["base transfer fidelity"] + 1
    assert found.gain.high < 0 and found.verdict == "keep_base"


def test_learning_to_blur_from_blurred_targets_is_vetoed(scene):
    """It undoes the damage better by the targets, which are blurred themselves, but not on clean faces."""
    clean, lq, statistics, net = scene
    found = judge(denoised, blur, lq, blur(clean), statistics, net)
    assert found.measures["adapted transfer fidelity"] > found.measures["base transfer fidelity"] + 1
    assert found.gain.high < 0 and found.verdict == "keep_base"
    assert any("too smooth" in veto for veto in found.vetoes)


def test_targets_of_other_faces_are_vetoed(scene):
    clean, lq, statistics, net = scene
    found = judge(nothing, denoised, lq, clean.roll(1, 0), statistics, net)
    assert found.verdict == "keep_base" and any("pseudo targets" in v and "disagree" in v for v in found.vetoes)
    lax = judge(nothing, denoised, lq, clean.roll(1, 0), statistics, net, Limits(0, 100, 100, 100))
    assert not lax.vetoes


@pytest.mark.parametrize(
    ("name", "limit", "chance", "said"),
    [
        ("energy", -0.3, -0.04, "too smooth"),
        ("landmarks", -0.1, -0.008, "move"),
        ("consistency", 24.0, -0.4, "disagree"),
    ],
)
def test_what_the_base_does_too_is_no_veto_for_a_difference_by_chance(name, limit, chance, said):
    """The base's faces are too smooth themselves: those that are so by a hundredth more are not refused for it."""
    fine = dict.fromkeys(Appearance._fields, torch.zeros(4)) | {"consistency": torch.full((4,), 40.0)}
    base = Appearance(**fine)._replace(**{name: torch.full((4,), 1.2 * limit if limit < 0 else 0.8 * limit)})
    for difference, refused in ((chance, False), (3 * chance, True)):
        found = verdict.worse(base._replace(**{name: getattr(base, name) + difference}), base, Limits())
        assert [said in words for words in found] == [True] * refused
    assert verdict.worse(base, Appearance(**fine), Limits()), "where the base's faces are right it is a veto"


class Noisy:
    """A folder's damage: the same noise on every face."""

    def put_on(self, face, donor_lq, donor_restored, *key):
        return (face + 0.1 * torch.randn(face.shape, generator=keyed_generator(*key))).clamp(0, 1)


def test_the_folders_damage_on_sharp_faces_is_a_known_answer(scene):
    clean, lq, statistics, net = scene
    found = judge(nothing, denoised, lq, clean, statistics, net, damage=Noisy())
    assert found.verdict == "adopt" and found.measures["folder unlike"] > 0
    assert found.measures["adapted folder fidelity"] > found.measures["base folder fidelity"] + 1
    answers = KnownAnswers.under(Noisy(), lq, clean, statistics)
    assert torch.equal(answers.clean, statistics.known) and (answers.given - answers.clean).std() > 0.05


def test_where_sharp_faces_were_learned_from_soft_targets_count_no_more():
    """The restored faces are sharper than the pseudo targets, which would count against them."""
    by_targets = judged([1.9, 2.0], [-1.0, -1.1])
    assert by_targets.verdict == "keep_base" and "pseudo targets of other faces" in by_targets.sentence
    assert judged([1.9, 2.0], [-1.0, -1.1], folder=[0.9, 1.0]).verdict == "adopt"
    worse = judged([1.9, 2.0], [1.0, 1.1], folder=[-0.9, -1.0])
    assert worse.verdict == "keep_base" and "estimated over the folder" in worse.sentence


def test_where_the_folders_damage_is_known_its_answers_decide():
    """Under motion and heavy JPEG nothing can be told by what the tuned restorer takes for damage."""
    unsure, sure = [-0.6, 0.7, -0.2, 0.3], [0.6, 0.7, 0.65, 0.6]
    adopted = judged(unsure, [0.0] * 4, folder=sure, unlike=0.25)
    assert (
        adopted.verdict == "adopt" and adopted.gain.mean == pytest.approx(0.6375) and "though" not in adopted.sentence
    )
    assert "estimated over the folder" in adopted.sentence and adopted.measures["folder unlike"] == 0.25
    unknown = judged(unsure, [0.0] * 4, folder=sure, unlike=0.5)
    assert unknown.verdict == "cannot_tell" and unknown.gain.mean == pytest.approx(0.05)
    less = judged([-0.5, 0.1, -0.2, 0.1], [0.0] * 4, folder=sure, unlike=0.25)
    assert less.verdict == "adopt" and "though -0.12 dB" in less.sentence and "4 faces" in less.sentence


def test_where_the_folders_damage_is_known_the_other_answers_must_not_be_against_it():
    sure, little = [0.6, 0.7, 0.65, 0.6], [0.2, 0.21, 0.2, 0.19]
    assert judged([-0.3, -0.31, -0.3, -0.29], [0.0] * 4, folder=sure, unlike=0.25).verdict == "keep_base"
    assert judged([-1.5, 0.6, -1.2, 0.4], [0.0] * 4, folder=little, unlike=0.25).verdict == "cannot_tell"
    assert judged([0.9, 0.91, 0.9, 0.89], [0.0] * 4, folder=[-0.5, 0.9, 0.3, 0.2], unlike=0.25).verdict == "cannot_tell"
    assert judged([0.9, 0.91, 0.9, 0.89], [0.0] * 4, folder=[-0.5, -0.6] * 2, unlike=0.25).verdict == "keep_base"


def test_no_gain_in_decibels_pays_for_detail_that_is_surely_lost():
    """Noise that is taken off, or detail that is made up, wins PSNR. Such runs were adopted."""
    sure, lost = [1.6, 1.7, 1.65, 1.6], [-0.02, -0.021, -0.019, -0.02]
    refused = judged(sure, sure, folder=sure, unlike=0.25, detail=lost)
    assert refused.verdict == "keep_base" and "detail is further from the truth" in refused.sentence
    assert "-0.020 (-0.021 to -0.019)" in refused.sentence and "+1.64 dB" in refused.sentence
    by_chance = [-0.02, 0.02, -0.03, 0.01]
    assert judged(sure, sure, folder=sure, unlike=0.25, detail=by_chance).verdict == "adopt"
    assert judged(sure, sure, folder=sure, unlike=0.5, detail=lost).verdict == "adopt", "the damage is not known"


def test_how_well_the_folders_damage_is_known_is_seen_on_the_judged_faces(scene):
    clean, lq, statistics, _ = scene

    class TooMuch(Noisy):
        def put_on(self, face, *others):
            return super().put_on(super().put_on(super().put_on(face, *others), *others), *others)

    def believed(damage, faces=lq):
        answers = KnownAnswers.under(damage, faces, clean, statistics)
        return Belief.of(damage, answers, (denoised(faces), denoised(answers.given)), faces, clean, statistics)

    right, wrong = believed(Noisy()), believed(TooMuch())
    assert right.unlike < wrong.unlike - 0.1
    assert right.overdone <= 0 < believed(Noisy(), clean).overdone, "faces without noise are not denoised much"


def test_answers_that_the_base_changes_more_than_the_photos_do_not_decide():
    """A folder with hardly any damage looks much like one with a little more."""
    unsure, sure = [-0.6, 0.7, -0.2, 0.3], [0.6, 0.7, 0.65, 0.6]
    assert judged(unsure, [0.0] * 4, folder=sure, unlike=0.25, overdone=-0.5).verdict == "adopt"
    milder = judged(unsure, [0.0] * 4, folder=sure, unlike=0.25, overdone=1.5)
    assert milder.verdict == "cannot_tell" and milder.measures["folder overdone"] == 1.5
    assert judged([1.9, 2.0], [0.0] * 2, folder=[0.9, 1.0], unlike=0.25, overdone=1.5).verdict == "adopt"


def test_grey_faces_are_judged_by_grey_answers(scene):
    """And a restorer that colours them is not worse for it, since restored photos stay grey."""
    clean, lq, statistics, net = scene
    grey, grey_clean = (torch.stack([greyed(face) for face in some]) for some in (lq, clean))
    by_faces = KnownAnswers.of(grey, grey_clean, statistics)
    by_folder = KnownAnswers.under(Noisy(), grey, grey_clean, statistics)
    for answers in (by_faces, by_folder):
        assert (answers.clean == answers.clean[:, :1]).all()

    def colouring(faces):
        return (denoised(faces) * torch.tensor([1.1, 1.0, 0.7]).view(1, 3, 1, 1)).clamp(0, 1)

    found = judge(colouring, colouring, grey, grey_clean, statistics, net)
    restored = torch.stack([greyed(face) for face in colouring(grey)])
    wanted = float(agreement(restored, grey_clean).fidelity.mean())
    assert found.measures["base teacher fidelity"] == pytest.approx(wanted, abs=1e-3)


def test_what_gets_the_damage_of_a_grey_face_is_grey(scene):
    """As in the tuning: a print's grain on a face in colour is in no folder."""
    clean, lq, statistics, net = scene
    grey = torch.arange(len(clean)) % 2 == 0
    faces, targets = (
        torch.stack([greyed(x) if g else x for x, g in zip(some, grey, strict=True)]) for some in (lq, clean)
    )
    given = []

    def restore(some):
        given.append(some)
        return some

    gather(restore, faces, targets, KnownAnswers.of(faces, targets, statistics), statistics, net)
    again = given[1]
    assert [is_nearly_grey(face) for face in again] == grey.tolist()
