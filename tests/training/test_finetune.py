"""Tuning on a toy: it learns, resumes to the same weights, and moves what it should."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from bfr_core.damage.estimate import KnownDamage
from bfr_core.damage.grey import is_grey
from bfr_core.damage.spectra import ring_middles
from bfr_core.damage.transplant import damage_filter, transplanted
from bfr_core.pixels import luma
from bfr_core.restorers import Restorer
from bfr_core.training import batches, objectives
from bfr_core.training import finetune as finetuning
from bfr_core.training.batches import SharpFaces, batch_of, split
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import cosine, finetune, held_out_score, learning_rate
from bfr_core.training.objectives import Batch, Codes, Pixels, Terms, weighted

CONFIG = FinetuneConfig(
    iterations=12, batch_size=4, micro_batch=2, lr=1e-2, lr_end=1e-3, perceptual=0, adversarial=0, texture=0.1,
    ema=0.5, judge_every=4, checkpoint_seconds=0, precision="float32",
)  # fmt: skip


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.constant_(self.get_parameter("conv.bias"), 0)

    def forward(self, x):
        return self.conv(x)


def toy():
    return Restorer(module=Toy().eval().requires_grad_(False), architecture="Toy", size=32, name="toy")


@pytest.fixture(scope="module")
def pairs():
    clean = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(0.5 * x, x) for x in clean]  # the damage: half the light


class Stop(Exception):
    pass


def stop_at(last):
    """A callback that ends the tuning after this step."""

    def stop(step, total, progress):
        if step == last:
            raise Stop

    return stop


def flat(state, path=""):
    """What a checkpoint holds, by dotted path."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for name, part in items for k, v in flat(part, f"{path}.{name}").items()}
    return {path: state}


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    )


def test_tuning_lowers_the_held_out_score(pairs):
    _, progress = finetune(toy(), pairs, replace(CONFIG, iterations=40))
    first, last = progress.held_out[0][1], progress.held_out[-1][1]
    assert last < 0.7 * first


def test_the_base_is_left_as_it_was(pairs):
    base = toy()
    tuned, _ = finetune(base, pairs, CONFIG)
    assert same(base, toy()) and not same(base, tuned)
    assert not base.module.training and not any(p.requires_grad for p in base.module.parameters())


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_stopped_anywhere_and_resumed_gives_the_same_weights(pairs, tmp_path, adversarial):
    config = replace(CONFIG, adversarial=adversarial, discriminator_features=8, anchor=0.25, transplant=0.5)
    whole, _ = finetune(toy(), pairs, config)

    class Stop(Exception):
        pass

    def stop(step, total, progress):
        if step == 7:
            raise Stop

    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Stop):
        finetune(toy(), pairs, config, checkpoint=checkpoint, callback=stop)
    resumed, progress = finetune(toy(), pairs, config, checkpoint=checkpoint)
    assert progress.step == config.iterations
    assert same(whole, resumed)


def test_a_checkpoint_of_other_faces_is_not_used(pairs, tmp_path):
    checkpoint = tmp_path / "last.pt"
    finetune(toy(), pairs, CONFIG, checkpoint=checkpoint, fingerprint="one folder")
    _, progress = finetune(toy(), pairs, CONFIG, checkpoint=checkpoint, fingerprint="another")
    assert len(progress.losses["l1"]) == CONFIG.iterations, "all steps were done again"


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"micro_batch": 3}, {"recompute": True}], ids=str)
def test_what_saves_memory_may_change_under_way(pairs, tmp_path, change):
    """It ends as if nothing had been changed, but for rounding: adversarial term, examples and anchor included."""
    config = replace(
        CONFIG, adversarial=0.1, discriminator_features=8, anchor=0.5, transplant=0.5, micro_batch=4, lr=1e-3
    )
    examples = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole, expected = finetune(toy(), pairs, config, examples=examples)

    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Stop):
        finetune(toy(), pairs, config, checkpoint=checkpoint, examples=examples, callback=stop_at(5))
    steps = []
    other = replace(config, **change)
    assert other.lasting == config.lasting
    resumed, progress = finetune(
        toy(), pairs, other, checkpoint=checkpoint, examples=examples, callback=lambda step, *_: steps.append(step)
    )
    assert min(steps) == 6 and not progress.notes
    for name in ("l1", "adversarial", "discriminator"):
        assert dict(progress.losses[name]) == pytest.approx(dict(expected.losses[name]), rel=1e-4), name
    for a, b in zip(whole.module.state_dict().values(), resumed.module.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_another_interval_of_comparisons_holds_from_the_next_on_and_is_noted(pairs, tmp_path):
    checkpoint = tmp_path / "last.pt"
    with pytest.raises(Stop):
        finetune(toy(), pairs, CONFIG, checkpoint=checkpoint, callback=stop_at(5))
    config = replace(CONFIG, judge_every=3)
    assert config.lasting == CONFIG.lasting
    for _ in range(2):  # said once, and kept
        _, progress = finetune(toy(), pairs, config, checkpoint=checkpoint)
        assert [step for step, _ in progress.held_out] == [0, 4, 6, 9, 12]
        assert progress.notes == ["judge_every was 4 up to step 5 and is 3 from the next comparison on"]


def test_a_checkpoint_of_other_settings_is_kept_aside_named_and_gone_on_with(pairs, tmp_path, caplog):
    checkpoint = tmp_path / "last.pt"
    other = replace(CONFIG, lr=5e-3, texture=0.2)
    with pytest.raises(Stop):
        finetune(toy(), pairs, CONFIG, checkpoint=checkpoint, fingerprint="a", callback=stop_at(7))
    before = checkpoint.read_bytes()
    _, progress = finetune(toy(), pairs, other, checkpoint=checkpoint, fingerprint="b")
    (kept,) = set(tmp_path.iterdir()) - {checkpoint}
    assert kept.read_bytes() == before and len(progress.losses["l1"]) == 12
    said = f"lr, texture changed since the checkpoint of step 7, which is kept as {kept.name}; tuning started anew"
    assert progress.notes == [said] and said in caplog.text
    assert finetune(toy(), pairs, other, checkpoint=checkpoint, fingerprint="b")[1].notes == [said], "and it stays said"

    steps = []
    _, progress = finetune(
        toy(), pairs, CONFIG, checkpoint=checkpoint, fingerprint="a", callback=lambda step, *_: steps.append(step)
    )
    assert min(steps) == 8 and not progress.notes, "back at the earlier settings it goes on where that tuning was"
    _, progress = finetune(toy(), pairs, other, checkpoint=checkpoint, fingerprint="b")
    assert progress.step == 12 and progress.notes == [said]
    assert len(list(tmp_path.iterdir())) == 2
    finetune(toy(), pairs, other, checkpoint=checkpoint, fingerprint="c")
    assert "faces, targets or the base restorer changed since the checkpoint of step 12" in caplog.text


def test_every_share_of_the_anchor_has_its_own_weight(pairs):
    """Of a small batch its faces are a whole number; its weight is not."""
    config = replace(CONFIG, batch_size=2, iterations=4)
    tuned = [finetune(toy(), pairs, replace(config, anchor=share))[0] for share in (0.05, 0.25, 0.5, 0.75, 1.0)]
    assert not any(same(a, b) for a, b in pairwise(tuned))


@pytest.mark.parametrize("where", ["first pass", "second pass", "anchor", "between passes"])
def test_a_step_cancelled_half_way_leaves_nothing_different(pairs, tmp_path, monkeypatch, where):
    config = replace(
        CONFIG, adversarial=0.1, discriminator_features=8, anchor=0.5, transplant=0.5, trainable="lora", lr=1e-3
    )
    checkpoint, base, generator = tmp_path / "last.pt", toy(), torch.get_rng_state()
    with pytest.raises(Stop):
        finetune(base, pairs, config, checkpoint=checkpoint, callback=stop_at(5))
    before = torch.load(checkpoint, weights_only=True)

    calls = iter(range(100))
    at = {"first pass": 0, "second pass": 1, "between passes": 1}

    def cancelled(real, stops):
        def call(*args):
            if stops():
                raise Stop
            return real(*args)

        return call

    if where == "anchor":
        monkeypatch.setattr(Pixels, "anchor", cancelled(Pixels.anchor, lambda: True))
    elif where == "between passes":
        monkeypatch.setattr(Batch, "placed", cancelled(Batch.placed, lambda: next(calls) == 1))
    else:
        loss = finetuning.discriminator_loss
        monkeypatch.setattr(finetuning, "discriminator_loss", cancelled(loss, lambda: next(calls) == at[where]))
    with pytest.raises(Stop):
        finetune(base, pairs, config, checkpoint=checkpoint)
    after = torch.load(checkpoint, weights_only=True)
    assert list(flat(before)) == list(flat(after))
    for name, value in flat(before).items():
        other = flat(after)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert any("_u" in name for name in flat(before)), "the discriminator's norms are among what was compared"
    assert torch.equal(generator, torch.get_rng_state())


def test_more_iterations_continue(pairs, tmp_path):
    checkpoint = tmp_path / "last.pt"
    finetune(toy(), pairs, CONFIG, checkpoint=checkpoint)
    steps = []
    config = replace(CONFIG, iterations=15)
    finetune(toy(), pairs, config, checkpoint=checkpoint, callback=lambda step, *_: steps.append(step))
    assert sorted(set(steps)) == [13, 14, 15]


def test_the_result_is_the_best_of_the_moving_average(pairs):
    # A learning rate that destroys the network: the base itself is the best, and is what comes back.
    tuned, progress = finetune(toy(), pairs, replace(CONFIG, lr=10.0, lr_end=10.0))
    assert progress.best_step == 0 and same(tuned, toy())


def test_minutes_end_the_tuning(pairs):
    _, progress = finetune(toy(), pairs, replace(CONFIG, iterations=10**9, minutes=0.01))
    assert 0 < progress.step < 10**6 and progress.seconds >= 0.6


def test_nan_is_refused_and_the_checkpoint_survives(pairs, tmp_path):
    checkpoint = tmp_path / "last.pt"
    broken = [(torch.full_like(lq, torch.nan), target) for lq, target in pairs]
    with pytest.raises(ValueError, match="NaN at step 0"):
        finetune(toy(), broken, replace(CONFIG, held_out=0), checkpoint=checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["net"].values())


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_no_number_is_refused_before_it_is_in_the_weights(pairs, tmp_path, monkeypatch, clip):
    """The loss may be sound, as with a square root at 0; the next session goes on from the last sound step."""
    checkpoint, passes = tmp_path / "last.pt", finetuning.gradients

    def broken(tuning, *given, **more):
        losses = passes(tuning, *given, **more)
        if tuning.progress.step == 7:
            tuning.net.conv.weight.grad[0, 0, 0, 0] = torch.inf
        return losses

    config = replace(CONFIG, clip=clip)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "gradients", broken)
        with pytest.raises(ValueError, match="the gradient became NaN at step 7; try a lower lr"):
            finetune(toy(), pairs, config, checkpoint=checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.isfinite(v).all() for part in ("net", "ema") for v in state[part].values())
    resumed, _ = finetune(toy(), pairs, config, checkpoint=checkpoint)
    whole, _ = finetune(toy(), pairs, config)
    assert torch.equal(*(net.module.get_parameter("conv.weight") for net in (resumed, whole)))


def test_too_little_memory_halves_the_pass_and_goes_on(pairs, monkeypatch):
    whole, _ = finetune(toy(), pairs, replace(CONFIG, micro_batch=1))
    real, sizes = Pixels.terms, []

    def small(self, student, batch):
        sizes.append(len(batch.lq))
        if len(batch.lq) > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return real(self, student, batch)

    monkeypatch.setattr(Pixels, "terms", small)
    tuned, progress = finetune(toy(), pairs, replace(CONFIG, micro_batch=4, held_out=0.1))
    assert progress.step == CONFIG.iterations and sizes[:7] == [1, 1, 1, 1, 4, 2, 1]  # four held out, then a pass
    assert same(tuned, whole)
    monkeypatch.setattr(Pixels, "terms", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("no room")))
    with pytest.raises(ValueError, match="try low_memory"):
        finetune(toy(), pairs, replace(CONFIG, held_out=0))


@pytest.mark.parametrize("change", [{"recompute": True}, {"halve_at": (0.5,)}, {"trainable": "lora"}], ids=str)
def test_ways_of_tuning_all_learn(pairs, change):
    _, progress = finetune(toy(), pairs, replace(CONFIG, iterations=30, **change))
    assert progress.held_out[-1][1] < 0.9 * progress.held_out[0][1]


def test_the_rate_is_halved_where_it_is_said():
    config = replace(CONFIG, lr=1.0, halve_at=(0.5, 0.75))
    assert [learning_rate(config, d) for d in (0.0, 0.49, 0.5, 0.8)] == [1.0, 1.0, 0.5, 0.25]


def test_a_donors_filter_is_found_once(pairs, monkeypatch):
    sought = []

    def find(*faces):
        sought.append(faces)
        return damage_filter(*faces)

    monkeypatch.setattr(batches, "damage_filter", find)
    config = replace(CONFIG, transplant=1.0, judged_on="transplanted", held_out=0.25)
    tuned, _ = finetune(toy(), pairs, config)
    assert len(sought) == len(pairs), "48 faces were drawn, each of the 12 a donor several times"
    monkeypatch.setattr(batches, "transplanted", lambda target, lq, clean, *_: transplanted(target, lq, clean))
    assert same(tuned, finetune(toy(), pairs, config)[0])


def test_held_out_faces_may_be_judged_on_damage_whose_answer_is_known(pairs):
    """A base that gives just the targets is best on their own damage, whatever a tuning learns."""
    base = toy()
    own = [(lq, base(lq[None])[0]) for lq, _ in pairs]
    config = replace(CONFIG, held_out=0.25, transplant=1.0)
    assert finetune(base, own, config)[1].held_out[0][1] == pytest.approx(0, abs=1e-6)
    seen = replace(config, judged_on="transplanted")
    held = split(len(own), config)[1]
    objective = Pixels(base, config.weights, None)
    expected = [
        float(weighted(objective.terms(base, batch_of(own, [(f, False)], [d])).losses, config.weights))
        for f, d in zip(held, [*held[1:], held[0]], strict=True)
    ]
    assert held_out_score(base, objective, own, held, seen) == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    with pytest.raises(ValueError, match="judged_on"):
        replace(CONFIG, judged_on="all")  # type: ignore[arg-type]


def test_the_perceptual_loss_sees_faces_shifted_anew_in_every_step(pairs):
    seen = []

    def perceptual(restored, target):
        seen.append((restored.detach().shape, target))
        return (restored - target).square().mean()

    config = replace(CONFIG, perceptual=0.1, shift=4, held_out=0, mirror=False)
    finetune(toy(), pairs, config, perceptual=perceptual)
    faces, places = [target for _, target in pairs], []
    for shape, targets in seen:
        assert shape == targets.shape == (2, 3, 28, 28)
        windows = {(y, x): [face[:, y : y + 28, x : x + 28] for face in faces] for y in range(4) for x in range(4)}
        places += [place for place, some in windows.items() if any(torch.equal(face, targets[0]) for face in some)]
    assert places[::2] == places[1::2], "all faces of a step alike, however many are in the network at once"
    assert len(places) == 24 and len(set(places)) > 6
    finetune(toy(), pairs, replace(config, shift=0), perceptual=perceptual)
    assert seen[-1][0] == (2, 3, 32, 32)


def test_the_learning_rate_rises_during_the_warmup():
    config = replace(CONFIG, iterations=100, lr=1.0, lr_end=1.0, warmup=0.1)
    assert [round(learning_rate(config, d), 6) for d in (0.0, 0.04, 0.09, 0.5, 1.0)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="warmup"):
        replace(CONFIG, warmup=1.5)


def test_no_faces():
    with pytest.raises(ValueError, match="no faces"):
        finetune(toy(), [], CONFIG)


def test_cosine_ends_where_it_should():
    assert cosine(2.0, 1.0, 0) == 2.0 and cosine(2.0, 1.0, 1) == pytest.approx(1.0)
    assert cosine(2.0, 1.0, 0.5) == pytest.approx(1.5)


def test_a_pause_gives_the_best_so_far_and_changes_nothing(pairs, tmp_path):
    checkpoint, steps = tmp_path / "last.pt", []
    config = replace(CONFIG, iterations=5, judge_every=100)
    whole, _ = finetune(toy(), pairs, config)
    base = toy()
    pauses = 0
    while True:
        result, progress = finetune(base, pairs, config, checkpoint=checkpoint, pause_after=1e-9)
        steps.append(progress.step)
        if progress.step == config.iterations or pauses > 10:
            break
        pauses += 1
        if progress.step:
            assert progress.best_step == progress.step and not same(base, result), "the pause itself is compared"

        class Stop(Exception):
            pass

        def stop(step, total, state):
            raise Stop

        with pytest.raises(Stop):
            finetune(base, pairs, config, checkpoint=checkpoint, callback=stop)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert same(whole, result)


def test_ended_while_checkpoints_are_compared_it_goes_on_there(tmp_path):
    clean = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs, checkpoint = [(0.5 * x, x) for x in clean], tmp_path / "last.pt"
    whole, expected = finetune(toy(), pairs, CONFIG)

    class Stop(Exception):
        pass

    seen = []

    def stop(step, total, progress):
        seen.append(step)
        if step == 4 and seen.count(4) == 2:  # the second of four held-out faces
            raise Stop

    with pytest.raises(Stop):
        finetune(toy(), pairs, CONFIG, checkpoint=checkpoint, callback=stop)
    resumed, progress = finetune(toy(), pairs, CONFIG, checkpoint=checkpoint)
    assert progress.held_out == expected.held_out and same(whole, resumed)


def test_the_moving_average_can_be_watched(pairs):
    seen = []
    finetune(toy(), pairs, CONFIG, watch=lambda average, progress: seen.append((progress.step, average.name)))
    assert seen == [(step, "toy") for step in range(1, 13)]


def test_checkpoints_are_compared_on_sharp_faces_that_were_not_trained_on(pairs):
    base = toy()
    faces = torch.rand(8, 3, *pairs[0][0].shape[1:], generator=torch.Generator().manual_seed(5))
    ones = torch.ones(3, len(ring_middles(32)), dtype=torch.float64)
    sharp = SharpFaces(faces, KnownDamage(ones, ones, ones), held=2)
    own = list(pairs)
    config = replace(CONFIG, judged_on="sharp", sharp=0.5)
    seen = []

    class Watched(Pixels):
        def terms(self, student: Restorer, batch: Batch) -> Terms:
            seen.extend(batch.keys)
            return super().terms(student, batch)

    watched = Watched(base, config.weights, None)
    held_out_score(base, watched, own, [0, 1, 2], config, sharp=sharp)
    assert [key for key, _ in seen] == [len(own) + 6, len(own) + 7, len(own) + 6]
    seen.clear()
    held_out_score(base, watched, own, [0], config, sharp=sharp)
    assert [key for key, _ in seen] == [len(own) + 6, len(own) + 7], "on all of them, however few faces are held out"
    seen.clear()
    held_out_score(base, watched, own, [0, 1, 2], config)  # there are none: transplanted
    assert [key for key, _ in seen] == [0, 1, 2]


def test_a_grey_target_has_codes_of_its_own(monkeypatch):
    """A face is learned from in colours under the damage of one donor and in grey under that of another."""
    seen: list[bool] = []

    class Base:
        codebook = None

        def target_codes(self, targets):
            seen.extend(is_grey(target) for target in targets)
            return torch.zeros(len(targets), 4, dtype=torch.long)

        def codes(self, lq):
            return None

    monkeypatch.setattr(objectives, "code_losses", lambda *_: {})
    monkeypatch.setattr(objectives, "_codeformer", lambda student: student)
    colours, grey = torch.rand(2, 3, 32, 32), luma(torch.rand(2, 3, 32, 32)).expand(-1, 3, -1, -1)
    own = [tuple(colours), tuple(grey), tuple(colours.flip(0))]
    codes = Codes(Base())  # type: ignore[arg-type]
    for donor in (1, 2, 1):
        codes.terms(Base(), batch_of(own, [(0, False)], [donor]))  # type: ignore[arg-type]
    assert seen == [True, False]
