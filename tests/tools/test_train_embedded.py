"""What may not go wrong in training the embedded models: what is held out, resuming, pieces."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pack_faces
import pytest
import torch
import train_embedded
from PIL import Image
from torch import Tensor, nn
from train_embedded import Task, join_pieces, latest, train, write_pieces

from bfr_core.pixels import gaussian_blur

ROOT = Path(__file__).resolve().parents[2]
FACE = [[97.0, 120.0], [160.0, 120.0], [129.0, 157.0], [101.0, 186.0], [155.0, 186.0]]


def test_the_list_of_held_out_portraits_is_the_rule() -> None:
    names = sorted(json.loads((ROOT / "tools" / "faces_landmarks.json").read_text()))
    listed = (ROOT / "bfr_core" / "embedded" / "held_out.txt").read_text().split()
    assert listed == names[::5] and len(listed) == 150


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty faces a folder, each of one brightness of its own, packed by the command; tests have copies."""
    shared = tmp_path_factory.mktemp("packed")
    for source in pack_faces.SOURCES:
        folder = shared / source
        folder.mkdir(parents=True)
        marks = {}
        below = source.partition("/")[2]
        for i in range(20):
            name = f"{i:02d}.png"
            Image.fromarray(np.full((256, 256, 3), 10 * i + 20, np.uint8)).save(folder / name)
            marks[f"{below}/{name}" if below else name] = {"landmarks": FACE}
        (shared / source.partition("/")[0] / "landmarks.json").write_text(json.dumps(marks))
    with pytest.MonkeyPatch.context() as patch:
        out = str(shared / "packed/faces.safetensors")
        patch.setattr(sys, "argv", ["pack_faces", "--shared", str(shared), "--out", out])
        pack_faces.main()
    return shared


@pytest.fixture
def pack(packed: Path, tmp_path: Path) -> Path:
    """Those faces, for this test alone."""
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "packed" / "faces.safetensors"


def shades(tiles: Tensor) -> list[int]:
    return [round((float(tile.float().mean()) - 20) / 10) for tile in tiles]


def test_no_held_out_face_is_packed_for_training(pack: Path) -> None:
    tiles, entries = pack_faces.read_pack(pack)
    unseen_tiles, unseen = pack_faces.read_pack(pack.with_stem("faces_held_out"))
    for source in pack_faces.SOURCES:
        every = 5 if source == "portraits" else 10
        kept = [n for n, e in zip(shades(unseen_tiles), unseen, strict=True) if e.source == source]
        used = [n for n, e in zip(shades(tiles), entries, strict=True) if e.source == source]
        assert kept == list(range(0, 20, every)) and sorted(kept + used) == list(range(20))
    assert tiles.shape[1:] == (3, 288, 288) and unseen_tiles.shape[1:] == (3, 256, 256)


def settings(work: Path, **more: object) -> argparse.Namespace:
    plain = {"cooldown": False, "batch": 0, "pieces": None, "workers": 0, "device": "cpu", "from_shipped": False}
    return argparse.Namespace(work=work, **(plain | more))


class Toy:
    """A task whose steps are noted: the faces that each was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def task(self) -> Task:
        def loss(net: nn.Module, work: Path) -> train_embedded.Loss:
            def of(batch: train_embedded.Batch, generator: torch.Generator) -> tuple[Tensor, train_embedded.Entries]:
                (faces,) = batch
                self.seen.append(len(faces))
                return net(faces[:, :, :8, :8]).square().mean(), []

            return of

        return Task("toy", lambda: nn.Conv2d(3, 1, 1), loss, batch=2, rate=1e-3, decay=0.9)


def test_training_goes_on_where_it_stopped_also_from_pieces(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_embedded, "PIECE_BYTES", 1000)
    faces, toy, work = train_embedded.Faces(pack), Toy(), tmp_path / "work"
    args = settings(work)
    args.pieces = tmp_path / "pieces"
    train(toy.task(), faces, args, 0.01)
    first = len(toy.seen)
    state = torch.load(work / "toy.pt", weights_only=True)
    assert state["step"] == first > 0 and state["faces"] == 2 * first
    assert len(list(args.pieces.iterdir())) > 1
    (work / "toy.pt").unlink()
    train(toy.task(), faces, args, 0.01)
    assert torch.load(work / "toy.pt", weights_only=True)["step"] == len(toy.seen) > first
    found = latest(work, "toy")
    assert found is not None and found[1]["faces"] == str(2 * len(toy.seen))


def test_workers_prepare_faces_that_differ(pack: Path) -> None:
    plain = Task("toy", lambda: nn.Conv2d(3, 1, 1), train_embedded.prior_loss, batch=2, rate=1e-3, decay=0.9)
    torch.manual_seed(0)  # from which the workers' own seeds are drawn
    ready = train_embedded.Prepared(train_embedded.Faces(pack), plain, 8, torch.Generator().manual_seed(0))
    alone = [batch for batch, _ in zip(ready, range(4), strict=False)]
    drawn = [batch for batch, _ in zip(torch.utils.data.DataLoader(ready, None, num_workers=2), range(4), strict=False)]
    for batches in (alone, drawn):
        assert all(batch[0].shape == (8, 3, 256, 256) for batch in batches)
        assert len({float(batch[0].mean()) for batch in batches}) > 1
    assert not torch.equal(drawn[0][0], drawn[1][0]), "each worker draws its own"


@pytest.mark.slow
def test_training_begins_with_what_ships(pack: Path, tmp_path: Path) -> None:
    for name in ("prior", "restorer_sharp"):
        task = train_embedded.TASKS[name]
        train(task, train_embedded.Faces(pack), settings(tmp_path, from_shipped=True), 0.0)
        state, before = torch.load(tmp_path / f"{name}.pt", weights_only=True), train_embedded.shipped_state(task)
        assert state["step"] == before["step"] > 8000 and state["faces"] == before["faces"]
        assert all(torch.equal(value, before["net"][key]) for key, value in state["net"].items())
    step = state["step"]
    train(task, train_embedded.Faces(pack), settings(tmp_path, from_shipped=True, batch=1), 0.02)
    after = torch.load(tmp_path / "restorer_sharp.pt", weights_only=True)
    assert after["step"] > step and not torch.equal(after["ema"]["intro.weight"], state["ema"]["intro.weight"])
    with pytest.raises(ValueError, match="no weights of it ship"):
        train_embedded.shipped_state(train_embedded.TASKS["restorer"])


def test_a_restorer_is_exported_half_way_from_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = train_embedded.shipped_state(train_embedded.TASKS["restorer_sharp"])
    moved = {name: value + 2.0 for name, value in before["net"].items()}
    torch.save(before | {"net": moved, "ema": moved}, tmp_path / "restorer_sharp.pt")
    ships = tmp_path / "embedded"
    ships.mkdir()
    shutil.copy(train_embedded.EMBEDDED / "restorer256.safetensors", ships)
    monkeypatch.setattr(train_embedded, "EMBEDDED", ships)
    train_embedded.export(argparse.Namespace(work=tmp_path, mean_with_shipped=True))
    after = train_embedded.shipped_state(train_embedded.TASKS["restorer_sharp"])["net"]
    assert all(torch.allclose(after[name], value + 1.0, atol=2e-3) for name, value in before["net"].items())


def test_momentum_is_made_orthogonal_and_is_kept_in_checkpoints(pack: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for shape in ((24, 54), (54, 24)):
        matrix = torch.randn(shape) * torch.logspace(0, 1, shape[1])
        values = torch.linalg.svdvals(train_embedded.Muon.orthogonal(matrix))
        assert values.min() > 0.6 and values.max() < 1.3 < torch.linalg.svdvals(matrix).min()
    faces, args, toy = train_embedded.Faces(pack), settings(tmp_path), Toy()
    train(toy.task(), faces, args, 0.005)  # with AdamW alone, as older checkpoints are
    both = replace(toy.task(), by_muon=lambda name, value: value.ndim >= 2)
    train(both, faces, args, 0.005)
    first, _ = torch.load(tmp_path / "toy.pt", weights_only=True)["optimizer"]
    assert first["state"][0]["momentum"].shape == (1, 3, 1, 1)
    net = nn.Conv2d(3, 1, 1)
    muon, adam = train_embedded.optimizers_of(net, both)
    train_embedded.restore_optimizers([muon, adam], torch.load(tmp_path / "toy.pt", weights_only=True)["optimizer"])
    assert torch.equal(muon.state[net.weight]["momentum"], first["state"][0]["momentum"])
    assert [p is net.bias for p in adam.param_groups[0]["params"]] == [True]


def test_pieces_come_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_embedded, "PIECE_BYTES", 7)
    (tmp_path / "a.pt").write_bytes(bytes(range(50)))
    write_pieces(tmp_path / "a.pt", tmp_path / "pieces")
    assert all(piece.stat().st_size <= 7 for piece in (tmp_path / "pieces").iterdir())
    (tmp_path / "new").mkdir()
    join_pieces(tmp_path / "new" / "a.pt", tmp_path / "pieces")
    assert (tmp_path / "new" / "a.pt").read_bytes() == bytes(range(50))


def test_the_last_part_begins_with_the_restorer_and_each_term_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="train the restorer first"):
        train_embedded.begin_with_restorer(train_embedded.new_restorer(), tmp_path)
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in train_embedded.new_restorer().state_dict().items()}
    record = {"step": 1, "faces": 8, "seconds": 1.0, "cpu_seconds": 1.0}
    torch.save({"ema": state, **record}, tmp_path / "restorer.pt")
    net = train_embedded.new_restorer()
    train_embedded.begin_with_restorer(net, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())

    def loss_with(**weights: float) -> float:
        for name in ("PERCEPTUAL_WEIGHT", "HATCHING_WEIGHT", "LATTICE_WEIGHT"):
            monkeypatch.setattr(train_embedded, name, weights.get(name, 0.0))
        torch.manual_seed(0)
        net = train_embedded.new_restorer()
        with torch.no_grad():
            for value in net.parameters():
                value.add_(0.02 * torch.randn(value.shape))
        faces = gaussian_blur(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), 3.0)
        generator = torch.Generator().manual_seed(2)
        pair = train_embedded.damaged_pair(faces, generator)
        loss, entries = train_embedded.sharp_loss(net, tmp_path)(pair, generator)
        loss.backward()
        assert all(value.grad is not None for value in net.parameters())
        terms = dict(entries)
        expected = float(terms["l1"]) + sum(w * float(terms[name.split("_")[0].lower()]) for name, w in weights.items())
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        return loss.item()

    with pytest.raises(FileNotFoundError, match="train the prior first"):
        loss_with()
    monkeypatch.setattr(train_embedded, "prior_encoder", lambda *_: lambda image: [image, 2 * image])
    alone = loss_with()
    assert all(alone < loss_with(**{name: 1.0}) for name in ("PERCEPTUAL_WEIGHT", "HATCHING_WEIGHT", "LATTICE_WEIGHT"))


def test_a_lattice_is_told_from_detail_that_does_not_repeat() -> None:
    smooth = gaussian_blur(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 4.0)
    tile = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    lattice = train_embedded.lattice_loss(smooth + 0.02 * tile.repeat(8, 8), smooth)
    detail = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    assert lattice > 3 * train_embedded.lattice_loss(smooth + 0.02 * detail, smooth) > 0
    assert (
        train_embedded.lattice_loss(smooth, smooth)
        == train_embedded.lattice_loss(smooth, smooth + tile.repeat(8, 8))
        == 0
    )


def test_the_restorer_is_opened_by_plain_spandrel_with_the_same_result() -> None:
    from spandrel import ModelLoader

    torch.manual_seed(0)
    ours = train_embedded.new_restorer().eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    opened = ModelLoader().load_from_state_dict({k: v.clone() for k, v in ours.state_dict().items()})
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.allclose(opened.model.eval()(image), ours(image), atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) * 2 <= 12e6, "12 MB in half precision"


@pytest.mark.slow
def test_one_command_trains_both(pack: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "train_embedded.py"), "--all", "--minutes", "1"]
    for _ in range(2):
        done = subprocess.run([*command, "--faces", str(pack), "--work", str(tmp_path / "work")], check=False)
        assert done.returncode == 0
    steps = [torch.load(tmp_path / "work" / f"{n}.pt", weights_only=True)["step"] for n in ("prior", "restorer")]
    assert min(steps) > 1
