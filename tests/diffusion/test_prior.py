import json
import shutil
from typing import Any

import pytest
import torch
from published_shapes import NARROW_PRIOR, PRIOR_SETTINGS, prior_shapes, prior_state
from torch import nn

from bfr_core.diffusion.prior import Prior, alpha_bar_of, convert_prior, load_prior
from bfr_core.diffusion.schedule import linear_alpha_bar, q_sample

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


def test_features_may_be_computed_again_and_only_their_part_is_moved(tiny_prior, tmp_path):
    unet = {name: 0.05 * torch.randn(shape) for name, shape in prior_shapes(NARROW_PRIOR).items()}
    from safetensors.torch import save_file

    save_file(unet, tmp_path / "unet.safetensors", {"unet": json.dumps(PRIOR_SETTINGS)})
    for path, size in ((tiny_prior, 32), (tmp_path / "unet.safetensors", 64)):
        prior = load_prior(path)
        gradients: list[Any] = []
        for recompute in (False, True):
            image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
            sum(f.abs().mean() for f in prior.features(image, recompute)).backward()
            gradients.append(image.grad)
        kept, again = gradients
        assert torch.allclose(kept, again, rtol=1e-4, atol=1e-7) and kept.abs().sum() > 0
        prior.encoder_to("meta")
        moved = [p.device.type == "meta" for p in prior.parameters()]
        assert any(moved) and not all(moved)
        assert all(f.device.type == "meta" for f in prior.features(image.detach().to("meta")))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_agree_with_diffusers(schedule):
    from diffusers import DDPMScheduler

    expected = getattr(DDPMScheduler(beta_schedule=schedule), "alphas_cumprod").double()  # noqa: B009
    assert (alpha_bar_of({"beta_schedule": schedule}) - expected).abs().max() < 1e-5


def test_a_schedule_rescaled_to_end_in_noise_agrees_with_diffusers():
    from diffusers import DDIMScheduler

    config = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    expected = getattr(DDIMScheduler(**config), "alphas_cumprod").double()  # noqa: B009
    found = alpha_bar_of(config)
    assert (found - expected).abs().max() < 1e-5 and 0 < found[-1] < 1e-6


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_of_diffusers_first_version_loads(tmp_path, kind):
    """As google/ddpm-ema-celebahq-256: config and scheduler side by side, attention under its old names."""
    from diffusers import UNet2DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {
        "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [32, 32, 64], "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"], "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 1, "mid_block_scale_factor": 1,
        "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional", "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    net: Any = UNet2DModel(**config)
    net.eval()
    state = dict(net.state_dict())
    for new, old in OLD.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    assert any(".query." in name for name in state) and not any(".to_q." in name for name in state)
    first = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1.1"}
    (tmp_path / "config.json").write_text(json.dumps(first | config))
    schedule = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_end": 0.015, "clip_sample": True}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(schedule))
    if kind == "bin":
        torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    else:
        (tmp_path / "diffusion_pytorch_model.bin").write_text("the other file is taken")
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    prior = load_prior(tmp_path)
    x, t = torch.rand(1, 3, 32, 32), torch.tensor([500])
    with torch.no_grad():
        assert torch.allclose(prior(x, t)[0], net(x, t).sample, atol=1e-5)
    assert prior.size == 32 and torch.equal(prior.alpha_bar, linear_alpha_bar(last=0.015))
    assert [f.shape[1] for f in prior.features(x)] == [32, 32, 32, 32, 32, 64]


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
    with pytest.raises(ValueError, match="other.pth: it holds no guided-diffusion U-Net"):
        load_prior(tmp_path / "other.pth")


# ---------------------------------------------------------------- the published 512 x 512 prior


def written(folder, *widths):
    """A file as the published one, with random weights, and its settings beside it."""
    path = folder / "iddpm_ffhq512_ema500000.pth"
    torch.save({name: value.half() for name, value in prior_state(*widths).items()}, path)
    path.with_suffix(".json").write_text(json.dumps(PRIOR_SETTINGS))
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of exactly that shape."""
    return written(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A file of the same layers, narrower."""
    return written(tmp_path_factory.mktemp("narrow"), NARROW_PRIOR)


def test_the_published_prior_has_the_published_number_of_parameters():
    count = sum(torch.Size(shape).numel() for shape in prior_shapes().values())
    assert round(count / 1e6, 1) == 159.8


def test_the_published_prior_loads_from_its_shapes(published):
    prior = load_prior(published)
    assert prior.size == 512 and prior.patch == 1
    heads = {m.heads for m in prior.network.modules() if type(m).__name__ == "Attention"}
    assert heads == {4, 8}, "256 and 512 channels, 64 a head"
    eps, variance = prior(torch.rand(1, 3, 64, 64), torch.tensor([500]))
    assert eps.shape == (1, 3, 64, 64) and variance is not None and torch.isfinite(eps).all()


def test_a_converted_prior_is_the_same_prior(narrow, tmp_path):
    folder = convert_prior(narrow, tmp_path / "prior512")
    narrow.with_suffix(".json").rename(tmp_path / "kept.json")  # the folder needs nothing beside it
    try:
        converted = load_prior(folder)
    finally:
        (tmp_path / "kept.json").rename(narrow.with_suffix(".json"))
    original = load_prior(narrow)
    x, t = torch.rand(1, 3, 64, 64), torch.tensor([100])
    assert torch.equal(converted(x, t)[0], original(x, t)[0])
    assert (converted.name, converted.sha256) == (original.name, original.sha256)
    before = (folder / "prior.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds prior.safetensors already; give another folder"):
        convert_prior(narrow, folder)
    assert (folder / "prior.safetensors").read_bytes() == before


def test_heads_are_not_guessed(narrow, tmp_path):
    """Another number of heads than in training would give pictures, and wrong ones."""
    (tmp_path / "unknown.pth").symlink_to(narrow)
    with pytest.raises(
        ValueError, match=r"^unknown.pth: .*put a .json file of the same name beside it.*num_head_channels"
    ):
        load_prior(tmp_path / "unknown.pth")


def test_the_published_file_needs_nothing_beside_it(published, tmp_path, monkeypatch):
    """Its SHA-256 is in the table, which is made to hold that of the file that stands for it."""
    from bfr_core.diffusion import prior as module

    (known,) = module.KNOWN_SETTINGS.values()
    monkeypatch.setattr(module, "KNOWN_SETTINGS", {module.sha256_of(published): known})
    (tmp_path / "alone.pth").symlink_to(published)
    heads = {m.heads for m in load_prior(tmp_path / "alone.pth").network.modules() if type(m).__name__ == "Attention"}
    assert heads == {4, 8}


def test_a_checkpoint_of_a_wrapped_network_is_the_same_prior(narrow, tmp_path):
    state = torch.load(str(narrow), weights_only=True, mmap=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "step": 3}, tmp_path / "wrapped.pth")
    (tmp_path / "wrapped.json").write_text(json.dumps(PRIOR_SETTINGS))
    x, t = torch.rand(1, 3, 64, 64), torch.tensor([100])
    assert torch.equal(load_prior(tmp_path / "wrapped.pth")(x, t)[0], load_prior(narrow)(x, t)[0])


@pytest.mark.parametrize("kind", ["diffusers", "guided-diffusion"])
def test_on_a_cpu_weights_lie_channels_last_and_say_the_same(tiny_prior, narrow, kind):
    prior = load_prior(tiny_prior if kind == "diffusers" else narrow)

    def lie(layout: torch.memory_format) -> bool:
        kernels = [m.weight for m in prior.network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        return bool(kernels) and all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)

    image = torch.rand(1, 3, prior.size, prior.size, generator=torch.Generator().manual_seed(0))
    answer, _ = prior(image, T[:1])
    assert lie(torch.channels_last)
    prior.network.to(memory_format=torch.contiguous_format)
    plain, _ = prior(image, T[:1])
    assert torch.allclose(answer, plain, rtol=1e-4, atol=1e-5)
    prior.to("cpu")
    assert lie(torch.channels_last)
    prior.to("meta")
    assert lie(torch.contiguous_format)


def test_a_prior_with_a_layer_missing_is_one_clear_line(narrow, tmp_path):
    state = torch.load(narrow, weights_only=True)
    del state["middle_block.1.qkv.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth: its U-Net cannot be rebuilt") as error:
        load_prior(tmp_path / "part.pth")
    assert "\n" not in str(error.value)


def test_settings_in_metadata_that_are_no_settings(tmp_path):
    from safetensors.torch import save_file

    state = {"input_blocks.0.0.weight": torch.zeros(1), "time_embed.0.weight": torch.zeros(1)}
    save_file(state, tmp_path / "x.safetensors", {"unet": "[1"})
    with pytest.raises(ValueError, match="x.safetensors: its metadata 'unet' is not"):
        load_prior(tmp_path / "x.safetensors")


# ---------------------------------------------------------------- files that are not what they say


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers_per_block": 10**9}, "layers of absurd size or number"),
        ({"block_out_channels": [8] * 1000}, "layers of absurd size or number"),
        ({"block_out_channels": "88"}, "layers of absurd size|do not fit"),
        ({"norm_num_groups": 0}, "do not fit"),
        ({"in_channels": 10**9, "out_channels": 10**9}, "do not fit"),
        ({"down_block_types": ["Evil", "DownBlock2D"]}, "do not fit"),
        ({"sample_size": 10**12}, "sample_size is 1000000000000"),
        ({"sample_size": [16, 16]}, "sample_size is \\[16, 16\\]"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_absurd_configs_are_one_clear_line(tiny_prior, tmp_path, change, says):
    folder = tmp_path / "prior"
    shutil.copytree(tiny_prior, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^prior: .*({says})") as error:
        load_prior(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ('{"num_train_timesteps": 1e12}', "whole number from 2"),
        ('{"num_train_timesteps": 1000000000000}', "whole number from 2"),
        ('{"beta_start": "x"}', "cannot be used"),
        ('{"beta_start": NaN}', "noise levels outside"),
        ('{"beta_end": 7}', "noise levels outside"),
        ('{"trained_betas": [[]]}', "noise levels outside|cannot be used"),
        ('{"beta_schedule": "sigmoid"}', "beta_schedule is 'sigmoid'"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a table of settings"),
        ("\xff\xfe", "not valid JSON"),
        (" " * (1 << 20) + "{}", "has 1048578 bytes"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_absurd_schedules_are_one_clear_line(tiny_prior, tmp_path, scheduler, says):
    folder = tmp_path / "prior"
    shutil.copytree(tiny_prior, folder)
    (folder / "scheduler_config.json").write_text(scheduler, encoding="latin-1")
    with pytest.raises(ValueError, match=says) as error:
        load_prior(folder)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


SMALL_UNET = {
    "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3),
    "time_embed.0.weight": torch.zeros(128, 32),
    "out.2.weight": torch.zeros(6, 32, 3, 3),
}


@pytest.mark.parametrize(
    ("more", "metadata", "says"),
    [
        ({"input_blocks.999999999.0.weight": torch.zeros(1)}, {}, "numbers its layers up to 999999999"),
        ({"output_blocks.1." + "9" * 5000 + ".weight": torch.zeros(1)}, {}, "numbers its layers up to"),
        ({"input_blocks.1.0.weight": torch.zeros(1 << 17, 1)}, {}, "layers of absurd size"),
        ({"input_blocks.1.0.weight": torch.zeros(())}, {}, "cannot be rebuilt"),
        ({"time_embed.0.weight": torch.zeros(1)}, {}, "cannot be rebuilt"),
        ({}, {"unet": '{"image_size": "all"}'}, "image_size is 'all'|cannot be rebuilt"),
        ({}, {"unet": '{"image_size": 1000000}'}, "image_size is 1000000|cannot be rebuilt"),
        ({}, {"unet": "3"}, "not a table of settings"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_absurd_unets_are_one_clear_line(tmp_path, more, metadata, says):
    from safetensors.torch import save_file

    save_file(SMALL_UNET | more, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match=f"^x.safetensors: .*({says})") as error:
        load_prior(tmp_path / "x.safetensors")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


@pytest.mark.parametrize("settings", [{"num_head_channels": "x"}, {"num_head_channels": [64]}, {"num_heads": 7},
                                      {"image_size": 10**6}, {"image_size": None}], ids=str)  # fmt: skip
def test_settings_beside_the_published_prior_that_cannot_be(narrow, tmp_path, settings):
    path = tmp_path / "beside.pth"
    path.symlink_to(narrow)
    path.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"^beside.pth: ") as error:
        load_prior(path)
    assert str(error.value).isprintable()


def test_a_restorer_is_no_prior(tiny_restorer):
    with pytest.raises(ValueError, match="tiny.safetensors: it holds no guided-diffusion U-Net"):
        load_prior(tiny_restorer)


def test_a_converted_prior_is_not_read_twice(narrow, tmp_path, monkeypatch):
    """Its name and SHA-256 stand in the file; a hash of 640 MB would take as long as all the rest of loading."""
    folder = convert_prior(narrow, tmp_path / "prior512")
    monkeypatch.setattr("bfr_core.diffusion.prior.sha256_of", lambda path: pytest.fail("it was hashed"))
    assert load_prior(folder).name == narrow.name


@pytest.mark.parametrize("left_out", [1, 2, 3, 5])
def test_features_of_an_image_that_ends_within_a_patch(tiny_prior, left_out):
    """The perceptual loss sees faces without some rows and columns."""
    prior = load_prior(tiny_prior)
    image = torch.rand(1, 3, 32, 32)
    part = image[..., : 32 - left_out, left_out:].clone().requires_grad_()
    found = prior.features(part)
    sum(level.square().mean() for level in found).backward()
    assert part.grad is not None and part.grad.isfinite().all() and part.grad.abs().sum() > 0
    assert found[0].shape[-1] == -(-(32 - left_out) // prior.patch)


# ---------------------------------------------------------------- other guided-diffusion files


def adm_blocks(blocks, levels, attention, resamples_by_blocks):
    """Kinds of layers in input_blocks and output_blocks, as guided-diffusion's UNetModel lays them out."""
    down, up = ("down", "up") if resamples_by_blocks else ("op", "conv_up")
    inputs, outputs = [["conv"]], []
    for level in range(levels):
        attends = ["attention"] if level in attention else []
        inputs += [["res", *attends] for _ in range(blocks)]
        inputs += [[down]] if level < levels - 1 else []
    for level in reversed(range(levels)):
        attends = ["attention"] if level in attention else []
        outputs += [["res", *attends, *([up] if level and i == blocks else [])] for i in range(blocks + 1)]
    return inputs, outputs


def adm_layer(kind, given=32, width=32):
    def pair(name, *shape):
        return {f"{name}.weight": torch.randn(shape) / 20, f"{name}.bias": torch.zeros(shape[0])}

    if kind == "conv":
        return pair("", width, 3, 3, 3)
    if kind in ("op", "conv_up"):
        return pair(kind.removesuffix("_up"), width, width, 3, 3)
    if kind == "attention":
        return pair("norm", width) | pair("qkv", 3 * width, width, 1) | pair("proj_out", width, width, 1)
    made = pair("in_layers.0", given) | pair("in_layers.2", width, given, 3, 3) | pair("emb_layers.1", 2 * width, 128)
    made |= pair("out_layers.0", width) | pair("out_layers.3", width, width, 3, 3)
    return made | (pair("skip_connection", width, given, 1, 1) if given != width else {})


def adm_state(inputs, outputs):
    """Random tensors of a guided-diffusion network of one width, without conditions."""
    state = {f"time_embed.{i}.{k}": v for i, n in ((0, 32), (2, 128)) for k, v in
             {"weight": torch.randn(128, n) / 9, "bias": torch.zeros(128)}.items()}  # fmt: skip
    named = [(f"input_blocks.{i}", block, 32) for i, block in enumerate(inputs)]
    named += [("middle_block", ["res", "attention", "res"], 32)]
    named += [(f"output_blocks.{i}", block, 64) for i, block in enumerate(outputs)]
    for name, block, given in named:
        for j, kind in enumerate(block):
            layer = adm_layer(kind, given if j == 0 else 32)
            state |= {f"{name}.{j}.{k.removeprefix('.')}": v for k, v in layer.items()}
    state |= {"out.0.weight": torch.ones(32), "out.0.bias": torch.zeros(32)}
    return state | {"out.2.weight": torch.randn(6, 32, 3, 3) / 20, "out.2.bias": torch.zeros(6)}


@pytest.mark.parametrize("attention", [(), (1,), (2,)], ids=str)
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("by_blocks", [True, False])
def test_where_a_network_halves_and_doubles_is_read_off_its_shapes(tmp_path, blocks, attention, by_blocks):
    """As DPS's ffhq_10m.pt, which was trained with resblock_updown; what halves is else like any other block."""
    inputs, outputs = adm_blocks(blocks, 3, attention, by_blocks)
    torch.save(adm_state(inputs, outputs), tmp_path / "adm.pt")
    (tmp_path / "adm.json").write_text(json.dumps({"num_head_channels": 32, "image_size": 64}))
    prior = load_prior(tmp_path / "adm.pt")
    for ours, wanted in ((prior.network.input_blocks, inputs), (prior.network.output_blocks, outputs)):
        found = [[getattr(layer, "updown", None) for layer in block] for block in ours]
        assert found == [[kind if kind in ("down", "up") else None for kind in block] for block in wanted]
    eps, variance = prior(torch.rand(1, 3, 16, 16), torch.tensor([500]))
    assert eps.shape == variance.shape == (1, 3, 16, 16) and [f.shape[-1] for f in prior.features(X0[:1])][-1] == 2


@pytest.mark.parametrize(
    ("settings", "alpha_bar", "prediction"),
    [
        ({}, linear_alpha_bar(), "epsilon"),
        ({"diffusion_steps": 4000}, linear_alpha_bar(4000, 1e-4 / 4, 0.02 / 4), "epsilon"),
        (
            {"noise_schedule": "cosine", "diffusion_steps": 4000, "predict_xstart": True},
            alpha_bar_of({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000}),
            "sample",
        ),
    ],
    ids=["as ever", "more steps", "cosine"],
)
def test_what_a_network_was_trained_with_is_heard(narrow, tmp_path, caplog, settings, alpha_bar, prediction):
    (tmp_path / "own.pth").symlink_to(narrow)
    (tmp_path / "own.json").write_text(json.dumps({"num_head_channels": 64} | settings))
    prior = load_prior(tmp_path / "own.pth")
    assert torch.equal(prior.alpha_bar, alpha_bar) and prior.prediction == prediction
    assert "own.pth: does not say how large its images are; 512 x 512 is taken" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt'; it must be linear or cosine"),
        ({"noise_schedule": []}, "noise_schedule is \\[\\]"),
        ({"diffusion_steps": "all"}, "diffusion_steps"),
        ({"diffusion_steps": 500, "rescale_timesteps": True}, "rescale_timesteps is not supported"),
    ],
    ids=str,
)
def test_what_a_network_cannot_have_been_trained_with(narrow, tmp_path, settings, said):
    (tmp_path / "own.pth").symlink_to(narrow)
    (tmp_path / "own.json").write_text(json.dumps({"num_head_channels": 64} | settings))
    with pytest.raises(ValueError, match=f"^own.pth: {said}"):
        load_prior(tmp_path / "own.pth")


def test_a_network_that_is_told_classes_is_refused(tmp_path):
    torch.save(adm_state(*adm_blocks(1, 2, (), True)) | {"label_emb.weight": torch.zeros(9, 128)}, tmp_path / "c.pt")
    (tmp_path / "c.json").write_text('{"num_head_channels": 32}')
    with pytest.raises(ValueError, match=r"^c.pt: is told what a picture shows"):
        load_prior(tmp_path / "c.pt")


@pytest.mark.parametrize("kind", ["vqvae", "continuous time", "no betas"])
def test_foreign_pipelines_are_not_taken_for_priors_of_pixels(tiny_prior, tmp_path, kind):
    shutil.copytree(tiny_prior, tmp_path / "unet")
    config = json.loads((tmp_path / "unet/config.json").read_text())
    scheduler = json.loads((tmp_path / "unet/scheduler_config.json").read_text())
    if kind == "vqvae":
        (tmp_path / "vqvae").mkdir()
        said = "works on the latents of its vqvae"
    elif kind == "continuous time":
        config["time_embedding_type"], said = "fourier", "is told noise levels as 'fourier'"
    else:
        scheduler = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "num_train_timesteps": 1000}
        said = "was trained with a EDMEulerScheduler, which has no betas"
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(ValueError, match=f"^{tmp_path.name}: {said}"):
        load_prior(tmp_path)


def test_other_settings_beside_the_same_weights_are_another_prior(tiny_prior, tmp_path):
    """What was drawn by the wrong ones is not taken for what the right ones draw."""
    shutil.copytree(tiny_prior, tmp_path / "prior")
    before = load_prior(tmp_path / "prior")
    assert before.identity == load_prior(tiny_prior).identity
    (tmp_path / "prior/scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    now = load_prior(tmp_path / "prior")
    assert now.sha256 == before.sha256 and now.identity != before.identity
    (tmp_path / "prior/scheduler_config.json").write_text('{"prediction_type": "epsilon", "num_train_timesteps": 500}')
    assert load_prior(tmp_path / "prior").identity not in (now.identity, before.identity)
