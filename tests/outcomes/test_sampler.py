"""The chain of an outcome: in exact linear-Gaussian models, conditional distributions in closed form."""

import numpy as np
import pytest

from vaeimpute.outcomes.families import FAMILIES
from vaeimpute.outcomes.sampler import OutcomeChain

SLOPE, SD, N = 1.5, 0.7, 6000


def chain_of(hide_x, hide_y, seed=0):
    """Rows ``y = slope x + e`` with standard normal x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=N)
    y = SLOPE * x + SD * rng.normal(size=N)
    rows = np.flatnonzero(rng.random(N) < hide_x)
    first = x.copy()
    first[rows] = rng.normal(size=len(rows))
    holed = np.where(rng.random(N) < hide_y, np.nan, y)
    terms = np.column_stack([np.ones(N), first])
    return OutcomeChain(FAMILIES["gaussian"], terms, rows, holed, rng), rng, holed


def propose(rng, n_proposals, n_rows):
    x = rng.normal(size=(n_proposals, n_rows))
    return np.stack([np.ones_like(x), x], -1)


def test_rows_follow_bayes_rule():
    chain, rng, y = chain_of(0.5, 0.2)
    for _ in range(8):
        proposed = np.concatenate([chain.terms[None, chain.rows], propose(rng, 30, len(chain.rows))])
        taken = chain.take(proposed, 3)
    np.testing.assert_array_equal(proposed[taken.proposal, np.arange(len(chain.rows))], chain.terms[chain.rows])
    x, known = chain.terms[chain.rows, 1], ~np.isnan(y[chain.rows])
    variance = 1 / (1 + SLOPE**2 / SD**2)
    residual = x[known] - variance * SLOPE / SD**2 * y[chain.rows][known]
    assert residual.mean() == pytest.approx(0, abs=0.06)
    assert residual.std() == pytest.approx(np.sqrt(variance), rel=0.06)
    assert x[~known].std() == pytest.approx(1, abs=0.1)  # nothing is known of them
    np.testing.assert_allclose(taken.effective[~known], len(proposed))
    assert (taken.effective[known] < len(proposed)).all()
    assert chain.parameters.coef[1] == pytest.approx(SLOPE, abs=0.06)


def test_hidden_outcomes_follow_the_regression():
    chain, rng, y = chain_of(0.0, 0.5)
    chain.take(propose(rng, 1, 0), 3)
    hidden = np.isnan(y)
    np.testing.assert_array_equal(chain.y[~hidden], y[~hidden])
    residual = chain.y[hidden] - SLOPE * chain.terms[hidden, 1]
    assert residual.mean() == pytest.approx(0, abs=0.06)
    assert residual.std() == pytest.approx(SD, rel=0.06)


def test_effective_number_falls_as_the_outcome_says_more():
    chain, rng, _ = chain_of(0.5, 0.0)
    proposed = propose(rng, 60, len(chain.rows))
    wide = chain.take(proposed, 1).effective
    chain.parameters = chain.parameters._replace(variance=1e-4)
    assert (chain.take(proposed, 1).effective < 3).mean() > 0.9
    assert (wide >= 1).all()
    assert (wide <= 60).all()
