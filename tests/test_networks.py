"""networks: a stack of members equals its members, one by one; zero starts are zero; dropout keeps the mean."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vaeimpute.vae.layers import ResidualMLP, StackedLinear

F64 = torch.float64
SHAPES = [(4,), (3, 4), (2, 3, 4), (0,)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mlp(n_members=3, dropout=0.0, norm=True, depth=2):
    return ResidualMLP(n_members, 5, 8, depth, dropout, norm).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_linear_is_one_linear_per_member(shape):
    layer = StackedLinear(3, 5, 2).double()
    x = torch.randn(3, *shape, 5, dtype=F64)
    y = layer(x)
    assert y.shape == (3, *shape, 2)
    for m in range(3):
        torch.testing.assert_close(y[m], F.linear(x[m], layer.weight[m].T, layer.bias[m, 0]))


def test_start_is_pytorchs_or_zero():
    layer = StackedLinear(50, 16, 20)
    assert layer.weight.abs().max() <= 0.25
    assert layer.weight.std().item() == pytest.approx(torch.nn.Linear(16, 5000).weight.std().item(), rel=0.05)
    assert not StackedLinear(2, 3, 4, zero=True)(torch.randn(2, 6, 3)).any()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_mlp_is_its_formula(shape, depth, norm):
    net = mlp(norm=norm, depth=depth)
    x = torch.randn(3, *shape, 5, dtype=F64)
    for m in range(3):
        y = x[m] @ net.first.weight[m] + net.first.bias[m, 0]
        for block in net.blocks:
            y = y + F.silu(F.layer_norm(y, (8,)) if norm else y) @ block.weight[m] + block.bias[m, 0]
        torch.testing.assert_close(net(x)[m], F.silu(y))


def test_members_do_not_touch_each_other():
    net = mlp()
    net(torch.randn(3, 4, 5, dtype=F64))[1].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert not parameter.grad[[0, 2]].any(), name
        assert parameter.grad[1].any(), name


def test_gradients_are_those_of_finite_differences():
    net = mlp(n_members=2)
    assert torch.autograd.gradcheck(net, torch.randn(2, 3, 5, dtype=F64, requires_grad=True))


@pytest.mark.parametrize("shape", [(64,), (7,), (0,), (3, 64), (2, 5)])
def test_dropout_is_for_training_only(shape):
    net = mlp(dropout=0.4)
    x = torch.randn(3, *shape, 5, dtype=F64)
    torch.testing.assert_close(net.eval()(x), net(x))
    noisy = net.train()(x)
    assert noisy.shape == (3, *shape, 8)
    assert noisy.isfinite().all()
    if noisy.numel():
        assert not torch.equal(noisy, net.eval()(x))


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    net = ResidualMLP(2, 5, 40, 1, 0.3, False).double()
    x = torch.randn(2, 128, 5, dtype=F64)
    first = net.first(x)
    update = net.blocks[0](F.silu(first))
    with torch.no_grad():
        # SiLU is one to one where its input is positive: read the factor of each cell off the output.
        factors = []
        for _ in range(30):
            y = net.train()(x)
            dropped, kept = F.silu(first), F.silu(first + update / 0.7)
            is_dropped, is_kept = (y - dropped).abs() < 1e-9, (y - kept).abs() < 1e-9
            assert (is_dropped | is_kept).all()
            factors.append(is_kept.double())
    assert torch.stack(factors).mean().item() == pytest.approx(0.7, abs=0.01)
