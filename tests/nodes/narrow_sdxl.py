"""SDXL in ComfyUI with its own layers, numbers of blocks and text encoders, but a U-Net of a fifth of its width.

Run by ComfyUI's Python in ComfyUI's folder, with this project's folder and a folder for the file as the first two
arguments. ComfyUI knows SDXL by its width, so that this is changed in its table first. Two steps at 256 pixels in half
precision; the last line of the output is JSON, as `tiny_latent_models.py` writes it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

ROOT, FOLDER = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
sys.argv += ["--cpu", "--fp16-unet"]  # read by comfy.cli_args
sys.path[0] = str(Path.cwd())

import comfy.options  # noqa: E402

import_module("utils.install_util")  # first, as in main.py of ComfyUI: another package has a module of this name

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402

sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "nodes")]  # ComfyUI has a package `tests` of its own
from checkpoint_layouts import FAMILIES, layout_of, write_checkpoint  # noqa: E402
from tiny_latent_models import load_pack  # noqa: E402

WIDTHS, SIDE, FACTOR = (64, 128, 256), 256, 32


def main() -> None:
    """Sample with the hold, with one of no length, and without it, and print what differs."""
    comfy.supported_models.SDXL.unet_config = comfy.supported_models.SDXL.unet_config | {"model_channels": WIDTHS[0]}
    path = write_checkpoint(FOLDER / "narrow.safetensors", layout_of(replace(FAMILIES["sdxl"], widths=WIDTHS)))
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    assert type(model.model).__name__ == "SDXL", type(model.model)
    assert model.model.get_dtype() == torch.float16, model.model.get_dtype()
    nodes = load_pack(ROOT)
    low_pass = sys.modules["pack.bfr_core.diffusion.low_pass"].low_pass
    reference = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a sharp portrait"))
        latents = vae.encode(reference)
        noise = comfy.sample.prepare_noise(latents, 7)

        def sampled(model: object) -> torch.Tensor:
            made = comfy.sample.sample(
                model, noise, 2, 2.0, "euler", "simple", prompt, prompt, latents, denoise=0.6, disable_pbar=True, seed=7
            )
            return made.float()

        def held(until: float) -> object:
            given = {"model": model, "vae": vae, "reference": reference, "factor": FACTOR, "until": until}
            return nodes.HoldLowBand.execute(**given).args[0]

        free, kept, never = sampled(model), sampled(held(1.0)), sampled(held(0.0))
    wanted = low_pass(latents.float(), FACTOR // 8)
    off = [float((low_pass(made, FACTOR // 8) - wanted).abs().max() / made.abs().max()) for made in (kept, free)]
    case = {"case": "SDXL at a fifth of its width", "held": off[0], "free": off[1], "same": torch.equal(free, never)}
    print(json.dumps([case]))


if __name__ == "__main__":
    main()
