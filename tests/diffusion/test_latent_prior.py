"""Stable Diffusion checkpoints as the prior: narrow ones in the published layouts, and, slowly, the whole ones."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from bfr_core.adaptation.targets import TargetConfig, make_pseudo_targets, suited_to
from bfr_core.diffusion import latent_prior
from bfr_core.diffusion.latent_prior import SD15, SDXL, Family, LatentPrior, from_single_file, holds_latent_prior
from bfr_core.diffusion.low_pass import low_pass
from bfr_core.diffusion.prior import load_prior
from bfr_core.diffusion.sampler import SamplerConfig, denoise_once, sample_constrained
from bfr_core.diffusion.schedule import linear_alpha_bar
from bfr_core.files.tensors import sha256_of
from bfr_core.restorers import load_restorer
from tests.checkpoint_layouts import CLIP_G, CLIP_L, FAMILIES, layout, layout_of, write_checkpoint

PROMPT = (60, 3, 5, 7, 61)
VAE: dict[str, Any] = latent_prior.VAE_CONFIG | {"block_out_channels": [32, 64, 64, 64]}
WIDE = {"sd15": (32, 64, 64, 64), "sdxl": (64, 64, 128)}


def narrow(name: str) -> tuple[Any, Family]:
    """A narrow checkpoint's layout, and the family that it is of."""
    whole, ours = FAMILIES[name], {"sd15": SD15, "sdxl": SDXL}[name]
    width = 32 if name == "sd15" else 96
    texts = ((CLIP_L, 32, 2, False), (CLIP_G, 64, 2, True)) if name == "sdxl" else ((whole.texts[0][0], 32, 2, False),)
    pooled = 6 * 32 + 64 if name == "sdxl" else 0
    depths = tuple(min(depth, 2) for depth in whole.depths)
    family = replace(
        whole, widths=WIDE[name], depths=depths, middle_depth=depths[-1] or 1, context=width, pooled=pooled, vae=32,
        texts=texts, vocabulary=64,
    )  # fmt: skip
    unet = dict(ours.unet) | {"block_out_channels": list(WIDE[name]), "cross_attention_dim": width}
    if name == "sdxl":
        unet |= {
            "attention_head_dim": [1, 1, 2], "transformer_layers_per_block": [1, 2, 2],
            "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": pooled,
        }  # fmt: skip
    vae = VAE | {"block_out_channels": [32, 64, 128, 128]}
    return layout_of(family), replace(ours, unet=unet, context=width, size=64, vae=vae, prompt=PROMPT)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    """A narrow checkpoint of random weights in its published layout."""
    shapes, family = narrow(request.param)
    return write_checkpoint(tmp_path_factory.mktemp("sd") / f"{request.param}.safetensors", shapes), family


@pytest.fixture
def prior(checkpoint: tuple[Path, Family]) -> LatentPrior:
    path, family = checkpoint
    return from_single_file(path, (family,))


@pytest.fixture
def sd15(tmp_path: Path) -> tuple[Path, Family]:
    shapes, family = narrow("sd15")
    return write_checkpoint(tmp_path / "own.safetensors", shapes), family


def images(count: int = 2, side: int = 64) -> Tensor:
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 1.4 - 0.7


def draws(shapes: list[torch.Size]) -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: torch.Size) -> Tensor:
        shapes.append(shape)
        return torch.randn(shape, generator=generator)

    return draw


class GaussianLatents:
    """Latents N(0.5, 2^2), far beyond [-1, 1], whose best noise estimate is exact; their VAE is linear, and tints."""

    shrinks, alpha_bar = 8, linear_alpha_bar(1000, 0.00085, 0.012)

    def __init__(self) -> None:
        self.mix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0][:, :3] * 20

    def encode(self, image: Tensor) -> Tensor:
        return torch.einsum("bchw,dc->bdhw", F.avg_pool2d(image, 8), self.mix)

    def decode(self, latents: Tensor) -> Tensor:
        small = torch.einsum("bdhw,dc->bchw", latents, self.mix) / 400
        return (F.interpolate(small, scale_factor=8, mode="bicubic") + 0.1).clamp(-1, 1)

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        assert x_t.shape[1] == 4
        a = self.alpha_bar[t].float().view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * 0.5) / (a * 4 + 1 - a), None


@pytest.mark.parametrize("kind", ["paper", "fast"])
def test_the_low_band_is_held_in_latents_and_put_back_in_pixels(kind: Any) -> None:
    latent, config = GaussianLatents(), SamplerConfig(kind, 100, 80, 0, 32, calls=16)
    shapes: list[torch.Size] = []
    shown: list[Tensor] = []
    decoded: list[Tensor] = []
    latent_decode = latent.decode
    latent.decode = lambda latents: decoded.append(latents) or latent_decode(latents)  # type: ignore[func-returns-value,method-assign]
    reference = 0.5 * images(side=128)
    made = sample_constrained(latent, reference, config, draws(shapes), lambda *step: shown.append(step[2]))
    assert set(shapes) == {torch.Size([2, 4, 16, 16])}
    assert made.abs().max() < 0.999 and (low_pass(made, 32) - low_pass(reference, 32)).abs().max() < 1e-4
    held = low_pass(decoded[0], 4) - low_pass(latent.encode(reference), 4)
    free = sample_constrained(latent, reference, replace(config, t_constrain_end=100), draws([]))
    assert held.abs().max() < 0.15 and decoded[1].abs().max() > 2, "latents are not clipped"
    assert (low_pass(decoded[1], 4) - low_pass(latent.encode(reference), 4)).abs().max() > 0.5
    assert free.shape == reference.shape
    assert len(shown) == config.network_calls and shown[-1].shape == reference.shape
    assert float((low_pass(shown[-1], 32) - low_pass(reference, 32)).abs().mean()) < 0.1, "the preview shows the face"


@pytest.mark.parametrize("factor", [4, 8, 20])
def test_a_factor_that_latents_cannot_hold_is_named(factor: int) -> None:
    config = SamplerConfig(factor=factor)
    with pytest.raises(ValueError, match=rf"sampler.factor is {factor}; .* multiple of 8 from 16 up"):
        sample_constrained(GaussianLatents(), images(side=160), config)


@torch.no_grad()
def test_a_checkpoint_is_a_prior(prior: LatentPrior, checkpoint: tuple[Path, Family]) -> None:
    path, _ = checkpoint
    assert holds_latent_prior(path) and prior.name == path.name and prior.size == 64 and prior.shrinks == 8
    assert len(prior.alpha_bar) == 1000 and float(prior.alpha_bar[0]) == pytest.approx(1 - 0.00085)
    latents = prior.encode(images())
    assert latents.shape == (2, 4, 8, 8)
    eps, variance = prior(latents, torch.tensor([10, 500]))
    assert eps.shape == latents.shape and variance is None and eps.std() > 0.01
    alone = torch.cat([prior(one, t)[0] for one, t in zip(latents.split(1), torch.tensor([[10], [500]]), strict=True)])
    assert (alone - eps).abs().max() < 1e-4, "each face of a batch for itself"
    assert prior.decode(latents).shape == (2, 3, 64, 64)
    assert denoise_once(prior, images(), 250, 20).shape == (2, 3, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["paper", "fast"])
def test_a_checkpoint_samples(prior: LatentPrior, kind: Any) -> None:
    config = SamplerConfig(kind, 250, 3, 0, 16, calls=2)
    made = sample_constrained(prior, images(), config, draws([]))
    assert made.shape == (2, 3, 64, 64) and made.isfinite().all() and made.abs().max() <= 1
    again = sample_constrained(deepcopy(prior), images(), config, draws([]))
    assert torch.equal(made, again), "a copy is the same prior"


def test_the_features_are_of_the_encoder_and_differentiable(prior: LatentPrior) -> None:
    image = images(1).requires_grad_()
    plain, recomputed = prior.features(image), prior.features(image, recompute=True)
    assert [f.shape[-1] for f in plain] == [64, 32, 16, 8, 8]
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    sum(f.mean() for f in recomputed).backward()  # type: ignore[union-attr]
    assert image.grad is not None and float(image.grad.abs().sum()) > 0


def test_targets_are_drawn_with_it(prior: LatentPrior, tiny_restorer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The factor that suits pixels is too fine for latents; the finest that they hold is taken, and this is said."""
    lq = images(2, 32) / 2 + 0.5
    config = TargetConfig(sampler=SamplerConfig(t_start=4, t_constrain_end=0, factor=2, calls=2))
    caplog.set_level("INFO")
    made = make_pseudo_targets(lq, ["a", "b"], load_restorer(tiny_restorer), prior, config)
    assert made.pseudo_target.shape == lq.shape and made.pseudo_target.isfinite().all()
    assert "sampler.factor is 16" in caplog.text
    whole = replace(config, sampler=replace(config.sampler, factor=16))
    again = make_pseudo_targets(lq, ["a", "b"], load_restorer(tiny_restorer), prior, whole)
    assert torch.equal(made.pseudo_target, again.pseudo_target)


@pytest.mark.parametrize(("asked", "taken"), [(4, 16), (16, 16), (20, 32), (40, 64), (600, 64)])
def test_a_factor_is_raised_to_one_that_divides_the_image(sd15: tuple[Path, Family], asked: int, taken: int) -> None:
    prior = from_single_file(sd15[0], (sd15[1],))
    assert prior.size == 64 and prior.shrinks == 8
    config = TargetConfig(sampler=SamplerConfig(factor=asked))
    assert suited_to(config, prior).sampler.factor == taken


def as_folder(path: Path, family: Family, folder: Path) -> Path:
    """The checkpoint as diffusers and transformers keep it."""
    prior = from_single_file(path, (family,))
    for part, network in (("unet", prior.network.unet), ("vae", prior.network.vae)):
        network.register_to_config(**({"scaling_factor": family.scale} if part == "vae" else {}))
        network.save_pretrained(folder / part)
    state = load_file(path)
    parts = {"text_encoder": latent_prior.CLIP, "text_encoder_2": latent_prior.OPEN_CLIP}
    if family.unet.get("addition_embed_type"):
        parts["text_encoder"] = latent_prior.CLIP_L
    for part, prefix in parts.items():
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not found:
            continue
        found = latent_prior.from_open_clip(found) if part == "text_encoder_2" else found
        projection = found.pop("text_projection.weight", None)
        named = {f"text_model.{name.removeprefix('text_model.')}": v.contiguous() for name, v in found.items()}
        named |= {} if projection is None else {"text_projection.weight": projection.contiguous()}
        (folder / part).mkdir()
        save_file(named, folder / part / "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(latent_prior.SCHEDULER))
    return folder


@torch.no_grad()
def test_a_diffusers_folder_is_the_same_prior(
    prior: LatentPrior, checkpoint: tuple[Path, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_prior, "PROMPT", PROMPT)
    monkeypatch.setattr(latent_prior.told_by_clip, "__defaults__", (PROMPT,))
    monkeypatch.setattr(latent_prior.told_by_two, "__defaults__", (PROMPT,))
    folder = as_folder(*checkpoint, tmp_path / "folder")
    loaded = load_prior(folder)
    assert isinstance(loaded, LatentPrior) and loaded.name == "folder" and loaded.size == 64
    assert torch.allclose(loaded.alpha_bar, prior.alpha_bar)
    latents = prior.encode(images())
    assert torch.allclose(loaded.encode(images()), latents, atol=1e-5)
    t = torch.tensor([10, 500])
    assert torch.allclose(loaded(latents, t)[0], prior(latents, t)[0], atol=1e-5)
    shutil.rmtree(folder / "vae")
    with pytest.raises(FileNotFoundError, match="vae"):
        load_prior(folder)


@torch.no_grad()
def test_older_names_and_variants_of_a_folder_are_read(
    sd15: tuple[Path, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD 1.5's VAE calls its attention as diffusers did then; SDXL's U-Net in full precision has 10 GB."""
    monkeypatch.setattr(latent_prior.told_by_clip, "__defaults__", (PROMPT,))
    folder = as_folder(*sd15, tmp_path / "folder")

    def latents() -> Tensor:
        prior = load_prior(folder)
        assert isinstance(prior, LatentPrior)
        return prior.encode(images())

    before = latents()
    place = folder / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(place)
    for new, old in {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    assert any(".query." in name for name in state)
    save_file(state, place)
    assert torch.equal(latents(), before)
    unet = folder / "unet/diffusion_pytorch_model.safetensors"
    half = {name: value.half() for name, value in load_file(unet).items()}
    save_file(half, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_prior(folder).sha256 == sha256_of(unet)
    monkeypatch.setattr(latent_prior, "MAX_BYTES", unet.stat().st_size - 1)
    assert load_prior(folder).sha256 == sha256_of(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    unet.with_name("diffusion_pytorch_model.fp16.safetensors").unlink()
    unet.rename(unet.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    with pytest.raises(ValueError, match="its weights are in several parts"):
        load_prior(folder)


@torch.no_grad()
def test_a_text_encoder_without_the_name_of_its_model_is_read(sd15: tuple[Path, Family], tmp_path: Path) -> None:
    path, family = sd15
    told = from_single_file(path, (family,)).network.context
    other = tmp_path / "merged.safetensors"
    save_file(
        {name.replace("transformer.text_model.", "transformer."): v for name, v in load_file(path).items()}, other
    )
    assert torch.equal(from_single_file(other, (family,)).network.context, told)


@pytest.mark.parametrize("by", ["its width", "its activation"])
def test_a_folder_with_the_text_encoder_of_another_family_is_refused(
    sd15: tuple[Path, Family], tmp_path: Path, by: str
) -> None:
    folder = as_folder(*sd15, tmp_path / "folder")
    if by == "its activation":
        (folder / "text_encoder/config.json").write_text(json.dumps({"hidden_act": "gelu"}))
    else:
        place = folder / "unet/config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"cross_attention_dim": 1024}))
    with pytest.raises(ValueError, match="folder: its text encoder is neither SD 1.5's nor SDXL's"):
        load_prior(folder)


@torch.no_grad()
def test_it_says_what_the_network_predicts(sd15: tuple[Path, Family], tmp_path: Path) -> None:
    path, family = sd15
    v = tmp_path / "v.safetensors"
    save_file(load_file(path) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, v)
    plain, other = from_single_file(path, (family,)), from_single_file(v, (family,))
    assert (plain.prediction, other.prediction) == ("epsilon", "v_prediction")
    assert float(other.alpha_bar[-1]) < 1e-6 < float(plain.alpha_bar[-1])


def broken(path: Path, family: Family, change: Any, said: str) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(ValueError, match=said) as caught:
        from_single_file(path, (family,))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def without(prefix: str) -> Any:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return change


def for_inpainting(state: dict[str, Tensor]) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    state[name] = state[name].repeat(1, 3, 1, 1)[:, :9].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("first_stage_model."), "no VAE"),
        (without("first_stage_model.encoder.mid"), "AutoencoderKL cannot be rebuilt"),
        (without("cond_stage_model."), "text encoder is missing"),
        (without("cond_stage_model.transformer.text_model.final"), "text encoder is missing or incomplete"),
        (without("model.diffusion_model.middle_block.0"), "UNet2DConditionModel cannot be rebuilt"),
        (for_inpainting, "for inpainting"),
    ],
    ids=["no VAE", "half a VAE", "no text encoder", "part of a text encoder", "part of a U-Net", "inpainting"],
)
def test_an_incomplete_checkpoint_is_refused_in_one_line(sd15: tuple[Path, Family], change: Any, said: str) -> None:
    broken(*sd15, change, said)


def test_a_checkpoint_of_another_kind_is_named(sd15: tuple[Path, Family]) -> None:
    with pytest.raises(ValueError, match=r"own.safetensors: it is no checkpoint of SD 1.5 or SDXL"):
        load_prior(sd15[0])


def test_other_files_are_not_taken_for_checkpoints(tmp_path: Path, tiny_restorer: Path, tiny_prior: Path) -> None:
    (tmp_path / "text.safetensors").write_text("nothing")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "deep.safetensors").write_bytes((9999).to_bytes(8, "little") + b"[" * 9999)
    for path in (tiny_restorer, tiny_prior, *tmp_path.iterdir(), tmp_path / "missing.safetensors"):
        assert not holds_latent_prior(path)


def free_memory() -> float:
    """Bytes that programs can still take; without Linux's /proc no limit is known."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return float("inf")
    return next(int(line.split()[1]) * 1024 for line in table.read_text().splitlines() if "MemAvailable" in line)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("name", "gigabytes"), [("sd15", 9), ("sdxl", 26)])
def test_the_whole_published_layout_loads_and_samples(name: str, gigabytes: int, tmp_path: Path) -> None:
    """Random weights in exactly the published file's tensors, through `load_prior`, two network calls at 256 pixels."""
    if free_memory() < gigabytes * 2**30:
        pytest.skip(f"{name} takes {gigabytes} GB of memory, more than is free")
    path = write_checkpoint(tmp_path / f"{name}.safetensors", layout(name))
    try:
        prior = load_prior(path)
    finally:
        path.unlink()
    assert isinstance(prior, LatentPrior) and prior.size == {"sd15": 512, "sdxl": 1024}[name]
    count = {"sd15": 859_520_964, "sdxl": 2_567_463_684}[name]
    assert sum(p.numel() for p in prior.network.unet.parameters()) == count
    assert sum(p.numel() for p in prior.network.vae.parameters()) == 83_653_863
    made = sample_constrained(prior, images(1, 256), SamplerConfig(t_constrain_end=0, factor=16, calls=2), draws([]))
    assert made.shape == (1, 3, 256, 256) and made.isfinite().all()
