"""ParseNet: built from a file by our own loader, and its mask as the part of a crop that is pasted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bfr_core.faces.align import Face, crop_face, template
from bfr_core.faces.parse import FILE, SIZE, FaceParser, ParseNet, has_parser
from bfr_core.faces.paste import paste_face

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceParser:
    """Of random weights, made to call the left half skin and the right half background."""
    torch.save(ParseNet().state_dict(), tmp_path / FILE)
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    parser = FaceParser()

    def halves(image: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(1, 19, SIZE, SIZE)
        scores[:, 1, :, : SIZE // 2] = 1
        scores[:, 0, :, SIZE // 2 :] = 1
        return scores

    monkeypatch.setattr(parser.net, "forward", halves)
    return parser


def test_the_mask_is_the_face_with_a_soft_rim(parser: FaceParser) -> None:
    mask = parser(torch.rand(3, 128, 128))
    assert mask.shape == (1, 128, 128) and mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert (mask[:, :, :48] > 0.99).all() and (mask[:, :, 80:] < 0.01).all()
    assert mask[0, 64, 63] == pytest.approx(0.5, abs=0.1)


def test_only_the_face_is_pasted(parser: FaceParser) -> None:
    photo = torch.full((3, 300, 300), 0.5)
    face = Face(template(128) + 80)
    crop = crop_face(photo, face, 128)
    new = crop.clone()
    new[:, 40:90] += 0.3
    whole = paste_face(photo, new, face, crop, match_colour=False)
    part = paste_face(photo, new, face, crop, match_colour=False, region=parser(new))
    right = (slice(None), slice(None), slice(180, 300))
    assert (whole[right] - photo[right]).abs().max() > 0.2 and torch.equal(part[right].round(decimals=3), photo[right])
    left = (slice(None), slice(130, 160), slice(100, 120))
    assert (part[left] - whole[left]).abs().max() < 0.01


def test_without_its_file_it_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="bfr weights get parsing_parsenet.pth"):
        FaceParser()


def test_other_weights_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / FILE)
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match="not ParseNet weights") as error:
        FaceParser()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_network_is_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and numbers agree with facexlib's own network."""
    theirs = pytest.importorskip("facexlib.parsing.parsenet").ParseNet(SIZE, SIZE, parsing_ch=19).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + 0.5 * ("var" in name))
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    assert not has_parser()
    torch.save(theirs.state_dict(), tmp_path / FILE)
    assert has_parser()
    picture = torch.rand(1, 3, SIZE, SIZE, generator=generator) * 2 - 1
    with torch.no_grad():
        expected, ours = theirs(picture)[0], FaceParser().net(picture)
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_it_works_without_opencv_and_facexlib(tmp_path: Path) -> None:
    torch.save(ParseNet().state_dict(), tmp_path / FILE)
    block = "import sys; sys.modules['cv2'] = sys.modules['facexlib'] = None\n"
    code = "import torch; from bfr_core.faces.parse import FaceParser; print(FaceParser()(torch.rand(3, 64, 64)).shape)"
    environment = os.environ | {"BFR_WEIGHTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert "[1, 64, 64]" in done.stdout, done.stderr
