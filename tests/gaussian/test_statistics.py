"""Sufficient statistics: they add up, one component is no mixture, and complete rows are a regression by hand."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from toy import factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, log_likelihood, posterior
from vaeimpute.gaussian.statistics import Statistics, e_step, m_step

F64 = torch.float64
MODEL = factor_analysis()


def known(n=200, missing=0.3, seed=1):
    """Rows of the model with zeros in their missing cells, and which are observed."""
    values, observed = rows_of(MODEL, n, missing, seed)
    return torch.where(observed, values, 0), observed


def statistics_of(values, observed, responsibility=None, model=MODEL):
    return e_step(values, observed, *posterior(values, observed, model), responsibility)


def assert_same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("sizes", [[100, 100], [1, 199], [50, 30, 20, 100]])
def test_statistics_of_batches_add_up(sizes):
    values, observed = known()
    batches = zip(values.split(sizes), observed.split(sizes), strict=True)
    together = reduce(Statistics.plus, (statistics_of(*batch) for batch in batches))
    assert_same(together, statistics_of(values, observed))
    assert together.n_rows.item() == 200
    torch.testing.assert_close(together.n_observed, observed.sum(0).double())


def test_order_of_rows_does_not_matter():
    values, observed = known()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert_same(statistics_of(values[order], observed[order]), statistics_of(values, observed))


def test_one_component_is_no_mixture():
    values, observed = known()
    plain, model = statistics_of(values, observed), FactorAnalysis(*(p.unsqueeze(0) for p in MODEL))
    of_mixture = statistics_of(values, observed, torch.ones(1, 200, dtype=F64), model)
    assert_same(of_mixture, [part.unsqueeze(0) for part in plain])
    floor, prior = torch.full((6,), 0.01, dtype=F64), torch.ones(3, dtype=F64)
    assert_same(
        m_step(of_mixture, model.psi, prior, floor), [p.unsqueeze(0) for p in m_step(plain, MODEL.psi, prior, floor)]
    )


def test_features_that_share_columns_need_one_mask_a_column():
    columns = torch.tensor([0, 1, 1, 2, 2, 2])
    values, observed = known()
    shared = observed[:, :3]
    values = torch.where(shared[:, columns], values, 0)
    m, chol = posterior(values, shared, MODEL, columns)
    one_mask_a_feature = statistics_of(values, shared[:, columns])
    assert_same(e_step(values, shared, m, chol, columns=columns), one_mask_a_feature)


def test_a_responsibility_is_a_share_of_a_row():
    values, observed = known()
    share = torch.rand(200, dtype=F64, generator=torch.Generator().manual_seed(0))
    shared = [statistics_of(values, observed, part) for part in (share, 1 - share)]
    assert_same(shared[0].plus(shared[1]), statistics_of(values, observed))
    twice = torch.arange(200) < 100
    counted = statistics_of(values, observed, 1 + twice.double())  # a row that counts twice is there twice
    doubled = torch.cat([values, values[twice]]), torch.cat([observed, observed[twice]])
    assert_same(counted, statistics_of(*doubled))


def test_statistics_of_complete_rows_are_moments_by_hand():
    values, observed = known(missing=0.0)
    m, chol = posterior(values, observed, MODEL)
    z1 = torch.cat([m, torch.ones(200, 1, dtype=F64)], 1)
    dispersion = torch.zeros(3, 3, dtype=F64)
    dispersion[:2, :2] = 200 * torch.cholesky_inverse(chol[0])  # the same for all rows
    got = e_step(values, observed, m, chol)
    torch.testing.assert_close(got.latent, z1.T @ z1 + dispersion)
    torch.testing.assert_close(got.design, got.latent.expand(6, -1, -1))
    torch.testing.assert_close(got.target, values.T @ z1)
    torch.testing.assert_close(got.square, values.square().sum(0))


def test_the_m_step_is_the_regression_by_hand_where_the_latent_is_known():
    """Least squares of each column on the latent, and the variance of its residuals."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(300, 2, dtype=F64, generator=g)
    values = z @ MODEL.W.T + 0.3 * torch.randn(300, 6, dtype=F64, generator=g) + 1
    observed = torch.rand(300, 6, generator=g) < 0.7
    certain = 1e9 * torch.eye(2, dtype=F64).expand(300, -1, -1)  # so precise is what is known of the latent
    statistics = e_step(torch.where(observed, values, 0), observed, z, certain)
    no_prior, no_floor = torch.zeros(3, dtype=F64), torch.zeros(6, dtype=F64)
    W, b, psi = m_step(statistics, MODEL.psi, no_prior, no_floor)
    for j, own in enumerate(observed.T):
        X = torch.cat([z[own], torch.ones(int(own.sum()), 1, dtype=F64)], 1)
        coef = torch.linalg.lstsq(X, values[own, j].unsqueeze(1)).solution.squeeze(1)
        torch.testing.assert_close(torch.cat([W[j], b[j : j + 1]]), coef)
        residual = (values[own, j] - X @ coef).square().sum() / (own.sum() + 1)  # with the pseudo-row
        torch.testing.assert_close(psi[j], residual)


def test_the_prior_pulls_to_zero_and_the_floor_up():
    statistics = statistics_of(*known())
    floor, none = torch.full((6,), 1e-3, dtype=F64), torch.zeros(3, dtype=F64)
    norms = [m_step(statistics, MODEL.psi, none + precision, floor)[0].norm() for precision in (0.0, 10.0, 1e9)]
    assert norms[0] > norms[1] > 10 * norms[2]
    high = torch.linspace(0.2, 3, 6, dtype=F64)
    assert (m_step(statistics, MODEL.psi, none, high)[2] >= high).all()


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.8])
def test_a_step_from_elsewhere_climbs_and_from_the_best_goes_nowhere(missing):
    """What defines EM. (Without prior and floor; with the pseudo-row, which holds the noise of the last step.)"""
    values, observed = known(500, missing)
    none = torch.zeros(3, dtype=F64)
    model = FactorAnalysis(MODEL.W.flip(0), MODEL.b + 0.5, 3 * MODEL.psi)
    previous = log_likelihood(values, observed, model).sum()
    for _ in range(40):
        statistics = statistics_of(values, observed, model=model)
        W, b, psi = m_step(statistics, model.psi, none, torch.zeros_like(model.psi))
        psi = psi * (statistics.n_observed + 1) / statistics.n_observed  # no pseudo-row
        model = FactorAnalysis(W, b, psi)
        climbed = log_likelihood(values, observed, model).sum()
        assert climbed > previous - 1e-8
        previous = climbed
    assert previous > log_likelihood(values, observed, MODEL).sum()  # the truth is not the best on its own rows
