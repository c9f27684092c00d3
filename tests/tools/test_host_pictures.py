"""What the tool that takes the hosts' pictures makes of its arguments and pictures, without a browser."""

from __future__ import annotations

import argparse
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from host_pictures import MAX_BYTES, setting
from PIL import Image
from readme_picture import as_jpeg

DOCS = Path(__file__).parents[2] / "docs"


def test_a_setting_is_a_kind_of_node_a_widget_and_a_value() -> None:
    assert setting("BFR_FinetuneRestorer.settings=as set below") == (
        "BFR_FinetuneRestorer", "settings", "as set below",
    )  # fmt: skip
    assert setting("BFR_FinetuneRestorer.lr=0.001")[2] == "0.001"
    for wrong in ("BFR_FinetuneRestorer.lr", "lr=0.001", "BFR_FinetuneRestorer.lr="):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(wrong))):
            setting(wrong)


def test_a_picture_of_noise_still_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1200, 3), dtype=np.uint8)
    content = as_jpeg(Image.fromarray(noise), MAX_BYTES)
    assert len(content) <= MAX_BYTES < len(as_jpeg(Image.fromarray(noise), 10 * MAX_BYTES))
    assert Image.open(BytesIO(content)).size == (1200, 600)


@pytest.mark.parametrize(
    "name", ["page", "comfyui_tour", "comfyui_adapt_and_restore", "webui_a1111", "webui_forge", "webui_neo"]
)
def test_the_documents_pictures_are_as_small_and_as_wide_as_promised(name: str) -> None:
    path = DOCS / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 1200 <= picture.width <= 2000
    assert path.stat().st_size <= MAX_BYTES
