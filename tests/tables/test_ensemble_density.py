"""An imputer's density: what its rows and cells score, as the exact likelihoods of its linear VAE say."""

from __future__ import annotations

import json

import pytest
import torch
from toy import F64, factor_analysis, numeric_table, rows_of

from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration
from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional
from vaeimpute.gaussian.factor_analysis import log_likelihood as exact_log_likelihood
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.closed_form import ClosedFormVAE
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.tables.ensemble_density import EnsembleDensity, fit_ensemble_density
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE
from vaeimpute.training.schedule import TimeBudget

TRUTH = factor_analysis(4, 1)
PARTS = (
    EnsembleDensity,
    TableEnsemble,
    JointVAE,
    ClosedFormVAE,
    Margins,
    IntervalCalibration,
    Lattice,
    RowCalibration,
    CellCalibration,
)


@pytest.fixture(scope="module")
def table():
    return numeric_table(*rows_of(TRUTH, 400))


@pytest.fixture(scope="module")
def density(table):
    ensemble, _ = fit_ensemble(table, seed=0, dtype=F64, budget=TimeBudget(), max_iter=5)
    return fit_ensemble_density(ensemble, table, seed=0)


def backbone_of(density):
    return FactorAnalysis(*(part[0] for part in density.ensemble.joint.backbone))


def test_without_networks_the_likelihood_is_exact(density, table):
    expected = exact_log_likelihood(*table[:2], backbone_of(density))
    torch.testing.assert_close(density.log_likelihood(*table[:2]), expected, rtol=0, atol=1e-9)
    assert torch.equal(density.row_scores(*table[:2])[0, 0], -density.log_likelihood(*table[:2]))


def test_cells_score_their_surprise_given_the_rest_less_the_columns_own(density, table):
    values, observed = table[:2]
    model = backbone_of(density)
    ours = density.cell_scores(values, observed)
    for column in range(4):
        rest = observed.clone()
        rest[:, column] = False
        mean, variance = (part[:, column] for part in conditional(values, rest, model))
        expected = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(values[:, column])
        own = observed[:, column]
        error = ((ours + density.baseline)[:, column] - expected)[own].abs()
        assert error.mean() < 0.05  # sixteen draws: Monte Carlo noise, most of it far out
        assert (error < 0.1 + 0.25 * expected[own].clamp(min=0)).all()


def test_the_rows_it_was_fitted_to_are_as_surprising_as_rows_are(density):
    """Fresh rows of the same truth: a tenth of them is among the tenth that surprises most."""
    values, observed = rows_of(TRUTH, 4000, seed=5)
    score = density.anomaly_score(torch.where(observed, values, 0), observed)
    for share in (0.1, 0.02):
        level = -torch.log(torch.tensor(share)).item()
        assert (torch.as_tensor(score) > level).double().mean().item() == pytest.approx(share, rel=0.5)


def test_outliers_surprise_more(density, table):
    values, observed = table.values[:50], torch.ones(50, 4, dtype=torch.bool)
    far = values.clone()
    far[:, 1] += 6
    usual, unusual = (torch.as_tensor(density.anomaly_score(x, observed)) for x in (values, far))
    assert unusual.mean() > usual.mean() + 3


def test_in_a_hurry_fewer_rows_are_scored(density, table):
    """With the same models; what it learns is close to what it learns at leisure."""
    hurried = fit_ensemble_density(density.ensemble, table, seed=0, hurry=True)
    torch.testing.assert_close(hurried.baseline, density.baseline, rtol=0, atol=0.3)
    assert torch.equal(hurried.log_likelihood(*table[:2]), density.log_likelihood(*table[:2]))


def test_the_same_seed_gives_the_same_density(density, table):
    state = torch.get_rng_state()
    same, other = (to_state({"d": fit_ensemble_density(density.ensemble, table, seed=seed)})[0] for seed in (0, 1))
    ours = to_state({"d": density})[0]
    assert all(torch.equal(ours[key], same[key]) for key in ours)
    assert not all(ours[key].shape == other[key].shape and torch.equal(ours[key], other[key]) for key in ours)
    assert torch.equal(state, torch.get_rng_state())


def test_state_round_trip(density, table):
    tensors, description = to_state({"d": density})
    classes = {part.__name__: part for part in PARTS}
    again = from_state(tensors, json.loads(json.dumps(description)), classes, torch.device("cpu"))["d"]
    for name in ("log_likelihood", "cell_scores", "anomaly_score"):
        one, other = (torch.as_tensor(getattr(d, name)(*table[:2])) for d in (density, again))
        assert torch.equal(one, other)
