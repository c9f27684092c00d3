"""Networks of other packages: used where package and file are, left alone where one is missing, never fetched."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from bfr_core.metrics import optional as om
from bfr_core.metrics.fid import FeatureStatistics


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of torch's hub folder; whoever wants to fetch fails."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("fetched"))
    return tmp_path


@pytest.fixture
def pyiqa(monkeypatch) -> list[str]:
    """A stand-in for the package; returns the names of the metrics that were made."""
    made: list[str] = []

    def create_metric(name: str, device: str):
        print("Loading pretrained model")
        made.append(name)
        return lambda face: face.mean((1, 2, 3))[:, None]

    package = ModuleType("pyiqa")
    package.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    find = om.find_spec
    monkeypatch.setattr(om, "find_spec", lambda name: True if name == "pyiqa" else find(name))
    return made


def place(hub: Path, name: str, content: object = None) -> None:
    (hub / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(1)} if content is None else content, hub / name)


def test_nothing_is_measured_without_files(hub, pyiqa):
    assert om.find_quality() == {} and om.find_inception() is None and pyiqa == []


def test_files_without_the_package_are_left_alone(hub, monkeypatch):
    for name in om.PYIQA_FILES.values():
        place(hub, name)
    monkeypatch.setattr(om, "find_spec", lambda name: None)
    assert om.find_quality() == {} and om.find_inception() is None


def test_scores_of_what_is_here(hub, pyiqa, capsys):
    place(hub, om.PYIQA_FILES["niqe"])
    place(hub, om.PYIQA_FILES["musiq"])
    place(hub, om.PYIQA_FILES["maniqa"])
    found = om.find_quality()
    assert list(found) == pyiqa == ["niqe", "musiq", "maniqa"] and capsys.readouterr().out == ""
    assert found["maniqa"](torch.rand(2, 3, 223, 224)).isnan().all()
    faces = torch.rand(3, 3, 224, 224)
    for scores in found.values():
        assert torch.allclose(scores(faces), faces.mean((1, 2, 3)).double(), atol=1e-6)
    assert found["niqe"](faces[..., :95]).isnan().all() and not found["musiq"](faces[..., :95]).isnan().any()


def test_a_file_that_holds_code_is_not_handed_on(hub, pyiqa, caplog):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    path = hub / om.PYIQA_FILES["musiq"]
    path.parent.mkdir(parents=True)
    torch.save({"weight": Trap()}, path)
    place(hub, om.INCEPTION_FILE, pickle.dumps("no tensors"))
    assert om.find_quality() == {} and pyiqa == [] and om.find_inception() is None
    assert "MUSIQ is not measured" in caplog.text and "FID is not measured" in caplog.text


def test_inception_is_built_from_the_file(hub, monkeypatch):
    """Of the true shape, with random weights: piq's own way of building it finds the file and fetches nothing."""
    from piq.feature_extractors import fid_inception

    torch.manual_seed(0)
    kept: list[nn.Module] = []
    monkeypatch.setattr(fid_inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: kept.append(self))
    fid_inception.InceptionV3.fid_inception_v3()
    place(hub, om.INCEPTION_FILE, kept[0].state_dict())
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("fetched"))
    features = om.find_inception()
    assert features is not None
    faces = torch.rand(2, 3, 48, 48)
    found = features(faces)
    assert found.shape == (2, 2048) and torch.isfinite(found).all()
    assert torch.allclose(features(faces[1:])[0], found[1], atol=1e-4)


def test_maniqa_fetches_nothing_and_always_looks_at_the_same_cut_outs(hub, pyiqa, monkeypatch):
    """Stand-ins that do what the package does: build a network by timm, and cut out by torch's own generator."""
    built: list[bool] = []
    timm = ModuleType("timm")
    timm.create_model = lambda name, pretrained=False: built.append(pretrained)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    find = om.find_spec
    monkeypatch.setattr(om, "find_spec", lambda name: True if name == "timm" else find(name))

    def create_metric(name: str, device: str):
        sys.modules["timm"].create_model("vit_base_patch8_224", pretrained=True)

        def score(face):
            assert not torch.is_grad_enabled()
            return face[..., torch.randint(face.shape[-1], (20,))].mean()[None]

        return score

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", create_metric)
    place(hub, om.PYIQA_FILES["maniqa"])
    before, state = timm.create_model, torch.get_rng_state()
    scores = om.find_quality()["maniqa"]
    faces = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scores(faces), scores(faces)) and torch.equal(scores(faces)[1:], scores(faces[1:]))
    assert built == [False] and timm.create_model is before and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["set.npz", "set.pth", "arrays.pth"])
def test_statistics_are_read_from_both_kinds_of_file(tmp_path, name):
    mean, covariance = torch.rand(4).double(), torch.eye(4).double()
    path = tmp_path / name
    if name == "set.npz":
        om.write_statistics(path, FeatureStatistics(mean, covariance))
    elif name == "set.pth":
        torch.save({"mean": mean, "cov": covariance}, path)
    elif hasattr(torch.serialization, "safe_globals"):
        torch.save({"mean": mean.numpy(), "cov": covariance.numpy()}, path)
    else:
        pytest.skip("this torch reads no arrays")
    found = om.read_statistics(path)
    assert torch.equal(found.mean, mean) and torch.equal(found.covariance, covariance)


def test_files_that_are_no_statistics_are_one_line(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the file's code was run",))

    for name, content, said in (
        ("trap.pth", {"mean": Trap(), "cov": torch.eye(2)}, "can run code and is refused"),
        ("else.pth", {"weight": torch.zeros(2)}, "neither mu and sigma nor mean and cov"),
        ("shape.pth", {"mean": torch.zeros(3), "cov": torch.eye(2)}, r"mean \(3,\) and covariance \(2, 2\) do not fit"),
        ("nan.pth", {"mean": torch.full((2,), torch.nan), "cov": torch.eye(2)}, "or are not finite"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=said):
            om.read_statistics(tmp_path / name)
    np.savez(tmp_path / "trap.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "trap.npz").read_bytes()[:100])
    for name in ("trap.npz", "cut.npz"):
        with pytest.raises(ValueError, match=f"{name}: holds no statistics that can be read"):
            om.read_statistics(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file of statistics"):
        om.read_statistics(tmp_path / "absent.npz")
