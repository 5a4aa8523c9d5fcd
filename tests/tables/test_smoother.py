"""The smoother: kernel and estimates against NumPy by hand, limits, invariances, and a step that it must find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, fit_factor_analysis
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables.models import ConditionalVAE, Sizes
from vaeimpute.tables.smoother import HEADS, KernelSmoother
from vaeimpute.training.loop import Validation, fit_model, held_out_residuals
from vaeimpute.training.schedule import Schedule, TimeBudget
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import latent_noise

M, H, B, N, F = 3, len(HEADS), 7, 30, 5


@pytest.fixture
def random():
    return RandomTensors()


@pytest.fixture
def backbone(random):
    return FactorAnalysis(random.normal(M, F, 2), random.normal(M, F), 0.1 + random.uniform(M, F))


def smoother_of(random, rows, observed, backbone):
    """Reference rows of which each member may use other cells, and parameters of all sizes."""
    smoother = KernelSmoother(*rows.shape).to(rows.dtype)
    first = FactorAnalysis(*(p[0] for p in backbone))
    smoother.set_reference(rows, observed, conditional(rows, observed, first), torch.arange(len(rows)))
    smoother.visible = observed & random.mask(M, *rows.shape, rate=0.8)
    with torch.no_grad():
        for parameter in smoother.parameters():
            parameter.normal_(parameter.mean().item(), 0.3, generator=random.generator)
    return smoother


@pytest.fixture
def smoother(random, backbone):
    return smoother_of(random, random.normal(N, F), random.mask(N, F, rate=0.7), backbone)


def some_rows(random, members=M):
    visible = random.mask(members, B, F, rate=0.5)
    visible[:, 0] = False
    return random.normal(members, B, F), visible


def estimate(smoother, backbone, x, visible, rows=None):
    return smoother(x, visible, conditional(x, visible, backbone), backbone, rows, slice(None))


def weights_of(smoother, x, visible, rows=None):
    return smoother._weights(x, visible, rows, slice(None), smoother.visible.to(x.dtype)).detach()


@pytest.mark.parametrize("training", [False, True])
def test_weights_are_the_expected_gaussian_kernel(random, smoother, training):
    """Product over the visible cells of ``N(q; mean, bandwidth^2 + variance)``, normalised over the rows that count."""
    x, visible = some_rows(random)
    rows = random.integers(2 * N, M, B) if training else None
    weights = weights_of(smoother, x, visible, rows)
    reference, variance, known = smoother.reference.numpy(), smoother.variance.numpy(), smoother.visible.numpy()
    width = smoother.log_bandwidth.detach().exp().square().numpy()[:, 0]
    for m, h, b in np.ndindex(M, H, B):
        o = visible[m, b].numpy()
        v = (width[h] + HEADS[h][1] * variance)[:, o]
        kernel = np.prod(np.exp(-((x[m, b].numpy()[o] - reference[:, o]) ** 2) / (2 * v)) / np.sqrt(v), axis=1)
        kernel *= np.arange(N) != rows[m, b].item() if training else (known[m] & ~o).any(1)
        np.testing.assert_allclose(weights[m, h, b].numpy(), kernel / kernel.sum(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(M, H, B, dtype=F64))


def test_estimates_are_averages_of_the_visible_cells(random, smoother, backbone):
    """Held still (a slope of zero), and with a thousandth of the backbone's own mean."""
    x, visible = some_rows(random)
    torch.nn.init.constant_(smoother.slope, -1e3)
    estimates, given = estimate(smoother, backbone, x, visible), conditional(x, visible, backbone)
    w = weights_of(smoother, x, visible).unsqueeze(-1) * smoother.visible[:, None, None]  # (M, H, B, N, F)
    share, of_backbone = w.sum(-2), given.mean.unsqueeze(1)
    mean = ((w * smoother.reference).sum(-2) + 1e-3 * of_backbone) / (share + 1e-3)
    second = given.variance.unsqueeze(1) + of_backbone**2
    square = ((w * smoother.reference**2).sum(-2) + 1e-3 * second) / (share + 1e-3)
    for ours, expected in zip(estimates, (mean, square - mean**2, share), strict=True):
        torch.testing.assert_close(ours, expected)


def test_no_row_is_evidence_of_itself(random, smoother, backbone):
    x, visible = some_rows(random)
    rows = torch.zeros(M, B, dtype=torch.long)
    assert not weights_of(smoother, x, visible, rows)[..., 0].any()
    before = estimate(smoother, backbone, x, visible, rows)
    smoother.reference[0] += 5
    torch.testing.assert_close(estimate(smoother, backbone, x, visible, rows), before)
    # At prediction the cells of a row of the table are wanted that it does not have itself.
    weights = weights_of(smoother, smoother.reference[:B].expand(M, -1, -1), smoother.visible[:, :B])
    assert not weights.diagonal(dim1=-2, dim2=-1).any()


def test_gates_choose_between_the_backbone_and_the_estimates(random, smoother, backbone):
    x, visible = some_rows(random)
    given, estimates = conditional(x, visible, backbone), estimate(smoother, backbone, x, visible)
    assert torch.equal(smoother.mix(given, estimates, -1e3)[0], given.mean)
    one = torch.tensor([0.0, 1e3, 0.0, 0.0]).view(H, 1, 1)
    torch.testing.assert_close(smoother.mix(given, estimates, one)[0], estimates.mean[:, 1])


def test_what_no_reference_row_has_is_left_to_the_backbone(random, smoother, backbone):
    x, visible = some_rows(random)
    visible[..., 0], smoother.visible[..., 0] = False, False
    estimates = estimate(smoother, backbone, x, visible)
    assert not estimates.share[..., 0].any()
    mean = conditional(x, visible, backbone).mean[:, None, :, 0]
    torch.testing.assert_close(estimates.mean[..., 0], mean.expand(-1, H, -1))


def test_on_a_linear_table_the_estimate_is_the_conditional_mean(random, backbone):
    """With a slope of one: whatever the kernel, it averages nothing but what is off the line."""
    x, visible = random.normal(M, B, F), torch.tensor([True, True, False, True, False])
    rows, off = random.normal(2, N, F)
    everything = torch.ones(N, F, dtype=torch.bool)
    backbone = FactorAnalysis(*(p[:1].expand_as(p) for p in backbone))
    on_line = conditional(rows, visible.expand(N, F), FactorAnalysis(*(p[0] for p in backbone))).mean
    smoother = smoother_of(random, torch.where(visible, rows, on_line + off), everything, backbone)
    smoother.visible = everything.expand(M, N, F)
    torch.nn.init.constant_(smoother.slope, 1e3)
    visible = visible.expand(M, B, F)
    expected = conditional(x, visible, backbone).mean.unsqueeze(1) + weights_of(smoother, x, visible) @ off / 1.001
    torch.testing.assert_close(estimate(smoother, backbone, x, visible).mean[..., [2, 4]], expected[..., [2, 4]])


def test_the_order_of_the_reference_rows_does_not_matter(random, smoother, backbone):
    x, visible = some_rows(random)
    before, order = estimate(smoother, backbone, x, visible), random.order(N)
    for name in ("reference", "variance", "row_numbers", "visible"):
        setattr(smoother, name, getattr(smoother, name).index_select(int(name == "visible"), order))
    torch.testing.assert_close(estimate(smoother, backbone, x, visible), before)


@pytest.mark.parametrize("members", [1, M])
def test_a_shared_row_is_the_same_row_to_every_member(random, smoother, backbone, members):
    smoother.visible = smoother.visible[:members]
    x, visible = some_rows(random, 1)
    everyone = estimate(smoother, backbone, x.expand(M, B, F), visible.expand(M, B, F))
    for ours, theirs in zip(estimate(smoother, backbone, x, visible), everyone, strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_reference", [0, 1, N])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_nan_or_infinite(random, backbone, dtype, rate, n_reference, training):
    backbone = backbone.to(dtype)
    smoother = smoother_of(
        random, 1e3 * random.normal(n_reference, F, dtype=dtype), random.mask(n_reference, F, rate=0.5), backbone
    )
    x, visible = 1e3 * random.normal(M, B, F, dtype=dtype), random.mask(M, B, F, rate=rate)
    estimates = estimate(smoother, backbone, x, visible, torch.zeros(M, B, dtype=torch.long) if training else None)
    results = *estimates, *smoother.mix(conditional(x, visible, backbone), estimates)
    assert all(tensor.isfinite().all() and tensor.dtype == dtype for tensor in results)
    sum(tensor.sum() for tensor in results).backward()
    learning = [p for name, p in smoother.named_parameters() if name != "log_error"]  # that is of the loss alone
    assert all(p.grad.isfinite().all() for p in learning)


def test_a_step_is_found():
    """``y = sign(x)``: a line leaves much of it, the reference rows know it."""
    random, n = RandomTensors(), 300
    x = 3.4 * random.uniform(n, 1) - 1.7
    values, observed = torch.cat([x, torch.sign(x)], 1), torch.ones(n, 2, dtype=torch.bool)
    held_out = torch.zeros(1, n, 2, dtype=torch.bool)
    held_out[0, ::5, 1] = True
    visible = ~held_out
    line = fit_factor_analysis(values, visible[0], 1)
    left_by_the_line = (conditional(values, visible[0], line).mean - values)[held_out[0]]
    model = ConditionalVAE(Sizes(1, 1, 16, 1, 0.0, -3.5, n_reference=n), [CellSpec("gaussian")] * 2).double()
    model.start(FactorAnalysis(*(p.unsqueeze(0) for p in line)), values, observed, random.generator)
    model.remember(lambda rows: visible[:, rows])

    def get_batch(size, generator):
        rows = torch.randint(n, (1, size), generator=generator)
        return Batch(values[rows], visible[0][rows], rows)

    validation = Validation(values, visible, held_out, latent_noise(model, 2))
    schedules = [Schedule(250, 64, 0.1, evaluate_every=100), Schedule(0, 1, 1.0)]
    result = fit_model(model, get_batch, validation, schedules, generator=random.generator, budget=TimeBudget())
    assert result.residuals.square().sum() < 0.3 * left_by_the_line.square().sum()
    assert [record["step"] for record in result.history] == [0, 100, 200, 250]
    with torch.no_grad():
        torch.testing.assert_close(held_out_residuals(model, validation), result.residuals)
