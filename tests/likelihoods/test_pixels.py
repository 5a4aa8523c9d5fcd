"""Pixels: each family is a distribution, and the product over all of them has the face of columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeimpute.likelihoods.pixels import PIXELS, Pixels
from vaeimpute.training.runtime import make_generator

F64 = torch.float64


@pytest.fixture
def g():
    return make_generator(0)


def support(kind):
    """Values of a pixel of 17 levels and the length that each stands for."""
    if kind == "numeric":
        points = torch.linspace(-60, 60, 200_001, dtype=F64)
        return points, points[1] - points[0]
    return torch.linspace(0, 1, 2 if kind == "boolean" else 17, dtype=F64), torch.tensor(1.0)


@pytest.mark.parametrize("kind", PIXELS)
def test_pixel_likelihoods_are_distributions(kind, g):
    """Probabilities add up to one; the mean and the draws are those of the likelihood."""
    pixels = Pixels(kind, 1, 16)
    params = torch.randn(3, pixels.n_params, dtype=F64, generator=g)
    points, weight = support(kind)
    p = pixels.log_prob(params.unsqueeze(1), points[None, :, None]).squeeze(-1).exp() * weight
    torch.testing.assert_close(p.sum(1), torch.ones(3, dtype=F64), atol=1e-6, rtol=0)
    below = pixels.cdf(params.unsqueeze(1), points[None, :, None] + 1e-9).squeeze(-1)
    torch.testing.assert_close(below, p.cumsum(1), atol=1e-3, rtol=0)
    mean = (p * points).sum(1)
    expected = pixels.expectations(params).squeeze(-1)
    torch.testing.assert_close(expected, mean, atol=1e-6 if kind != "count" else 0.01, rtol=0)
    drawn = pixels.sample(params.expand(20_000, 3, -1), g).squeeze(-1)
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / 20_000**0.5).all()
    if kind != "numeric":
        assert torch.isclose(drawn.unsqueeze(-1), points).any(-1).all()


@given(st.integers(0, 255), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_levels_far_from_the_mean_keep_a_finite_likelihood(level, seed):
    params = 30 * torch.randn(1, 9, generator=make_generator(seed))
    params.requires_grad_()
    log_p = Pixels("count", 1, 255).log_prob(params, torch.tensor([[level / 255]]))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert log_p.item() <= 1e-5
    assert params.grad.isfinite().all()


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_do_not_depend_on_their_company(kind, g):
    together, alone = Pixels(kind, 5, 16), Pixels(kind, 1, 16)
    params = torch.randn(4, together.n_params, dtype=F64, generator=g)
    values = torch.rand(4, 5, dtype=F64, generator=g).round()
    for pixel, own in enumerate(params.chunk(5, -1)):
        for method in ("log_prob", "cdf", "training_log_prob"):
            one, other = getattr(together, method)(params, values), getattr(alone, method)(own, values[:, [pixel]])
            torch.testing.assert_close(one[:, [pixel]], other)
        torch.testing.assert_close(together.expectations(params)[:, [pixel]], alone.expectations(own))
    assert together.expectation_columns.tolist() == list(range(5))
    assert together.is_continuous.tolist() == [kind == "numeric"] * 5


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_of_some_draws(kind, g):
    pixels = Pixels(kind, 4, 16)
    params = torch.randn(2, 3, 5, pixels.n_params, dtype=F64, generator=g)  # (M, K, B, P)
    draws = torch.randint(3, (2, 8, 5), generator=g)
    picked = params.take_along_dim(draws.unsqueeze(-1), 1)
    expected = pixels.sample(picked, make_generator(1))
    assert torch.equal(pixels.sample(params, make_generator(1), draws), expected)


@pytest.mark.parametrize("kind", PIXELS)
def test_parameters_that_move_the_mean_move_it_where_they_should(kind):
    """``gain (x - middle)`` makes it about x: so a network starts at an image that is at hand."""
    family = PIXELS[kind](255)
    x = torch.linspace(0.1, 0.9, 9, dtype=F64)
    params = torch.zeros(9, family.n_params, dtype=F64)
    params[:, family.means] = (family.gain * (x - family.middle)).unsqueeze(-1)
    torch.testing.assert_close(family.mean(params), x, atol=0.15, rtol=0)
    assert (family.mean(params).diff() > 0).all()


@pytest.mark.parametrize("kind", PIXELS)
def test_point_estimates_invert_targets(kind):
    pixels, (points, _) = Pixels(kind, 1, 16), support(kind)
    x = points.unsqueeze(1)
    torch.testing.assert_close(pixels.point_estimates(pixels.targets(x)), x)
    if kind == "boolean":
        assert pixels.point_estimates(torch.tensor([0.2, 0.8])).tolist() == [0, 1]


@pytest.mark.parametrize("kind", PIXELS)
def test_training_counts_the_error_of_the_mean_where_the_likelihood_is_slow_to_teach_it(kind, g):
    pixels = Pixels(kind, 3, 16)
    params = torch.randn(6, pixels.n_params, dtype=F64, generator=g)
    values = torch.rand(6, 3, dtype=F64, generator=g).round()
    lost = pixels.log_prob(params, values) - pixels.training_log_prob(params, values)
    error = (pixels.expectations(params) - values).square()
    torch.testing.assert_close(lost, pixels.family.mean_weight * error)
