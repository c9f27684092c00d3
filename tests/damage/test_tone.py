"""Tone: what faded comes back, what did not stays, and nothing but a linear map of each channel is applied."""

import json

import pytest
import torch

from bfr_core.cli.commands import main
from bfr_core.damage.synthetic import degrade
from bfr_core.damage.tone import MAX_GAIN, Tone, read_tone, with_tone
from bfr_core.files.photos import read_image, read_photo, write_image
from bfr_core.metrics.psnr import psnr


@pytest.fixture
def picture():
    """(3, 64, 64) whose colours are spread evenly over the range."""
    small = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic")[0]
    return 0.02 + 0.96 * (soft.flatten(1).argsort(1).argsort(1) / (64 * 64 - 1)).view(3, 64, 64)


@pytest.mark.parametrize("seed", range(4))
def test_a_faded_print_comes_back(picture, seed):
    lq = degrade(picture[None], "faded", torch.Generator().manual_seed(seed)).lq[0]
    mended = with_tone(lq, read_tone(lq))
    before, after = (psnr(x[None], picture[None]).item() for x in (lq, mended))
    assert after > before + 8 and after > 35


def test_a_healthy_photo_is_left_alone(picture):
    assert (with_tone(picture, read_tone(picture)) - picture).abs().max() < 0.02
    narrow = Tone((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert read_tone(torch.rand(3, 64, 64), 0.0) == narrow


def test_strength_is_the_share_of_the_way(picture):
    lq = 0.3 + 0.4 * picture
    whole, half = (with_tone(lq, read_tone(lq, s)) for s in (1.0, 0.5))
    assert torch.allclose(half, (lq + whole) / 2, atol=2e-3)


def test_grey_stays_grey_and_flat_is_not_blown_up(picture):
    grey = (0.3 + 0.3 * picture.mean(0, keepdim=True)).expand(3, -1, -1)
    mended = with_tone(grey, read_tone(grey))
    assert torch.equal(mended[0], mended[1]) and torch.equal(mended[1], mended[2])
    assert max(read_tone(torch.full((3, 16, 16), 0.5)).gain) == MAX_GAIN
    assert torch.allclose(
        with_tone(torch.full((3, 16, 16), 0.5), read_tone(torch.full((3, 16, 16), 0.5))), torch.tensor(0.5)
    )


def test_the_command_keeps_names_and_says_what_it_did(picture, tmp_path, capsys):
    write_image(tmp_path / "in" / "a" / "old.png", 0.3 + 0.4 * picture)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    assert main(["tone", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["photos"] == 1 and "bad.png" in summary["problems"][0]
    made = json.loads((tmp_path / "out" / "tone.json").read_text())["photos"]["a/old.png"]
    expected = with_tone(
        read_image(tmp_path / "in" / "a" / "old.png"), Tone(tuple(made["gain"]), tuple(made["offset"]))
    )
    assert (read_photo(tmp_path / "out" / "a" / "old.png").pixels - expected).abs().max() < 0.003
    assert main(["tone", str(tmp_path / "in"), "--out", str(tmp_path / "in")]) == 2
    assert "is the folder of the photos; choose another folder" in capsys.readouterr().err


def test_a_strength_out_of_range_is_refused(picture):
    with pytest.raises(ValueError, match="strength is 2"):
        read_tone(picture, 2)
