"""A diffusion prior of faces behind one interface: (x_t, t) -> noise and learned variance."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..device import lay_out
from ..files.names import printable
from ..files.ownership import begin_list
from ..files.records import fingerprint
from ..files.tensors import (
    MAX_JSON,
    load_tensors,
    misfit_of,
    reason_of,
    save_tensors,
    sha256_of,
    whole_number,
    without_prefix,
)
from ..files.weights import licence_of, resolve
from .guided_unet import UNet
from .library import from_diffusers
from .schedule import linear_alpha_bar

log = logging.getLogger(__name__)
EMBEDDED = Path(__file__).parents[1] / "embedded" / "prior256"
MAX_CHANNELS = 8192
MAX_LAYERS = 64  # layers of one level, and also levels
MAX_STEPS = 100_000  # of a schedule
SIZES = (16, 2048)  # smallest and largest image side, in pixels, that a file may state
CONVERTED = "prior.safetensors"  # the file in a folder that `convert_prior` wrote
# What the shapes of a published U-Net do not tell, by the file's SHA-256, in guided-diffusion's argument names.
KNOWN_SETTINGS: dict[str, dict[str, Any]] = {
    "e16446b14cff4fedf1102ba67945fcced2074500a3fe8fd2bfad5d818928d1d0": {
        "image_size": 512,
        "num_head_channels": 64,
        "use_new_attention_order": False,
    },
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of diffusers' attention
FEATURE_TIMESTEP = 20  # nearly clean: the level at which clean images are compared in the prior's encoder


class Prior(nn.Module):
    """A diffusion network that predicts the noise in a noised face.

    encode: (x, t, run) -> features; it calls each block as run(block, ...). encoder: the parts of the network it uses.
    alpha_bar: (T,) float64, noise levels of the base indices 0 ... T-1.
    prediction: what the network predicts, "epsilon", "v_prediction" or "sample", in diffusers' terms.
    patch: p > 1 if the network sees p x p pixels as channels.
    size: side in pixels of the images it was trained on. name, sha256, licence: of the file, for the record.
    identity: of the file and of all settings by which it is used, which lie beside it or in its folder; on these its
    pictures depend. read_with: what of them is not in the other arguments.
    """

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[..., list[Tensor]],
        alpha_bar: Tensor,
        *,
        encoder: Sequence[nn.Module] = (),
        prediction: str = "epsilon",
        patch: int = 1,
        size: int,
        name: str,
        sha256: str = "",
        licence: str = "unknown",
        read_with: Any = None,
    ) -> None:
        super().__init__()
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"{name}: prediction_type is {prediction!r}; it must be epsilon, v_prediction or sample")
        self.network = network.eval().requires_grad_(False)
        self._encode, self._encoder = encode, list(encoder)
        self.alpha_bar = alpha_bar
        self.prediction, self.patch, self.size = prediction, patch, size
        self.name, self.sha256, self.licence = name, sha256, licence
        schedule = hashlib.sha256(alpha_bar.cpu().double().numpy().tobytes()).hexdigest()
        self.identity = fingerprint(sha256, schedule, prediction, patch, size, read_with)
        lay_out(self.network)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Noise in `x_t`, and the variance channels in [-1, 1] or None.

        x_t: (B, 3, H, W) float, signed images noised to level t; t: (B,) long, base indices 0 ... T-1.
        """
        out = self.network(F.pixel_unshuffle(x_t, self.patch), t).float()
        out, *variance = out.split(3 * self.patch**2, 1)
        out = self.noise_of(F.pixel_shuffle(out, self.patch), x_t, t)
        return out, F.pixel_shuffle(variance[0], self.patch) if variance else None

    def noise_of(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in `x_t` by the network's output `out`, of the same shape, as `prediction` says."""
        alpha_bar = self.alpha_bar.to(x_t.dtype).to(t.device)[t].view(-1, 1, 1, 1)  # no float64 on the device
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction == "v_prediction":  # arXiv:2202.00512, section 4
            return signal * out + sigma * x_t
        if self.prediction == "sample":
            return (x_t - signal * out) / sigma
        return out

    def features(self, image: Tensor, recompute: bool = False) -> list[Tensor]:
        """Encoder features of clean images (B, 3, H, W) in [-1, 1], finest first; differentiable.

        An image that ends within a patch is continued by its last row and column.
        recompute: keep only what passes between the blocks for the backward pass. Source: arXiv:1604.06174.
        """
        t = torch.full((len(image),), FEATURE_TIMESTEP, device=image.device)
        beyond_right, beyond_below = (-side % self.patch for side in (image.shape[3], image.shape[2]))
        if beyond_right or beyond_below:
            image = F.pad(image, (0, beyond_right, 0, beyond_below), mode="replicate")
        x = F.pixel_unshuffle(image, self.patch)
        if recompute:
            return self._encode(x, t, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        return self._encode(x, t)

    def to(self, *args: Any, **kwargs: Any) -> Prior:
        """As of any module. Its weights lie in memory as suits the device."""
        super().to(*args, **kwargs)
        lay_out(self.network)
        return self

    def encoder_to(self, device: torch.device | str) -> Prior:
        """This prior, after what `features` needs of it is moved to `device`; the rest stays where it is."""
        for part in self._encoder or [self.network]:
            lay_out(part.to(device))
        return self


def load_prior(name_or_path: str | Path = "embedded") -> Prior:
    """The prior in a diffusers folder, or in a guided-diffusion .pth or .safetensors file, on the CPU.

    A Stable Diffusion checkpoint, as a .safetensors file or a diffusers folder, is a `latent_prior.LatentPrior`.
    "embedded" is the 256 x 256 prior that ships with this project; a name of `weights.TABLE` is looked for in
    `weights.search_folders`. Raises FileNotFoundError, or ValueError when the file is damaged or not a face prior.
    """
    from .latent_prior import holds_latent_prior, load_latent_prior

    path = EMBEDDED if str(name_or_path) == "embedded" else resolve(name_or_path)
    if holds_latent_prior(path):
        return load_latent_prior(path)
    if path.is_dir() and not (path / CONVERTED).is_file():
        return _load_diffusers(path)
    return _load_guided_diffusion(path / CONVERTED if path.is_dir() else path)


def convert_prior(name_or_path: str | Path, folder: Path) -> Path:
    """Write a guided-diffusion checkpoint as a folder that holds everything that loading needs; returns the folder.

    The tensors stay as they are; settings, licence and the SHA-256 of the source travel in the file. Raises as
    `load_prior`, and ValueError if the folder holds such a file already.
    """
    path = resolve(name_or_path)
    if (folder / CONVERTED).exists():
        raise ValueError(f"{printable(folder)}: holds {CONVERTED} already; give another folder")
    state, metadata = load_tensors(path)
    digest = sha256_of(path)
    settings = _settings_of(path, metadata, digest)
    licence = metadata.get("licence") or licence_of(digest)
    record = {"unet": json.dumps(settings), "licence": licence, "source": path.name, "source_sha256": digest}
    whole = _unet_of(state)
    _build_unet(path, whole, settings)
    begin_list(folder)
    save_tensors(folder / CONVERTED, whole, record)
    return folder


def _settings_of(path: Path, metadata: Mapping[str, str], digest: str) -> dict[str, Any]:
    """What shapes cannot tell: from the file's metadata, the known files, or a .json beside it, in that order."""
    sidecar = path.with_suffix(".json")
    if "unet" in metadata:
        try:
            return dict(json.loads(metadata["unet"]))
        except (ValueError, TypeError):
            raise ValueError(f"{path.name}: its metadata 'unet' is not a table of settings in JSON") from None
    if digest in KNOWN_SETTINGS:
        return KNOWN_SETTINGS[digest]
    return read_config(sidecar) if sidecar.exists() else {}


def _build_unet(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> UNet:
    if any(name.startswith("label_emb.") for name in without_prefix(state)):
        raise ValueError(f"{path.name}: is told what a picture shows (label_emb); give a prior that is not")
    state = {name: value.float() for name, value in _unet_of(state).items()}
    if not holds_unet(state):
        raise ValueError(f"{path.name}: it holds no guided-diffusion U-Net")
    if max(max(v.shape, default=0) for v in state.values()) > MAX_CHANNELS * 4:
        raise ValueError(f"{path.name}: it has layers of absurd size")
    try:
        with torch.device("meta"):  # the layers take the file's tensors, so none is filled with random numbers first
            return UNet(state, settings)
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path.name}: its U-Net cannot be rebuilt ({misfit_of(error)})") from None


def _load_guided_diffusion(path: Path) -> Prior:
    state, metadata = load_tensors(path)
    # A converted file states the SHA-256 of its source, so that it need not be hashed again.
    digest = metadata.get("source_sha256") or sha256_of(path)
    settings = _settings_of(path, metadata, digest)
    network = _build_unet(path, state, settings)
    alpha_bar, prediction = _trained_with(path, settings)
    if "image_size" not in settings:
        log.warning("%s: does not say how large its images are; 512 x 512 is taken", printable(path.name))
    return Prior(
        network,
        network.encode,
        alpha_bar,
        encoder=network.encoder,
        prediction=prediction,
        size=prior_size(path, "image_size", settings.get("image_size", 512)),
        name=metadata.get("source", path.name),
        sha256=digest,
        licence=metadata.get("licence") or licence_of(digest),
        read_with=dict(settings),
    )


def _trained_with(path: Path, settings: Mapping[str, Any]) -> tuple[Tensor, str]:
    """alpha_bar and what the network predicts, by guided-diffusion's names: 1,000 linear steps, and the noise, where
    the settings do not say otherwise. Raises ValueError for settings that cannot be used."""
    kind = settings.get("noise_schedule", "linear")
    named = {"linear": "linear", "cosine": "squaredcos_cap_v2"}.get(kind) if isinstance(kind, str) else None
    if named is None:
        raise ValueError(f"{path.name}: noise_schedule is {kind!r:.40}; it must be linear or cosine")
    try:
        steps = whole_number(settings.get("diffusion_steps", 1000), 2, MAX_STEPS)
    except ValueError as error:
        raise ValueError(f"{path.name}: diffusion_steps {error}") from None
    if settings.get("rescale_timesteps") and steps != 1000:
        raise ValueError(f"{path.name}: rescale_timesteps is not supported with {steps} diffusion_steps")
    # Fewer or more than 1,000 linear steps end at the same noise.
    ends = {"beta_start": 0.1 / steps, "beta_end": min(20 / steps, 0.999)}
    alpha_bar = alpha_bar_of({"beta_schedule": named, "num_train_timesteps": steps} | ends)
    return alpha_bar, "sample" if settings.get("predict_xstart") else "epsilon"


def holds_unet(state: Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of a guided-diffusion U-Net."""
    return {"input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"} <= set(_unet_of(state))


def _unet_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = ("time_embed", "input_blocks", "middle_block", "output_blocks", "out")
    named = {name.removeprefix("unet."): value for name, value in without_prefix(state).items()}
    return {name: value for name, value in named.items() if name.split(".")[0] in parts}


def _load_diffusers(folder: Path) -> Prior:
    (UNet2DModel,) = from_diffusers("UNet2DModel")
    inner = folder / "unet" if (folder / "unet" / "config.json").exists() else folder
    if not (inner / "config.json").exists():
        said = "is a folder without the config.json of a prior; give the folder of a prior, or one file"
        raise FileNotFoundError(f"{printable(folder)}: {said}")
    for name in ("vae", "vqvae"):
        if (folder / name).is_dir():
            said = f"works on the latents of its {name}; of such priors only Stable Diffusion's are known here"
            raise ValueError(f"{folder.name}: {said}")
    config = read_config(inner / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder.name}: config.json describes {config.get('_class_name')!r}, not a UNet2DModel")
    if (kind := config.get("time_embedding_type", "positional")) != "positional":
        raise ValueError(f"{folder.name}: is told noise levels as {kind!r:.40}; it must be a DDPM, told steps")
    scheduler_file = next(
        (f for f in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json") if f.exists()),
        None,
    )
    scheduler = read_config(scheduler_file) if scheduler_file else {}
    files = sorted(inner.glob("diffusion_pytorch_model.*"))
    weights = next((f for suffix in (".safetensors", ".bin") for f in files if f.suffix == suffix), None)
    if weights is None:
        raise FileNotFoundError(f"{folder}: it holds no diffusion_pytorch_model.safetensors")
    state, metadata = load_tensors(weights)
    _refuse_absurd(folder, config)
    try:
        with torch.device("meta"):  # no memory is taken, whatever the config asks for; the tensors are the file's
            network = UNet2DModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        network.load_state_dict({todays_name(k): v.float() for k, v in state.items()}, assign=True)
    except Exception as error:  # whatever a strange config makes diffusers stumble on
        raise ValueError(f"{folder.name}: its weights do not fit its config.json ({reason_of(error)})") from None
    channels = network.config.in_channels
    patch = round((channels / 3) ** 0.5)
    if 3 * patch**2 != channels:
        raise ValueError(f"{folder.name}: in_channels is {channels}; it must be 3 p^2, for RGB patches of p x p pixels")
    return Prior(
        _Sample(network),
        partial(_encode_diffusers, network),
        schedule_of(folder, scheduler),
        encoder=[network.time_embedding, network.conv_in, network.down_blocks],
        prediction=scheduler.get("prediction_type", "epsilon"),
        patch=patch,
        size=patch * prior_size(folder, "sample_size", config.get("sample_size") or 64),
        name=folder.name,
        sha256=sha256_of(weights),
        licence=metadata.get("licence", "unknown"),
        read_with=config,
    )


def todays_name(name: str) -> str:
    """A tensor's name in diffusers since 0.12; google/ddpm-ema-celebahq-256 and others of its age use older names."""
    block, found, part = name.rpartition(".attentions.")
    number, *rest = part.split(".")
    if not found or rest[0] not in OLD_NAMES:
        return name
    return f"{block}{found}{number}.{OLD_NAMES[rest[0]]}.{'.'.join(rest[1:])}"


class _Sample(nn.Module):
    """A UNet2DModel that returns its tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, return_dict=False)[0]


def _encode_diffusers(
    network: Any, x: Tensor, t: Tensor, run: Callable[..., Any] = lambda block, **given: block(**given)
) -> list[Tensor]:
    """The down path of UNet2DModel.forward."""
    if network.config.center_input_sample:
        x = 2 * x - 1
    emb = network.time_embedding(network.time_proj(t).to(x.dtype))
    x = network.conv_in(x)
    features = [x]
    for block in network.down_blocks:
        x, skips = run(block, hidden_states=x, temb=emb)
        features += list(skips)
    return features


def alpha_bar_of(scheduler: Mapping[str, Any]) -> Tensor:
    """alpha_bar of a diffusers scheduler config, (T,) float64. What the config leaves out is that of 1,000 linear betas
    from 1e-4 to 0.02. Raises ValueError for a beta_schedule that is not known."""
    alpha_bar = _alpha_bar_by_name(scheduler)
    if not scheduler.get("rescale_betas_zero_snr"):
        return alpha_bar
    signal = alpha_bar.sqrt()  # arXiv:2305.08891, algorithm 1; a trace of the image is left, as in diffusers
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square().clamp_min(2.0**-24)


def _alpha_bar_by_name(scheduler: Mapping[str, Any]) -> Tensor:
    kind = scheduler.get("beta_schedule", "linear")
    steps = int(scheduler.get("num_train_timesteps", 1000))
    first, last = float(scheduler.get("beta_start", 1e-4)), float(scheduler.get("beta_end", 0.02))
    if scheduler.get("trained_betas") is not None:
        return torch.cumprod(1 - torch.tensor(scheduler["trained_betas"], dtype=torch.float64), 0)
    if kind == "linear":
        return linear_alpha_bar(steps, first, last)
    if kind == "scaled_linear":
        return torch.cumprod(1 - torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2, 0)
    if kind == "squaredcos_cap_v2":  # arXiv:2102.09672, eq. 17
        level = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * torch.pi / 2) ** 2
        return torch.cumprod(1 - (1 - level[1:] / level[:-1]).clamp(max=0.999), 0)
    raise ValueError(f"beta_schedule is {kind!r}; it must be linear, scaled_linear or squaredcos_cap_v2")


def schedule_of(folder: Path, scheduler: Mapping[str, Any]) -> Tensor:
    """`alpha_bar_of` the scheduler in `folder`. Raises ValueError, naming the folder, for one that cannot be used."""
    kind = scheduler.get("_class_name")
    if kind and not {"beta_start", "beta_schedule", "trained_betas"} & set(scheduler):
        said = f"was trained with a {kind!s:.40}, which has no betas; it must be a DDPM's noise"
        raise ValueError(f"{folder.name}: {said}")
    try:
        whole_number(scheduler.get("num_train_timesteps", 1000), 2, MAX_STEPS)
        alpha_bar = alpha_bar_of(scheduler)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder.name}: its scheduler's settings cannot be used ({error})") from None
    if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or not ((alpha_bar > 0) & (alpha_bar < 1)).all():
        raise ValueError(f"{folder.name}: its scheduler's settings give noise levels outside 0 to 1")
    return alpha_bar


def prior_size(path: Path, name: str, value: Any) -> int:
    """The side of an image that a file states under `name`. Raises ValueError unless it lies within `SIZES`."""
    try:
        return whole_number(value, *SIZES)
    except ValueError as error:
        raise ValueError(f"{path.name}: {name} {error}") from None


def _refuse_absurd(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError for a diffusers config that asks for a network which no file can hold."""
    widths, layers = config.get("block_out_channels") or [], config.get("layers_per_block", 2)
    for most, values in ((MAX_CHANNELS, widths), (MAX_LAYERS, [layers, len(widths)])):
        try:
            for value in values:
                whole_number(value, 1, most)
        except (ValueError, TypeError):
            raise ValueError(f"{folder.name}: its config.json asks for layers of absurd size or number") from None


def read_config(path: Path) -> dict[str, Any]:
    """The table of settings in a JSON file. Raises FileNotFoundError, or ValueError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"{path.name}: it has {path.stat().st_size} bytes, too many for a table of settings")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path.name}: it is not valid JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: it is not a table of settings")
    return content
