"""Columns together: groups change nothing, and every number of the decoder's output belongs to one column."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import training_cells

from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.families import LIKELIHOODS
from vaeimpute.training.runtime import make_generator

F64 = torch.float64
FLOOR = -3.5


@pytest.fixture
def g():
    return make_generator(0)


def zoo():
    """All columns of all families, and rows of their training cells."""
    specs, cells = [], []
    for family in LIKELIHOODS:
        own_cells, own_specs = training_cells(family)
        specs += own_specs
        cells += [x[:40] for x in own_cells]
    return specs, torch.stack(cells, -1)


SPECS, VALUES = zoo()


@given(st.permutations(range(len(SPECS))), st.integers(1, len(SPECS)))
@settings(max_examples=15, deadline=None)
def test_columns_do_not_depend_on_their_company(order, size):
    columns = order[:size]
    together = ColumnLikelihoods([SPECS[c] for c in columns], FLOOR).double()
    values = VALUES[:, columns]
    features = together.features(values)
    mean = 0.8 * features
    log_scale = torch.full((together.n_features,), -0.7, dtype=F64)
    params = together.from_gaussian(mean, log_scale)
    log_prob, expected, targets = (
        together.log_prob(params, values),
        together.expectations(params),
        together.targets(values),
    )
    of_gaussian = together.gaussian_expectations(mean, log_scale)
    assert params.shape == (40, together.n_params)
    torch.testing.assert_close(together.point_estimates(targets), values)
    filled = together.point_estimates(expected)
    for place, column in enumerate(columns):
        alone = ColumnLikelihoods([SPECS[column]], FLOOR).double()
        value = VALUES[:, [column]]
        own = together.feature_columns == place
        torch.testing.assert_close(features[:, own], alone.features(value))
        torch.testing.assert_close(together.noise_floor()[own], alone.noise_floor())
        by_itself = alone.from_gaussian(mean[:, own], log_scale[own])
        torch.testing.assert_close(log_prob[:, [place]], alone.log_prob(by_itself, value))
        torch.testing.assert_close(expected[:, together.expectation_columns == place], alone.expectations(by_itself))
        torch.testing.assert_close(
            of_gaussian[:, together.expectation_columns == place],
            alone.gaussian_expectations(mean[:, own], log_scale[own]),
        )
        torch.testing.assert_close(targets[:, together.expectation_columns == place], alone.targets(value))
        torch.testing.assert_close(filled[:, [place]], alone.point_estimates(alone.expectations(by_itself)))


def test_every_parameter_belongs_to_one_column(g):
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    params = (0.3 * torch.randn(40, together.n_params, dtype=F64, generator=g)).requires_grad_()
    log_prob = together.log_prob(params, VALUES)
    owners = torch.zeros(together.n_params)
    for column in range(len(SPECS)):
        (grad,) = torch.autograd.grad(log_prob[:, column].sum(), params, retain_graph=True)
        assert grad.isfinite().all()
        owners += grad.abs().amax(0) > 0
    assert (owners <= 1).all()


@pytest.mark.parametrize("lead", [(), (40,), (2, 3, 40)])
def test_leading_dimensions_are_free(lead, g):
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    values = VALUES.expand(*lead, -1) if len(lead) > 1 else VALUES[0].expand(*lead, -1)
    params = torch.zeros(*lead, together.n_params, dtype=F64)
    assert together.log_prob(params, values).shape == values.shape
    assert together.sample(params, g).shape == values.shape
    assert together.features(values).shape == (*lead, together.n_features)
    assert together.expectations(params).shape == (*lead, together.n_expectations)
    assert together.point_estimates(together.expectations(params)).shape == values.shape


def test_samples_of_some_draws(g):
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    params = torch.randn(2, 3, 5, together.n_params, dtype=F64, generator=g)  # (M, K, B, P)
    draws = torch.randint(3, (2, 8, 5), generator=g)
    picked = params.take_along_dim(draws.unsqueeze(-1), 1)
    expected = together.sample(picked, make_generator(1))
    assert torch.equal(together.sample(params, make_generator(1), draws), expected)


def test_the_cdf_is_that_of_each_column(g):
    """And zero where there is no order on a line."""
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    start = together.from_gaussian(*torch.zeros(2, together.n_features, dtype=F64))  # which keeps padding out
    params = start + 0.5 * torch.randn(together.n_params, dtype=F64, generator=g)
    below = together.cdf(params, VALUES)
    assert below.shape == VALUES.shape
    drawn = together.sample(params.expand(10_000, -1), g)
    for column, spec in enumerate(SPECS):
        if not LIKELIHOODS[spec.family].is_numeric:
            assert (below[:, column] == 0).all()
            continue
        value = VALUES[:, column]
        share = (drawn[:, column] <= value.unsqueeze(1) + 1e-9).double().mean(1)
        torch.testing.assert_close(below[:, column], share, atol=5 * 0.5 / 10_000**0.5, rtol=0)


def test_only_a_gaussian_has_a_density():
    is_continuous = ColumnLikelihoods(SPECS, FLOOR).is_continuous
    assert is_continuous.tolist() == [spec.family == "gaussian" for spec in SPECS]
