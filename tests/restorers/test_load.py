import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bfr_core.faces.detect import load_detector
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.restorers import export_pth, load_restorer, save_change, save_restorer


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


def test_a_change_of_the_embedded_restorer_of_before_finds_it(tmp_path):
    """It was saved when "embedded" meant the file of 128 pixels, and lies alone in its folder."""
    base, tuned = load_restorer("embedded128"), load_restorer("embedded128")
    assert (base.name, base.size, load_restorer().size) == ("restorer128.safetensors", 128, 256)
    with torch.no_grad():
        tuned.module.get_parameter("intro.bias").add_(0.1)
    save_change(tmp_path / "change.safetensors", base, tuned, 1, {})
    lq = torch.rand(1, 3, 128, 128)
    restored = load_restorer(tmp_path / "change.safetensors").restore(lq)
    assert (restored - tuned.restore(lq)).abs().max() < 2e-3 < (restored - base.restore(lq)).abs().max()


def test_a_change_finds_its_base_under_a_hosts_name_for_it(tiny_restorer, tmp_path, monkeypatch):
    """Made in WebUI, where the file is called otherwise, and shared with someone who has it from its publisher."""
    from bfr_core.files import weights

    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    for folder, name in ((theirs, "tiny-v0.1.0.pth"), (mine, "tiny.pth")):
        folder.mkdir()
        torch.save({"params_ema": load_file(tiny_restorer)}, folder / name)
    base = load_restorer(theirs / "tiny-v0.1.0.pth")
    save_change(tmp_path / "change.safetensors", base, base, 4, {})
    entry = weights.Weights("tiny.pth", "", "https://nowhere.invalid", 0, base.sha256, "MIT", True)
    monkeypatch.setattr(weights, "TABLE", (entry,))
    monkeypatch.setenv("BFR_WEIGHTS", str(mine))
    with pytest.raises(FileNotFoundError, match="put that file beside it$"):
        load_restorer(tmp_path / "change.safetensors")  # this file of the published name is another
    (mine / "tiny.pth").write_bytes((theirs / "tiny-v0.1.0.pth").read_bytes())
    assert load_restorer(tmp_path / "change.safetensors").metadata["base"] == "tiny-v0.1.0.pth"


def test_a_change_finds_a_base_of_the_users_own_where_hosts_keep_theirs(tiny_restorer, tmp_path, monkeypatch):
    """No table names it."""
    base = load_restorer(tiny_restorer)
    save_change(tmp_path / "run" / "change.safetensors", base, base, 4, {})
    (tmp_path / "run" / base.name).write_bytes(b"as a run's own restorer has the name of its base")
    monkeypatch.setenv("BFR_WEIGHTS_ALSO", str(tmp_path / "models"))
    with pytest.raises(FileNotFoundError, match="put that file beside it, or both into another folder$"):
        load_restorer(tmp_path / "run" / "change.safetensors")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / base.name).write_bytes(tiny_restorer.read_bytes())
    assert load_restorer(tmp_path / "run" / "change.safetensors").metadata["base"] == base.name


def test_a_wrapped_networks_own_names_are_kept(tiny_restorer, tmp_path):
    import spandrel

    state = {f"module.{name}": value for name, value in load_file(tiny_restorer).items()}
    torch.save({"state_dict": state, "params": 3, "step": 7}, tmp_path / "wrapped.pth")
    wrapped = load_restorer(tmp_path / "wrapped.pth")
    wrapped.size, lq = 32, torch.rand(1, 3, 32, 32)
    assert torch.equal(wrapped.restore(lq), load_restorer(tiny_restorer).restore(lq))
    save_restorer(tmp_path / "saved.safetensors", wrapped, {})
    assert set(load_file(tmp_path / "saved.safetensors")) == set(state)
    descriptor = spandrel.ModelLoader().load_from_file(tmp_path / "saved.safetensors")
    assert (descriptor(lq) - wrapped.restore(lq)).abs().max() < 1e-6


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


# ---------------------------------------------------------------- files that are not what they say


def refused(path, says, error=ValueError):
    with pytest.raises(error, match=says) as raised:
        load_restorer(path)
    assert str(raised.value).startswith(path.name) and str(raised.value).isprintable()


@pytest.mark.parametrize("size", ["huge", "-4", "1e9", "99999", "", "512\n"])
def test_a_size_that_is_none_is_one_clear_line(tiny_restorer, tmp_path, size):
    save_file(load_file(tiny_restorer), tmp_path / "a.safetensors", {"size": size})
    if size == "512\n":
        assert load_restorer(tmp_path / "a.safetensors").size == 512
    else:
        refused(tmp_path / "a.safetensors", "its metadata 'size' is")


def test_other_architectures_are_named(tmp_path):
    from spandrel.architectures.SCUNet import SCUNet

    save_file(SCUNet(config=[1] * 7, dim=8).state_dict(), tmp_path / "scunet.safetensors")
    refused(tmp_path / "scunet.safetensors", "is a SCUNet; known restorers are CodeFormer, GFPGAN")


def test_an_older_spandrel_that_would_enlarge_the_input_of_a_swinir_is_named(tiny_restorer, monkeypatch):
    """It takes the pixels that become channels from an enlarged input, so that the output is enlarged as well."""
    import spandrel

    said = SimpleNamespace(architecture=SimpleNamespace(id="SwinIR"), scale=8, model=SimpleNamespace(start_unshuffle=8))
    monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", lambda *_: said)
    refused(tiny_restorer, "read rightly by spandrel 0.4.2 or newer, and .* is installed; update spandrel")


def test_a_restorer_that_enlarges_or_is_grey_is_refused(tmp_path):
    from spandrel.architectures.NAFNet import NAFNet
    from spandrel.architectures.SwinIR import SwinIR

    small: dict = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "img_size": 16}
    larger = SwinIR(**small, upscale=2, upsampler="pixelshuffledirect")
    save_file(larger.state_dict(), tmp_path / "larger.safetensors")
    refused(tmp_path / "larger.safetensors", "enlarges its input")
    grey = NAFNet(img_channel=1, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    refused(tmp_path / "grey.safetensors", "takes and gives RGB")


def test_shapes_that_add_up_to_a_huge_network_are_refused_before_it_is_built(tiny_restorer, tmp_path):
    """Two long vectors say how wide a layer is; the layer between them would take 40 GB."""
    state = load_file(tiny_restorer)
    state["intro.weight"] = torch.zeros(100_000, 3, 1, 1)
    save_file(state, tmp_path / "wide.safetensors")
    refused(tmp_path / "wide.safetensors", "its network cannot be rebuilt .*more memory than its file")


def test_a_prior_is_no_restorer(tiny_prior):
    refused(tiny_prior / "diffusion_pytorch_model.safetensors", "spandrel does not know")


def test_weights_of_the_wrong_shape_are_one_clear_line(tiny_restorer, tmp_path):
    state = load_file(tiny_restorer)
    state["ending.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "shape.safetensors")
    refused(tmp_path / "shape.safetensors", "cannot be rebuilt .*size mismatch for ending.bias")


def test_shapes_that_make_no_layers_are_told_in_words(tiny_restorer, tmp_path):
    save_file(load_file(tiny_restorer) | {"intro.weight": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", r"cannot be rebuilt \(the shapes of its tensors do not fit each other\)")


@pytest.mark.parametrize("name", ["\x1b[31m evil", "a\nb"])
def test_names_inside_a_file_cannot_write_on_the_screen(tiny_restorer, tmp_path, name):
    save_file(load_file(tiny_restorer) | {name: torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "cannot be rebuilt .*Unexpected key")


@pytest.mark.parametrize(("name", "warned"), [("restorer.pth", 1), ("my_CodeFormer.pth", 0)])
def test_a_codeformer_is_exported_under_a_name_by_which_it_is_known(tmp_path, tiny_restorer, caplog, name, warned):
    from published_shapes import small_network

    from bfr_core.adaptation.run import Run
    from bfr_core.restorers.codeformer import CodeFormer

    net = small_network("CodeFormer").eval()
    export_pth(tmp_path / name, CodeFormer(net, "CodeFormer", 64, "base.pth"))
    export_pth(Run(tmp_path).exported("CodeFormer"), CodeFormer(net, "CodeFormer", 64, "base.pth"))
    assert [record.getMessage().startswith(f"{name}: is a CodeFormer") for record in caplog.records] == [True] * warned
    caplog.clear()
    export_pth(tmp_path / name, load_restorer(tiny_restorer))
    assert len(caplog.records) == 1 - warned


def test_code_behind_a_restorers_name_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Bomb:
        def __reduce__(self):
            return (open, ("exploded", "w"))

    torch.save({"params_ema": {"x": Bomb()}}, "GFPGANv1.4.pth")
    refused(tmp_path / "GFPGANv1.4.pth", "can run code and is refused")
    assert not (tmp_path / "exploded").exists()


def change_file(path, tensors, **metadata):
    save_file(tensors, path, {"kind": "bfr_lowrank"} | metadata)
    return path


def test_a_change_that_does_not_say_of_what(tmp_path):
    refused(change_file(tmp_path / "c.safetensors", {"x": torch.zeros(1)}), "does not say of which")
    named = change_file(tmp_path / "d.safetensors", {"x": torch.zeros(1)}, base="../../e\x1b.pth", base_sha256="0" * 64)
    refused(named, r"changes e\\x1b.pth .*put that file beside it", FileNotFoundError)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"intro.weight.up": torch.zeros(1 << 17, 1), "intro.weight.down": torch.zeros(1, 1 << 17)}, "another size"),
        ({"intro.weight.up": torch.zeros(4, 2)}, "not a product of two matrices"),
        ({"intro.weight.up": torch.zeros(4, 2), "intro.weight.down": torch.zeros(3, 27)}, "not a product"),
        ({"intro.weight.up": torch.zeros(4), "intro.weight.down": torch.zeros(27)}, "not a product"),
        ({"intro.weight.change": torch.zeros(5)}, "another size"),
        ({"elsewhere.weight.change": torch.zeros(5)}, "its base does not have"),
        ({"intro.weight": torch.zeros(5)}, "its base does not have"),
    ],
    ids=["huge", "half", "ranks", "vectors", "size", "name", "kind"],
)
def test_changes_that_do_not_fit_are_one_clear_line(tiny_restorer, tmp_path, tensors, says):
    (tmp_path / tiny_restorer.name).write_bytes(tiny_restorer.read_bytes())
    base = {"base": tiny_restorer.name, "base_sha256": load_restorer(tiny_restorer).sha256}
    refused(change_file(tmp_path / "c.safetensors", tensors, **base), f"does not fit {tiny_restorer.name}: .*{says}")


def test_tables_that_point_outside_themselves_are_one_clear_line(tmp_path):
    from spandrel.architectures.SwinIR import SwinIR

    net = SwinIR(embed_dim=12, depths=[2], num_heads=[2], window_size=8, img_size=16, upscale=1, upsampler="")
    state = net.state_dict()
    key = next(key for key in state if key.endswith("relative_position_index"))
    state[key][0, 0] = 10**6
    save_file(state, tmp_path / "a.safetensors", {"size": "16"})
    with pytest.raises(ValueError, match="restorer a.safetensors looks outside its own tables"):
        load_restorer(tmp_path / "a.safetensors").restore(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("write", ["save_restorer", "export_pth"])
def test_a_restorer_from_a_file_of_changes_is_saved_whole(tiny_restorer, tmp_path, write):
    base, tuned = load_restorer(tiny_restorer), load_restorer(tiny_restorer)
    with torch.no_grad():
        tuned.module.get_parameter("ending.bias").add_(0.1)
    shutil.copyfile(tiny_restorer, tmp_path / "tiny.safetensors")
    save_change(tmp_path / "change.safetensors", base, tuned, 2, {"verdict": "adopt"})
    changed = load_restorer(tmp_path / "change.safetensors")
    path = tmp_path / "elsewhere" / ("whole.pth" if write == "export_pth" else "whole.safetensors")
    path.parent.mkdir()
    export_pth(path, changed) if write == "export_pth" else save_restorer(path, changed, changed.metadata)
    opened = load_restorer(path)
    for a, b in zip(opened.module.state_dict().values(), changed.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert opened.metadata["base_sha256"] == base.sha256 and "kind" not in opened.metadata


@pytest.mark.parametrize("load", [load_restorer, load_landmark_net, partial(load_detector, "embedded")])
def test_loading_moves_no_random_numbers(load):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load()
    assert torch.equal(torch.rand(3), wanted)
