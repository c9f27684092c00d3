"""ParseNet: built from a file by our own loader, and its mask as the part of a crop that is pasted."""

from pathlib import Path

import pytest
import torch

from bfr_core.faces.align import Face, crop_face, template
from bfr_core.faces.parse import FILE, SIZE, FaceParser
from bfr_core.faces.paste import paste_face


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceParser:
    """Of random weights, made to call the left half skin and the right half background."""
    from facexlib.parsing.parsenet import ParseNet

    torch.save(ParseNet(SIZE, SIZE, parsing_ch=19).state_dict(), tmp_path / FILE)
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    parser = FaceParser()

    def halves(image: torch.Tensor) -> tuple[torch.Tensor, None]:
        scores = torch.zeros(1, 19, SIZE, SIZE)
        scores[:, 1, :, : SIZE // 2] = 1
        scores[:, 0, :, SIZE // 2 :] = 1
        return scores, None

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
