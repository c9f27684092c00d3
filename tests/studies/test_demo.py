import json

import pytest
import torch

from bfr_core.studies.demo import damaged_photo, real_photos
from bfr_core.studies.demo import demo as run_demo


def test_the_real_photographs_have_a_face_no_larger_than_the_crop():
    for name, photo in real_photos().items():
        hq, lq, face = damaged_photo(photo, name, 256)
        assert hq.shape == lq.shape and 150 < face.width < 260
        assert 10 < -10 * torch.log10((hq - lq).square().mean()) < 30


@pytest.mark.slow
def test_the_demonstration_from_end_to_end(tmp_path):
    page = run_demo(tmp_path)
    assert page.stat().st_size > 100_000
    report = json.loads((tmp_path / "report.json").read_text())
    assert [t["title"][:4] for t in report["tables"]] == ["Real", "Othe"]
    assert "trained on them" in report["tables"][1]["note"]
