"""Networks of exactly the published 512 x 512 shapes, with random weights, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

RESTORERS = ("GFPGAN", "RestoreFormer", "CodeFormer", "SwinIR")
WIDTH = 32  # of the small networks' first layers
NARROW = (1, 1, 2, 2, 2, 4)  # multiples of the width at each size of the small networks, in place of 1, 2, 2, 4, 4, 8
PRIOR_SETTINGS = {"image_size": 512, "num_head_channels": 64}


def restorer_network(name: str) -> nn.Module:
    """One of `RESTORERS`, seeded. CodeFormer needs the optional package spandrel_extra_arches."""
    torch.manual_seed(0)
    if name == "GFPGAN":
        from spandrel.architectures.GFPGAN import GFPGAN

        return GFPGAN()
    if name == "RestoreFormer":
        from spandrel.architectures.RestoreFormer import RestoreFormer

        return RestoreFormer()
    if name == "CodeFormer":
        from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

        net = CodeFormer()
        nn.init.normal_(net.position_emb, std=0.02)
        return net
    from spandrel.architectures.SwinIR import SwinIR

    # Of DifFace and of arXiv:2410.04618: 8 x 8 pixels as channels, then enlarged by 8 again.
    return SwinIR(
        img_size=64, in_chans=3, embed_dim=180, depths=[6] * 8, num_heads=[6] * 8, window_size=8, mlp_ratio=2,
        upscale=8, upsampler="nearest+conv", resi_connection="1conv", start_unshuffle=8,
    )  # fmt: skip


def small_network(name: str) -> nn.Module:
    """One of `RESTORERS`, seeded, for 64 x 64 faces: the same kinds of layers, fewer and narrower where they can be."""
    torch.manual_seed(0)
    if name == "GFPGAN":
        from spandrel.architectures.GFPGAN import GFPGAN

        return GFPGAN(out_size=64, num_style_feat=32, channel_multiplier=1, narrow=0.125, num_mlp=2)
    if name == "RestoreFormer":
        from spandrel.architectures.RestoreFormer import RestoreFormer

        return RestoreFormer(ch=WIDTH, ch_mult=NARROW, num_res_blocks=1, resolution=512, embed_dim=64, z_channels=64)
    if name == "CodeFormer":
        return small_codeformer()
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        img_size=8, in_chans=3, embed_dim=24, depths=[6] * 4, num_heads=[2] * 4, window_size=8, mlp_ratio=2,
        upscale=8, upsampler="nearest+conv", resi_connection="1conv", start_unshuffle=8,
    )  # fmt: skip


def small_codeformer() -> nn.Module:
    """CodeFormer with an encoder and a generator that are narrower, which its own arguments do not allow for."""
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    with narrow_autoencoder(CodeFormer, depth=1):
        net = CodeFormer(dim_embd=64, n_layers=2, latent_size=4, connect_list=["256"])
    nn.init.normal_(net.position_emb, std=0.02)
    return net


def narrow_codeformer() -> nn.Module:
    """CodeFormer for 512 x 512 faces, whole but narrower: the size is in its forward, which a smaller one cannot do."""
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    torch.manual_seed(0)
    with narrow_autoencoder(CodeFormer, depth=2):
        net = CodeFormer(dim_embd=64, n_layers=2)
    for size, fusion in net.fuse_convs_dict.items():
        channels = WIDTH * NARROW[(512 // int(size)).bit_length() - 1]
        net.fuse_convs_dict[size] = type(fusion)(channels, channels)
    nn.init.normal_(net.position_emb, std=0.02)
    return net


@contextmanager
def narrow_autoencoder(codeformer: type, depth: int) -> Iterator[None]:
    """CodeFormers that are made here have narrow encoders and generators of `depth` blocks at each size."""
    whole: Any = codeformer.__mro__[1]  # what it is built on
    made = whole.__init__

    def narrow(net: nn.Module, size: int, width: int, mult: list[int], kind: str, blocks: int, *rest: object) -> None:
        made(net, size, WIDTH, NARROW, kind, depth, *rest)

    with patch.object(whole, "__init__", narrow):
        yield


def restorer_state(name: str) -> dict[str, Tensor]:
    """The tensors of `restorer_network`, under the names that the published file gives them."""
    state = restorer_network(name).state_dict()
    if name == "SwinIR":
        state = {k.replace("conv_first.", "conv_first.1."): v for k, v in state.items()}
    return {k: v.contiguous() for k, v in state.items()}


PRIOR_WIDTHS = (1, 2, 4, 8, 8, 16, 16)  # of the levels of iddpm_ffhq512, in 32 channels
NARROW_PRIOR = (1, 1, 1, 1, 2, 2, 4)  # those of a prior with the same layers and a hundredth of the numbers


def prior_shapes(multipliers: tuple[int, ...] = PRIOR_WIDTHS) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of iddpm_ffhq512: guided-diffusion's U-Net, listed block by block in its order.

    multipliers: widths of the levels, in 32 channels.
    """
    base, counts, attended = 32, (1, 2, 2, 2, 2, 3, 4), (32, 16, 8)
    width = 4 * base
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name: str, inside: int, outside: int) -> None:
        layer(f"{name}.in_layers.0", inside)
        layer(f"{name}.in_layers.2", outside, inside, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * outside, width)
        layer(f"{name}.out_layers.0", outside)
        layer(f"{name}.out_layers.3", outside, outside, 3, 3)
        if inside != outside:
            layer(f"{name}.skip_connection", outside, inside, 1, 1)

    def attention(name: str, channels: int) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    layer("time_embed.0", width, base)
    layer("time_embed.2", width, width)
    layer("input_blocks.0.0", base, 3, 3, 3)
    skips, channels, counter, index = [base], base, 512, 1
    for level, (multiplier, count) in enumerate(zip(multipliers, counts, strict=True)):
        for _ in range(count):
            residual(f"input_blocks.{index}.0", channels, multiplier * base)
            channels = multiplier * base
            if counter in attended:
                attention(f"input_blocks.{index}.1", channels)
            skips.append(channels)
            index += 1
        if level < len(multipliers) - 1:
            layer(f"input_blocks.{index}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            index, counter = index + 1, counter // 2
    residual("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    residual("middle_block.2", channels, channels)
    index = 0
    for level in reversed(range(len(multipliers))):
        for place in range(counts[level] + 1):
            residual(f"output_blocks.{index}.0", channels + skips.pop(), multipliers[level] * base)
            channels = multipliers[level] * base
            inner = 1
            if counter in attended:
                attention(f"output_blocks.{index}.1", channels)
                inner = 2
            if level and place == counts[level]:
                layer(f"output_blocks.{index}.{inner}.conv", channels, channels, 3, 3)
                counter *= 2
            index += 1
    layer("out.0", channels)
    layer("out.2", 6, channels, 3, 3)
    return shapes


def prior_state(multipliers: tuple[int, ...] = PRIOR_WIDTHS) -> dict[str, Tensor]:
    """Tensors of `prior_shapes`, seeded, with the scales of the normalizations around 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.02 + (name.endswith(("norm.weight", "s.0.weight")))
        for name, shape in prior_shapes(multipliers).items()
    }
