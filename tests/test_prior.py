import json
import shutil

import pytest
import torch
from torch import nn

from bfr_core.prior import Prior, alpha_bar_of, load_prior
from bfr_core.schedule import linear_alpha_bar, q_sample

X0, EPS = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
T = torch.tensor([100, 700])


class Knows(nn.Module):
    """Answers with what it was told, whatever the input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t):
        return self.answer


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_gives_the_noise(prediction):
    alpha_bar = linear_alpha_bar()
    a = alpha_bar[T].float().view(-1, 1, 1, 1)
    x_t = a.sqrt() * X0 + (1 - a).sqrt() * EPS
    answer = {"epsilon": EPS, "v_prediction": a.sqrt() * EPS - (1 - a).sqrt() * X0, "sample": X0}[prediction]
    prior = Prior(Knows(answer), lambda x, t: [x], alpha_bar, prediction=prediction, size=8, name="test")
    eps, variance = prior(x_t, T)
    assert (eps - EPS).abs().max() < 1e-4 and variance is None


def test_learned_variance_is_split_off():
    prior = Prior(Knows(torch.cat([EPS, X0], 1)), lambda x, t: [x], linear_alpha_bar(), size=8, name="test")
    eps, variance = prior(X0, T)
    assert torch.equal(eps, EPS) and torch.equal(variance, X0)


def test_a_patchified_diffusers_folder_loads(tiny_prior):
    prior = load_prior(tiny_prior)
    assert (prior.patch, prior.size, prior.prediction) == (2, 32, "v_prediction")
    x_t = q_sample(torch.zeros(1, 3, 32, 32), 0.5, torch.ones(1, 3, 32, 32))
    eps, _ = prior(x_t, torch.tensor([10]))
    assert eps.shape == (1, 3, 32, 32)
    assert not any(p.requires_grad for p in prior.parameters())


def test_a_pipeline_folder_loads_alike(tiny_prior, tmp_path):
    shutil.copytree(tiny_prior, tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet" / "scheduler_config.json").rename(tmp_path / "scheduler" / "scheduler_config.json")
    x, t = torch.zeros(1, 3, 32, 32), torch.tensor([500])
    assert torch.equal(load_prior(tmp_path)(x, t)[0], load_prior(tiny_prior)(x, t)[0])


def test_features_reach_the_image(tiny_prior):
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    features = load_prior(tiny_prior).features(image)
    assert len(features) >= 3
    sum(f.square().sum() for f in features).backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_agree_with_diffusers(schedule):
    from diffusers import DDPMScheduler

    expected = getattr(DDPMScheduler(beta_schedule=schedule), "alphas_cumprod").double()  # noqa: B009
    assert (alpha_bar_of({"beta_schedule": schedule}) - expected).abs().max() < 1e-5


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="sigmoid"):
        alpha_bar_of({"beta_schedule": "sigmoid"})


def test_missing_prior_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_prior(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 10}, "do not fit|3 p\\^2"),
        ({"_class_name": "UNet2DConditionModel"}, "not a UNet2DModel"),
        ({"block_out_channels": [8, 10**6]}, "absurd"),
    ],
    ids=["channels", "class", "size"],
)
def test_a_config_that_does_not_fit_is_one_clear_line(tiny_prior, tmp_path, change, says):
    folder = tmp_path / "prior"
    shutil.copytree(tiny_prior, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says) as error:
        load_prior(folder)
    assert "\n" not in str(error.value)


def test_a_file_without_a_unet(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: no guided-diffusion U-Net"):
        load_prior(tmp_path / "other.pth")
