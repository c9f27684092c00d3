import json

import pytest
import torch

from bfr_core.diffusion.prior import load_prior
from bfr_core.studies.demo import damaged_photo, draw_faces, real_photos
from bfr_core.studies.demo import demo as run_demo


def test_drawn_faces_depend_on_their_names_alone(tiny_prior):
    prior = load_prior(tiny_prior)
    together = draw_faces(prior, ["a", "b"], seed=1)
    alone = draw_faces(prior, ["b"], seed=1)
    assert together.shape == (2, 3, 32, 32) and together.min() >= 0 and together.max() <= 1
    assert (together[1] - alone[0]).abs().max() < 0.02  # bfloat16 differs a little between batch sizes
    assert (together[0] - together[1]).abs().mean() > 0.02


def test_the_real_photographs_have_a_face_that_fills_the_crop():
    for name, photo in real_photos().items():
        hq, lq, face = damaged_photo(photo, name, 128)
        assert hq.shape == lq.shape and face.width == pytest.approx(128, rel=0.02)
        assert 10 < -10 * torch.log10((hq - lq).square().mean()) < 30


@pytest.mark.slow
def test_the_demonstration_from_end_to_end(tmp_path):
    page = run_demo(tmp_path)
    assert page.stat().st_size > 100_000
    report = json.loads((tmp_path / "report.json").read_text())
    assert [t["title"][:4] for t in report["tables"]] == ["Real", "Draw"]
    assert "flatter" in report["tables"][1]["note"]
