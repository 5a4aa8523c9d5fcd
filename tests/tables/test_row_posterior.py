"""Rows drawn with drawn parameters: on linear-Gaussian rows they are as far from what is expected as rows are."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, posterior
from vaeimpute.tables.row_posterior import N_DRAWS, RowPosterior
from vaeimpute.vae.noise import row_keys

F = 5


def posterior_of(values, observed, start, seed=0):
    floor = torch.full((values.shape[1],), 1e-3, dtype=F64)
    return RowPosterior(torch.where(observed, values, 0), observed, start, floor, seed)


def silent(rows, x, visible):
    """Deviates (K, B, F), averaged over their noise: they differ by the parameters alone."""
    given, keys = rows.given(x, visible), row_keys(x, visible)
    one = torch.stack([rows.deviates(x, visible, given, k, keys, k) for k in range(N_DRAWS)])
    means = [conditional(x, visible, FactorAnalysis(*(p[k] for p in rows.draws))).mean for k in range(N_DRAWS)]
    assert one.shape == (N_DRAWS, *x.shape)
    assert one.isfinite().all()
    return (torch.stack(means) - given.mean) / given.variance.sqrt()


@pytest.fixture(scope="module")
def truth():
    return factor_analysis(F, 2)


@pytest.fixture(scope="module")
def fitted(truth):
    return posterior_of(*rows_of(truth, 1500), truth)


@pytest.fixture(scope="module")
def fresh(truth):
    values, observed = rows_of(truth, 60, missing=0.5, seed=2)
    observed[0], observed[1] = False, True
    return torch.where(observed, values, 0), observed


def test_it_is_as_wide_as_the_table(fitted):
    assert [tuple(part.shape) for part in fitted.draws] == [(N_DRAWS, F, F - 1), (N_DRAWS, F), (N_DRAWS, F)]


def test_what_is_given_are_the_moments_of_the_average_model(fitted, fresh, truth):
    given = fitted.given(*fresh)
    torch.testing.assert_close(tuple(given), tuple(conditional(*fresh, fitted.mean)))
    exact = conditional(*fresh, truth)
    hidden = ~fresh[1]
    assert (given.mean - exact.mean)[hidden].square().mean().sqrt() < 0.1
    assert (given.variance / exact.variance)[hidden].log().abs().mean() < 0.1


def test_drawn_rows_have_the_true_mean_and_covariance(fitted, fresh, truth):
    """Of cells hidden in the same row."""
    given, keys = fitted.given(*fresh), row_keys(*fresh)
    deviates = [fitted.deviates(*fresh, given, k, keys, repeat, k) for k in range(N_DRAWS) for repeat in range(6)]
    cells = given.mean + given.variance.sqrt() * torch.stack(deviates)  # (S, B, F)
    centred = cells - cells.mean(0)
    ours = torch.einsum("sbf,sbg->bfg", centred, centred) / len(cells)
    _, chol = posterior(*fresh, truth)
    exact = truth.W @ torch.cholesky_inverse(chol) @ truth.W.T + torch.diag(truth.psi)
    hidden = ~fresh[1]
    pair = (hidden.unsqueeze(2) & hidden.unsqueeze(1)).triu(1)
    assert ((ours - exact)[pair].square().mean()).sqrt() < 0.1
    slope = (ours[pair] * exact[pair]).sum() / exact[pair].square().sum()
    assert slope.item() == pytest.approx(1, abs=0.1)
    own = hidden.unsqueeze(2) & torch.eye(F, dtype=torch.bool)
    assert (ours[own] / exact[own]).mean().item() == pytest.approx(1, abs=0.05)
    assert (cells.mean(0) - conditional(*fresh, truth).mean)[hidden].square().mean().sqrt() < 0.1


def test_parameters_leave_open_what_least_squares_says():
    """Independent columns: a prediction from cells v has variance ``(1 + v'v) / n`` of the cell's own."""
    n, start = 400, FactorAnalysis(torch.zeros(F, 1, dtype=F64), torch.zeros(F, dtype=F64), torch.ones(F, dtype=F64))
    values = RandomTensors().normal(n, F)
    values = (values - values.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(values.T.cov())).T
    rows = posterior_of(values, torch.ones_like(values, dtype=torch.bool), start)
    visible = torch.arange(F) < torch.tensor([[0], [2], [4]])
    x = torch.where(visible, torch.tensor([[0.0], [1.0], [1.5]], dtype=F64), 0).double()
    between = silent(rows, x, visible).square().mean(0)[:, -1]
    expected = (1 + x.square().sum(1)) / n
    torch.testing.assert_close(between, expected, rtol=0.35, atol=0)  # fifty draws: sd .2


def test_few_rows_leave_more_open_than_many(truth):
    variances = [posterior_of(*rows_of(truth, n), truth).variance for n in (40, 2000)]
    assert all((variance >= 1).all() for variance in variances)
    assert variances[0].mean() > 1.04
    assert variances[1].mean() < 1.04


# ---- what a draw depends on --------------------------------------------------------------------------------------


def test_a_draw_has_the_same_parameters_for_all_rows(fitted, fresh):
    """Rows that are the same are the same, whichever stand beside them; draws differ."""
    x, visible = fresh
    together = silent(fitted, torch.cat([x, x]), torch.cat([visible, visible]))
    torch.testing.assert_close(together[:, :60], together[:, 60:])
    torch.testing.assert_close(silent(fitted, x[:3], visible[:3]), together[:, :3])
    assert (together[0] - together[1])[:60][~visible].abs().min() > 1e-6


def test_rows_in_slices_are_the_same_rows(fitted, fresh, monkeypatch):
    whole = fitted.given(*fresh), silent(fitted, *fresh)
    monkeypatch.setattr("vaeimpute.batching.BUDGET", 700)
    assert len(list(fitted._slices(60))) > 3
    torch.testing.assert_close(tuple(fitted.given(*fresh)), tuple(whole[0]))
    torch.testing.assert_close(silent(fitted, *fresh), whole[1])


def test_the_same_seed_gives_the_same_chain(truth):
    values, observed = rows_of(truth, 50)
    state = torch.get_rng_state()
    one, same, other = (posterior_of(values, observed, truth, seed) for seed in (0, 0, 1))
    assert torch.equal(one.draws.W, same.draws.W)
    assert torch.equal(one.variance, same.variance)
    assert not torch.equal(one.draws.W, other.draws.W)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 3), (5, 8)], ids=str)
@pytest.mark.parametrize("spoil", ["nothing", "constant", "no cells", "an empty column"])
def test_odd_tables_have_finite_draws(shape, spoil):
    random = RandomTensors()
    values, observed = random.normal(*shape), ~random.mask(*shape, rate=0.3)
    if spoil == "constant":
        values[:] = 1
    if spoil in ("no cells", "an empty column"):
        observed[:, : shape[1] if spoil == "no cells" else 1] = False
    start = FactorAnalysis(
        torch.zeros(shape[1], 1, dtype=F64), torch.zeros(shape[1], dtype=F64), torch.ones(shape[1], dtype=F64)
    )
    rows = posterior_of(values, observed, start)
    assert all(part.isfinite().all() for part in (*rows.draws, rows.variance, *rows.mean))
    assert silent(rows, torch.where(observed, values, 0), observed).isfinite().all()
