"""Models of images: any size works, hidden pixels have no say, the conditional one starts at the smoothest image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from toy import RandomTensors

from vaeimpute.images.models import ConditionalImageVAE, JointImageVAE, Sizes
from vaeimpute.likelihoods.pixels import PIXELS
from vaeimpute.persistence import from_state, to_state
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae import objective
from vaeimpute.vae.base import Batch

SHAPES = [(8, 8, 1), (28, 28, 1), (9, 17, 3), (50, 33, 1), (64, 128, 3)]
KINDS = [JointImageVAE, ConditionalImageVAE]


def model_of(kind, shape, pixels="count", *, inpaints=True, spread=0.0):
    """A small model as it starts, or with all of its parameters moved by some noise."""
    model = kind(Sizes(shape, pixels, 16, (8, 16), 1, 16, 4, 0.1, inpaints), make_generator(0))
    generator = make_generator(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn(p.shape, generator=generator))
    return model


def levels(shape, n=2, rate=0.7, seed=0):
    random, n_pixels = RandomTensors(seed), math.prod(shape)
    return random.integers(17, 1, n, n_pixels) / 16, random.mask(1, n, n_pixels, rate=rate)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_works(shape, kind):
    model = model_of(kind, shape)
    x, observed = levels(shape)
    loss = model.train().loss(Batch(x, observed), 1, make_generator(0))
    assert loss.shape == (1, 2)
    assert loss.isfinite().all()
    loss.sum().backward()
    with torch.no_grad():
        params, log_w = model.eval().importance_samples(x, observed, torch.zeros(3, 4))
    assert params.shape == (1, 3, 2, model.likelihoods.n_params)
    assert log_w.shape == (1, 3, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_have_no_say(shape, kind):
    x, observed = levels(shape)
    other = torch.where(observed, x, levels(shape, seed=1)[0])
    model = model_of(kind, shape, spread=0.1).eval()
    with torch.no_grad():
        a, b = (model.expectations(v, observed, torch.zeros(1, 4)) for v in (x, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", PIXELS)
def test_a_loss_comes_from_the_generator_alone(kind, pixels):
    model = model_of(kind, (8, 8, 1), pixels, spread=0.05).train()
    x, observed = levels((8, 8, 1))
    batch, state = Batch(x.round() if pixels == "boolean" else x, observed), torch.get_rng_state()
    with torch.no_grad():
        once, again, other = (model.loss(batch, 2, make_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("pixels", PIXELS)
def test_the_conditional_model_starts_smooth(pixels):
    """Before any training, a hidden pixel is near what the smoothest image has there."""
    model = model_of(ConditionalImageVAE, (10, 10, 3), pixels).eval()
    low, high = (-2, 2) if pixels == "numeric" else (0.1, 0.9)
    x = torch.linspace(low, high, 10).repeat(2, 10, 1).unsqueeze(-1).repeat(1, 1, 1, 3).flatten(1).unsqueeze(0)
    observed = RandomTensors().mask(1, 2, 100, rate=0.7).repeat_interleave(3, -1)
    with torch.no_grad():
        expectations = model.expectations(x, observed, torch.zeros(1, 4))
    assert np.corrcoef(expectations[~observed], x[~observed])[0, 1] > 0.9


def test_the_latent_of_the_joint_model_starts_as_the_prior():
    """Then the weights are the likelihoods, and a row without pixels has none."""
    model = model_of(JointImageVAE, (8, 8, 1)).eval()
    x, observed = levels((8, 8, 1))
    noise = RandomTensors().normal(5, 4, dtype=torch.float32)
    with torch.no_grad():
        assert not model.encode(x, observed).any()
        params, log_w = model.importance_samples(x, observed, noise)
        log_px = model.likelihoods.log_prob(params, x.unsqueeze(1))
        expected = torch.where(observed.unsqueeze(1), log_px, 0).sum(-1)
        torch.testing.assert_close(log_w, expected)
        nothing = model.importance_samples(x, observed & False, noise)[1]
    torch.testing.assert_close(objective.iwae(nothing), torch.zeros(1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inpaints", [True, False])
def test_state_round_trip(kind, inpaints):
    model = model_of(kind, (9, 17, 3), inpaints=inpaints, spread=0.05).eval()
    tensors, description = to_state({"m": model})
    described = json.loads(json.dumps(description))
    again = from_state(tensors, described, {kind.__name__: kind}, torch.device("cpu"))["m"]
    assert again.sizes == model.sizes
    x, observed = levels((9, 17, 3))
    with torch.no_grad():
        one, other = (m.expectations(x, observed, torch.zeros(1, 4)) for m in (model, again))
    assert torch.equal(one, other)
