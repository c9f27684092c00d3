"""Options and fixtures of every test."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is loaded, here and in what the tests start: their networks are so small that threads only wait for one
# another, and two workers take two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow, host or cluster")


# The files that take longest, which begin first, so that no worker is left with one of them while the other is idle.
LONGEST = (
    "web/test_gradio_page.py",
    "test_devices.py",
    "nodes/test_adapt.py",
    "web/test_actions.py",
    "cli/test_commands.py",
    "adaptation/test_adapt.py",
    "adaptation/test_good_faces.py",
    "studies/test_verification.py",
    "adaptation/test_per_damage.py",
    "restorers/test_published.py",
    "studies/test_paper_table.py",
    "restorers/test_published_tuning.py",
    "faces/test_detect.py",
    "test_install.py",
    "test_every_file.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_to_others(config, items)
    sizes = Counter(item.path for item in items)
    place = {ROOT / "tests" / file: i for i, file in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path, len(LONGEST)), -sizes[item.path], str(item.path)))


def left_to_others(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the tests that run only with --all."""
    if config.getoption("--all") or config.getoption("markexpr"):
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, ("slow", "host", "cluster")))]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """Look through objects that could be garbage more rarely: with all of torch loaded it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def pythons() -> dict[tuple[int, ...], str]:
    """(major, minor) -> path of every Python at hand: pyenv's, and those on the search path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [str(path) for path in sorted(pyenv.glob("*/bin/python"))]
    others = [path for minor in range(6, 20) if (path := shutil.which(f"python3.{minor}"))]
    places += [path for path in others if "shims" not in path] + [sys.executable]
    found: dict[tuple[int, ...], str] = {}
    for place in places:
        code = "import sys; print('%d %d' % sys.version_info[:2])"
        done = subprocess.run([place, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            major, minor = done.stdout.split()
            found[int(major), int(minor)] = place
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with portraits/, faces256/, photos/, reference/: $BFR_SHARED, or `shared` beside or in the checkout."""
    given = os.environ.get("BFR_SHARED")
    places = [Path(given)] if given else [ROOT.parent / "shared", ROOT / "shared"]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no folder of real faces: set BFR_SHARED to one with portraits/, faces256/, photos/ and reference/")


@pytest.fixture(scope="session")
def tiny_restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NAFNet of a few thousand parameters for 32 x 32 faces, as a file; it returns its input nearly unchanged."""
    import torch
    from safetensors.torch import save_file
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    net = NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.nn.init.normal_(net.ending.weight, std=0.01)
    save_file(net.state_dict(), path, {"architecture": "NAFNet", "size": "32", "licence": "test"})
    return path


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers UNet2DModel for 32 x 32 images in 2 x 2 patches, as a folder."""
    import json

    import safetensors.torch  # noqa: F401  (diffusers 0.31 takes it for imported when it saves)
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=16, in_channels=12, out_channels=12, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "prior"
    UNet2DModel.save_pretrained(net, folder)
    (folder / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten aligned 32 x 32 pictures in a folder and a folder below it."""
    import torch

    from bfr_core.files.photos import write_image

    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (32, 32), mode="bilinear")
        write_image(folder / ("below" if i % 2 else "") / f"face {i}.png", smooth[0])
    return folder


@pytest.fixture(scope="session")
def mixed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Aligned 32 x 32 pictures, some with noise, some blurred: see `two_damages`."""
    from tests.two_damages import BLURRED, NOISY, put

    return put(put(tmp_path_factory.mktemp("mixed"), "sensor", NOISY, 0), "motion_jpeg", BLURRED, 1)


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptation to noise is adopted, that to blur is not."""
    from tests.two_damages import judged

    monkeypatch.setattr("bfr_core.adaptation.tuning.judged_on_faces", judged)


@pytest.fixture(scope="session", autouse=True)
def few_trials() -> Iterator[None]:
    """The search for a folder's damage is short, and a verdict tries few known faces, see `tests.short_search`. A
    process that a test starts does all that a user's does, unless it is given the environment `short_programs`."""
    from tests.short_search import shorten

    with pytest.MonkeyPatch.context() as patch:
        shorten(lambda module, name, value: patch.setattr(f"{module}.{name}", value))
        yield


@pytest.fixture(scope="session")
def short_programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a program that a test starts is as short as the test itself."""
    from tests.short_search import write_sitecustomize

    paths = [str(write_sitecustomize(tmp_path_factory.mktemp("short"))), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="session", autouse=True)
def unwaited_disk() -> Iterator[None]:
    """Nobody waits until the disk has written what tests write: no test takes the machine's power away. That files are
    asked to be on the disk before they get their names is tested in `tests/files/test_photos.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Folder for pictures of pages, to be looked at after the run: $BFR_SCREENSHOTS, or build/screenshots."""
    folder = Path(os.environ.get("BFR_SCREENSHOTS", ROOT / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def browser(request: pytest.FixtureRequest, screenshots: Path, tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium, driven by selenium; it keeps a log of its requests.

    What it downloads lies in tmp_path / "downloads", and what it showed last is kept among the screenshots.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    started.command_executor.client_config.timeout = 600  # of one command, as of other waits; 120 s otherwise
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    started.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    try:
        yield started
        started.save_screenshot(str(screenshots / f"{file_name(request.node.name)}.png"))
    finally:
        started.quit()


def file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)
