"""JPEG without a file against libjpeg."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bfr_core.damage.jpeg import CHROMA_TABLE, LUMA_TABLE, scaled_table, through_jpeg


def photograph() -> Tensor:
    import skimage.data

    return torch.from_numpy(skimage.data.astronaut()[20:212, 130:322]).permute(2, 0, 1)[None].float() / 255


def by_libjpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=2)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_it_does_what_libjpeg_does(quality: int) -> None:
    image = photograph()
    ours, theirs = through_jpeg(image, quality), by_libjpeg(image, quality)
    assert (ours - theirs).abs().mean() < 2 / 255
    lost = [(made - image).square().mean() for made in (ours, theirs)]
    assert lost[0] / lost[1] == pytest.approx(1, abs=0.15)


def test_the_tables_are_those_of_libjpeg() -> None:
    for quality in range(1, 100):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality)
        theirs = Image.open(stream).quantization  # type: ignore[attr-defined]
        for number, table in enumerate((LUMA_TABLE, CHROMA_TABLE)):
            assert scaled_table(table, quality).flatten().tolist() == list(theirs[number]), quality


def test_any_size_comes_back_as_it_was() -> None:
    image = torch.rand(2, 3, 37, 21, generator=torch.Generator().manual_seed(0))
    assert through_jpeg(image, 90).shape == image.shape


def test_an_even_colour_stays_within_a_step() -> None:
    grey = torch.full((1, 3, 32, 32), 128 / 255)
    assert torch.equal(through_jpeg(grey, 40), grey)
