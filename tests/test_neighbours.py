"""Neighbours: the kernel and the votes against NumPy by hand, limits, invariances, and a step that they must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaeimpute.gaussian.factor_analysis import Linear, conditional, fit_linear
from vaeimpute.likelihoods.families import CellSpec
from vaeimpute.tables.models import ConditionalVAE, ModelConfig
from vaeimpute.tables.smoother import HEADS, Neighbours
from vaeimpute.training.loop import Check, Clock, Plan, fit_model, held_out_misses
from vaeimpute.vae.inference import latent_noise

F64 = torch.float64
M, H, B, N, F = 3, len(HEADS), 7, 30, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def backbone():
    return Linear(torch.randn(M, F, 2, dtype=F64), torch.randn(M, F, dtype=F64), 0.1 + torch.rand(M, F, dtype=F64))


def smoother_of(rows, observed, backbone):
    """A bank of which each member may use other cells, and parameters of all sizes."""
    neighbours = Neighbours(*rows.shape).to(rows.dtype)
    first = Linear(*(p[0] for p in backbone))
    neighbours.fill(rows, observed, conditional(rows, observed, first), torch.arange(len(rows)))
    neighbours.known = observed & (torch.rand(M, *rows.shape) < 0.8)
    for parameter in neighbours.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return neighbours


@pytest.fixture
def smoother(backbone):
    return smoother_of(torch.randn(N, F, dtype=F64), torch.rand(N, F) < 0.7, backbone)


def question(members=M):
    kept = torch.rand(members, B, F) < 0.5
    kept[:, 0] = False
    return torch.randn(members, B, F, dtype=F64), kept


def ask(neighbours, backbone, x, kept, rows=None):
    return neighbours(x, kept, conditional(x, kept, backbone), backbone, rows, slice(None))


def weights_of(neighbours, x, kept, rows=None):
    return neighbours._weights(x, kept, rows, slice(None), neighbours.known.to(x.dtype)).detach()


@pytest.mark.parametrize("training", [False, True])
def test_weights_are_the_expected_gaussian_kernel(smoother, training):
    """Product over the kept cells of ``N(q; mean, bandwidth^2 + doubt * variance)``, normalised over who may vote."""
    x, kept = question()
    rows = torch.randint(2 * N, (M, B)) if training else None
    weights = weights_of(smoother, x, kept, rows)
    bank, variance, known = smoother.bank.numpy(), smoother.variance.numpy(), smoother.known.numpy()
    width = smoother.log_bandwidth.detach().exp().square().numpy()[:, 0]
    for m, h, b in np.ndindex(M, H, B):
        o = kept[m, b].numpy()
        v = (width[h] + HEADS[h][1] * variance)[:, o]
        kernel = np.prod(np.exp(-((x[m, b].numpy()[o] - bank[:, o]) ** 2) / (2 * v)) / np.sqrt(v), axis=1)
        kernel *= np.arange(N) != rows[m, b].item() if training else (known[m] & ~o).any(1)
        np.testing.assert_allclose(weights[m, h, b].numpy(), kernel / kernel.sum(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(M, H, B, dtype=F64))


def test_votes_are_averages_of_the_known_cells(smoother, backbone):
    """Held still (a slope of zero), and with a thousandth of the backbone's own answer."""
    x, kept = question()
    torch.nn.init.constant_(smoother.slope, -1e3)
    votes, given = ask(smoother, backbone, x, kept), conditional(x, kept, backbone)
    w = weights_of(smoother, x, kept).unsqueeze(-1) * smoother.known[:, None, None]  # (M, H, B, N, F)
    share, answer = w.sum(-2), given.mean.unsqueeze(1)
    mean = ((w * smoother.bank).sum(-2) + 1e-3 * answer) / (share + 1e-3)
    second = given.variance.unsqueeze(1) + answer**2
    square = ((w * smoother.bank**2).sum(-2) + 1e-3 * second) / (share + 1e-3)
    for ours, expected in zip(votes, (mean, square - mean**2, share), strict=True):
        torch.testing.assert_close(ours, expected)


def test_nobody_votes_on_itself(smoother, backbone):
    x, kept = question()
    rows = torch.zeros(M, B, dtype=torch.long)
    assert not weights_of(smoother, x, kept, rows)[..., 0].any()
    before = ask(smoother, backbone, x, kept, rows)
    smoother.bank[0] += 5
    torch.testing.assert_close(ask(smoother, backbone, x, kept, rows), before)
    # At prediction a row of the table is asked for the very cells that it does not know.
    weights = weights_of(smoother, smoother.bank[:B].expand(M, -1, -1), smoother.known[:, :B])
    assert not weights.diagonal(dim1=-2, dim2=-1).any()


def test_gates_choose_between_the_backbone_and_the_votes(smoother, backbone):
    x, kept = question()
    given, votes = conditional(x, kept, backbone), ask(smoother, backbone, x, kept)
    assert torch.equal(smoother.mix(given, votes, -1e3)[0], given.mean)
    one = torch.tensor([0.0, 1e3, 0.0, 0.0]).view(H, 1, 1)
    torch.testing.assert_close(smoother.mix(given, votes, one)[0], votes.mean[:, 1])


def test_what_nobody_knows_is_left_to_the_backbone(smoother, backbone):
    x, kept = question()
    kept[..., 0], smoother.known[..., 0] = False, False
    votes = ask(smoother, backbone, x, kept)
    assert not votes.share[..., 0].any()
    mean = conditional(x, kept, backbone).mean[:, None, :, 0]
    torch.testing.assert_close(votes.mean[..., 0], mean.expand(-1, H, -1))


def test_on_a_linear_table_the_vote_is_the_conditional_mean(backbone):
    """With a slope of one: whatever the kernel, it averages nothing but what is off the line."""
    x, kept = torch.randn(M, B, F, dtype=F64), torch.tensor([True, True, False, True, False])
    rows, off = torch.randn(2, N, F, dtype=F64)
    everything = torch.ones(N, F, dtype=torch.bool)
    backbone = Linear(*(p[:1].expand_as(p) for p in backbone))
    on_line = conditional(rows, kept.expand(N, F), Linear(*(p[0] for p in backbone))).mean
    smoother = smoother_of(torch.where(kept, rows, on_line + off), everything, backbone)
    smoother.known = everything.expand(M, N, F)
    torch.nn.init.constant_(smoother.slope, 1e3)
    kept = kept.expand(M, B, F)
    expected = conditional(x, kept, backbone).mean.unsqueeze(1) + weights_of(smoother, x, kept) @ off / 1.001
    torch.testing.assert_close(ask(smoother, backbone, x, kept).mean[..., [2, 4]], expected[..., [2, 4]])


def test_the_order_of_the_bank_does_not_matter(smoother, backbone):
    x, kept = question()
    before, order = ask(smoother, backbone, x, kept), torch.randperm(N)
    for name in ("bank", "variance", "numbers", "known"):
        setattr(smoother, name, getattr(smoother, name).index_select(int(name == "known"), order))
    torch.testing.assert_close(ask(smoother, backbone, x, kept), before)


@pytest.mark.parametrize("members", [1, M])
def test_a_shared_question_is_the_same_question_to_every_member(smoother, backbone, members):
    smoother.known = smoother.known[:members]
    x, kept = question(1)
    everyone = ask(smoother, backbone, x.expand(M, B, F), kept.expand(M, B, F))
    for ours, theirs in zip(ask(smoother, backbone, x, kept), everyone, strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_bank", [0, 1, N])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_nan_or_infinite(backbone, dtype, rate, n_bank, training):
    backbone = backbone.to(dtype)
    smoother = smoother_of(1e3 * torch.randn(n_bank, F, dtype=dtype), torch.rand(n_bank, F) < 0.5, backbone)
    x, kept = 1e3 * torch.randn(M, B, F, dtype=dtype), torch.rand(M, B, F) < rate
    votes = ask(smoother, backbone, x, kept, torch.zeros(M, B, dtype=torch.long) if training else None)
    results = *votes, *smoother.mix(conditional(x, kept, backbone), votes)
    assert all(tensor.isfinite().all() and tensor.dtype == dtype for tensor in results)
    sum(tensor.sum() for tensor in results).backward()
    learning = [p for name, p in smoother.named_parameters() if name != "log_error"]  # that is of the loss alone
    assert all(p.grad.isfinite().all() for p in learning)


def test_a_step_is_found():
    """``y = sign(x)``: a line leaves much of it, the neighbours know it."""
    x = 3.4 * torch.rand(300, 1, dtype=F64) - 1.7
    values, observed = torch.cat([x, torch.sign(x)], 1), torch.ones(300, 2, dtype=torch.bool)
    held_out = torch.zeros(1, 300, 2, dtype=torch.bool)
    held_out[0, ::5, 1] = True
    line = fit_linear(values, ~held_out[0], 1)
    miss = (conditional(values, ~held_out[0], line).mean - values)[held_out[0]]
    model = ConditionalVAE(ModelConfig(1, 1, 16, 1, 0.0, -3.5, n_bank=300), [CellSpec("gaussian")] * 2).double()
    model.start(Linear(*(p.unsqueeze(0) for p in line)), values, observed)
    check = Check(values, ~held_out, held_out, latent_noise(model, 2))
    plans = [Plan(250, 64, 0.1, check_every=100), Plan(0, 1, 1.0)]
    fit = fit_model(model, values, check.seen, check, plans, clock=Clock())
    assert fit.misses.square().sum() < 0.3 * miss.square().sum()
    assert [record["step"] for record in fit.history] == [0, 100, 200, 250]
    with torch.no_grad():
        torch.testing.assert_close(held_out_misses(model, check), fit.misses)
