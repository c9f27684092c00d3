"""The published recipe: every setting decided, each line of it as one whole step by its formulas, and who uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published_shapes import small_network
from torch import Tensor, nn

from bfr_core.adaptation import published as recipes
from bfr_core.adaptation.config import AdaptConfig
from bfr_core.adaptation.published import LEFT_TO_USER, PUBLISHED, PUBLISHED_BY_CODES, leaves, recipe_of, recipe_with
from bfr_core.cli.commands import main
from bfr_core.restorers import ADAPTERS, Restorer, load_restorer
from bfr_core.restorers.load import SHIPPED
from bfr_core.training.batches import micro_batches, split
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.discriminator import UNetDiscriminator
from bfr_core.training.finetune import finetune, learning_rate, prepare
from bfr_core.training.stochastic_depth import drawing, switch_on

SIDE = 16


def small(name: str) -> Restorer:
    torch.manual_seed(0)
    module = small_network(name).eval().requires_grad_(False)
    return ADAPTERS[name](module=module, architecture=name, size=64, name=name)


class Scale(nn.Module):
    """Multiplies each channel by a number: its gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.8, 0.9, 1.1]).view(3, 1, 1))

    def forward(self, lq: Tensor) -> Tensor:
        return lq * self.scale


def scaling() -> Restorer:
    return Restorer(module=Scale().requires_grad_(False), architecture="Scale", size=SIDE, name="scale")


def faces(count: int, seed: int, side: int = SIDE) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS's file is taken to be there; nothing here reads it."""
    monkeypatch.setattr(recipes, "find_vgg", lambda: Path("vgg"))


# ---------------------------------------------------------------- every setting


def undecided(config: AdaptConfig) -> set[str]:
    return set(leaves(config)) - set(PUBLISHED) - LEFT_TO_USER


def test_every_setting_is_decided_or_left_to_the_user_by_name() -> None:
    assert not undecided(AdaptConfig()), "decide them in PUBLISHED, or name them in LEFT_TO_USER"
    assert not (set(PUBLISHED) | LEFT_TO_USER) - set(leaves(AdaptConfig())), "there are no such settings any more"
    assert not set(PUBLISHED) & LEFT_TO_USER and set(PUBLISHED_BY_CODES) <= set(PUBLISHED)


def test_a_setting_that_is_added_later_is_noticed() -> None:
    @dataclass(frozen=True)
    class Later(FinetuneConfig):
        added: float = 0.5

    assert undecided(replace(AdaptConfig(), finetune=Later())) == {"finetune.added"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "SwinIR",
            {"iterations": 20_000, "batch_size": 16, "micro_batch": 4, "lr": 2e-5, "lr_end": 5e-6, "halve_at": ()}
            | {"l1": 1.0, "perceptual": 0.4, "adversarial": 0.1, "critic_lr": 2e-5, "critic_betas": (0.9, 0.999)}
            | {"ema": 0.0, "mirror": False, "stochastic_depth": True, "perceptual_by": "lpips"},
        ),
        (
            "CodeFormer",
            {"iterations": 40_000, "batch_size": 8, "lr": 1e-4, "halve_at": (0.875, 0.95), "ema": 0.995}
            | {"feature": 1.0, "code": 0.5, "mirror": True},
        ),
    ],
)
def test_the_tables_are_the_papers(name: str, wanted: dict[str, Any]) -> None:
    config = recipe_with(small(name), "published", {"album.real": "anybody"})
    tuning = config.finetune
    assert {key: getattr(tuning, key) for key in wanted} == wanted
    assert tuning.betas == (0.9, 0.99) and not tuning.ema_warmup
    # Nothing of ours.
    assert (tuning.clip, tuning.warmup, tuning.texture, tuning.anchor, tuning.transplant, tuning.held_out) == (0,) * 6
    assert tuning.precision == config.targets.precision == "float32" and tuning.trainable == "full"
    assert config.gate.limit == 0 and not config.album.find and not config.album.good and config.recipe == "published"
    targets = config.targets
    assert (targets.t_clean, targets.search, targets.detail, targets.reference) == (0, (), 1.0, "restored")
    sampler = targets.sampler
    assert (sampler.kind, sampler.num_steps, sampler.t_start, sampler.t_constrain_end) == ("paper", 250, 150, 90)
    assert sampler.factor == (8 if name == "CodeFormer" else 16)


def test_codeformers_rate_is_halved_after_35000_and_38000_steps() -> None:
    config = recipe_of(small("CodeFormer"), "published").finetune
    rates = [learning_rate(config, step / config.iterations) for step in (0, 34_999, 35_000, 37_999, 38_000, 39_999)]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5])


def test_what_the_user_changes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = recipe_with(small("SwinIR"), "published", {"finetune.iterations": 100, "finetune.seed": 3})
    assert config.finetune.iterations == 100 and config.finetune.seed == 3
    assert "the published recipe is changed: finetune.iterations 100 (20000)" in caplog.messages
    assert any("takes the pseudo targets for real" in line for line in caplog.messages)
    caplog.clear()
    recipe_with(small("CodeFormer"), "published")
    recipe_with(small("SwinIR"), "recommended", {"finetune.iterations": 100})
    assert not caplog.messages
    with pytest.raises(ValueError, match="recipe is 'else'; it must be one of recommended, published"):
        recipe_with(small("SwinIR"), "else")


def test_without_lpips_it_is_refused_in_one_line_unless_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "find_vgg", lambda: None)
    with pytest.raises(ValueError, match="^recipe published: perceptual must be LPIPS here") as said:
        recipe_with(small("SwinIR"), "published")
    assert "\n" not in str(said.value)
    assert recipe_with(small("SwinIR"), "published", {"finetune.perceptual": 0.0}).finetune.perceptual == 0
    assert recipe_with(small("CodeFormer"), "published").finetune.code == 0.5  # has no such term
    assert recipe_with(small("SwinIR"), "recommended").finetune.perceptual_by == "any"


# ---------------------------------------------------------------- one step, by its formulas


class Adam:
    """Adam as written in arXiv:1412.6980, algorithm 1, in float64."""

    def __init__(self, parameters: Sequence[Tensor], betas: tuple[float, float]) -> None:
        self.first, self.second = ([torch.zeros_like(p).double() for p in parameters] for _ in range(2))
        self.betas, self.steps = betas, 0

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> None:
        self.steps += 1
        one, two = self.betas
        for p, g, m, v in zip(parameters, gradients, self.first, self.second, strict=True):
            g = g.double()
            m.copy_(one * m + (1 - one) * g)
            v.copy_(two * v + (1 - two) * g * g)
            change = (m / (1 - one**self.steps)) / ((v / (1 - two**self.steps)).sqrt() + 1e-8)
            p.data.sub_((rate * change).to(p))


def lpips_of_each(a: Tensor, b: Tensor) -> Tensor:
    """Stands for LPIPS, one number an image; so steep that the gradient's norm is far above one."""
    return 100 * (a - b).square().mean((1, 2, 3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "checkpoint.pt"


def test_swinirs_steps_are_those_of_the_formulas(checkpoint: Path) -> None:
    """Two steps: L1 + 0.1 times the sum of LPIPS over each four + 0.1 GAN; both optimizers; no clipping, no average."""
    lq, targets, real = faces(16, 0), faces(16, 1), faces(1, 2)
    preset = recipe_with(small("SwinIR"), "published", {"album.real": "anybody"}).finetune
    assert preset.discriminator_features == 64  # fewer do here
    config = replace(preset, iterations=2, checkpoint_seconds=0.0, discriminator_features=16)
    tuned, progress = finetune(
        scaling(),
        list(zip(lq, targets, strict=True)),
        config,
        checkpoint=checkpoint,
        perceptual=lambda a, b: lpips_of_each(a, b).mean(),
        real=real,
    )

    scale = Scale().scale
    torch.manual_seed(0)
    critic = UNetDiscriminator(16).eval()  # its norms are renewed once a step, not in each pass
    critics: list[Tensor] = list(critic.parameters())
    ours, theirs = Adam([scale], (0.9, 0.99)), Adam(critics, (0.9, 0.999))
    norms = []
    for step in range(2):
        gradient, critic_gradient = torch.zeros_like(scale), [torch.zeros_like(p) for p in critics]
        for batch in micro_batches(list(zip(lq, targets, strict=True)), list(range(16)), step, config):
            some = [face for face, _ in batch.keys]  # four faces a pass; the mean over the passes
            restored, wanted = lq[some] * scale, targets[some]
            l1 = (restored - wanted).abs().mean()
            gan = -torch.log(torch.sigmoid(critic(restored))).mean()
            loss = l1 + 0.1 * lpips_of_each(restored, wanted).sum() + 0.1 * gan
            gradient += torch.autograd.grad(loss, scale)[0] / 4
            seen, made = torch.sigmoid(critic(real.expand(4, -1, -1, -1))), torch.sigmoid(critic(restored.detach()))
            critic_loss = -torch.log(seen).mean() - torch.log(1 - made).mean()
            for total, g in zip(critic_gradient, torch.autograd.grad(critic_loss, critics), strict=True):
                total += g / 4
        norms.append(float(gradient.norm()))
        ours.step([scale], [gradient], 5e-6 + (2e-5 - 5e-6) * 0.5 * (1 + math.cos(math.pi * step / 2)))
        theirs.step(critics, critic_gradient, 2e-5)
        critic.renew_norms()

    assert min(norms) > 2  # clipping to 1, as ours, would show
    kept = torch.load(checkpoint, weights_only=True)
    before = Scale().scale
    assert torch.allclose(kept["net"]["scale"] - before, scale - before, rtol=2e-3)
    assert torch.equal(tuned.module.scale, kept["net"]["scale"])  # type: ignore[arg-type]
    assert progress.best_step == 2 and not progress.held_out
    assert torch.allclose(kept["optimizer"]["state"][0]["exp_avg"].double(), ours.first[0], rtol=1e-4)
    assert torch.allclose(kept["optimizer"]["state"][0]["exp_avg_sq"].double(), ours.second[0], rtol=1e-4)
    for number, (name, p) in enumerate(critic.named_parameters()):
        state = kept["critic_optimizer"]["state"][number]
        least = 1e-3 * float(theirs.second[number].abs().max())
        assert torch.allclose(state["exp_avg_sq"].double(), theirs.second[number], rtol=2e-3, atol=least), name
        moved = (kept["critic"][name] - p).abs().max()
        assert moved < 2e-6, f"{name} moved by {moved} more than its 2 steps of 2e-5"


def test_codeformers_first_step_is_that_of_the_formulas(checkpoint: Path) -> None:
    """MSE to the code vectors + 0.5 cross-entropy, mirrored at random; Adam; the average from the first step."""
    base = small("CodeFormer")
    pairs = list(zip(faces(4, 3, 64), faces(4, 4, 64), strict=True))
    preset = recipe_with(base, "published").finetune
    config = replace(preset, iterations=1, seed=3, batch_size=4, micro_batch=2)
    tuned, _ = finetune(base, pairs, config, checkpoint=checkpoint)

    net, parameters = prepare(base, config)
    student, net_before = replace(base, module=net), [p.detach().clone() for p in parameters]
    batches = list(micro_batches(pairs, list(range(4)), 0, config))
    mirrored = [flag for batch in batches for _, flag in batch.keys]
    assert len(batches) == 2 and len(mirrored) == 4 and 0 < sum(mirrored) < 4
    total = torch.zeros(())
    for batch in batches:
        for face, flag in batch.keys:
            lq, target = (image.flip(-1)[None] if flag else image[None] for image in pairs[face])
            codes = base.target_codes(target)  # type: ignore[attr-defined]
            predicted = student.codes(lq)  # type: ignore[attr-defined]
            wanted = base.codebook[codes[0]].T.reshape(predicted.feature.shape)  # type: ignore[attr-defined]
            likelihood = predicted.logits.log_softmax(2)[0].gather(1, codes[0][:, None])
            total = total + ((predicted.feature - wanted) ** 2).mean() - 0.5 * likelihood.mean()
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(total / 4, parameters, allow_unused=True)

    kept = torch.load(checkpoint, weights_only=True)
    names = [name for name, _ in base.tuned_parameters(net)]
    compared, largest = 0, max(float(g.abs().max()) for g in gradients if g is not None)
    for number, (name, before, gradient) in enumerate(zip(names, net_before, gradients, strict=True)):
        if gradient is None:
            continue
        state = kept["optimizer"]["state"][number]
        assert torch.allclose(state["exp_avg"], 0.1 * gradient, rtol=1e-3, atol=1e-6 * largest), name
        assert torch.allclose(state["exp_avg_sq"], 0.01 * gradient**2, rtol=2e-3, atol=1e-8 * largest**2), name
        clear = gradient.abs() > 1e-3 * largest
        after = kept["net"][name]
        assert torch.allclose((after - before)[clear], -1e-4 * gradient[clear].sign(), rtol=0.05, atol=5e-7), name
        assert torch.equal(kept["ema"][name], before.lerp(after, 1 - 0.995)), name
        assert torch.equal(dict(tuned.module.named_parameters())[name], kept["ema"][name])
        compared += int(clear.sum())
    assert compared > 1000


def test_no_face_is_mirrored_and_all_are_trained_on() -> None:
    config = recipe_of(small("SwinIR"), "published").finetune
    train, held = split(40, config)
    assert len(train) == 40 and not held
    pairs = list(zip(faces(40, 0), faces(40, 1), strict=True))
    keys = [key for step in range(5) for batch in micro_batches(pairs, train, step, config) for key in batch.keys]
    assert {face for face, _ in keys} == set(range(40)) and not any(mirrored for _, mirrored in keys)
    ours = [key for step in range(5) for b in micro_batches(pairs, train, step, FinetuneConfig()) for key in b.keys]
    assert any(mirrored for _, mirrored in ours)


def test_the_discriminators_real_faces_are_not_mirrored_either() -> None:
    from bfr_core.training.batches import real_faces

    face = faces(1, 0)
    assert torch.equal(real_faces(face, 6, False, 0, "real"), face.expand(6, -1, -1, -1))
    mirrored = [torch.equal(made, face[0].flip(-1)) for made in real_faces(face, 32, True, 0, "real")]
    assert 8 < sum(mirrored) < 24


@pytest.mark.slow
def test_stochastic_depth_leaves_parts_out_while_tuning_and_never_else(tmp_path: Path) -> None:
    restorer = small("SwinIR")
    config = replace(
        recipe_with(restorer, "published", {"finetune.perceptual": 0.0}).finetune,
        iterations=2, batch_size=2, micro_batch=1, adversarial=0.0, lr=1e-3, lr_end=1e-3,
    )  # fmt: skip
    net, _ = prepare(restorer, config)
    lq = faces(2, 5, 64)
    assert torch.equal(net(lq), net(lq))
    assert switch_on(net) > 0

    def drawn(step: int) -> Tensor:
        with drawing(config, torch.device("cpu"), step, 0):
            return net(lq).detach()

    state = torch.get_rng_state()
    results = [drawn(step) for step in range(6)]
    assert torch.equal(results[0], drawn(0)) and torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(results[0], other) for other in results[1:])

    pairs = list(zip(faces(4, 6, 64), faces(4, 7, 64), strict=True))
    whole, _ = finetune(restorer, pairs, config)
    plain, _ = finetune(restorer, pairs, replace(config, stochastic_depth=False))
    again, _ = finetune(restorer, pairs, replace(config, recompute=True))

    def stop(step: int, total: int, progress: Any) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(restorer, pairs, config, checkpoint=tmp_path / "part.pt", callback=stop)
    resumed, _ = finetune(restorer, pairs, config, checkpoint=tmp_path / "part.pt")
    states = [one.module.state_dict() for one in (whole, resumed, again, plain)]
    gaps = [max(float((states[0][k] - s[k]).abs().max()) for k in s if s[k].is_floating_point()) for s in states[1:]]
    assert gaps[0] == 0 and gaps[1] < 1e-4 < gaps[2]
    anchored = [finetune(restorer, pairs, replace(config, anchor=1.0))[0].module.state_dict() for _ in range(2)]
    assert all(torch.equal(anchored[0][k], anchored[1][k]) for k in anchored[0])
    assert torch.equal(whole.module(lq), whole.module(lq))


# ---------------------------------------------------------------- who uses it


@pytest.fixture
def command(photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path) -> list[str]:
    return ["adapt", str(photos), "--run", str(tmp_path / "run"), "--aligned", "--restorer", str(tiny_restorer),
            "--prior", str(tiny_prior), "--recipe", "published", "--num-steps", "10", "--start", "4",
            "--constrain-end", "1", "--calls", "1", "--factor", "2", "--iterations", "2", "--batch-size", "2",
            "--perceptual", "0", "--set", "finetune.discriminator_features=4", "--json"]  # fmt: skip


def test_the_command_adapts_by_it_and_is_not_judged(
    command: list[str],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main([*command, "--real", str(photos / "below")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["steps"], found["best_step"]) == ("not_judged", 2, 2)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["recipe"] == {"name": "published", "real": str(photos / "below")}
    assert kept["finetune"]["betas"] == [0.9, 0.99] and kept["targets"]["sampler"]["kind"] == "paper"
    assert len(list((tmp_path / "run" / "real" / "faces").glob("*.png"))) == 5
    assert main([*command, "--real", str(photos)]) == 0  # other real faces: tuned anew
    shown = capsys.readouterr()
    assert "tuning started anew" in shown.err and json.loads(shown.out)["steps"] == 2


def test_real_faces_are_no_examples(command: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bfr_core.adaptation import tuning

    given: dict[str, Any] = {}
    monkeypatch.setattr(tuning, "finetune", lambda *args, **named: given.update(named) or finetune(*args, **named))
    assert main([*command, "--real", str(photos / "below")]) == 0
    assert given["examples"] is None and len(given["real"]) == 5 and given["real"][0].shape == (3, 32, 32)


def test_real_faces_without_a_discriminator_are_said_to_have_no_effect(
    command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = [*command, "--adversarial", "0"]
    assert main([*without, "--real", str(photos / "below")]) == 0
    assert "the real faces have no effect" in capsys.readouterr().err
    assert main(without) == 0  # they are no part of the tuning: it goes on
    said = capsys.readouterr().err
    assert "tuning started anew" not in said and "no effect" not in said


def test_the_stages_take_it_too(command: list[str], photos: Path, tmp_path: Path) -> None:
    run = ["--run", command[3], *command[5:9]]
    assert main(["faces", str(photos), "--run", command[3], "--aligned", *command[5:7]]) == 0
    assert main(["targets", *run, *command[9:21]]) == 0
    real = ["--recipe", "published", "--real", str(photos / "below"), "--aligned"]
    assert main(["finetune", *run, *real, *command[-9:-1]]) == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["finetune"]["critic_lr"] == 2e-5 and kept["targets"]["sampler"]["kind"] == "paper"
    assert len(list((tmp_path / "run" / "real" / "faces").glob("*.png"))) == 5
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"] == "not_judged"


def test_without_lpips_the_command_is_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "find_vgg", lambda: None)
    at = command.index("--perceptual")
    assert main(command[:at] + command[at + 2 :]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("bfr: recipe published: perceptual must be LPIPS here")
    assert not (tmp_path / "run").exists()


def test_the_page_adapts_by_it(
    photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bfr_core.web import jobs
    from bfr_core.web.actions import Page
    from bfr_core.web.choices import Choices

    seen: list[AdaptConfig] = []

    def adapt(folder: Path, run: Path, config: AdaptConfig, *more: Any, **named: Any) -> None:
        seen.append(config)
        raise ValueError("seen")

    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    monkeypatch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
    monkeypatch.setattr(jobs, "adapt", adapt)
    page = Page(tmp_path / "runs", [photos], "cpu")
    choices = Choices(aligned=True, recipe="published", real=str(photos / "below"))
    name, _ = page.new_run("paper", [], str(photos), choices)
    page.jobs.wait(page.run(name))
    page.adapt(name, choices)
    page.jobs.wait(page.run(name))
    kept = page.choices_of(name)
    assert (kept.recipe, kept.real) == ("published", str(photos / "below"))
    assert (
        kept.changes["finetune.iterations"] == 20_000 == page.defaults("embedded", "published")["finetune.iterations"]
    )
    base = page.restorer_named("embedded")
    own = {"faces.aligned": True, "album.real": str(photos / "below")}
    assert seen == [replace(recipe_with(base, "published", own), restorer="embedded")]
    with pytest.raises(ValueError, match="start with --allow DIR"):
        page.adapt(name, replace(choices, real=str(tmp_path)))
    monkeypatch.setattr(recipes, "find_vgg", lambda: None)
    with pytest.raises(ValueError, match="recipe published: perceptual must be LPIPS here"):
        page.adapt(name, choices)


def test_the_page_goes_on_with_a_published_run_of_the_command_line(
    command: list[str], tiny_restorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bfr_core.web.actions import Page

    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    assert main([*command, "--run", str(tmp_path / "runs" / "shell")]) == 0
    assert Page(tmp_path / "runs", [], "cpu").choices_of("shell").recipe == "published"


@pytest.mark.parametrize(("name", "sharp"), [("embedded", 0.5), ("SwinIR", 0.0)])
def test_targets_that_were_brought_along_are_at_least_half_of_the_answers(name: str, sharp: float) -> None:
    restorer = load_restorer() if name == "embedded" else replace(small(name), size=512)
    assert recipe_with(restorer, "recommended", brought=True).finetune.sharp == sharp
    own = {"finetune.sharp": 0.8}
    assert recipe_with(restorer, "recommended", own, brought=True).finetune.sharp == 0.8, "as the user sets it"
    assert recipe_with(restorer, "recommended").finetune.sharp == 2 * sharp
