"""Checkpoint files with exactly the tensors of SD 1.5's and SDXL's published ones, or narrower, and random weights.

The tests stand on names and shapes: `layout("sd15")` has the 1,131 tensors of v1-5-pruned-emaonly.safetensors, and
`layout("sdxl")` the 2,515 of sd_xl_base_1.0.safetensors. Written from the layers of latent-diffusion's networks.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]
Layout = dict[str, Shape]


@dataclass(frozen=True)
class Family:
    """widths, depths: channels and transformer blocks of the U-Net's levels. context: of its cross-attention. pooled:
    numbers of the vector beside the prompt, 0 for none. texts: (prefix, width, layers, is OpenCLIP) of the encoders."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    pooled: int
    linear: bool
    vae: int
    texts: tuple[tuple[str, int, int, bool], ...]
    vocabulary: int = 49408


CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
FAMILIES = {
    "sd15": Family(
        (320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, 0, False, 128,
        (("cond_stage_model.transformer.", 768, 12, False),),
    ),
    "sdxl": Family(
        (320, 640, 1280), (0, 2, 10), 10, 2048, 2816, True, 128,
        ((CLIP_L, 768, 12, False), (CLIP_G, 1280, 32, True)),
    ),
}  # fmt: skip


def layout(name: str) -> Layout:
    """Shapes of the tensors of the published file, by name."""
    return layout_of(FAMILIES[name])


def layout_of(family: Family) -> Layout:
    """Shapes of the tensors of a checkpoint of this family, by name."""
    found = {f"model.diffusion_model.{name}": shape for name, shape in _unet(family)}
    found |= {f"first_stage_model.{name}": shape for name, shape in _vae(family.vae)}
    for prefix, width, layers, is_open in family.texts:
        tensors = open_clip if is_open else clip
        found |= {prefix + name: shape for name, shape in tensors(width, layers, family.vocabulary)}
    return found


POOL = 2_000_003  # random numbers, of which all tensors are made


def write_checkpoint(path: Path, shapes: Layout, seed: int = 0) -> Path:
    """A .safetensors file in half precision with random weights of ordinary size, written without holding it whole."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        kind, width = ("I64", 8) if name.endswith("position_ids") else ("F16", 2)
        begin, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    pool = np.random.default_rng(seed).standard_normal(POOL).astype(np.float32)
    twice = np.concatenate([pool, pool])
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for number, (name, shape) in enumerate(shapes.items()):
            first = -7919 * number % POOL  # every tensor begins elsewhere
            stream.write(_values(name, shape, twice[first : first + POOL]).tobytes())
    return path


def _values(name: str, shape: Shape, pool: np.ndarray) -> np.ndarray:
    count = math.prod(shape)
    if name.endswith("position_ids"):
        return np.arange(count, dtype=np.int64)
    random = pool[:count] if count <= POOL else np.resize(pool, count)
    if len(shape) < 2:  # biases are small, the weights of a norm are about 1
        random = 0.02 * random + (1.0 if name.endswith("weight") else 0.0)
    else:
        random = random / max(1, math.prod(shape[1:])) ** 0.5
    return random.astype(np.float16)


def _pair(name: str, *weight: int) -> Iterator[tuple[str, Shape]]:
    """Weight and bias of a layer."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _res_block(name: str, inside: int, outside: int, time: int) -> Iterator[tuple[str, Shape]]:
    yield from _pair(f"{name}.in_layers.0", inside)
    yield from _pair(f"{name}.in_layers.2", outside, inside, 3, 3)
    yield from _pair(f"{name}.emb_layers.1", outside, time)
    yield from _pair(f"{name}.out_layers.0", outside)
    yield from _pair(f"{name}.out_layers.3", outside, outside, 3, 3)
    if inside != outside:
        yield from _pair(f"{name}.skip_connection", outside, inside, 1, 1)


def _transformer(name: str, width: int, depth: int, family: Family) -> Iterator[tuple[str, Shape]]:
    around = (width, width) if family.linear else (width, width, 1, 1)
    yield from _pair(f"{name}.norm", width)
    yield from _pair(f"{name}.proj_in", *around)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, context in (("attn1", width), ("attn2", family.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, context)
            yield f"{block}.{attention}.to_v.weight", (width, context)
            yield from _pair(f"{block}.{attention}.to_out.0", width, width)
        yield from _pair(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _pair(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _pair(f"{block}.{norm}", width)
    yield from _pair(f"{name}.proj_out", *around)


def _unet(family: Family) -> Iterator[tuple[str, Shape]]:
    base, last = family.widths[0], len(family.widths) - 1
    time = 4 * base
    yield from _pair("time_embed.0", time, base)
    yield from _pair("time_embed.2", time, time)
    if family.pooled:
        yield from _pair("label_emb.0.0", time, family.pooled)
        yield from _pair("label_emb.0.2", time, time)
    yield from _pair("input_blocks.0.0", base, 4, 3, 3)
    skips, width, number = [base], base, 1
    for level, (wide, depth) in enumerate(zip(family.widths, family.depths, strict=True)):
        for _ in range(2):
            yield from _res_block(f"input_blocks.{number}.0", width, wide, time)
            if depth:
                yield from _transformer(f"input_blocks.{number}.1", wide, depth, family)
            width, number = wide, number + 1
            skips.append(width)
        if level < last:
            yield from _pair(f"input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    yield from _res_block("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width, family.middle_depth, family)
    yield from _res_block("middle_block.2", width, width, time)
    number = 0
    for level in range(last, -1, -1):
        wide, depth = family.widths[level], family.depths[level]
        for i in range(3):
            yield from _res_block(f"output_blocks.{number}.0", width + skips.pop(), wide, time)
            if depth:
                yield from _transformer(f"output_blocks.{number}.1", wide, depth, family)
            if level and i == 2:
                yield from _pair(f"output_blocks.{number}.{2 if depth else 1}.conv", wide, wide, 3, 3)
            width, number = wide, number + 1
    yield from _pair("out.0", base)
    yield from _pair("out.2", 4, base, 3, 3)


def _vae_block(name: str, inside: int, outside: int) -> Iterator[tuple[str, Shape]]:
    yield from _pair(f"{name}.norm1", inside)
    yield from _pair(f"{name}.conv1", outside, inside, 3, 3)
    yield from _pair(f"{name}.norm2", outside)
    yield from _pair(f"{name}.conv2", outside, outside, 3, 3)
    if inside != outside:
        yield from _pair(f"{name}.nin_shortcut", outside, inside, 1, 1)


def _vae_middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _vae_block(f"{name}.mid.block_1", width, width)
    yield from _pair(f"{name}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _pair(f"{name}.mid.attn_1.{part}", width, width, 1, 1)
    yield from _vae_block(f"{name}.mid.block_2", width, width)


def _vae(base: int) -> Iterator[tuple[str, Shape]]:
    widths = (base, 2 * base, 4 * base, 4 * base)
    yield from _pair("encoder.conv_in", base, 3, 3, 3)
    width = base
    for level, wide in enumerate(widths):
        for i in range(2):
            yield from _vae_block(f"encoder.down.{level}.block.{i}", width, wide)
            width = wide
        if level < 3:
            yield from _pair(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder", width)
    yield from _pair("encoder.norm_out", width)
    yield from _pair("encoder.conv_out", 8, width, 3, 3)
    yield from _pair("decoder.conv_in", width, 4, 3, 3)
    yield from _vae_middle("decoder", width)
    for level in (3, 2, 1, 0):
        for i in range(3):
            yield from _vae_block(f"decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            yield from _pair(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _pair("decoder.norm_out", width)
    yield from _pair("decoder.conv_out", 3, width, 3, 3)
    yield from _pair("quant_conv", 8, 8, 1, 1)
    yield from _pair("post_quant_conv", 4, 4, 1, 1)


def clip(width: int, layers: int, vocabulary: int) -> Iterator[tuple[str, Shape]]:
    """transformers' CLIPTextModel."""
    yield "text_model.embeddings.position_ids", (1, 77)
    yield "text_model.embeddings.token_embedding.weight", (vocabulary, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for i in range(layers):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _pair(f"{layer}.self_attn.{part}", width, width)
        yield from _pair(f"{layer}.layer_norm1", width)
        yield from _pair(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _pair(f"{layer}.mlp.fc2", width, 4 * width)
        yield from _pair(f"{layer}.layer_norm2", width)
    yield from _pair("text_model.final_layer_norm", width)


def open_clip(width: int, layers: int, vocabulary: int) -> Iterator[tuple[str, Shape]]:
    """OpenCLIP's text tower."""
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (vocabulary, width)
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        yield from _pair(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _pair(f"{block}.attn.out_proj", width, width)
        yield from _pair(f"{block}.ln_2", width)
        yield from _pair(f"{block}.mlp.c_fc", 4 * width, width)
        yield from _pair(f"{block}.mlp.c_proj", width, 4 * width)
    yield from _pair("ln_final", width)
