"""What a latent prior is told by its text encoders, for one fixed prompt whose tokens are stored here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# "sharp portrait photo, natural skin, fine detail", between the marks of start and end, in CLIP's vocabulary.
PROMPT = (49406, 8157, 5352, 1125, 267, 3288, 3575, 267, 3797, 7657, 49407)
LENGTH, HEAD = 77, 64  # tokens of a prompt; width of one attention head in every CLIP
OPEN_CLIP_PAD = 0  # what SDXL's second encoder has after the prompt; the other has the mark of the end again


def prompt_ids(pad: int, ids: tuple[int, ...] = PROMPT) -> Tensor:
    """(1, 77) tokens of the prompt, filled up with `pad`."""
    return torch.tensor([[*ids, *[pad] * (LENGTH - len(ids))]])


def hidden_states(tensors: Mapping[str, Tensor], ids: Tensor, quick: bool) -> list[Tensor]:
    """States of a CLIP text encoder, (1, 77, C) each: the embeddings, then after every layer, then the last normalised.

    tensors: by transformers' names, without "text_model.". quick: whether its activation is x sigmoid(1.702 x), as in
    OpenAI's CLIP, or GELU, as in OpenCLIP. Raises KeyError for a tensor that is missing.
    Source: arXiv:2103.00020, section 2.4; a transformer with norms before its blocks and a causal mask.
    """
    tensors = {name: value.float() for name, value in tensors.items() if name != "embeddings.position_ids"}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    x = tensors["embeddings.token_embedding.weight"][ids] + tensors["embeddings.position_embedding.weight"]
    states = [x]
    heads = max(1, x.shape[-1] // HEAD)
    for i in range(number_of_layers(tensors)):
        layer = f"encoder.layers.{i}"
        inside = norm(f"{layer}.layer_norm1", x)
        parts = (linear(f"{layer}.self_attn.{part}_proj", inside) for part in "qkv")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(f"{layer}.self_attn.out_proj", seen)
        inside = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
        inside = inside * torch.sigmoid(1.702 * inside) if quick else F.gelu(inside)
        x = x + linear(f"{layer}.mlp.fc2", inside)
        states.append(x)
    return [*states, norm("final_layer_norm", x)]


def number_of_layers(tensors: Mapping[str, Tensor]) -> int:
    """How many layers a CLIP text encoder has."""
    found = (re.match(r"encoder\.layers\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(one[1]) for one in found if one), default=-1)


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text tower by transformers' names, which `hidden_states` wants; its projection is transposed."""
    renamed = {
        "positional_embedding": "embeddings.position_embedding.weight",
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    inside = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    found = {renamed[name]: value for name, value in tensors.items() if name in renamed}
    if "text_projection" in tensors:
        found["text_projection.weight"] = tensors["text_projection"].T
    for name, value in tensors.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if match is None:
            continue
        number, part, kind = match.groups()
        layer = f"encoder.layers.{number}"
        if part == "attn.in_proj":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
        elif part in inside:
            found[f"{layer}.{inside[part]}.{kind}"] = value
    return found
