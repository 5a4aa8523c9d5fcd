"""The model of covariates: it proposes what a linear VAE expects without the column left out, and follows the table."""

import pytest
import torch
from toy import F64, factor_analysis, numeric_table, rows_of

from vaeimpute.gaussian.factor_analysis import conditional
from vaeimpute.tables.covariates import CovariateModel
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.training.schedule import TimeBudget

TRUTH, LEFT_OUT = factor_analysis(4, 1), 2


@pytest.fixture(scope="module")
def table():
    return numeric_table(*rows_of(TRUTH, 300))


@pytest.fixture(scope="module")
def ensemble(table):
    return fit_ensemble(table, seed=0, dtype=F64, budget=TimeBudget(), max_iter=5)[0]


def model_of(ensemble, table, number=0, values=None):
    return CovariateModel(
        ensemble, table.values if values is None else values, table.observed, LEFT_OUT, number, seed=0
    )


def test_proposals_have_the_moments_of_the_linear_model(ensemble, table):
    covariates = model_of(ensemble, table)
    proposed = covariates.propose(400)
    observed = table.observed.clone()
    observed[:, LEFT_OUT] = False
    kept = torch.arange(4) != LEFT_OUT
    expected = conditional(table.values[:, kept], observed[:, kept], covariates.model)
    hidden = ~observed[:, kept]
    error = (proposed.mean(0)[:, kept] - expected.mean)[hidden] / expected.variance[hidden].sqrt()
    spread = proposed.var(0)[:, kept][hidden] / expected.variance[hidden]
    assert error.mean().abs() < 0.02
    assert error.std() < 2 / 400**0.5
    assert spread.mean() == pytest.approx(1, abs=0.03)
    assert (proposed[:, observed] == table.values[observed]).all()


def test_the_column_left_out_is_not_looked_at(ensemble, table):
    others = torch.arange(4) != LEFT_OUT
    changed = table.values.clone()
    changed[:, LEFT_OUT] += 5
    first, second = (model_of(ensemble, table, values=values).propose(3) for values in (table.values, changed))
    torch.testing.assert_close(first[..., others], second[..., others], rtol=0, atol=0)


def test_numbers_of_draws_have_their_own_parameters_and_seeds_reproduce_them(ensemble, table):
    first, second = model_of(ensemble, table), model_of(ensemble, table, 1)
    assert (first.model.W != second.model.W).any()
    assert (first.propose(1) == model_of(ensemble, table).propose(1)).all()


def test_parameters_follow_the_completed_table(ensemble, table):
    """Of rows that have moved, offsets move with them, and differ by what so many rows leave open."""
    complete, _ = rows_of(TRUTH, 300, seed=2)
    offsets = []
    covariates = model_of(ensemble, table)
    for _ in range(40):
        covariates.update(complete + 3)
        offsets.append(covariates.model.b)
    offsets = torch.stack(offsets)[10:]
    kept = torch.arange(4) != LEFT_OUT
    torch.testing.assert_close(offsets.mean(0), complete[:, kept].mean(0) + 3, atol=0.05, rtol=0)
    torch.testing.assert_close(offsets.std(0), complete[:, kept].std(0) / 300**0.5, rtol=0.5, atol=0)
    W, _, psi = covariates.model
    torch.testing.assert_close(W @ W.T + psi.diag(), complete[:, kept].T.cov(), atol=0.25, rtol=0)
