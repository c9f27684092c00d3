"""The U-Net of guided-diffusion and improved-diffusion, rebuilt from the tensors of a checkpoint.

Parameter names follow those checkpoints; the layout is read off their shapes. What shapes cannot tell comes from
`settings` in guided-diffusion's argument names: `num_head_channels` or `num_heads`, `use_new_attention_order`. Sources:
arXiv:2105.05233, arXiv:2102.09672.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
MAX_BLOCKS = 1000


class UNet(nn.Module):
    """(B, C, H, W) image and (B,) step -> (B, C or 2 C, H, W) noise and, with 2 C, variance channels."""

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels = state["input_blocks.0.0.weight"].shape[0]
        width = state["time_embed.0.weight"].shape[0]
        self.time_embed = nn.Sequential(nn.Linear(self.channels, width), nn.SiLU(), nn.Linear(width, width))
        inputs = [_under(state, f"input_blocks.{i}.") for i in range(_count(state, "input_blocks"))]
        outputs = [_under(state, f"output_blocks.{i}.") for i in range(_count(state, "output_blocks"))]
        level = blocks_of_a_level(outputs)
        self.input_blocks = nn.ModuleList(
            _block(block, settings, "down", bool(level and i and i % level == 0)) for i, block in enumerate(inputs)
        )
        self.middle_block = _block(_under(state, "middle_block."), settings)
        self.output_blocks = nn.ModuleList(_block(block, settings, "up", bool(level)) for block in outputs)
        out_channels, final = state["out.2.weight"].shape[:2]
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, final), nn.SiLU(), nn.Conv2d(final, out_channels, 3, padding=1))
        self.load_state_dict(state, assign=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.channels).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)

    def encode(self, x: Tensor, t: Tensor, run: Callable[..., Any] = lambda block, *args: block(*args)) -> list[Tensor]:
        """Features of the encoder, finest first, which the perceptual term compares. run: called as (block, x, emb)."""
        emb = self.time_embed(timestep_embedding(t, self.channels).to(x.dtype))
        features = []
        for block in self.input_blocks:
            x = run(block, x, emb)
            features.append(x)
        return features

    @property
    def encoder(self) -> list[nn.Module]:
        """The parts that `encode` uses."""
        return [self.time_embed, self.input_blocks]


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of (B,) steps, cosines first: (B, width) float32. Source: arXiv:1706.03762, section 3.5."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None].float() * frequency
    embedding = torch.cat([angle.cos(), angle.sin()], 1)
    return F.pad(embedding, (0, width % 2))


class Block(nn.Sequential):
    """Layers in a row; residual blocks also get the step embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions around the step embedding, with a skip connection. updown: "down", "up" or None."""

    def __init__(self, state: Mapping[str, Tensor], updown: str | None) -> None:
        super().__init__()
        out_ch, in_ch = state["in_layers.2.weight"].shape[:2]
        emb_out, emb_in = state["emb_layers.1.weight"].shape
        self.scale_shift = emb_out == 2 * out_ch
        self.updown = updown
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, in_ch), nn.SiLU(), nn.Conv2d(in_ch, out_ch, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_in, emb_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_ch), nn.SiLU(), nn.Identity(), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        )
        skip = state.get("skip_connection.weight")
        self.skip_connection: nn.Module = nn.Identity()
        if skip is not None:
            self.skip_connection = nn.Conv2d(in_ch, out_ch, skip.shape[-1], padding=skip.shape[-1] // 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(_resize(act(norm(x)), self.updown))
        emb = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = emb.chunk(2, 1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(_resize(x, self.updown)) + h


class Attention(nn.Module):
    """Self-attention over all places of a feature map. Raises ValueError if the number of its heads is not known."""

    def __init__(self, channels: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        head = int(settings.get("num_head_channels") or -1)
        heads = channels // head if head > 0 else int(settings.get("num_heads") or 0)
        if not heads and head < 1:
            raise ValueError(
                "tensor shapes do not tell the number of attention heads; put a .json file of the same name beside it "
                'that says {"num_head_channels": 64, "image_size": 256}, or num_heads, as in its training'
            )
        if heads < 1 or channels % heads:
            told = f"num_head_channels is {head}" if head > 0 else f"num_heads is {heads}"
            raise ValueError(f"{told}; it must divide the prior's {channels} attention channels")
        self.heads = heads
        self.split_first = bool(settings.get("use_new_attention_order"))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        from einops import rearrange

        flat = rearrange(x, "b c h w -> b c (h w)")
        order = "(qkv heads c)" if self.split_first else "(heads qkv c)"
        qkv = self.qkv(self.norm(flat))
        qkv = rearrange(qkv, f"b {order} places -> qkv b heads places c", qkv=3, heads=self.heads)
        # In views of qkv, neighbours in memory are places, not channels; the fused kernel takes two to three times as
        # long with those on a CPU.
        q, k, v = (part.contiguous() for part in qkv)
        out = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads places c -> b (heads c) places")
        return (flat + self.proj_out(out)).reshape(x.shape)


class Resample(nn.Module):
    """Halve or double the size, with a convolution if the checkpoint holds one."""

    op: nn.Module
    conv: nn.Module

    def __init__(self, state: Mapping[str, Tensor], direction: str) -> None:
        super().__init__()
        self.direction = direction
        name, stride = ("op", 2) if direction == "down" else ("conv", 1)
        weight = state.get(f"{name}.weight")
        if weight is not None:
            self.add_module(name, nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=stride, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return self.op(x) if hasattr(self, "op") else F.avg_pool2d(x, 2)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if hasattr(self, "conv") else x


def _resize(x: Tensor, updown: str | None) -> Tensor:
    if updown is None:
        return x
    return F.avg_pool2d(x, 2) if updown == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


def blocks_of_a_level(outputs: list[dict[str, Tensor]]) -> int:
    """How many output blocks each size of the image has in a network trained with `resblock_updown`; 0 for others.

    In such a network the last block of a size ends in a residual block that doubles the size, after a residual block
    and, in some, attention; in others it ends in a convolution. As many input blocks lead to the next halving.
    """
    for i, block in enumerate(outputs):
        last = _count(block, "") - 1
        if last > 0 and f"{last}.in_layers.2.weight" in block:
            return i + 1
    return 0


def _block(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], direction: str = "down", resizes: bool = False
) -> Block:
    """One entry of input_blocks, middle_block or output_blocks, from the tensors below it.

    resizes: whether a residual block halves the image on the way down, or doubles it if it ends a block on the way up.
    """
    if not state:  # a resampling without parameters
        return Block(Resample(state, direction))
    layers: list[nn.Module] = []
    count = _count(state, "")
    for j in range(count):
        layer = _under(state, f"{j}.")
        if "in_layers.2.weight" in layer:
            at_end = direction == "down" or j == count - 1 > 0
            layers.append(ResBlock(layer, direction if resizes and at_end else None))
        elif "qkv.weight" in layer:
            layers.append(Attention(layer["qkv.weight"].shape[1], settings))
        elif "op.weight" in layer or "conv.weight" in layer:
            layers.append(Resample(layer, direction))
        elif "weight" in layer:
            layers.append(nn.Conv2d(layer["weight"].shape[1], layer["weight"].shape[0], 3, padding=1))
        else:
            raise ValueError(f"the prior holds a layer of unknown kind: {', '.join(sorted(layer)[:3])}")
    return Block(*layers)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest index that follows `prefix`."""
    pattern = re.compile(re.escape(prefix) + (r"\.(\d+)\." if prefix else r"(\d+)\."))
    count = 1 + max((int(m.group(1)[:9]) for k in state if (m := pattern.match(k))), default=-1)
    if count > MAX_BLOCKS:
        raise ValueError(f"the prior numbers its layers up to {count - 1}; no U-Net that this program knows does so")
    return count
