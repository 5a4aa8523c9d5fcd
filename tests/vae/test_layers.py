"""Layers: a stack of members equals its members, one by one; zero starts are zero; dropout keeps the mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from toy import RandomTensors

from vaeimpute.training.runtime import make_generator
from vaeimpute.vae.layers import ResidualMLP, StackedLinear

SHAPES = [(4,), (3, 4), (2, 3, 4), (0,)]


@pytest.fixture
def random():
    return RandomTensors()


def mlp(n_members=3, dropout=0.0, norm=True, depth=2):
    return ResidualMLP(n_members, 5, 8, depth, dropout, norm=norm, init=make_generator(1)).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_linear_is_one_linear_per_member(random, shape):
    layer = StackedLinear(3, 5, 2, make_generator(1)).double()
    x = random.normal(3, *shape, 5)
    y = layer(x)
    assert y.shape == (3, *shape, 2)
    for m in range(3):
        torch.testing.assert_close(y[m], F.linear(x[m], layer.weight[m].T, layer.bias[m, 0]))


def test_start_is_pytorchs_or_zero():
    layer = StackedLinear(50, 16, 20, make_generator(0))
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= 0.25
        assert parameter.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert torch.equal(layer.weight, StackedLinear(50, 16, 20, make_generator(0)).weight)
    assert not any(parameter.any() for parameter in StackedLinear(2, 3, 4).parameters())


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_mlp_is_its_formula(random, shape, depth, norm):
    net = mlp(norm=norm, depth=depth)
    x = random.normal(3, *shape, 5)
    for m in range(3):
        y = x[m] @ net.first.weight[m] + net.first.bias[m, 0]
        for block in net.blocks:
            y = y + F.silu(F.layer_norm(y, (8,)) if norm else y) @ block.weight[m] + block.bias[m, 0]
        torch.testing.assert_close(net(x)[m], F.silu(y))


def test_members_do_not_touch_each_other(random):
    net = mlp()
    net(random.normal(3, 4, 5))[1].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert not parameter.grad[[0, 2]].any(), name
        assert parameter.grad[1].any(), name


def test_gradients_are_those_of_finite_differences(random):
    net = mlp(n_members=2)
    assert torch.autograd.gradcheck(net, random.normal(2, 3, 5).requires_grad_())


@pytest.mark.parametrize("shape", [(64,), (7,), (0,), (3, 64), (2, 5)])
def test_dropout_is_for_those_who_bring_a_generator(random, shape):
    net = mlp(dropout=0.4)
    x = random.normal(3, *shape, 5)
    plain = net(x)
    torch.testing.assert_close(plain, mlp()(x))
    noisy, again = net(x, make_generator(2)), net(x, make_generator(2))
    assert noisy.shape == (3, *shape, 8)
    assert noisy.isfinite().all()
    assert torch.equal(noisy, again)
    if noisy.numel():
        assert not torch.equal(noisy, plain)


def test_dropout_drops_at_its_rate_and_keeps_the_mean(random):
    net = ResidualMLP(2, 5, 40, 1, 0.3, norm=False, init=make_generator(1)).double()
    x = random.normal(2, 128, 5)
    with torch.no_grad():
        first = net.first(x)
        update = net.blocks[0](F.silu(first))
        # SiLU is one to one where its input is positive: read the factor of each cell off the output.
        factors = []
        for _ in range(30):
            y = net(x, random.generator)
            dropped, kept = F.silu(first), F.silu(first + update / 0.7)
            is_dropped, is_kept = (y - dropped).abs() < 1e-9, (y - kept).abs() < 1e-9
            assert (is_dropped | is_kept).all()
            factors.append(is_kept.double())
    # A mask repeats every 64 rows: 30 x 2 x 64 x 40 independent factors.
    assert torch.stack(factors).mean().item() == pytest.approx(0.7, abs=5 * 0.46 / math.sqrt(30 * 2 * 64 * 40))
