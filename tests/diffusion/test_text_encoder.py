"""CLIP's text encoder against PyTorch's own transformer and, where it is there, the package transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bfr_core.diffusion.text_encoder import LENGTH, PROMPT, from_open_clip, hidden_states, number_of_layers, prompt_ids
from tests.checkpoint_layouts import clip, open_clip

WIDTH, LAYERS, VOCABULARY = 128, 3, 90
IDS = prompt_ids(0, (88, 3, 5, 7, 89))


def tensors(layout: Any, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {k: v for k, v in layout(WIDTH, LAYERS, VOCABULARY) if not k.endswith("position_ids")}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def as_pytorch(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """OpenCLIP's text tower, made of PyTorch's layers: the states after the last norm."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    for i in range(LAYERS):
        part = {k.removeprefix(f"transformer.resblocks.{i}."): v for k, v in state.items()}
        layer = nn.TransformerEncoderLayer(
            WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        names = {
            "attn.": "self_attn.",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.c_fc": "linear1",
            "mlp.c_proj": "linear2",
        }
        renamed = {}
        for name, value in part.items():
            for old, new in names.items():
                if name.startswith(old):
                    renamed[name.replace(old, new, 1)] = value
        layer.load_state_dict(renamed)
        x = layer(x, src_mask=mask)
    return torch.layer_norm(x, (WIDTH,), state["ln_final.weight"], state["ln_final.bias"])


@torch.no_grad()
def test_open_clip_is_a_transformer_of_pytorch() -> None:
    state = tensors(open_clip)
    found = hidden_states(from_open_clip(state), IDS, quick=False)
    assert len(found) == LAYERS + 2 and number_of_layers(from_open_clip(state)) == LAYERS
    assert (found[-1] - as_pytorch(state, IDS)).abs().max() < 1e-4
    assert torch.equal(from_open_clip(state)["text_projection.weight"], state["text_projection"].T)


@torch.no_grad()
def test_what_comes_after_a_token_does_not_reach_it() -> None:
    state = {k.removeprefix("text_model."): v for k, v in tensors(clip).items()}
    other = IDS.clone()
    other[0, 4:] = 11
    a, b = (hidden_states(state, ids, quick=True)[-1] for ids in (IDS, other))
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.allclose(a[:, 4], b[:, 4])


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
def test_it_is_the_one_of_the_package_transformers(quick: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64, hidden_act="quick_gelu" if quick else "gelu", eos_token_id=89,
    )  # fmt: skip
    model = transformers.CLIPTextModel(config).eval()
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    wanted = model(IDS, output_hidden_states=True)
    found = hidden_states(state, IDS, quick)
    assert (found[-1] - wanted.last_hidden_state).abs().max() < 1e-4
    for ours, theirs in zip(found[:-1], wanted.hidden_states, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def test_the_prompt_fills_its_length() -> None:
    ids = prompt_ids(0)
    assert (
        ids.shape == (1, LENGTH) and ids[0, : len(PROMPT)].tolist() == list(PROMPT) and not ids[0, len(PROMPT) :].any()
    )
    assert PROMPT[0] == 49406 and PROMPT[-1] == 49407 and max(PROMPT) < 49408
