"""Hold Low Band in a real ComfyUI: in its own samplers on tiny models, and on a whole checkpoint of random weights."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bfr_core.diffusion.low_pass import low_pass
from tests.checkpoint_layouts import layout, write_checkpoint
from tests.nodes.conftest import ROOT, comfyui_at

pytestmark = pytest.mark.host
NEEDED = {"sd15": 6 * 2**30, "sdxl": 18 * 2**30}  # bytes of memory; ComfyUI computes in float32 on the CPU


def test_every_sampler_holds_the_low_band_and_is_unchanged_without(tmp_path: Path) -> None:
    home, python = comfyui_at()
    command = [python, str(ROOT / "tests/nodes/tiny_latent_models.py"), str(ROOT), "--base-directory", str(tmp_path)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 50

    def limit(case: str) -> float:
        return 2e-3 if "uni_pc" in case else 1e-5  # ComfyUI ends it at noise of 0.001

    assert [one for one in found if not one["held"] < limit(one["case"])] == []
    assert [one["case"] for one in found if not one["free"] > 0.02] == [], "the low band is the node's doing"
    assert [one["case"] for one in found if not one["same"]] == [], "without the node, to the bit"


def test_a_narrow_sdxl_is_sampled_with_the_hold_and_unchanged_without(tmp_path: Path) -> None:
    """SDXL's layers with a U-Net of a fifth of the width, where memory is too short for the whole (see below)."""
    home, python = comfyui_at()
    command = [python, str(ROOT / "tests/nodes/narrow_sdxl.py"), str(ROOT), str(tmp_path)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] < 1e-5 and found["free"] > 0.01 and found["same"], found
    assert not re.search("missing|left over keys|unexpected", done.stderr), "the layout is SDXL's"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def image_to_image(checkpoint: str, name: str, until: float | None) -> dict[str, Any]:
    """Two steps on a portrait of 256 pixels, whose low band is held `until` then; None is without the node."""
    held = {"model": ["load", 0], "vae": ["load", 2], "reference": ["small", 0], "factor": 32, "until": until}
    model = ["load" if until is None else "hold", 0]
    sampler = {"seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.6}
    prompts = {"positive": ["prompt", 0], "negative": ["empty", 0]}
    small = {"image": ["photo", 0], "upscale_method": "lanczos", "width": 256, "height": 256, "crop": "disabled"}
    graph = {
        "load": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a sharp portrait"),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
        "photo": node("LoadImage", image="portrait.png"),
        "small": node("ImageScale", **small),
        "encode": node("VAEEncode", pixels=["small", 0], vae=["load", 2]),
        "sample": node("KSampler", model=model, latent_image=["encode", 0], **prompts, **sampler),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=f"latents/{name}"),
        "reference": node("SaveLatent", samples=["encode", 0], filename_prefix=f"latents/{name}_reference"),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "fix": node("BFR_LowBandFix", images=["decode", 0], reference=["small", 0], factor=32, preview=False),
        "shown": node("SaveImage", images=["fix", 0], filename_prefix=f"latents/{name}"),
    }
    return graph if until is None else graph | {"hold": node("BFR_HoldLowBand", **held)}


def saved(comfy: Any, name: str) -> Any:
    """The latents of the last graph of this name."""
    from safetensors.torch import load_file

    (path,) = (p for p in (comfy.base / "output/latents").glob(f"{name}_0*.latent"))
    return load_file(path)["latent_tensor"]


def free_memory() -> float:
    """Bytes that programs can still take; without Linux's /proc no limit is known."""
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text()) if table.is_file() else None
    return int(found[1]) * 1024 if found else float("inf")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_whole_checkpoint_is_sampled_with_the_hold_and_unchanged_without(comfy: Any, family: str) -> None:
    """A file with exactly the published tensors and random weights in half precision; SDXL's takes 7 GB of disk."""
    if free_memory() < NEEDED[family]:
        pytest.skip(f"{family} takes {NEEDED[family] / 2**30:.0f} GB of memory, more than is free")
    path = comfy.base / f"models/checkpoints/{family}_random.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, layout(family))
    try:
        for name, until in (("before", None), ("held", 1.0), ("never", 0.0)):
            result = comfy.run(image_to_image(path.name, f"{family}_{name}", until))
            assert result["status"]["status_str"] == "success", result["messages"]
    finally:
        path.unlink()
    before, held, never = (saved(comfy, f"{family}_{name}") for name in ("before", "held", "never"))
    reference = saved(comfy, f"{family}_held_reference")
    assert before.equal(never) and before.std() > 0.1 and before.isfinite().all()
    scale = float(held.abs().max())  # random weights make large numbers, and rounding grows with them
    assert float((low_pass(held, 4) - low_pass(reference, 4)).abs().max()) < 1e-5 * scale
    assert float((low_pass(before, 4) - low_pass(reference, 4)).abs().max()) > 0.05 * float(reference.std())
    assert not re.search("missing|left over keys|unexpected", comfy.log.read_text()), "the layout is exact"
