"""Cells that hide themselves: simulated slopes are found, and rows are drawn given their masks by Bayes' rule."""

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional
from vaeimpute.gaussian.gibbs import draw_parameters
from vaeimpute.gaussian.self_masking import SelfMasking, draw_rows, draw_utilities

ALL = torch.arange(6)


def masked(values, slopes, offset=-0.7, seed=2):
    """What is observed where a probit of the cell hides it."""
    utility = offset + torch.as_tensor(slopes, dtype=F64) * values
    return utility + RandomTensors(seed).normal(*values.shape) < 0


def slopes_of(values, observed, columns=ALL, n_draws=60, seed=0):
    """Draws (K, J) of the slopes."""
    start = factor_analysis(values.shape[1], 2)
    floor = torch.full((values.shape[1],), 1e-2, dtype=F64)
    options = {"n_warm_up": 100, "n_between": 4, "self_masked": columns}
    generator = torch.Generator().manual_seed(seed)
    _, masking = draw_parameters(
        torch.where(observed, values, 0), observed, start, floor, n_draws, generator, **options
    )
    return masking.c


def test_utilities_are_positive_where_a_cell_is_hidden_and_have_the_truncated_normals_mean():
    draw = RandomTensors()
    hidden = draw.mask(20_000, 1, rate=0.5)
    u = draw_utilities(torch.full((20_000, 1), 0.4, dtype=F64), hidden, draw.uniform(20_000, 1))
    assert ((u > 0) == hidden).all()
    normal = torch.distributions.Normal(0.0, 1.0)
    density, above = normal.log_prob(torch.tensor(0.4)).exp(), normal.cdf(torch.tensor(0.4))
    assert u[hidden].mean().item() == pytest.approx((0.4 + density / above).item(), abs=0.02)
    assert u[~hidden].mean().item() == pytest.approx((0.4 - density / (1 - above)).item(), abs=0.03)


@pytest.mark.parametrize("slope", [0.6, -0.6])
def test_simulated_slopes_are_found_within_three_standard_errors(slope):
    values, _ = rows_of(factor_analysis(6, 2), 600, missing=0.0)
    draws = slopes_of(values, masked(values, slope))
    error = (draws.mean(0) - slope) / draws.std(0)
    assert error.abs().max() < 3
    assert (draws * slope > 0).all()


def test_slopes_of_masks_at_random_are_zero():
    held = []
    for seed in range(5):
        values, observed = rows_of(factor_analysis(6, 2), 300, missing=0.3, seed=seed)
        low, high = slopes_of(values, observed, n_draws=40, seed=seed).quantile(
            torch.tensor([0.025, 0.975], dtype=F64), 0
        )
        held.append((low < 0) & (high > 0))
    assert torch.stack(held).double().mean() >= 0.9


def test_masks_by_another_column_are_not_taken_for_their_own():
    values, _ = rows_of(factor_analysis(6, 2), 600, missing=0.0)
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[:, 3:] = -0.7 + values[:, [0, 1, 0]] + RandomTensors(3).normal(600, 3) < 0
    draws = slopes_of(values, observed, columns=torch.tensor([3, 4, 5]))
    low, high = draws.quantile(torch.tensor([0.005, 0.995], dtype=F64), 0)
    assert ((low < 0) & (high > 0)).all()


def test_one_seed_gives_one_chain():
    values, _ = rows_of(factor_analysis(6, 2), 80, missing=0.0)
    observed = masked(values, 0.6)
    torch.testing.assert_close(*(slopes_of(values, observed, n_draws=3) for _ in range(2)), rtol=0, atol=0)


def test_hidden_cells_have_the_moments_that_bayes_rule_gives_them():
    """Two columns, one of which hides itself: p(x_2 | x_1, hidden) by quadrature."""
    W, b = torch.tensor([[0.8], [0.9]], dtype=F64), torch.tensor([0.1, -0.2], dtype=F64)
    model = FactorAnalysis(W, b, torch.tensor([0.3, 0.4], dtype=F64))
    masking = SelfMasking(*(torch.tensor(part, dtype=F64) for part in ([-0.5], [1.2], [[0.0]])))
    n, draw = 4000, RandomTensors()
    values, observed = torch.tensor([[0.7, 0.0]], dtype=F64).expand(n, 2), torch.tensor([True, False]).expand(n, 2)
    sweeps = draw_rows(values, observed, model, masking, torch.tensor([1]), lambda sweep: draw.normal(n, 4))
    x = torch.stack([next(sweeps).x[:, 1] for _ in range(24)])[8:]
    mean, variance = (part[0, 1] for part in conditional(values[:1], observed[:1], model))
    grid = torch.linspace(-8, 8, 4001, dtype=F64)
    weight = torch.exp(-0.5 * (grid - mean) ** 2 / variance) * torch.special.ndtr(-0.5 + 1.2 * grid)
    expected = (weight * grid).sum() / weight.sum()
    spread = ((weight * (grid - expected) ** 2).sum() / weight.sum()).sqrt()
    assert x.mean().item() == pytest.approx(expected.item(), abs=0.02)
    assert x.std().item() == pytest.approx(spread.item(), abs=0.02)


def test_without_slopes_a_mask_tells_nothing():
    model = factor_analysis(6, 2)
    values, observed = rows_of(model, 300, missing=0.4)
    nothing = SelfMasking(torch.full((6,), -0.5, dtype=F64), torch.zeros(6, dtype=F64), torch.zeros(6, 2, dtype=F64))
    draw = RandomTensors()
    sweeps = draw_rows(torch.where(observed, values, 0), observed, model, nothing, ALL, lambda s: draw.normal(300, 14))
    x = torch.stack([next(sweeps).x for _ in range(200)])
    expected = conditional(values, observed, model)
    error = (x.mean(0) - expected.mean) / (expected.variance / 200).sqrt()
    assert error[~observed].abs().mean() < 1.0  # 0.8 of a standard normal
    torch.testing.assert_close(x[-1][observed], values[observed], rtol=0, atol=0)
