import pickle

import pytest
import torch

from bfr_core.checkpoints import load_tensors, save_tensors, sha256_of


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(3.0)}, {"licence": "test"})
    state, metadata = load_tensors(path)
    assert torch.equal(state["x"], torch.arange(3.0)) and metadata["licence"] == "test"


def test_what_is_saved_can_be_read_by_whoever_may_read_other_new_files(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", None])
def test_wrapped_pytorch_files(tmp_path, wrapper):
    tensors = {"x": torch.ones(2)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "a.pth")
    assert list(load_tensors(tmp_path / "a.pth")[0]) == ["x"]


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("bomb.pth", "wb") as file:
        pickle.dump({"x": Bomb()}, file)
    torch.save({"x": Bomb()}, "bomb2.pth")
    for name in ("bomb.pth", "bomb2.pth"):
        with pytest.raises(ValueError, match=name):
            load_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_short_is_one_clear_line(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save({"x": torch.ones(1000)}, path)
    else:
        save_tensors(path, {"x": torch.ones(1000)}, {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=f"cut{suffix}: not a readable") as error:
        load_tensors(path)
    assert "\n" not in str(error.value)


def test_nan_is_refused_by_name(tmp_path):
    save_tensors(tmp_path / "nan.safetensors", {"w": torch.tensor([1.0, float("nan")])}, {})
    with pytest.raises(ValueError, match=r"nan.safetensors: w holds NaN"):
        load_tensors(tmp_path / "nan.safetensors")


def test_a_list_is_no_table(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no table of tensors"):
        load_tensors(tmp_path / "list.pth")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        load_tensors(tmp_path / "gone.pth")


def test_sha256_by_hand(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea")
