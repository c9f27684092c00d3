"""The oldest PyTorch, diffusers and spandrel that are promised, in an environment that is made once in `build`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bfr_core.files.records import fingerprint

ROOT = Path(__file__).resolve().parents[1]
# The oldest that are promised, and what goes with them: NumPy 1 with that PyTorch, an old hub client with diffusers.
OLDEST = ("torch==2.1.0", "torchvision==0.16.0", "diffusers==0.31.0", "spandrel==0.3.4")
WITH_THEM = ("numpy<2", "opencv-python-headless<4.12", "huggingface-hub<1", "spandrel_extra_arches<0.2")
REST = (
    "cma",
    "filelock",
    "Pillow",
    "platformdirs",
    "safetensors",
    "scikit-image",
    "tqdm",
    "matplotlib",
    "piq",
    "pytest>=8",
    "scipy",
    "av",
)
TESTED = (
    "test_devices.py", "files/test_tensors.py", "diffusion/test_low_pass.py", "diffusion/test_schedule.py",
    "diffusion/test_sampler.py", "diffusion/test_prior.py", "training/test_losses.py", "training/test_batches.py",
    "training/test_checkpoint.py", "training/test_finetune.py", "restorers/test_low_rank.py", "restorers/test_load.py",
    "adaptation/test_targets.py", "adaptation/test_adapt.py", "damage/test_transplant.py", "faces/test_align.py",
    "faces/test_detect.py", "faces/test_second_look.py", "faces/test_paste.py",
)  # fmt: skip


def oldest_promised() -> dict[str, str]:
    """Package -> least version, as requirements.txt and pyproject.toml say."""
    said = (ROOT / "requirements.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    return dict(re.findall(r"\b(torch|torchvision|diffusers|spandrel)>=([\d.]+)", said))


def test_the_oldest_that_is_promised_is_what_is_tested() -> None:
    pinned = dict(pin.split("==") for pin in OLDEST)
    assert set(pinned) == set(oldest_promised())
    for name, least in oldest_promised().items():
        assert pinned[name].removesuffix(".0") == least.removesuffix(".0"), f"{name}: {least} is promised"


def test_every_file_that_is_tested_with_them_is_there() -> None:
    missing = [name for name in TESTED if not (ROOT / "tests" / name).is_file()]
    assert not missing, f"TESTED names {missing}, which were renamed or removed"


@pytest.fixture
def oldest_python(pythons: dict[tuple[int, ...], str]) -> Path:
    """The Python of an environment with those packages, made if it is not there yet: 5 GB."""
    version = next((v for v in ((3, 10), (3, 11)) if v in pythons), None)
    if version is None:
        pytest.skip("needs Python 3.10 or 3.11, for which the oldest PyTorch was built")
    folder = ROOT / "build" / f"oldest-{fingerprint(OLDEST, WITH_THEM, REST, version)[:8]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([pythons[version], "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", *OLDEST, *WITH_THEM, *REST]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "complete").write_text("")
    return python


@pytest.mark.slow
def test_devices_and_core_with_the_oldest_packages(oldest_python: Path) -> None:
    """Needs the package index when the environment is made."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    command = [str(oldest_python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / name) for name in TESTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"\d+ passed", done.stdout)
