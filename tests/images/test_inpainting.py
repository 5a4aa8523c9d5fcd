"""The smoothest image: known pixels stay, planes and images of one colour are found again, and a start is never NaN."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from toy import RandomTensors

from vaeimpute.images.inpainting import inpaint

SHAPE = (12, 17, 2)


@pytest.fixture
def plane():
    row, column, _ = torch.meshgrid(*(torch.arange(float(size)) for size in SHAPE), indexing="ij")
    return (0.02 * row + 0.03 * column).expand(3, -1, -1, -1)


@pytest.fixture
def observed():
    return RandomTensors().mask(3, *SHAPE, rate=0.6)


def inpainted(values, observed, shape=SHAPE):
    return inpaint(values.flatten(1), observed.flatten(1), shape).permute(0, 2, 3, 1)


def test_known_pixels_stay_and_planes_are_found_again(plane, observed):
    smooth = inpainted(plane, observed)
    assert torch.equal(smooth[observed], plane[observed])
    inside = (slice(None), slice(3, -3), slice(3, -3))
    assert_allclose(smooth[inside], plane[inside], atol=0.02)


def test_what_a_missing_pixel_holds_has_no_influence(plane, observed):
    other = torch.where(observed, plane, 1e3)
    torch.testing.assert_close(inpainted(other, observed), inpainted(plane, observed))


def test_channels_do_not_touch_each_other(plane, observed):
    other = plane.clone()
    other[..., 1] = RandomTensors(1).uniform(3, 12, 17, dtype=torch.float32)
    assert torch.equal(inpainted(other, observed)[..., 0], inpainted(plane, observed)[..., 0])


def test_one_known_pixel_gives_its_colour_to_all():
    flat = torch.full((1, 45), 0.7)
    one = torch.arange(45).unsqueeze(0) == 16
    assert_allclose(inpaint(flat, one, (9, 5, 1)).flatten(1), flat, atol=1e-6)
    assert torch.equal(inpaint(flat, one & False, (9, 5, 1)).flatten(1), torch.zeros_like(flat))


def test_the_squared_laplacian_comes_near_its_minimum():
    """Against the least squares solution: of the way from zero-filled to the exact one, little is left."""
    shape, n = (8, 8, 1), 64
    random = RandomTensors()
    values, observed = random.uniform(1, n), random.mask(1, n, rate=0.7)
    eye = torch.eye(n, dtype=values.dtype).view(n, 1, 8, 8)
    padded = torch.nn.functional.pad(eye, (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=values.dtype).view(1, 1, 3, 3)
    laplacian = torch.nn.functional.conv2d(padded, kernel).view(n, n).T  # of each unit image, as columns

    def energy(image):
        return (laplacian @ image.flatten()).square().sum().item()

    hidden = ~observed[0]
    known = torch.where(observed[0], values[0], 0)
    least = torch.linalg.lstsq(laplacian[:, hidden], -(laplacian @ known).unsqueeze(1)).solution.squeeze(1)
    exact = known.clone()
    exact[hidden] = least
    ours = inpaint(values, observed, shape)
    assert energy(exact) <= energy(ours) * (1 + 1e-9)
    assert energy(ours) - energy(exact) < 0.05 * (energy(known) - energy(exact))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (2, 3, 3), (7, 1, 2)])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_small_images_do_not_break(shape, rate):
    height, width, channels = shape
    n_pixels = height * width * channels
    random = RandomTensors()
    smooth = inpaint(random.normal(4, n_pixels), random.mask(4, n_pixels, rate=rate), shape)
    assert smooth.shape == (4, channels, height, width)
    assert smooth.isfinite().all()
