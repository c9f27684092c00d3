"""A Stable Diffusion checkpoint (SD 1.5 or SDXL) as the prior: it predicts noise in the latents of a VAE, for one fixed
prompt. Nothing is fetched: the networks' settings are here, and the tokens of the prompt in `text_encoder`.

Not yet tried on real checkpoints: the tests use random weights in the published files' layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device import full_precision
from ..files.names import printable
from ..files.tensors import MAX_BYTES, load_tensors, reason_of, sha256_of, tensor_names
from ..files.weights import licence_of
from .library import from_diffusers
from .prior import MAX_CHANNELS, MAX_LAYERS, Prior, alpha_bar_of, prior_size, read_config, schedule_of, todays_name
from .text_encoder import OPEN_CLIP_PAD, PROMPT, from_open_clip, hidden_states, prompt_ids

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# Where single-file checkpoints keep their text encoders: SD 1.5's; SDXL's two.
CLIP = "cond_stage_model.transformer."
CLIP_L, OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
QUICK_GELU, OPEN_CLIP_H_WIDTH = "quick_gelu", 1024  # of SD 1.5's text encoder; of SD 2.x's, which counts otherwise
SCHEDULER: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NEEDS = ("input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight")  # of a U-Net in a single file
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class Family:
    """What the tensors of a single-file checkpoint do not tell.

    unet, vae: settings of diffusers' UNet2DConditionModel and AutoencoderKL. context: width of what the U-Net is told,
    by which a file's family is known. size: side in pixels of the images it was trained on. scale: what latents are
    multiplied by. prompt: tokens, without those that fill up.
    """

    name: str
    unet: Mapping[str, Any]
    context: int
    size: int
    scale: float
    vae: Mapping[str, Any] = field(default_factory=lambda: VAE_CONFIG)
    prompt: tuple[int, ...] = PROMPT


SD15 = Family(
    "SD 1.5",
    {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    768,
    512,
    0.18215,
)
SDXL = Family(
    "SDXL",
    {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    2048,
    1024,
    0.13025,
)
FAMILIES = (SD15, SDXL)


@dataclass(frozen=True)
class Told:
    """What the U-Net is told beside the noised latents. context: (1, 77, C). pooled: (1, P) for SDXL, else None."""

    context: Tensor
    pooled: Tensor | None = None


class LatentNetwork(nn.Module):
    """U-Net and VAE, with what the U-Net is told, so that all move together."""

    unet: Any
    vae: Any
    context: Tensor
    pooled: Tensor | None
    frame: Tensor

    def __init__(self, unet: nn.Module, vae: nn.Module, told: Told, size: int) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae
        self.register_buffer("context", told.context)
        self.register_buffer("pooled", told.pooled)
        self.register_buffer("frame", torch.tensor([[size, size, 0.0, 0.0, size, size]]))  # whole, not cropped

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        count = len(x)
        more = {}
        if self.pooled is not None:
            told = {"text_embeds": self.pooled.expand(count, -1), "time_ids": self.frame.expand(count, -1)}
            more = {"added_cond_kwargs": told}
        context = self.context.expand(count, -1, -1)
        return self.unet(x, t, encoder_hidden_states=context, return_dict=False, **more)[0]


class LatentPrior(Prior):
    """A prior whose noise is that of latents: `encode` and `decode` lead to them and back.

    shrinks: pixels of an image's side for each of a latent's. scale, shift: latents are (VAE's - shift) * scale.
    """

    network: LatentNetwork

    def __init__(
        self,
        network: LatentNetwork,
        alpha_bar: Tensor,
        *,
        scale: float,
        shift: float = 0.0,
        prediction: str = "epsilon",
        size: int,
        name: str,
        sha256: str = "",
        licence: str = "unknown",
        read_with: Any = None,
    ) -> None:
        super().__init__(
            network, partial(_encode, network.vae.encoder), alpha_bar, encoder=[network.vae.encoder],
            prediction=prediction, size=size, name=name, sha256=sha256, licence=licence,
            read_with=[scale, shift, read_with],
        )  # fmt: skip
        self.scale, self.shift = scale, shift
        self.shrinks = 2 ** (len(network.vae.config.block_out_channels) - 1)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        """Noise in latents `x_t`, (B, C, h, w) noised to level t, and None; t: (B,) long, base indices."""
        return self.noise_of(self.network(x_t, t).float(), x_t, t), None

    def encode(self, image: Tensor) -> Tensor:
        """Latents (B, C, H / shrinks, W / shrinks) of images (B, 3, H, W) in [-1, 1], one face at a time."""
        with full_precision(image.device):
            parts = [self.network.vae.encode(one.float()).latent_dist.mode() for one in image.split(1)]
            return (torch.cat(parts) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of latents, one face at a time."""
        with full_precision(latents.device):
            parts = [self.network.vae.decode(one / self.scale + self.shift).sample for one in latents.float().split(1)]
            return torch.cat(parts).clamp(-1, 1)


def _encode(
    encoder: Any, x: Tensor, t: Tensor, run: Callable[..., Any] = lambda block, *given: block(*given)
) -> list[Tensor]:
    """Features of the VAE's encoder, finest first; it knows no noise levels."""
    found = [encoder.conv_in(x)]
    for block in encoder.down_blocks:
        found.append(run(block, found[-1]))
    return found


def holds_latent_prior(path: Path) -> bool:
    """Whether this is a Stable Diffusion checkpoint in a single .safetensors file, or a diffusers folder of one."""
    if path.is_dir():
        config = path / "unet" / "config.json"
        return config.is_file() and read_config(config).get("_class_name") == "UNet2DConditionModel"
    return (
        path.suffix.lower() == ".safetensors"
        and path.is_file()
        and {UNET + name for name in NEEDS} <= tensor_names(path)
    )


def load_latent_prior(path: Path) -> LatentPrior:
    """The prior in a single-file checkpoint or a diffusers folder of SD 1.5 or SDXL, on the CPU, in float32.

    Raises FileNotFoundError, or ValueError, in one line, when it is damaged or of another kind.
    """
    return _from_folder(path) if path.is_dir() else from_single_file(path)


# ---------------------------------------------------------------- a single file


def from_single_file(path: Path, families: tuple[Family, ...] | None = None) -> LatentPrior:
    """The prior in a single-file checkpoint of one of the families, `FAMILIES` if none are given; raises as
    `load_latent_prior`."""
    AutoencoderKL, UNet2DConditionModel = from_diffusers("AutoencoderKL", "UNet2DConditionModel")
    convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint = from_diffusers(
        "convert_ldm_unet_checkpoint", "convert_ldm_vae_checkpoint", module="diffusers.loaders.single_file_utils"
    )
    state, metadata = load_tensors(path)
    family = _family_of(path, state, families or FAMILIES)
    unet_part = {name: value for name, value in state.items() if name.startswith(UNET)}
    vae_part = {name: value for name, value in state.items() if name.startswith(VAE)}
    unet = _built(path, UNet2DConditionModel, {"sample_size": family.size // 8, **family.unet},
                  lambda config: convert_ldm_unet_checkpoint(unet_part, config=config))  # fmt: skip
    vae = _built(path, AutoencoderKL, dict(family.vae),
                 lambda config: convert_ldm_vae_checkpoint(vae_part, config=config))  # fmt: skip
    try:
        told = _told_by_single_file(state, family)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path.name}: its text encoder is missing or incomplete ({reason_of(error)})") from None
    digest = sha256_of(path)
    scheduler = SCHEDULER | ({"rescale_betas_zero_snr": True} if "ztsnr" in state else {})
    return LatentPrior(
        LatentNetwork(unet, vae, told, family.size),
        alpha_bar_of(scheduler),
        scale=family.scale,
        prediction="v_prediction" if "v_pred" in state else "epsilon",  # marks that such checkpoints carry
        size=family.size,
        name=path.name,
        sha256=digest,
        licence=metadata.get("licence") or licence_of(digest),
    )


def _family_of(path: Path, state: Mapping[str, Tensor], families: tuple[Family, ...]) -> Family:
    """The family whose widths the file has. Raises ValueError for another, or for one that takes more than latents."""
    widths = {v.shape[-1] for k, v in state.items() if k.startswith(UNET) and k.endswith(".attn2.to_k.weight")}
    first = state[UNET + NEEDS[0]].shape
    found = [f for f in families if widths == {f.context} and first[0] == f.unet["block_out_channels"][0]]
    if not found:
        known = " or ".join(family.name for family in families)
        raise ValueError(f"{path.name}: it is no checkpoint of {known}; give one, or use it in ComfyUI as a teacher")
    if first[1] != 4:
        raise ValueError(f"{path.name}: its U-Net takes {first[1]} channels, as for inpainting; give the ordinary one")
    if not any(name.startswith(VAE) for name in state):
        raise ValueError(f"{path.name}: it holds no VAE; give a checkpoint with all of its parts")
    return found[0]


def _told_by_single_file(state: Mapping[str, Tensor], family: Family) -> Told:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def text_part(prefix: str) -> dict[str, Tensor]:
        """Some older merges leave "text_model." out of the names."""
        return {name.removeprefix("text_model."): value for name, value in part(prefix).items()}

    if "addition_embed_type" not in family.unet:
        return told_by_clip(text_part(CLIP), family.prompt)
    return told_by_two(text_part(CLIP_L), from_open_clip(part(OPEN_CLIP)), family.prompt)


def told_by_clip(clip: Mapping[str, Tensor], prompt: tuple[int, ...] = PROMPT) -> Told:
    """What SD 1.5 is told: CLIP's last states, normalised."""
    return Told(hidden_states(clip, prompt_ids(prompt[-1], prompt), quick=True)[-1])


def told_by_two(clip: Mapping[str, Tensor], other: Mapping[str, Tensor], prompt: tuple[int, ...] = PROMPT) -> Told:
    """What SDXL is told: the states of both encoders before their last layers, and the second's for the whole prompt.

    Source: arXiv:2307.01952, section 2.1.
    """
    first = hidden_states(clip, prompt_ids(prompt[-1], prompt), quick=True)
    second = hidden_states(other, prompt_ids(OPEN_CLIP_PAD, prompt), quick=False)
    pooled = second[-1][:, len(prompt) - 1] @ other["text_projection.weight"].float().T
    return Told(torch.cat([first[-3], second[-3]], -1), pooled)


def _built(
    path: Path, kind: Any, config: dict[str, Any], tensors: Callable[[dict[str, Any]], Mapping[str, Tensor]]
) -> Any:
    """A network of diffusers with the tensors of a file. tensors: from the whole config to what the network takes."""
    try:
        with torch.device("meta"):  # the layers take the file's tensors, so none is filled with random numbers first
            network = kind.from_config(config)
        given = {name: value.float() for name, value in tensors(dict(network.config)).items()}
        network.load_state_dict(given, assign=True)
    except Exception as error:  # whatever strange tensors make diffusers stumble on
        raise ValueError(f"{path.name}: its {kind.__name__} cannot be rebuilt ({reason_of(error)})") from None
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------- a diffusers folder


def _from_folder(folder: Path) -> LatentPrior:
    AutoencoderKL, UNet2DConditionModel = from_diffusers("AutoencoderKL", "UNet2DConditionModel")
    unet_config, vae_config = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    for config in (unet_config, vae_config):
        _refuse_absurd(folder, config)
    if unet_config.get("in_channels", 4) != vae_config.get("latent_channels", 4):
        raise ValueError(f"{folder.name}: its U-Net takes more than the VAE's latents; give the ordinary model")
    _refuse_other_text_encoder(folder, unet_config)
    weights, unet_state = _weights(folder / "unet")
    unet = _built(folder, UNet2DConditionModel, _plain(unet_config), lambda _: unet_state)
    vae_weights, vae_state = _weights(folder / "vae")
    vae = _built(folder, AutoencoderKL, _plain(vae_config), lambda _: {todays_name(k): v for k, v in vae_state.items()})
    clip = _text_tensors(folder / "text_encoder")
    second = folder / "text_encoder_2"
    try:
        told = told_by_two(clip, _text_tensors(second)) if second.is_dir() else told_by_clip(clip)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"{folder.name}: its text encoder is incomplete ({reason_of(error)})") from None
    place = folder / "scheduler" / "scheduler_config.json"
    scheduler: dict[str, Any] = read_config(place) if place.is_file() else SCHEDULER
    shrinks = 2 ** (len(vae.config.block_out_channels) - 1)
    size = prior_size(folder, "sample_size", shrinks * (unet_config.get("sample_size") or 64))
    digest = sha256_of(weights)
    return LatentPrior(
        LatentNetwork(unet, vae, told, size),
        schedule_of(folder, scheduler),
        scale=float(vae.config.scaling_factor),
        shift=float(getattr(vae.config, "shift_factor", None) or 0.0),
        prediction=scheduler.get("prediction_type", "epsilon"),
        size=size,
        name=folder.name,
        sha256=digest,
        licence=licence_of(digest),
        read_with=[unet_config, vae_config, sha256_of(vae_weights)],
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights of a part of a diffusers folder; of several variants, the one in full precision."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.name.count("."))
    if not files:
        raise FileNotFoundError(f"{folder}: it holds no .safetensors file; this part of the prior is missing")
    whole = [file for file in files if "-of-" not in file.name]
    if not whole:
        said = "its weights are in several parts; give the folder with the file in one, such as its fp16 variant"
        raise ValueError(f"{printable(folder)}: {said}")
    files = [file for file in whole if file.stat().st_size <= MAX_BYTES] or whole
    return files[0], load_tensors(files[0])[0]


def _text_tensors(folder: Path) -> dict[str, Tensor]:
    state = _weights(folder)[1]
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def _refuse_other_text_encoder(folder: Path, unet: Mapping[str, Any]) -> None:
    """Raise ValueError for SD 2.x, whose one text encoder is another than SD 1.5's: its answers would mean nothing."""
    place = folder / "text_encoder" / "config.json"
    if (folder / "text_encoder_2").is_dir():
        return
    activation = read_config(place).get("hidden_act", QUICK_GELU) if place.is_file() else QUICK_GELU
    if unet.get("cross_attention_dim") == OPEN_CLIP_H_WIDTH or activation != QUICK_GELU:
        raise ValueError(
            f"{folder.name}: its text encoder is neither SD 1.5's nor SDXL's, as in SD 2.x; give one of these, or use "
            "it in ComfyUI as a teacher"
        )


def _refuse_absurd(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that ask for a network which no file can hold."""

    def numbers(value: Any) -> list[Any]:
        return [n for one in value for n in numbers(one)] if isinstance(value, list) else [value]

    widths = numbers(config.get("block_out_channels") or [])
    depths = [len(widths)]
    for name in ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block"):
        depths += [n for n in numbers(config.get(name)) if n is not None]
    for most, values in ((MAX_CHANNELS, widths), (MAX_LAYERS, depths)):
        if not all(isinstance(n, int) and 0 < n <= most for n in values):
            raise ValueError(f"{folder.name}: its config.json asks for layers of absurd size or number")
