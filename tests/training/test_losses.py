import pytest
import torch
from torch import nn

from bfr_core.pixels import gaussian_blur
from bfr_core.training import losses
from bfr_core.training.losses import hatching_loss, perceptual_loss, pixel_loss, texture_loss


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_pixel_loss_by_hand(image):
    assert pixel_loss(image, image + 0.25).item() == pytest.approx(0.25)


def test_texture_loss_sees_smoothing_and_noise_but_not_where_the_texture_lies(image):
    same = texture_loss(image, image.roll(1, -1))
    smoothed = texture_loss(gaussian_blur(image, 1.0), image)
    assert same < 0.2 * smoothed
    assert texture_loss(image, gaussian_blur(image, 1.0)) == smoothed


def test_hatching_is_what_a_face_has_more_of_than_the_target(image):
    smooth = gaussian_blur(image, 3.0)
    board = 0.02 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)
    assert hatching_loss(smooth, image) == 0 and hatching_loss(image, image) == 0
    stripes = 0.02 * torch.tensor([1.0, -1.0]).repeat(16).expand(32, 32)
    patterns = [board, stripes, stripes.T]
    assert all(hatching_loss(smooth + pattern, smooth) > 0.005 for pattern in patterns)
    assert hatching_loss(smooth + 0.02, smooth) < 1e-6, "another brightness is none"


def test_perceptual_loss_is_zero_only_for_equal_images(image):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 8, 3)
    loss = perceptual_loss(lambda x: [net(x)])
    assert loss(image, image).item() == 0 and loss(image.flip(-1), image).item() > 0.01


@pytest.mark.parametrize("name", ["pixel_loss", "texture_loss", "hatching_loss"])
def test_image_losses_have_gradients(name):
    a, b = torch.rand(2, 1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: getattr(losses, name)(x, b), a)


def test_vggs_file_alone_makes_no_lpips(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints/vgg16-397923af.pth"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(losses, "find_spec", lambda name: None)
    assert losses.find_vgg() is None
    monkeypatch.setattr(losses, "find_spec", lambda name: object())
    assert losses.find_vgg() == file
    file.unlink()
    assert losses.find_vgg() is None


@pytest.mark.slow
def test_lpips_is_built_without_a_download(tmp_path, image):
    """With a VGG file of random weights it is the published computation: zero for equal images, positive otherwise."""
    pytest.importorskip("lpips")
    from torchvision.models import vgg16

    torch.save(vgg16(weights=None).state_dict(), tmp_path / "vgg16.pth")
    loss = losses.lpips_loss(tmp_path / "vgg16.pth")
    assert loss(image, image).item() == 0 and loss(image, image.flip(-1)).item() > 0
