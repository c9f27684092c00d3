import torch

from bfr_core.pixels import gaussian_blur
from bfr_core.training.discriminator import UNetDiscriminator, discriminator_loss


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
