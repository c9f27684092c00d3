"""The embedded recogniser: it agrees with the reference embeddings, takes our landmarks, and runs on any device."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bfr_core.faces.align import Face, crop_face, similarity, template
from bfr_core.faces.recognise import (
    EMBEDDED,
    SIDE,
    TEMPLATE_150,
    Block,
    chip_of,
    chips_of,
    embed,
    embed_faces,
    feature_distance,
    load_recogniser,
)
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import read_image
from bfr_core.pixels import gaussian_blur


@pytest.fixture(scope="module")
def net():
    return load_recogniser()


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "facts" / "face_recogniser_reference.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the shared folder")
    return json.loads(path.read_text())


def dots(points: np.ndarray, height: int, width: int, reach: float) -> torch.Tensor:
    """A black picture (3, height, width) with a soft white dot at every point."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = torch.zeros(height, width)
    for x, y in points:
        found = torch.maximum(found, torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * reach**2)))
    return found.expand(3, -1, -1)


def centre(chip: torch.Tensor, near: np.ndarray) -> np.ndarray:
    """Where the dot near a point of a chip is, (x, y)."""
    x, y = near.round().astype(int)
    window = chip[0, y - 7 : y + 8, x - 7 : x + 8].double().numpy()
    ys, xs = np.mgrid[y - 7 : y + 8, x - 7 : x + 8]
    return np.array([(window * xs).sum(), (window * ys).sum()]) / window.sum()


# ---------------------------------------------------------------- agreement


# Distances to the reference: 0.00004 in float32 (five decimals are kept there), 0.001 when computed in fp16 and 0.009
# in bfloat16; two photographs of one person have 0.35.
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_it_agrees_with_the_reference_embeddings(shared, reference, dtype, most):
    cv2 = pytest.importorskip("cv2")
    chips, expected = [], []
    for name, entry in reference["faces"].items():
        photo = (read_image(shared / "portraits" / name) * 255).round().byte().permute(1, 2, 0).numpy()
        chip = cv2.warpAffine(photo, np.array(entry["matrix"]), (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        if hashlib.sha256(chip.tobytes()).hexdigest() == entry["sha256"]:  # another OpenCV may round otherwise
            chips.append(torch.from_numpy(chip).permute(2, 0, 1).float() / 255)
            expected.append(torch.tensor(entry["embedding"]))
    if not chips:
        pytest.skip("this OpenCV makes other chips than the reference has")
    try:
        found = embed(load_recogniser().to(dtype), torch.stack(chips))
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        pytest.skip(f"this torch has no convolution in {dtype} on the CPU")
    assert found.dtype == torch.float32
    assert (found - torch.stack(expected)).norm(dim=1).max() < most


def test_our_chips_give_the_reference_embeddings_too(shared, reference, net):
    landmarks = json.loads((shared / "portraits" / "landmarks.json").read_text())
    for name, entry in reference["faces"].items():
        points = np.array(landmarks[name]["landmarks"])
        assert np.allclose(similarity(points, TEMPLATE_150), entry["matrix"], atol=1e-4)
        found = embed(net, chip_of(read_image(shared / "portraits" / name), points)[None])[0]
        assert (found - torch.tensor(entry["embedding"])).norm() < 0.01, name


def test_the_weights_are_those_of_the_reference(shared):
    path = shared / "facts" / "face_recogniser.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the shared folder")
    ours, theirs = load_file(EMBEDDED), load_file(path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_tells_people_apart_and_knows_them_again_in_a_small_crop(shared, net):
    landmarks = json.loads((shared / "portraits" / "landmarks.json").read_text())
    names = sorted(landmarks)[:60:5]
    photos = [read_image(shared / "portraits" / name) for name in names]
    points = [np.array(landmarks[name]["landmarks"]) for name in names]
    whole = embed(net, torch.stack([chip_of(photo, own) for photo, own in zip(photos, points, strict=True)]))
    crops = torch.stack([crop_face(photo, Face(own), 128) for photo, own in zip(photos, points, strict=True)])
    distances = torch.cdist(whole, embed_faces(net, crops.clamp(0, 1)))
    own, strangers = distances.diagonal(), distances[~torch.eye(len(names), dtype=torch.bool)]
    assert own.max() < 0.15 and strangers.min() > 0.4


# ---------------------------------------------------------------- the network


def test_a_down_block_fills_what_is_missing_below_and_to_the_right():
    block = Block(1, 2, down=True)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    face = torch.arange(64.0).view(1, 1, 8, 8)
    # The convolutions give 3 x 3, the shortcut 4 x 4 in one channel: a zero channel is appended to the shortcut.
    assert torch.equal(block(face), torch.cat([F.avg_pool2d(face, 2), torch.zeros(1, 1, 4, 4)], 1))
    torch.nn.init.ones_(dict(block.named_parameters())["conv2.bias"])
    plus = F.pad(torch.ones(3, 3), (0, 1, 0, 1))
    assert torch.equal(block(face)[0, 1], plus)


def test_more_faces_than_a_batch_and_none_at_all(net):
    chips = torch.rand(19, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = embed(net, chips)
    assert found.shape == (19, 128)
    assert torch.allclose(found[17], embed(net, chips[17:18])[0], atol=1e-4)
    assert embed(net, chips[:0]).shape == (0, 128) and embed_faces(net, torch.rand(0, 3, 64, 64)).shape == (0, 128)


def test_a_gradient_flows_from_an_embedding_to_the_face(net):
    face = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net(chips_of(face)).square().sum().backward()
    assert face.grad is not None and face.grad.abs().sum() > 0


class NoFloat64(TorchDispatchMode):
    """Refuses what MPS refuses: any tensor of 64-bit floats."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), func
        return out


def test_nothing_needs_64_bit_floats(net):
    points = torch.from_numpy((template(96) / 96).astype(np.float32)).expand(2, -1, -1)
    faces = torch.rand(2, 3, 96, 96)
    with NoFloat64():
        assert embed_faces(net, faces, points).shape == (2, 128)
        assert chip_of(torch.rand(3, 300, 200), template(150) + 20).shape == (3, SIDE, SIDE)


# ---------------------------------------------------------------- chips


@pytest.mark.parametrize("size", [64, 128, 512, 1024])
def test_the_landmarks_of_a_standard_crop_come_to_lie_on_those_of_a_chip(size):
    points = template(size)
    chip = chips_of(dots(points, size, size, size / 110)[None])[0]
    expected = points @ (matrix := similarity(points, TEMPLATE_150))[:, :2].T + matrix[:, 2]
    for point, near in zip(expected, TEMPLATE_150, strict=True):
        assert np.abs(centre(chip, point) - point).max() < 0.35
        assert np.abs(point - near).max() < 3  # no similarity moves one template wholly onto the other
    assert np.allclose(matrix[:, 0] * size / 512, [0.43164, 0.00211], atol=2e-4)


def test_given_points_count_from_the_edge_of_the_crop():
    """The same face, cut where the points say: a turned and shifted crop gives nearly the same chip."""
    size = 128
    matrix = similarity(np.array([[0.0, 0], [100, 0]]), np.array([[12.0, 3], [108, 21]]))
    points = template(size) @ matrix[:, :2].T + matrix[:, 2]
    moved = dots(points, size, size, 2.0)[None]
    found = chips_of(moved, torch.from_numpy((points + 0.5) / size)[None].float())[0]
    assert (found - chip_of(moved[0], points)).abs().max() < 1e-4
    assert (found - chips_of(moved)[0]).abs().max() > 0.5  # without the points it is cut elsewhere


def test_a_chip_is_black_beyond_the_photo_and_lies_in_its_range():
    photo = torch.ones(3, 200, 200)
    chip = chip_of(photo, template(120) + np.array([-50, 30]))
    assert chip[:, :, 0].max() == 0 and chip[:, 75, 149].min() == 1 and chip.min() >= 0 and chip.max() <= 1 + 1e-5
    assert not chip_of(photo, template(120) + 5000).any()


def test_a_large_photo_is_shrunk_by_area():
    """A screen of single pixels, ten to a chip pixel, is grey in the chip."""
    photo = (torch.arange(1500)[:, None] + torch.arange(1500)).remainder(2).float().expand(3, -1, -1)
    chip = chip_of(photo, TEMPLATE_150 * 10)
    assert (chip[:, 10:-10, 10:-10] - 0.5).abs().max() < 0.05


# ---------------------------------------------------------------- errors


def test_wrong_shapes_are_refused_in_words(net):
    with pytest.raises(ValueError, match=r"faces must be \(B, 3, S, S\)"):
        chips_of(torch.rand(1, 3, 64, 32))
    with pytest.raises(ValueError, match=r"points must be \(2, 5, 2\)"):
        chips_of(torch.rand(2, 3, 64, 64), torch.rand(1, 5, 2))
    with pytest.raises(ValueError, match="chips must be"):
        embed(net, torch.rand(1, 3, 64, 64))


def test_a_missing_or_foreign_file_is_one_clear_line(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="reinstall BFR Adapt"):
        load_recogniser(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the embedded face recogniser") as caught:
        load_recogniser(tmp_path / "other.safetensors")
    assert "\n" not in str(caught.value)


def test_pictures_that_look_less_alike_are_further_apart(net):
    image = SharpFaces(256).stacked(6)
    blurred = [feature_distance(net, gaussian_blur(image, sigma, edges="replicate"), image) for sigma in (1, 2, 4)]
    noisy = [feature_distance(net, image + sigma * torch.randn(image.shape), image) for sigma in (0.01, 0.04, 0.1)]
    others = feature_distance(net, image.roll(1, 0), image)
    for kind in (blurred, noisy):
        steps = [torch.zeros(len(image)), *kind, others]
        assert all((after > before).all() for before, after in itertools.pairwise(steps))
    torch.testing.assert_close(feature_distance(net, image, image.roll(1, 0)), others)
    assert feature_distance(net, image, image).max() == 0 and len(feature_distance(net, image[:0], image[:0])) == 0
    with pytest.raises(ValueError, match="one shape"):
        feature_distance(net, image, image[:2])
