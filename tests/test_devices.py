"""Every device: what runs where, in which precision, and that nothing of ours stays there.

No graphics card is needed. What does not look at values runs on PyTorch's device "meta", which has shapes and types
only; what does runs on a pretended card, see `pretended_device`, and on the real one where there is one.
"""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from published_shapes import RESTORERS, small_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bfr_core import device as precision_module
from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.good_faces import clarity
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_checks import at_checked_size, measurements_of
from bfr_core.adaptation.targets import TargetConfig, make_pseudo_targets
from bfr_core.adaptation.tuning import judged_on_faces, perceptual_term
from bfr_core.adaptation.verdict import load_face_statistics
from bfr_core.damage.groups import FEATURES, DamageGroups
from bfr_core.damage.transplant import damage_filter, filtered, transplanted, without_sharpening
from bfr_core.device import autocast, choose_device, default_precision, full_precision, has_bfloat16
from bfr_core.diffusion.draw import draw_faces
from bfr_core.diffusion.low_pass import low_pass, low_pass_operator
from bfr_core.diffusion.noise_level import estimate_noise_level
from bfr_core.diffusion.prior import Prior, load_prior
from bfr_core.diffusion.sampler import SamplerConfig, sample_constrained
from bfr_core.faces.align import Face, crop_face, template, warp
from bfr_core.faces.detect import RETINAFACE_PACKAGES, EmbeddedDetector, faces_in_boxes, load_detector
from bfr_core.faces.landmarks import load_landmark_net, load_scan_net, read_aligned
from bfr_core.faces.paste import paste_face
from bfr_core.faces.second_look import load_second_look
from bfr_core.files.photos import write_image
from bfr_core.files.tensors import load_tensors, save_tensors
from bfr_core.metrics.detail import high_band, sharpness
from bfr_core.metrics.kid import kid_features
from bfr_core.metrics.psnr import psnr
from bfr_core.randomness import keyed_noise
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import RestoreConfig, restore_aligned, restore_photo
from bfr_core.restorers import ADAPTERS, Restorer, load_restorer
from bfr_core.restorers.codeformer import CodeFormer, code_losses
from bfr_core.restorers.load import UNSHUFFLING
from bfr_core.restorers.low_rank import factor_change
from bfr_core.restorers.routed import Routed, save_groups
from bfr_core.studies.evaluate import face_measures
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.discriminator import UNetDiscriminator, discriminator_loss, generator_loss
from bfr_core.training.finetune import finetune
from bfr_core.training.losses import perceptual_loss, texture_loss
from bfr_core.training.objectives import Batch, objective_of, weighted
from tests.pretended_device import DEVICE, WIDE, PretendedDevice, Refused, tensors

META = torch.device("meta")
PAPER = SamplerConfig("paper", 250, 3, 1, 4, 3)
FAST = SamplerConfig("fast", 250, 30, 10, 4, 3)
TUNE = FinetuneConfig(
    iterations=2, batch_size=2, micro_batch=1, l1=1.0, perceptual=0.1, adversarial=0.1, texture=0.1, anchor=0.5,
    transplant=0.5, discriminator_features=4, held_out=0, judge_every=1, checkpoint_seconds=1e9,
)  # fmt: skip
REAL = [name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if there]  # fmt: skip


def small(name: str) -> Restorer:
    """A published restorer's kinds of layers for 64 x 64 faces."""
    if name == "CodeFormer":
        pytest.importorskip("spandrel_extra_arches")
    try:
        module = small_network(name).eval().requires_grad_(False)
    except ImportError as error:
        pytest.skip(f"an older spandrel gives this network another name ({error.name})")
    if name == "SwinIR" and parts(version("spandrel")) < parts(UNSHUFFLING):
        pytest.skip("an older spandrel builds another SwinIR")
    return ADAPTERS[name](module=module, architecture=name, size=64, name=name)


def parts(number: str) -> list[int]:
    """Of a version such as "0.4.2"."""
    return [int(part) for part in number.split(".")[:3]]


def faces(count: int, size: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


# ---------------------------------------------------------------- shapes and types only


class NoFloat64(TorchDispatchMode):
    """Fails where an operation makes a float64 tensor on the device "meta": Apple's GPU has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tensors(made):
            assert tensor.device != META or tensor.dtype not in WIDE, f"{func} makes {tensor.dtype} on the device"
        return made


@pytest.fixture
def no_float64() -> Iterator[None]:
    with NoFloat64():
        yield


@pytest.fixture(params=["embedded", "tiny"])
def prior(request: pytest.FixtureRequest, tiny_prior: Path) -> Prior:
    return load_prior(tiny_prior if request.param == "tiny" else "embedded")


@pytest.mark.parametrize("config", [PAPER, FAST], ids=["paper", "fast"])
def test_prior_and_samplers_on_the_meta_device(no_float64: None, prior: Prior, config: SamplerConfig) -> None:
    prior.to(META)
    reference = torch.empty(2, 3, prior.size, prior.size, device=META)
    noise = keyed_noise(0, "targets", ["a", "b"], META)
    drawn = sample_constrained(prior, reference, config, noise)
    assert drawn.device == META and drawn.shape == reference.shape and drawn.dtype == torch.float32
    assert sample_constrained(prior, reference, config).device == META, "its own noise lies there, too"


@pytest.mark.parametrize(
    ("name", "recompute"),
    [*((name, False) for name in RESTORERS), (RESTORERS[0], True)],  # the prior alone recomputes, in each as in one
)
def test_a_tuning_step_on_the_meta_device(no_float64: None, tiny_prior: Path, name: str, recompute: bool) -> None:
    """Forward and backward through the network, all losses, and the discriminator, and the optimizer's step."""
    restorer = small(name).to(META)
    prior = load_prior(tiny_prior).to(META)
    perceptual = perceptual_loss(lambda image: prior.features(image[..., :32, :32], recompute))
    objective = objective_of(restorer, TUNE.weights, perceptual)
    student = replace(restorer, module=small_network(name).to(META).train(False))
    named = dict(student.tuned_parameters(student.module.requires_grad_(False)))
    tuned = [parameter.requires_grad_(True) for parameter in named.values()]
    optimizer = torch.optim.Adam(tuned)
    lq, target = torch.empty(2, 3, 64, 64), torch.empty(2, 3, 64, 64)
    batch = Batch(lq, target, [(0, False), (1, True)]).placed(student)
    if isinstance(restorer, CodeFormer):  # the codes are kept on the CPU as numbers, which there are none of here
        codes = restorer.target_codes(batch.target)
        assert codes.device == META and codes.dtype == torch.long
        losses = code_losses(student.codes(batch.lq), codes, restorer.codebook)  # type: ignore[attr-defined]
    else:
        losses, restored = objective.terms(student, batch)
        critic = UNetDiscriminator(4).to(META)
        losses["adversarial"] = generator_loss(critic(restored))
        discriminator_loss(critic(batch.target), critic(restored.detach())).backward()
        assert all(parameter.grad.device == META for parameter in critic.parameters())
    weighted({**losses, **objective.anchor(student, batch.lq)}, TUNE.weights).backward()
    optimizer.step()
    missing = [key for key, parameter in named.items() if parameter.grad is None]
    assert len(missing) < 0.2 * len(named), missing  # published networks carry some that their outputs do not use
    assert all(parameter.grad.device == META for parameter in tuned if parameter.grad is not None)


def test_other_functions_of_faces_on_the_meta_device(no_float64: None) -> None:
    image = torch.empty(2, 3, 128, 128, device=META)
    for made in (low_pass(image, 4), high_band(image), kid_features(image), at_checked_size(image[..., :64, :64])):
        assert made.device == META
    assert load_restorer().to(META)(image).shape == image.shape


# ---------------------------------------------------------------- a pretended card, and the real one


@pytest.fixture(params=["pretended", *REAL])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param != "pretended":
        yield torch.device(request.param)
        return
    with PretendedDevice():
        yield DEVICE


def test_what_the_pretended_device_refuses() -> None:
    on_cpu = torch.ones(4, 3)
    with PretendedDevice() as card:
        there = on_cpu.to(DEVICE)
        assert there.device == DEVICE and there[0].device == DEVICE and (2 * there).T.device == DEVICE
        assert on_cpu.device.type == "cpu" and there.cpu().device.type == "cpu" and not card.holds(there.cpu())
        assert torch.zeros(2, device=DEVICE).device == DEVICE and on_cpu.to(there).device == DEVICE
        assert nn.Linear(3, 2).to(DEVICE)(there).device == DEVICE
        for wrong in (
            lambda: there.double(),
            lambda: there.to(torch.float64),
            lambda: there.to("cpu", torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
            lambda: there + on_cpu,
            lambda: torch.cat([there, on_cpu]),
            lambda: nn.Linear(3, 2)(there),
            lambda: there.numpy(),
            lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
            lambda: torch.linalg.det(there[:3]),
            lambda: F.interpolate(there.view(1, 3, 2, 2), (4, 4), mode="bicubic"),
        ):
            with pytest.raises(Refused):
                wrong()
        assert there.cpu().double().numpy().shape == (4, 3)
        another = there.clone()
        held = card.held()
        del another
        assert card.held() == held - 1


@pytest.fixture
def on_device(device: torch.device, tiny_restorer: Path, tiny_prior: Path) -> tuple[Restorer, Prior]:
    """The tiny networks, on the device."""
    return load_restorer(tiny_restorer).to(device), load_prior(tiny_prior).to(device)


def test_faces_are_drawn_by_a_prior_on_the_device(device: torch.device, on_device: tuple[Restorer, Prior]) -> None:
    seen = []
    drawn = draw_faces(on_device[1], ["a", "b"], 0, lambda step, steps, picture: seen.append(picture.device.type))
    assert drawn.device.type == "cpu" and drawn.shape == (2, 3, 32, 32) and set(seen) == {device.type}


def test_targets_are_made_on_the_device(device: torch.device, on_device: tuple[Restorer, Prior]) -> None:
    """With all that is left to the faces, at another size than the prior's, and the random numbers of the CPU."""
    config = TargetConfig(FAST, t_clean="auto", search=("t_start", "factor"), detail="auto", precision="float32")
    own, prior = on_device
    for restorer in (own, replace(own, size=48)):
        lq = faces(2, restorer.size)
        made = make_pseudo_targets(lq, ["a", "b"], restorer, prior, config)
        assert all(picture.device.type == "cpu" and picture.shape == lq.shape for picture in made)
    estimate_noise_level(prior, (faces(2, 32) * 2 - 1).to(device), 250)
    assert len(clarity(faces(2, 48), replace(restorer, size=48), prior)) == 2


def test_the_detectors_network_runs_on_the_device(device: torch.device) -> None:
    """And finds the same as on the CPU."""
    photo = F.interpolate(load_face_statistics().known[:1], (180, 180), mode="bicubic", antialias=True).clamp(0, 1)
    photo = F.pad(photo, (40, 60, 30, 50), mode="replicate")[0]
    there, here = (
        EmbeddedDetector(load_landmark_net(device=d), load_scan_net(device=d), load_second_look(device=d))
        for d in (device, torch.device("cpu"))
    )
    [found], [expected] = there(photo), here(photo)
    assert abs(found.landmarks - expected.landmarks).max() < 0.05 and abs(found.score - expected.score) < 1e-3
    x, y = expected.landmarks.mean(0)
    box = torch.tensor([[x - 45, y - 60, x + 45, y + 60]], dtype=torch.float32)
    for boxes in (box, box.to(device)):
        assert all(faces_in_boxes(there.net, photo, boxes))


def test_retinaface_runs_on_the_device(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever facexlib does with the device it is told: here it forgets the network's layers, as some releases do."""

    class Forgetful(nn.Module):
        def __init__(self, name: str, device: torch.device) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 15)
            self.device = device

        def detect_faces(self, image: Any, conf_threshold: float) -> Any:
            row = self.layer(torch.from_numpy(image[0, :1]).to(self.device)).cpu()
            assert torch.isfinite(row).all()
            return row.numpy()

    module = type(sys)("facexlib.detection.retinaface")
    module.RetinaFace = Forgetful  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "facexlib", type(sys)("facexlib"))
    monkeypatch.setitem(sys.modules, "facexlib.detection", type(sys)("facexlib.detection"))
    monkeypatch.setitem(sys.modules, "facexlib.detection.retinaface", module)
    monkeypatch.setattr("bfr_core.faces.detect.find_spec", lambda name: SPEC if name in RETINAFACE_PACKAGES else None)
    torch.save(Forgetful("", DEVICE).state_dict(), tmp_path / "detection_Resnet50_Final.pth")
    run = Run(tmp_path / "run")
    write_image(tmp_path / "photos" / "a.png", faces(1, 64)[0])
    used = []
    called = Forgetful.detect_faces

    def detect(self: Forgetful, image: Any, conf_threshold: float) -> Any:
        used.append(self.layer.weight.device.type)
        return called(self, image, conf_threshold)

    monkeypatch.setattr(Forgetful, "detect_faces", detect)
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    config = FaceConfig(detector="retinaface", min_face=1)
    try:
        collect_faces(tmp_path / "photos", run, 32, config, None, device)
    except ValueError as error:  # what the untrained layer calls a face may be none
        assert "no face" in str(error) or "coincide" in str(error)
    assert used == [device.type]


SPEC = type("Spec", (), {"origin": None})()


def test_alignment_and_pasting_of_a_photo_on_the_device(device: torch.device) -> None:
    photo, face = faces(1, 96)[0], Face(template(64) + 10.3)
    crop = crop_face(photo.to(device), face, 32)
    assert crop.device.type == device.type
    expected = crop_face(photo, face, 32)
    assert torch.allclose(crop.cpu(), expected, atol=1e-4)
    pasted = paste_face(photo.to(device), (1 - expected).to(device), face, crop)
    assert pasted.device.type == device.type
    assert torch.allclose(pasted.cpu(), paste_face(photo, 1 - expected, face, expected), atol=1e-3)
    shrunk = warp(photo[None].to(device), face_matrix(), 20, 20)
    assert torch.allclose(shrunk.cpu(), warp(photo[None], face_matrix(), 20, 20), atol=1e-4)


def face_matrix() -> Any:
    import numpy as np

    return np.array([[0.2, 0.05, 1.0], [-0.05, 0.2, 3.0]])


@pytest.mark.parametrize("where", ["photo on the CPU", "photo on the device"])
def test_a_photo_is_restored_on_the_device(device: torch.device, on_device: tuple[Restorer, Prior], where: str) -> None:
    restorer, photo = on_device[0], faces(1, 96)[0]
    if where == "photo on the device":
        photo = photo.to(device)
    face, config = Face(template(64) + 10.3), RestoreConfig(skip_sharp=100.0, match_colour=True, keep_detail=False)
    result = restore_photo(photo, restorer, config, lambda photo: [face])
    assert len(result.faces) == 1 and result.pixels.device == photo.device, result.skipped
    kept = restore_photo(photo, restorer, replace(config, keep_detail=True), lambda photo: [face])
    assert kept.pixels.device == photo.device
    assert restore_aligned(photo, restorer, config).faces
    seen = load_detector("embedded", device=device)(faces(1, 96)[0])
    assert isinstance(seen, list)


def test_transplanting_on_the_device(device: torch.device) -> None:
    """Which needs float64, linear algebra and spectra."""
    for side in (64, 264):  # with a small filter, and with one that is applied through spectra
        target, lq, other = faces(3, side)
        damage = damage_filter(target.to(device), lq.to(device))
        assert damage.device.type == device.type
        assert torch.allclose(damage.cpu(), damage_filter(target, lq), atol=1e-5)
        limited = without_sharpening(damage)
        assert torch.allclose(limited.cpu(), without_sharpening(damage.cpu()), atol=1e-5)
        given = transplanted(*(x.to(device) for x in (other, lq, target)))
        assert torch.allclose(given.cpu(), transplanted(other, lq, target), atol=1e-4)
        assert filtered(other.to(device), damage).device.type == device.type


def test_gate_and_verdict_judge_what_lies_on_the_device(
    device: torch.device, on_device: tuple[Restorer, Prior]
) -> None:
    lq, targets = faces(8, 32), faces(8, 32, 1)
    net = load_landmark_net(device=device)
    measured = measurements_of(lq.to(device), targets.to(device), net)
    assert all(value.device.type == "cpu" for value in measured)
    expected = measurements_of(lq, targets, load_landmark_net())
    assert all(torch.allclose(a.float(), b.float(), atol=1e-3) for a, b in zip(measured, expected, strict=True))
    assert read_aligned(net, lq).points.device.type == device.type
    restorer = on_device[0]
    judgement = judged_on_faces(restorer, restorer, list(zip(lq, targets, strict=True)))
    assert judgement.verdict != "adopt"


def test_measures_of_pictures_on_the_device(device: torch.device) -> None:
    a, b = faces(2, 128), faces(2, 128, 1)
    for measured, expected in (
        (psnr(a.to(device), b.to(device)), psnr(a, b)),
        (sharpness(a.to(device)), sharpness(a)),
        *zip(face_measures(a.to(device), b.to(device)).values(), face_measures(a, b).values(), strict=True),
    ):
        assert torch.allclose(measured.cpu(), expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize("name", ["tiny", "CodeFormer"])
def test_tuning_on_the_device(
    device: torch.device, on_device: tuple[Restorer, Prior], tmp_path: Path, name: str, trainable: Any
) -> None:
    """A step with every term, then another from the checkpoint; what changed is factored for its file.

    A checkpoint of CodeFormer takes gigabytes, and is no other than that of the small network.
    """
    restorer, prior = (small(name).to(device), on_device[1]) if name != "tiny" else on_device
    lq, target, examples = faces(8, restorer.size), faces(8, restorer.size, 1), faces(2, restorer.size, 2)
    # What TorchScript, as in CodeFormer, keeps for recomputing is compared with the real device.
    config = replace(TUNE, trainable=trainable, recompute=name == "tiny", held_out=0.25, judged_on="transplanted")
    perceptual = perceptual_term(config, prior, device)
    for steps in (1, 2) if name == "tiny" else (1,):
        tuned, progress = finetune(
            restorer,
            list(zip(lq, target, strict=True)),
            replace(config, iterations=steps),
            checkpoint=tmp_path / "last.pt" if name == "tiny" else None,
            perceptual=perceptual,
            examples=examples,
        )
        assert progress.step == steps and tuned.device.type == device.type
    # Whether the result is the base is for the faces held out to say: here a change of our own is factored.
    key, weight = next((key, value) for key, value in tuned.module.state_dict().items() if value.ndim == 4)
    factors = factor_change({key: weight}, {key: weight * 2}, 2)
    assert factors and all(value.device.type == "cpu" for value in factors.values())


def test_several_restorers_route_on_the_device(device: torch.device, on_device: tuple[Restorer, Prior]) -> None:
    base = on_device[0]
    groups = DamageGroups(torch.eye(FEATURES), torch.zeros(1, FEATURES), torch.full((1,), 1e9))
    routed = Routed.of(groups, [base, replace(base)], name="both").to(device)
    restored, served = routed.restore_and_tell(faces(2, 32))
    assert restored.device.type == device.type and served == ["group 1", "group 1"]


# ---------------------------------------------------------------- nothing stays there


class Stop(Exception):
    """The user's cancel."""


@pytest.fixture(params=["pretended", *REAL])
def card(request: pytest.FixtureRequest) -> Iterator[tuple[torch.device, Callable[[], int]]]:
    """The device, and what says how much of it is in use."""
    if request.param == "pretended":
        with PretendedDevice() as pretended:
            yield DEVICE, pretended.held
    elif request.param == "cuda":
        yield torch.device("cuda"), torch.cuda.memory_allocated
    else:
        yield torch.device("mps"), torch.mps.current_allocated_memory


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many faces as leave two for the verdict."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photos.rglob("*.png"))[:6]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def wanted(tiny_restorer: Path, tiny_prior: Path) -> Any:
    """Settings of an adaptation that meets every stage; its prior's encoder is the perceptual term."""
    return replace(
        SMALL,
        restorer=str(tiny_restorer),
        prior=str(tiny_prior),
        faces=FaceConfig(aligned=True),
        targets=replace(SMALL.targets, batch_size=4, sampler=SamplerConfig(t_start=50, factor=4, calls=2)),
        finetune=replace(TUNE, held_out=0.34, judge_every=2, recompute=True),
    )


STAGES = ("faces", "album", "examine", "targets", "gate", "finetune")


@pytest.mark.parametrize(
    ("end", "error"),
    [("finished", Stop), ("targets", Stop), ("finetune", Stop), ("finetune", RuntimeError)],
)
def test_nothing_of_an_adaptation_stays_on_the_device(
    card: Any, few: Path, tmp_path: Path, wanted: Any, end: str, error: type[Exception]
) -> None:
    """After a whole one, a cancel, or an error in any stage; with networks of its own, and with the caller's."""
    device, in_use = card
    config = replace(wanted, album=replace(wanted.album, find=True))
    base, prior = load_restorer(config.restorer), load_prior(config.prior)
    before, met = in_use(), []

    def callback(stage: str, step: int, steps: int, detail: Any) -> None:
        met.append(stage)
        if stage == end and (stage != "finetune" or step == 1):
            raise error

    callers: tuple[dict[str, Any], ...] = ({}, {"restorer": base, "prior": prior})
    for given in callers if error is Stop else callers[1:]:
        try:
            adapt(few, tmp_path / f"run{len(given)}", config, callback, device.type, **given)
            assert end == "finished" and set(met) >= set(STAGES)
        except error:
            assert end != "finished"
        assert prior.device.type == "cpu"
        if end != "finished":
            assert base.device.type == "cpu", "after an error the caller's network is where it was"
        base.to("cpu")
        gc.collect()
        assert in_use() == before


@pytest.mark.parametrize("end", ["finished", "cancelled", "failed"])
def test_nothing_of_restoring_stays_on_the_device(
    card: Any, photos: Path, tmp_path: Path, tiny_restorer: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    device, in_use = card
    before = in_use()
    restorer = load_restorer(tiny_restorer).to(device)
    held = in_use()

    def callback(step: int, total: int, preview: Tensor | None) -> None:
        assert preview is None or preview.device.type == "cpu"
        if end == "cancelled" and step == 3:
            raise Stop

    if end == "failed":
        monkeypatch.setattr(type(restorer), "__call__", lambda self, lq: lq * torch.nan)
    try:
        result = restore_folder(photos, tmp_path / "out", restorer, aligned=True, callback=callback)
        assert result.count("failed" if end == "failed" else "restored") == 10
    except Stop:
        assert end == "cancelled"
    gc.collect()
    assert in_use() == held, "nothing but the network itself"
    del restorer
    gc.collect()
    assert in_use() == before


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_tuned_network_is_gone_as_soon_as_nobody_needs_it(card: Any, tiny_restorer: Path, trainable: Any) -> None:
    """Without waiting for Python's collector of circles, which may come when the memory was needed long ago."""
    device, in_use = card
    restorer = load_restorer(tiny_restorer).to(device)
    pairs = list(zip(faces(4, 32), faces(4, 32, 1), strict=True))
    config = replace(TUNE, iterations=1, perceptual=0, recompute=True, trainable=trainable)
    finetune(restorer, pairs, config)  # what PyTorch keeps of a first time
    gc.collect()
    before = in_use()
    gc.disable()
    try:
        finetune(restorer, pairs, config)
        assert in_use() == before
    finally:
        gc.enable()


# ---------------------------------------------------------------- precision


def test_the_low_band_is_exact_under_autocast() -> None:
    image = faces(2, 128)
    phi = low_pass_operator(image, 4)
    exact = phi(image)
    shrink, enlarge = phi_matrices(128, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(phi(image), exact)
        rounded = (enlarge @ (shrink @ image @ shrink.T) @ enlarge.T).float()
    assert (rounded - exact).abs().max() > 0.5 / 255, "what the context is there for"


def phi_matrices(size: int, factor: int) -> tuple[Tensor, Tensor]:
    """The two matrices of phi, read off what it does."""
    from bfr_core.diffusion.low_pass import _resize_pair

    shrink, enlarge = _resize_pair(size, factor)
    return shrink.float(), enlarge.float()


def test_the_texture_loss_is_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = faces(2, 64), (faces(2, 64) + 0.02 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    exact = texture_loss(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(texture_loss(a, b), exact)
        as_bfloat16 = torch.autocast("cpu", torch.bfloat16)
        monkeypatch.setattr("bfr_core.training.losses.full_precision", lambda device: as_bfloat16)
        assert abs(texture_loss(a, b) - exact) > 0.01 * exact, "what the context is there for"


def test_target_codes_are_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = small("CodeFormer")
    assert isinstance(restorer, CodeFormer)
    with torch.no_grad():
        feature = restorer._encoded(faces(16, 64))
        entries = feature.flatten(2).mT.flatten(0, 1)  # as in a trained one, codes lie where features do
        near = entries[torch.arange(len(restorer.codebook)) % len(entries)]
        noise = torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
        restorer.codebook.copy_(near + 0.05 * entries.std() * noise)
    hq = faces(16, 64, 1)
    exact = restorer.target_codes(hq)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restorer.target_codes(hq), exact)
        monkeypatch.setattr(
            "bfr_core.restorers.codeformer.full_precision", lambda device: torch.autocast("cpu", torch.bfloat16)
        )
        differ = (restorer.target_codes(hq) != exact).float().mean()
    assert differ > 0, "what the context is there for"


def test_float32_is_float32_whatever_is_around_it() -> None:
    a = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        for context in (autocast(a.device, "float32"), full_precision(a.device)):
            with context:
                assert (a @ a).dtype == torch.float32
    for other in (META, DEVICE):
        with autocast(other, "auto"), full_precision(other):
            assert (a @ a).dtype == torch.float32


def test_bfloat16_that_cannot_be_had_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "has_autocast", lambda device: False)
    with pytest.raises(ValueError, match="bfloat16.*mps; use auto or float32") as error:
        autocast(DEVICE, "bfloat16")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_of_a_card_that_emulates_it_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    """Asked in a way that every PyTorch since 2.1 knows; `is_bf16_supported` knows no arguments before 2.4."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert has_bfloat16(torch.device("cuda")) is native
    assert default_precision(torch.device("cuda")) == ("bfloat16" if native else "float32")


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_reaches_sampling_and_restoring(
    tiny_restorer: Path, tiny_prior: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    """On hardware whose own choice is the other one."""
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: asked == "float32")
    restorer, prior = load_restorer(tiny_restorer), load_prior(tiny_prior)
    seen: dict[str, set[torch.dtype]] = {"restorer": set(), "prior": set()}
    for name, module in (("restorer", restorer.module), ("prior", prior.network)):
        layer = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
        layer.register_forward_hook(lambda _, given, made, name=name: seen[name].add(made.dtype))
    config = TargetConfig(FAST, t_clean="auto", precision=asked)
    make_pseudo_targets(faces(1, 32), ["a"], restorer, prior, config)
    assert seen == {"restorer": {getattr(torch, asked)}, "prior": {getattr(torch, asked)}}


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_the_flag_of_the_command_line_reaches_all_of_it(
    tmp_path: Path, few: Path, tiny_restorer: Path, tiny_prior: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bfr_core.cli.commands import main

    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: asked == "float32")
    run = tmp_path / "run"
    own = ["--restorer", str(tiny_restorer), "--prior", str(tiny_prior), "--device", "cpu", "--factor", "4"]
    own += ["--start", "50", "--constrain-end", "5", "--calls", "2", "--clean-level", "0", "--precision", asked]
    own += ["--batch-size", "2", "--set", "finetune.sharp=0"]
    assert main(["adapt", str(few), "--run", str(run), "--aligned", "--iterations", "1", *own]) == 0
    recorded = Run(run).config()
    for stage in ("targets", "finetune"):
        assert recorded[stage]["precision"] == asked and recorded[stage]["computed_in"] == asked
    auto = [word for word in own[: own.index("--precision")] if word not in (str(tiny_restorer), "--restorer")]
    shutil.rmtree(run / "targets")
    assert main(["targets", "--run", str(run), "--restorer", str(tiny_restorer), *auto]) == 0
    other = "bfloat16" if asked == "float32" else "float32"
    assert Run(run).config()["targets"]["computed_in"] == other, "auto is what the hardware has, and it is said"


# ---------------------------------------------------------------- files are let go


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists what is mapped in /proc/self/maps")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_no_file_of_tensors_stays_mapped(tmp_path: Path, tiny_restorer: Path, suffix: str) -> None:
    """Windows lets nobody replace a file that is mapped into memory."""

    def mapped(path: Path) -> bool:
        gc.collect()
        return str(path) in Path("/proc/self/maps").read_text()

    large = {"large": torch.rand(1 << 20)}
    path = tmp_path / f"large{suffix}"
    if suffix == ".pth":
        torch.save(large, path)
    else:
        save_tensors(path, large, {})
    state, _ = load_tensors(path)
    assert torch.equal(state["large"], large["large"]) and not mapped(path)

    groups = tmp_path / "groups.safetensors"
    shutil.copy(tiny_restorer, tmp_path / "base.safetensors")
    found = DamageGroups(torch.eye(FEATURES), torch.zeros(1, FEATURES), torch.ones(1))
    save_groups(groups, found, tmp_path / "base.safetensors", [None], {})
    routed = load_restorer(groups)
    assert isinstance(routed, Routed) and not mapped(groups) and not mapped(tmp_path / "base.safetensors")
    assert mapped(Path(torch.__file__).parent / "lib"), "the list says what is mapped"


def test_an_unknown_device_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="device is 'nonsense'") as error:
        choose_device("nonsense")
    assert "\n" not in str(error.value)
    with PretendedDevice():
        assert choose_device("mps") == DEVICE
