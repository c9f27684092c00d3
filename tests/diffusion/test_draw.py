from bfr_core.diffusion.draw import draw_faces
from bfr_core.diffusion.prior import load_prior


def test_drawn_faces_depend_on_their_names_alone(tiny_prior):
    prior = load_prior(tiny_prior)
    together = draw_faces(prior, ["a", "b"], seed=1)
    alone = draw_faces(prior, ["b"], seed=1)
    assert together.shape == (2, 3, 32, 32) and together.min() >= 0 and together.max() <= 1
    assert (together[1] - alone[0]).abs().max() < 0.02  # bfloat16 differs a little between batch sizes
    assert (together[0] - together[1]).abs().mean() > 0.02
