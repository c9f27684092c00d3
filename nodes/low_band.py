"""The nodes that let any checkpoint of the host teach: the low band of a picture is held while a sampler runs, and put
back after decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..bfr_core.diffusion.low_pass import with_low_band
from ..bfr_core.pixels import resized
from . import convert, host

CROPPED = 16  # pixels of a side by which a VAE may have cropped a picture


class HoldLowBand(host.Node):
    """The constraint of arXiv:2410.04618 for any model that ComfyUI can sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_HoldLowBand",
            "Hold Low Band (BFR)",
            "Makes a model keep the coarse content of a picture while it is sampled, so that a checkpoint invents "
            "detail and leaves the face in place. Works with every sampler, ControlNet and LoRA.",
            [
                io.Model.Input("model", tooltip="The diffusion model of a checkpoint; it stays as it is."),
                io.Vae.Input("vae", tooltip="The VAE that the sampled latents are decoded with."),
                io.Image.Input(
                    "reference",
                    tooltip="The pictures whose coarse content is kept, at the size at which they are sampled: one "
                    "for each latent of the batch, or fewer, which are repeated.",
                ),
                io.Int.Input(
                    "factor",
                    default=16,
                    min=2,
                    max=512,
                    tooltip="Coarseness of what is kept, in pixels of the picture: what survives shrinking by this "
                    "factor. It must be at least twice what the VAE shrinks by, and a multiple of it: 16, 24 or 32 "
                    "for SD 1.5, SDXL and Flux. A higher factor trusts the picture less.",
                ),
                io.Float.Input(
                    "until",
                    default=0.64,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the model's whole schedule up to which the picture is held, counted as "
                    "ControlNet's end_percent: a sampler with denoise 0.6 begins at 0.4. The paper holds until 0.64; "
                    "1 holds to the end, 0 never.",
                ),
            ],
            [io.Model.Output(display_name="model", tooltip="The model that holds the picture; for a sampler.")],
            ("low pass", "constraint", "face restore", "teacher", "frequency"),
        )

    @classmethod
    def work(cls, model: Any, vae: Any, reference: Tensor, factor: int, until: float) -> io.NodeOutput:
        pictures = convert.to_image(convert.to_photos(reference, "reference"))
        latents = encoded(vae, pictures)
        held = HeldLowBand(latents, latent_factor(factor, pictures, latents), until)
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(held)
        height, width = latents.shape[-2:]
        text = f"keeps what shrinking by {factor} leaves, in latents of {width} x {height}"
        return host.output(cls, patched, text=text)


@dataclass(frozen=True, eq=False)
class HeldLowBand:
    """ComfyUI's hook after classifier-free guidance: the predicted clean latent with the reference's low band.

    latents: (B, C, H, W) or (B, C, T, H, W), of the reference, as the VAE gives them. factor: of the low band, in
    pixels of a latent. until: share of the model's schedule, 0 to 1, after which the prediction is left alone.
    """

    latents: Tensor
    factor: int
    until: float

    def __call__(self, step: dict[str, Any]) -> Tensor:
        """step: ComfyUI's table of a step: "denoised" is the clean latent as predicted, "sigma" the noise level."""
        x0_hat, model = step["denoised"], step["model"]
        if float(step["sigma"].max()) <= float(model.model_sampling.percent_to_sigma(self.until)):
            return x0_hat
        latents = model.process_latent_in(matched(self.latents, x0_hat).to(x0_hat.device, torch.float32))
        return with_low_band(x0_hat, latents, self.factor)


def matched(latents: Tensor, sampled: Tensor) -> Tensor:
    """The reference's latents in the shape of those being sampled: batches are repeated, a missing axis of time is put
    in. Raises ValueError where the two cannot belong together."""
    if latents.ndim == 4 and sampled.ndim == 5:
        latents = latents.unsqueeze(2)
    if latents.shape[1:] != sampled.shape[1:]:
        raise ValueError(
            f"Hold Low Band: the reference gives latents of the shape {tuple(latents.shape[1:])}, but those that are "
            f"sampled have {tuple(sampled.shape[1:])}; give both nodes pictures of one size, and the model's own VAE"
        )
    if len(sampled) % len(latents):
        raise ValueError(
            f"Hold Low Band: the reference has {len(latents)} pictures and the sampled batch {len(sampled)}; connect "
            "one, or one for each"
        )
    return latents.repeat(len(sampled) // len(latents), *[1] * (latents.ndim - 1))


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """Latents of an IMAGE, encoded one by one, because a VAE for video would take a batch for frames."""
    with torch.inference_mode():  # as ComfyUI's own nodes: a VAE loaded so can be moved only so
        return torch.cat([vae.encode(picture[None]).float() for picture in pictures])


def latent_factor(factor: int, pictures: Tensor, latents: Tensor) -> int:
    """`factor`, in pixels of the IMAGE `pictures`, in pixels of their latents; raises ValueError if it is none."""
    shrinks = 2 ** round(math.log2(pictures.shape[1] / latents.shape[-2]))  # the last row may be of part of a pixel
    if factor % shrinks or factor < 2 * shrinks:
        raise ValueError(
            f"factor is {factor}, but this VAE shrinks pictures by {shrinks}; take a multiple of {shrinks} from "
            f"{2 * shrinks} up"
        )
    return factor // shrinks


class LowBandFix(host.Node):
    """The low band of a picture put back in pixels, where a VAE has tinted or shifted it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_LowBandFix",
            "Low Band Fix (BFR)",
            "Gives decoded pictures the coarse content of the reference again: colours and shapes that sampling or "
            "the VAE have moved come back, and fine detail stays.",
            [
                io.Image.Input("images", tooltip="The decoded pictures."),
                io.Image.Input(
                    "reference", tooltip="The pictures whose coarse content is put back: one for each, or fewer."
                ),
                io.Int.Input(
                    "factor",
                    default=16,
                    min=1,
                    max=512,
                    tooltip="Coarseness of what is put back, in pixels: what survives shrinking by this factor. It is "
                    "best that of Hold Low Band, or a higher one.",
                ),
                host.preview_widget(),
            ],
            [io.Image.Output(display_name="images", tooltip="The pictures with the reference's coarse content.")],
            ("low pass", "colour fix", "color match", "vae tint"),
        )

    @classmethod
    def work(cls, images: Tensor, reference: Tensor, factor: int, preview: bool = True) -> io.NodeOutput:
        made, wanted = convert.to_photos(images), convert.to_photos(reference, "reference")
        if len(made) % len(wanted):
            raise ValueError(
                f"reference has {len(wanted)} pictures and images {len(made)}; connect one, or one for each"
            )
        wanted = in_place(wanted, *made.shape[-2:]).repeat(len(made) // len(wanted), 1, 1, 1)
        fixed = with_low_band(made, wanted, factor).clamp(0, 1)
        whole = convert.with_alpha(convert.to_image(fixed), images)
        return host.output(cls, whole, picture=fixed if preview else None)


def in_place(pictures: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) at another size: cropped in the middle as a VAE crops, or resized where more is missing."""
    top, left = (have - want for have, want in zip(pictures.shape[-2:], (height, width), strict=True))
    if 0 <= top < CROPPED and 0 <= left < CROPPED:
        return pictures[..., top // 2 : top // 2 + height, left // 2 : left // 2 + width]
    return resized(pictures, (height, width)).clamp(0, 1)
