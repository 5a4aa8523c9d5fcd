"""Masks of a training on images, and what stands for a mask where scores are compared."""

from __future__ import annotations

import math

import pytest
import torch
from toy import RandomTensors

from vaeimpute.images.masking import observed_fraction, random_mask

N, SHAPE = 4000, (12, 10, 3)


def masks_of(n, shape, seed=0, observed=None):
    observed = torch.ones(1, n, math.prod(shape), dtype=torch.bool) if observed is None else observed
    return random_mask(observed, shape, RandomTensors(seed).generator)


def test_pixels_that_are_hidden():
    """A pixel goes with its channels; half of the images lose one rectangle, the others scattered pixels."""
    visible = masks_of(N, SHAPE).view(N, *SHAPE)
    assert (visible == visible[..., :1]).all()
    hidden = ~visible[..., 0]
    area = hidden.any(2).sum(1) * hidden.any(1).sum(1)
    rectangles = hidden.sum((1, 2)) == area  # very few scattered pixels may be one, too
    assert 0.5 - 5 * 0.5 / math.sqrt(N) < rectangles.double().mean() < 0.62
    # Scattered ones at a rate U(0, 1), a rectangle with two sides of half an image on average.
    assert hidden[rectangles].double().mean() < hidden[~rectangles].double().mean()
    assert hidden.double().mean().item() == pytest.approx((0.5 + 0.25) / 2, abs=0.02)


def test_sides_of_a_rectangle_are_a_fifth_to_four_fifths_of_the_image():
    hidden = ~masks_of(N, (20, 40, 1)).view(N, 20, 40)
    height, width = hidden.any(2).sum(1), hidden.any(1).sum(1)
    rectangles = (hidden.sum((1, 2)) == height * width) & (height * width > 8) & (height * width < 800)
    for side, size in ((height, 20), (width, 40)):
        sides = side[rectangles]
        assert sides.min() >= 0.2 * size - 1
        assert sides.max() <= 0.8 * size + 1
        assert sides.double().mean().item() == pytest.approx(0.5 * size, rel=0.03)


def test_a_missing_pixel_is_never_visible():
    observed = RandomTensors(1).mask(1, 300, math.prod(SHAPE), rate=0.6)
    before = observed.clone()
    visible = masks_of(300, SHAPE, observed=observed)
    assert not (visible & ~observed).any()
    assert torch.equal(observed, before)


def test_masks_come_from_the_generator_alone():
    state = torch.get_rng_state()
    once, again, other = (masks_of(20, SHAPE, seed) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


def test_observed_fraction_is_that_of_each_region():
    observed = torch.zeros(2, 8 * 8 * 2, dtype=torch.bool)
    observed.view(2, 8, 8, 2)[0, :2, :2] = True  # the first region, whole
    observed.view(2, 8, 8, 2)[1, -2:, -1, 0] = True  # of the last region two pixels of four, in one channel of two
    fraction = observed_fraction(observed, (8, 8, 2))
    expected = torch.zeros(2, 16)
    expected[0, 0], expected[1, -1] = 1.0, 0.25
    torch.testing.assert_close(fraction, expected)
    assert observed_fraction(observed[:, :6], (3, 2, 1)).shape == (2, 6)  # no more regions than pixels
