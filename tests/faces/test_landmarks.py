from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bfr_core.faces.landmarks import STRIDE, WINDOW, LandmarkNet, load_landmark_net, to_grey


def test_a_window_has_nine_cells_and_a_photo_one_every_sixteen_pixels() -> None:
    net = LandmarkNet().eval()
    logit, landmarks = net(torch.rand(2, 1, WINDOW, WINDOW))
    assert logit.shape == (2, 3, 3) and landmarks.shape == (2, 3, 3, 5, 2)
    logit, _ = net(torch.rand(1, 1, WINDOW + 2 * STRIDE, WINDOW + STRIDE))
    assert logit.shape == (1, 5, 4)


def test_the_embedded_network_is_small_and_knows_where_it_comes_from() -> None:
    from safetensors import safe_open

    from bfr_core.faces.landmarks import EMBEDDED

    assert sum(p.numel() for p in load_landmark_net().parameters()) <= 500_000
    with safe_open(EMBEDDED, "pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
    assert metadata["licence"] == "Apache-2.0" and metadata["architecture"] == "LandmarkNet"


def test_a_missing_or_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing; reinstall"):
        load_landmark_net(tmp_path / "none.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="wrong.safetensors: not the embedded face network") as error:
        load_landmark_net(wrong)
    assert "\n" not in str(error.value)


def test_grey_of_grey_is_itself() -> None:
    plane = torch.rand(1, 8, 8)
    assert torch.allclose(to_grey(plane.expand(3, -1, -1)), plane, atol=1e-6)
