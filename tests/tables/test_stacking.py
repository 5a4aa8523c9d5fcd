"""Stacking: weights where errors are known, and a factor that brings draws of a known dispersion to the truth."""

from __future__ import annotations

import math

import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.gaussian.factor_analysis import FactorAnalysis
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.tables.stacking import dispersion, stacking_weight

TWO = torch.arange(2)


@pytest.mark.parametrize(("n", "expected"), [(500, 256 / 257), (5000, 2 / 3)])
def test_weight_of_the_joint_model(n, expected):
    """Errors of s and -2 s: the least error is where they cancel, and few rows do not look for it."""
    residuals = torch.ones(2, 40_000, 2) * torch.tensor([1.0, 0.0])  # nothing of the second column was held out
    weight = stacking_weight(residuals, -2 * residuals, TWO, torch.tensor([80_000, 0]), n)
    torch.testing.assert_close(weight, torch.tensor([expected, 0.5]), rtol=2e-3, atol=0)


@pytest.mark.parametrize("n", [500, 5000])
def test_models_that_say_the_same_have_even_weights(n):
    residuals = RandomTensors().normal(2, 300, 2)
    weight = stacking_weight(residuals, residuals, TWO, torch.tensor([600, 600]), n)
    torch.testing.assert_close(weight, torch.full((2,), 0.5, dtype=F64))


@pytest.mark.parametrize("n", [500, 5000])
def test_weights_of_both_models_sum_to_one(n):
    one, other = RandomTensors().normal(2, 2, 300, 2)
    held_out = torch.tensor([600, 600])
    weight, rest = (stacking_weight(*pair, TWO, held_out, n) for pair in ((one, other), (other, one)))
    torch.testing.assert_close(weight + rest, torch.ones(2, dtype=F64), rtol=0, atol=1e-4)
    assert ((weight >= 0) & (weight <= 1)).all()


def test_many_rows_find_the_weight_with_the_least_error():
    """Independent errors of variance 1 and v: the best weight is ``v / (1 + v)``."""
    one, other = RandomTensors().normal(2, 1, 100_000, 1)
    for variance in (0.5, 1.0, 3.0):
        residuals = one, variance**0.5 * other
        weight = stacking_weight(*residuals, torch.zeros(1, dtype=torch.long), torch.tensor([100_000]), 100_000)
        assert weight.item() == pytest.approx(variance / (1 + variance), abs=0.01)


# ---- dispersion --------------------------------------------------------------------------------------------------


def teller_of(scale, n_columns):
    """A model that draws ``N(0, scale^2)`` whatever it is given."""
    model = JointVAE(Sizes(1, 1, 4, 1, 0.0, -9.0), [CellSpec("gaussian")] * n_columns).double()
    zero = torch.zeros(1, n_columns, 1, dtype=F64)
    noise = torch.full((1, n_columns), scale**2, dtype=F64)
    nothing = torch.zeros(1, n_columns, dtype=F64), torch.zeros(1, n_columns, dtype=torch.bool)
    random = RandomTensors()
    model.start(FactorAnalysis(zero, zero[..., 0], noise), *nothing, random.generator)
    return model.eval()


def factor_of(scale, values, held_out, is_continuous=None, n_draws=48, seed=1):
    n_columns = values.shape[1]
    is_continuous = torch.ones(n_columns, dtype=torch.bool) if is_continuous is None else is_continuous
    model, weight = teller_of(scale, n_columns), torch.full((n_columns,), 0.5, dtype=F64)
    given = model, model, weight, values, ~held_out, held_out, is_continuous, RandomTensors(seed).generator
    return dispersion(*given, n_draws=n_draws)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.6])
def test_draws_of_the_wrong_dispersion_are_brought_to_the_right_one(scale):
    """Cells are N(0, 1) and draws N(0, scale^2): the factor is 1 / scale."""
    values = RandomTensors().normal(4000, 2)
    held_out = torch.ones(1, 4000, 2, dtype=torch.bool)
    factor = factor_of(scale, values, held_out, n_draws=200)
    torch.testing.assert_close(factor, torch.full((2,), 1 / scale, dtype=F64), rtol=0.06, atol=0)


def test_few_draws_are_no_wider_than_many():
    """The interval is the order statistic that a further draw exceeds with the right probability."""
    values = RandomTensors().normal(4000, 1)
    held_out = torch.ones(1, 4000, 1, dtype=torch.bool)
    for n_draws in (24, 48, 96):
        assert factor_of(1.0, values, held_out, n_draws=n_draws).item() == pytest.approx(1.0, abs=0.06)


def test_a_column_without_held_out_cells_has_the_factor_of_the_others():
    values = RandomTensors().normal(4000, 3)
    held_out = torch.ones(1, 4000, 3, dtype=torch.bool)
    held_out[..., 1] = False
    factor = factor_of(0.5, values, held_out, n_draws=100)
    torch.testing.assert_close(factor, torch.full((3,), 2.0, dtype=F64), rtol=0.08, atol=0)


def test_few_cells_of_a_column_say_little_of_it():
    """Ten cells, all at ten times the scale, beside thousands that are as they should be."""
    values = RandomTensors().normal(4000, 2)
    held_out = torch.ones(1, 4000, 2, dtype=torch.bool)
    held_out[0, 10:, 1] = False
    values[:10, 1] = 10.0
    few = factor_of(1.0, values, held_out)[1].item()
    own = 10 / 1.645  # in half widths of 90% intervals
    assert 1.0 < few < 1.2 * math.exp(10 / 60 * math.log(own))


def test_what_is_no_number_on_a_line_keeps_its_draws():
    values = 5 * RandomTensors().normal(300, 2)
    held_out = torch.ones(1, 300, 2, dtype=torch.bool)
    factor = factor_of(1.0, values, held_out, torch.tensor([False, True]))
    assert factor[0] == 1
    assert factor[1] == 3  # as far as it goes
    assert (factor_of(1.0, values, ~held_out) == 1).all()
