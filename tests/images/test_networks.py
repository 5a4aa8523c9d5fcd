"""Networks of images: maps cover any size, zero starts are zero, and dropout is for those who bring a generator."""

from __future__ import annotations

import pytest
import torch
from toy import RandomTensors

from vaeimpute.images.networks import ConvDecoder, ConvEncoder, Residual, ResidualBlocks, map_sizes, stride, widths_of
from vaeimpute.training.runtime import make_generator

SHAPES = [(8, 8), (28, 28), (9, 17), (50, 33), (64, 128), (1, 1), (3, 200)]


@pytest.fixture
def random():
    return RandomTensors()


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_maps_cover_the_image(random, height, width):
    sizes = map_sizes(height, width)
    assert max(sizes[-1]) <= 8
    assert sizes[0][0] * stride(height, width) >= height
    encoder = ConvEncoder(height, width, 2, (8,), 1, 16, 0.0, make_generator(0))
    maps, vector = encoder(random.uniform(3, 2, height, width, dtype=torch.float32))
    assert [tuple(m.shape[2:]) for m in maps] == sizes
    assert vector.shape == (3, 16)
    for skip_connections in (True, False):
        decoder = ConvDecoder(height, width, 5, 16, (8,), 1, 0.0, make_generator(0), skip_connections=skip_connections)
        assert decoder(vector, maps if skip_connections else ()).shape == (3, 5, height, width)


def test_the_last_width_goes_for_all_further_maps():
    assert widths_of([(64, 64), (32, 32), (16, 16), (8, 8)], (4, 6)) == [4, 6, 6, 6]
    assert widths_of([(8, 8)], (4, 6)) == [4]


def test_a_residual_block_starts_as_next_to_nothing(random):
    """The second convolution's weights are zero: what it adds is its bias."""
    x = random.normal(2, 8, 5, 5, dtype=torch.float32)
    block = Residual(8, 0.3, make_generator(0))
    expected = x + block.convolutions[1].bias.view(1, -1, 1, 1)
    torch.testing.assert_close(block(x), expected.expand_as(x))


def test_dropout_is_for_those_who_bring_a_generator(random):
    x = random.normal(2, 8, 5, 5, dtype=torch.float32)
    blocks = ResidualBlocks(2, 8, 0.5, make_generator(0))
    for block in blocks:
        torch.nn.init.normal_(block.convolutions[1].weight, generator=random.generator)
    plain = blocks(x)
    assert torch.equal(plain, blocks(x))
    noisy, again, other = (blocks(x, make_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert not torch.equal(noisy, plain)


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (
        torch.cat([p.flatten() for p in ConvEncoder(9, 9, 1, (8,), 1, 16, 0.0, make_generator(seed)).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_every_pixel_reaches_the_vector_and_the_vector_every_pixel(random):
    encoder = ConvEncoder(20, 18, 1, (8, 8), 1, 16, 0.0, make_generator(0))
    x = random.normal(1, 1, 20, 18, dtype=torch.float32).requires_grad_()
    encoder(x)[1].sum().backward()
    assert (x.grad != 0).all()
    decoder = ConvDecoder(20, 18, 1, 16, (8, 8), 1, 0.0, make_generator(0), skip_connections=False)
    low, high = (decoder(torch.full((1, 16), v)) for v in (-1.0, 1.0))
    assert (low != high).all()
