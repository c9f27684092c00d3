import torch

from bfr_core.pixels import gaussian_blur
from bfr_core.restorers import load_restorer
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.discriminator import UNetDiscriminator, discriminator_loss, seeded_discriminator
from bfr_core.training.finetune import begin


def test_discriminator_scores_every_pixel_and_learns():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    critic = UNetDiscriminator(8)
    assert critic(image).shape == (2, 1, 32, 32)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator_loss(critic(image), critic(gaussian_blur(image, 2.0)))
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_a_tunings_discriminator_lies_channels_last_on_a_cpu_and_scores_the_same(tiny_restorer):
    config = FinetuneConfig(adversarial=0.1, discriminator_features=8, seed=3)
    critic = begin(load_restorer(tiny_restorer), config).critic
    assert critic is not None
    kernels = [kernel for kernel in critic.parameters() if kernel.ndim == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(critic(image), seeded_discriminator(8, 3)(image), rtol=1e-4, atol=1e-5)
