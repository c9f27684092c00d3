"""ComfyUI's own samplers on tiny latent models with a known score, with Hold Low Band and without it.

Run by ComfyUI's Python in ComfyUI's folder, with this project's folder as the only argument. The last line of its
output is JSON: for each kind of model, sampler and scheduler, how far the low band of the result is from the
reference's, how far it is without the node, and whether the numbers without it are those from before the pack was
imported.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    ROOT = Path(sys.argv.pop(1))
    sys.argv.append("--cpu")  # read by comfy.cli_args
    sys.path.insert(0, str(Path.cwd()))

import comfy.options

import_module("utils.install_util")  # first, as in main.py of ComfyUI: another package has a module of this name

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

MEAN, DEVIATION, SIDE, FACTOR = 0.2, 0.5, 16, 4
Kind = comfy.model_base.ModelType
FORMATS = comfy.latent_formats
KINDS = {
    "SD 1.5, eps": (Kind.EPS, FORMATS.SD15, {}, 8),
    "SDXL, v": (Kind.V_PREDICTION, FORMATS.SDXL, {}, 8),
    "SD 3, flow": (Kind.FLOW, FORMATS.SD3, {"shift": 3.0}, 8),
    "Flux": (Kind.FLUX, FORMATS.Flux, {"shift": 1.15}, 8),
    "Qwen Image, 5-D": (Kind.FLUX, FORMATS.Wan21, {"shift": 1.15}, 8),
}
if hasattr(FORMATS, "Flux2"):
    KINDS["Flux 2, packed"] = (Kind.FLUX, FORMATS.Flux2, {"shift": 2.02}, 16)
SAMPLERS = ["euler", "euler_ancestral", "dpmpp_2m", "ddim", "uni_pc", "lcm", "heun"]
SCHEDULERS = ["simple", "karras", "normal"]


class Gaussian(torch.nn.Module):
    """The exact network for latents whose numbers are independent N(MEAN, DEVIATION^2)."""

    def __init__(self, kind: Any, sampling: Any) -> None:
        super().__init__()
        self.kind, self.sampling, self.dtype = kind, sampling, torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise level of a timestep as ComfyUI gives it to a network."""
        if self.kind == Kind.FLUX:
            return t
        return t / 1000 if self.kind == Kind.FLOW else self.sampling.sigma(t)

    def forward(self, x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
        sigma = self.sigma(t).view(-1, *[1] * (x.ndim - 1))
        if self.kind in (Kind.FLOW, Kind.FLUX):
            signal = 1 - sigma
            gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
            return (x - MEAN - gain * (x - signal * MEAN)) / sigma
        x = x * (1 + sigma**2).sqrt()  # it comes divided by this
        x0_hat = MEAN + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - MEAN)
        if self.kind == Kind.EPS:
            return (x - x0_hat) / sigma
        return (x / (1 + sigma**2) - x0_hat) * (1 + sigma**2).sqrt() / sigma


class Vae:
    """Shrinks pictures; a VAE of 5-D latents takes a batch for frames, as ComfyUI's for video."""

    def __init__(self, latent_format: Any, shrinks: int) -> None:
        self.channels, self.shrinks = latent_format.latent_channels, shrinks
        self.video = latent_format.latent_dimensions == 3
        self.weights = torch.randn(self.channels, 3, generator=torch.Generator().manual_seed(5))

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(pictures.movedim(-1, 1), self.shrinks)
        latents = torch.einsum("bchw,dc->bdhw", small, self.weights)
        return latents.movedim(1, 0)[None] if self.video else latents


def model_of(name: str) -> tuple[Any, Vae]:
    """A MODEL as ComfyUI's loader makes it, around the tiny network, and a VAE of its latents."""
    kind, latent_format, settings, shrinks = KINDS[name]
    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
    config.latent_format, config.sampling_settings = latent_format(), settings
    model = comfy.model_base.BaseModel(config, model_type=kind)
    model.diffusion_model = Gaussian(kind, model.model_sampling)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), Vae(
        config.latent_format, shrinks
    )


def sampled(model: Any, vae: Vae, sampler: str, scheduler: str) -> torch.Tensor:
    """Four latents from six steps, as KSampler calls it, without ComfyUI's scaling of latents."""
    shape = (4, vae.channels, *([1] if vae.video else []), SIDE, SIDE)
    latents = torch.rand(shape, generator=torch.Generator().manual_seed(3)) - 0.5
    noise = comfy.sample.prepare_noise(latents, 7)
    prompt = [[torch.zeros(1, 77, 8), {}]]
    with torch.inference_mode():
        made = comfy.sample.sample(
            model, noise, 6, 2.0, sampler, scheduler, prompt, prompt, latents, denoise=0.6, disable_pbar=True, seed=7
        )
    return model.model.process_latent_in(made)


def load_pack(root: Path) -> Any:
    """The module of the two nodes, imported as ComfyUI imports the pack, which is in `root`."""
    from server import PromptServer

    PromptServer.instance = SimpleNamespace()
    spec = spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec and spec.loader
    sys.modules["pack"] = pack = module_from_spec(spec)
    spec.loader.exec_module(pack)
    return sys.modules["pack.nodes.low_band"]


def main() -> None:
    """Sample everything before the pack is there, then with it, held and not, and print what differs."""
    cases = [(n, s, "simple") for n in KINDS for s in SAMPLERS] + [(n, "euler", s) for n in KINDS for s in SCHEDULERS]
    before = {case: sampled(*model_of(case[0]), *case[1:]) for case in cases}
    nodes = load_pack(ROOT)
    low_pass = sys.modules["pack.bfr_core.diffusion.low_pass"].low_pass
    found = []
    for case in cases:
        (model, vae), kind = model_of(case[0]), case[1:]
        reference = torch.rand(2, SIDE * vae.shrinks, SIDE * vae.shrinks, 3, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            latents = torch.cat([vae.encode(picture[None]) for picture in reference])
        wanted = low_pass(model.model.process_latent_in(latents).reshape(-1, vae.channels, SIDE, SIDE), FACTOR)

        def off(made: torch.Tensor, wanted: torch.Tensor = wanted) -> float:
            low = low_pass(made.reshape(len(made), -1, SIDE, SIDE), FACTOR)
            return float((low - wanted.repeat(2, 1, 1, 1)).abs().max())

        def hold(until: float, model: Any = model, vae: Vae = vae, reference: torch.Tensor = reference) -> Any:
            factor = FACTOR * vae.shrinks
            with torch.inference_mode():
                given = {"model": model, "vae": vae, "reference": reference, "factor": factor, "until": until}
                return nodes.HoldLowBand.execute(**given).args[0]

        held, never = (sampled(hold(until), vae, *kind) for until in (1.0, 0.0))
        free = sampled(model, vae, *kind)
        same = torch.equal(free, before[case]) and torch.equal(never, before[case])
        found.append({"case": " / ".join(case), "held": off(held), "free": off(free), "same": same})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
