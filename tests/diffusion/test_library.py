"""diffusers and PyTorch that do not go together are said in one line."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from bfr_core.diffusion import library
from bfr_core.diffusion.prior import load_prior


def test_classes_come_by_name() -> None:
    [unet] = library.from_diffusers("UNet2DModel")
    assert unet.__name__ == "UNet2DModel"


def test_a_diffusers_that_is_too_new_for_torch_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> Any:
        if name == "diffusers":  # as 0.37 with torch 2.1
            raise AttributeError("module 'torch' has no attribute 'xpu'")
        return importlib.import_module(name)

    monkeypatch.setattr(library, "import_module", load)
    with pytest.raises(AttributeError, match="xpu"):  # this torch has it: no advice that does not help
        load_prior()
    monkeypatch.delattr(library.torch, "xpu")
    with pytest.raises(ValueError, match=r"diffusers .* does not load with torch .* pip install 'diffusers<0.36'"):
        load_prior()
