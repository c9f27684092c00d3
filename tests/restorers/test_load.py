import pytest
import torch
from safetensors.torch import load_file, save_file

from bfr_core.restorers import load_restorer, save_change, save_restorer


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


def test_a_file_of_changes_is_applied_to_its_base(tiny_restorer, tmp_path):
    base = load_restorer(tiny_restorer)
    tuned = load_restorer(tiny_restorer)
    weight = tuned.module.get_parameter("intro.weight")
    with torch.no_grad():
        weight.add_(0.1 * torch.ones(len(weight), 1, 1, 1) * torch.rand(1, *weight.shape[1:]))  # of rank one
    save_change(tmp_path / "change.safetensors", base, tuned, 4, {"prior": "p"})
    copy = tmp_path / tiny_restorer.name
    copy.write_bytes(tiny_restorer.read_bytes())
    loaded = load_restorer(tmp_path / "change.safetensors")
    lq = torch.rand(1, 3, 32, 32)
    assert (loaded.restore(lq) - tuned.restore(lq)).abs().max() < 2e-3  # the file is fp16
    assert not torch.allclose(loaded.restore(lq), base.restore(lq), atol=2e-3)
    assert loaded.metadata["prior"] == "p"
    assert (tmp_path / "change.safetensors").stat().st_size < copy.stat().st_size / 3


def test_changes_of_another_base_are_refused(tiny_restorer, tmp_path):
    base = load_restorer(tiny_restorer)
    save_change(tmp_path / "change.safetensors", base, base, 4, {})
    (tmp_path / tiny_restorer.name).write_bytes(b"another file of that name")
    with pytest.raises(FileNotFoundError, match=r"change.safetensors: changes tiny.safetensors .*put that file beside"):
        load_restorer(tmp_path / "change.safetensors")


def test_missing_restorer_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_restorer("nowhere.pth")


def test_nan_from_the_network_is_an_error(tiny_restorer):
    restorer = load_restorer(tiny_restorer)
    with torch.no_grad():
        restorer.module.get_parameter("ending.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match="gave NaN"):
        restorer.restore(torch.rand(1, 3, 32, 32))


def test_nafnets_layer_norm_is_spandrels(tiny_restorer):
    import spandrel

    ours = load_restorer(tiny_restorer).module
    theirs = spandrel.ModelLoader().load_from_file(tiny_restorer).model
    x, gradients = torch.rand(2, 3, 32, 32), []
    for net in (ours, theirs):
        net.requires_grad_(True).zero_grad()
        y = net(x)
        y.square().mean().backward()
        gradients.append([y.detach(), *(p.grad for p in net.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
