import errno
import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors import safe_open

from bfr_core.files.tensors import (
    MAX_HEADER,
    MAX_TENSORS,
    WRAPPERS,
    LimitedBuilding,
    load_tensors,
    save_pickled,
    save_tensors,
    sha256_of,
    whole_number,
    without_prefix,
)
from bfr_core.restorers.load import metadata_in

X = torch.ones(1)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(3.0)}, {"licence": "test"})
    state, metadata = load_tensors(path)
    assert torch.equal(state["x"], torch.arange(3.0)) and metadata["licence"] == "test"


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk keeps no such name")
    save_tensors(folder / "a.safetensors", {"x": X}, {"licence": "test"})
    save_pickled(folder / "a.pth", {"x": X})
    state, metadata = load_tensors(folder / "a.safetensors")
    assert torch.equal(state["x"], X) and metadata == metadata_in(folder / "a.safetensors") == {"licence": "test"}
    assert torch.equal(load_tensors(folder / "a.pth")[0]["x"], X)


def test_the_same_tensors_and_metadata_make_the_same_bytes(tmp_path):
    state = {
        'é/"w': torch.arange(5.0),
        "empty": torch.ones(0),
        "a": torch.ones(2, 3).half(),
        "b": torch.ones(1).double(),
    }
    metadata = {f"key {i}": f"ä\n\U0001f600\x01/\\{'x' * i}" for i in range(9)}
    saved = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in saved:
        save_tensors(path, state, metadata)
    assert len({sha256_of(path) for path in saved}) == 1
    with safe_open(saved[0], framework="pt") as file:
        assert file.metadata() == metadata and set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)
    length = int.from_bytes(saved[0].read_bytes()[:8], "little")
    assert length % 8 == 0 and list(json.loads(saved[0].read_bytes()[8 : 8 + length])["__metadata__"]) == sorted(
        metadata
    )


def test_what_is_saved_can_be_read_by_whoever_may_read_other_new_files(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", [lambda path, x: save_tensors(path, {"x": x}, {}), save_pickled])
def test_a_disk_that_refuses_is_named_and_the_older_file_stays(tmp_path, write):
    """A limit on the size of files stands for a full disk; PyTorch and safetensors tell it each in its own way."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    path = tmp_path / "a"
    write(path, X)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(
            OSError, match=f"cannot write a in .*{tmp_path.name}: File too large; free space"
        ) as refusal:
            write(path, torch.ones(1 << 18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refusal.value.errno == errno.EFBIG
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("wrapper", [*WRAPPERS, None])
def test_wrapped_pytorch_files(tmp_path, wrapper):
    tensors = {"x": torch.ones(2)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "a.pth")
    assert list(load_tensors(tmp_path / "a.pth")[0]) == ["x"]


def test_what_a_host_puts_in_place_of_torch_load_is_not_asked(tmp_path, monkeypatch):
    """Forge's renames what it cannot read, and A1111's refuses what newer PyTorch wrote."""
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("the host's function was called"))
    torch.save({"x": torch.ones(2)}, tmp_path / "a.pth")
    assert list(load_tensors(tmp_path / "a.pth")[0]) == ["x"]
    torch.save({"x": Bomb()}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_tensors(tmp_path / "b.pth")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_prefixes_that_wrappers_of_networks_add_are_taken_off():
    assert list(without_prefix({"module.a.weight": X, "module.b": X})) == ["a.weight", "b"]
    assert list(without_prefix({"module.a.weight": X, "b": X})) == ["module.a.weight", "b"]
    assert list(without_prefix({"_orig_mod.a": X})) == ["a"] and without_prefix({}) == {}


@pytest.mark.parametrize(
    ("given", "read"),
    [({"licence": "MIT"}, {"licence": "MIT"}), ({"licence": 3}, {}), ({3: "MIT"}, {}), (["MIT"], {}), (None, {})],
    ids=str,
)
def test_a_pytorch_file_may_say_of_itself_what_is_text(tmp_path, given, read):
    torch.save({"params_ema": {"x": torch.ones(2)}, "bfr_adapt": given}, tmp_path / "a.pth")
    state, metadata = load_tensors(tmp_path / "a.pth")
    assert list(state) == ["x"] and metadata == read


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


# ---------------------------------------------------------------- files that mean harm


def refused(path, says):
    with pytest.raises(ValueError, match=says) as error:
        load_tensors(path)
    assert str(error.value).startswith(path.name) and "\n" not in str(error.value)


def repacked(path, to, change):
    """The zip at `path` written anew: change(name, bytes) -> (bytes, compression)."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content, how = change(name, old.read(name))
            new.writestr(name, content, how)
    return to


def test_a_zip_that_unfolds_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    bomb = repacked(tmp_path / "plain.pth", tmp_path / "bomb.pth", lambda _, data: (data, zipfile.ZIP_DEFLATED))
    assert bomb.stat().st_size < 20_000
    refused(bomb, "unfolds to 4[0-9]{6} bytes")
    assert load_tensors(repacked(bomb, tmp_path / "again.pth", lambda _, data: (data, zipfile.ZIP_STORED)))


def test_a_zip_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    refused(tmp_path / "a.pth", "not a readable PyTorch file")


@pytest.mark.parametrize("newer", [True, False], ids=["zip", "legacy"])
def test_one_number_shown_as_millions_is_refused(tmp_path, newer):
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 19)}, tmp_path / "a.pth", _use_new_zipfile_serialization=newer)
    refused(tmp_path / "a.pth", "would take 2199023255552 bytes, but the file has")
    many = torch.zeros(1 << 16)
    torch.save({str(i): many for i in range(1000)}, tmp_path / "b.pth", _use_new_zipfile_serialization=newer)
    refused(tmp_path / "b.pth", "would take 262144000 bytes")


def test_a_tensor_that_reaches_past_its_bytes_is_refused(tmp_path):
    """The pickle claims more numbers than its record has; read as they are, they would come from foreign memory."""
    torch.save({"x": torch.zeros(1000)}, tmp_path / "a.pth")
    claimed, there = b"M\xe8\x03", b"J" + (10**9).to_bytes(4, "little")

    def lie(name, data):
        assert not name.endswith("data.pkl") or data.count(claimed) >= 2
        return (data.replace(claimed, there) if name.endswith("data.pkl") else data), zipfile.ZIP_STORED

    refused(repacked(tmp_path / "a.pth", tmp_path / "b.pth", lie), "not a readable PyTorch file")


def safetensors_file(path, header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
    return path


def test_headers_of_absurd_length_are_refused(tmp_path):
    big = safetensors_file(tmp_path / "big.safetensors", b"{" + b" " * (MAX_HEADER + 1) + b"}")
    refused(big, "table of contents has 16777219 bytes")
    for length in (100 << 20, 1 << 62, (1 << 64) - 1):
        refused(safetensors_file(tmp_path / "a.safetensors", b"{}", length=length), "not a readable safetensors file")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "X1", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
        [],
    ],
    ids=str,
)
def test_tables_of_contents_that_lie_are_refused(tmp_path, entry):
    refused(safetensors_file(tmp_path / "a.safetensors", {"x": entry}, bytes(4)), "not a readable safetensors file")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F32", "shape": [0, 1 << 40], "data_offsets": [0, 0]}, "x has the absurd shape"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "x has the absurd shape"),
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "x is no plain tensor"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "x holds NaN"),
    ],
    ids=["empty", "axes", "float8", "nan"],
)
def test_tensors_that_no_network_has_are_refused(tmp_path, entry, says):
    content = b"\xff\xff\xff\xff"[: entry["data_offsets"][1]]
    refused(safetensors_file(tmp_path / "a.safetensors", {"x": entry}, content), says)


def test_more_tensors_than_any_network_has(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {str(i): entry for i in range(MAX_TENSORS + 1)}
    refused(safetensors_file(tmp_path / "a.safetensors", header), "holds 20001 tensors")


@pytest.mark.parametrize(
    "content",
    [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.cfloat)],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_none_of_a_network(tmp_path, content):
    torch.save({"x": content}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "x is no plain tensor")


def test_a_table_by_number_is_no_table(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "no table of tensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_anywhere_is_one_clear_line_or_none(tmp_path, kind):
    """100 files with some bytes changed: each is read, or refused with one line; no other error, nothing run."""
    state = {"conv.weight": torch.zeros(4, 3, 3, 3), "count": torch.tensor(3)}
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_tensors(path, state, {"licence": "test"})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole, generator, read = path.read_bytes(), random.Random(0), 0
    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(generator.choice((1, 3, 30))):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(changed[: generator.choice((len(changed), generator.randrange(len(changed))))])
        try:
            load_tensors(path)
            read += 1
        except ValueError as error:
            assert str(error).startswith(path.name) and str(error).isprintable()
    assert read < 70


def test_a_small_file_cannot_name_a_huge_network():
    with pytest.raises(ValueError, match="more memory than its file"), LimitedBuilding({"x": torch.zeros(10)}):
        torch.nn.Linear(20_000, 20_000)
    with LimitedBuilding({"x": torch.zeros(10)}):
        torch.nn.Linear(2_000, 2_000)


@pytest.mark.parametrize("value", [0, 11, "12", "1e1", "-1", 2.0, True, None, [], "9" * 30])
def test_numbers_that_files_give(value):
    if value in (0, "9" * 30):
        assert whole_number(5, 1, 10) == whole_number("5", 1, 10) == 5
    with pytest.raises(ValueError, match="must be a whole number from 1 to 10"):
        whole_number(value, 1, 10)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 376637898\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LFS, "is a git-lfs pointer"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><head>", "is a web page"),
        (b"<HTML lang=en>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page"),
        (b"Not Found\n", "is a text"),
        (b'{"error": "Invalid username or password."}', "is a text"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(40), "is a gzip archive"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(40), "is a RAR archive"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40), "is a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "is a PNG picture"),
        (b"", "is empty"),
    ],
)
def test_what_is_given_in_place_of_weights_is_named(tmp_path, suffix, content, says):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        load_tensors(path)
    assert str(caught.value).startswith(path.name) and "\n" not in str(caught.value)
    assert "code" not in str(caught.value), "nothing dangerous is in it"


def test_an_onnx_file_is_named_with_what_to_give(tmp_path):
    path = tmp_path / "GPEN-BFR-512.onnx"
    path.write_bytes(b"\x08\x06\x12\x07pytorch")
    with pytest.raises(ValueError, match=r"is an ONNX file.*\.pth or \.safetensors"):
        load_tensors(path)


def test_a_length_that_looks_like_an_archives_mark_is_none(tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    length = int.from_bytes(b"\x1f\x8b", "little")  # 35,615, and its bytes begin as gzip's do
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\x07")
    assert load_tensors(path)[0]["a"].tolist() == [7]
