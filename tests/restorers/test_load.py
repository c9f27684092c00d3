import pytest
import torch
from safetensors.torch import load_file, save_file

from bfr_core.restorers import load_restorer, save_restorer


def test_the_restorer_keeps_shape_and_range(tiny_restorer):
    restorer = load_restorer(tiny_restorer)
    assert (restorer.architecture, restorer.size, restorer.licence) == ("NAFNet", 32, "test")
    out = restorer.restore(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 3, 32, 32) and out.min() >= 0 and out.max() <= 1


def test_saved_under_the_files_own_keys_and_read_by_spandrel(tiny_restorer, tmp_path):
    import spandrel

    path = tmp_path / "saved.safetensors"
    restorer = load_restorer(tiny_restorer)
    save_restorer(path, restorer, {"steps": 3})
    assert set(load_file(path)) == set(load_file(tiny_restorer))
    descriptor = spandrel.ModelLoader().load_from_file(path)
    lq = torch.rand(1, 3, 32, 32)
    assert (descriptor(lq) - restorer.restore(lq)).abs().max() < 1e-6
    assert load_restorer(path).metadata["steps"] == "3"


def test_an_unknown_architecture_is_one_clear_line(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors: spandrel does not know"):
        load_restorer(tmp_path / "x.safetensors")


def test_a_network_with_missing_parts_is_one_clear_line(tiny_restorer, tmp_path):
    state = load_file(tiny_restorer)
    del state["encoders.0.0.conv1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors: its network cannot be rebuilt") as error:
        load_restorer(tmp_path / "part.safetensors")
    assert "\n" not in str(error.value)


def test_missing_restorer_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_restorer("nowhere.pth")


def test_nan_from_the_network_is_an_error(tiny_restorer):
    restorer = load_restorer(tiny_restorer)
    with torch.no_grad():
        restorer.module.get_parameter("ending.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match="gave NaN"):
        restorer.restore(torch.rand(1, 3, 32, 32))
