"""Stacking: the weights of two models whose errors are known."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.tables.stacking import stacking_weight

TWO = torch.arange(2)


def test_weight_of_the_joint_model():
    """Errors of s and -2 s: the least error is where they cancel."""
    residuals = torch.ones(2, 40_000, 2) * torch.tensor([1.0, 0.0])
    weight = stacking_weight(residuals, -2 * residuals, TWO, torch.tensor([80_000, 0]))
    torch.testing.assert_close(weight[0], torch.tensor(2 / 3), rtol=2e-3, atol=0)


def test_few_cells_go_by_the_errors_alone():
    """Hardly a cell: the inverse eighth power of the squared errors, 1.2^8 to 1."""
    residuals = torch.ones(1, 1, 2, dtype=F64) * torch.tensor([1.0, 0.0])
    weight = stacking_weight(residuals, 1.2**0.5 * residuals, TWO, torch.tensor([1, 0]))
    torch.testing.assert_close(weight[0], torch.tensor(1.2**8 / (1 + 1.2**8), dtype=F64), rtol=0, atol=0.02)


def test_where_few_cells_tell_the_other_columns_do():
    residuals = torch.ones(1, 1000, 2, dtype=F64) * torch.tensor([1.0, 0.0])  # nothing of the second was held out
    joint_is_better, worse = (
        stacking_weight(*(f * residuals for f in pair), TWO, torch.tensor([1000, 0])) for pair in ((1, 1.5), (1.5, 1))
    )
    assert joint_is_better[1] > 0.95
    assert worse[1] < 0.05
    nothing = stacking_weight(0 * residuals, 0 * residuals, TWO, torch.tensor([0, 0]))
    torch.testing.assert_close(nothing, torch.full((2,), 0.5, dtype=F64))


def test_models_that_say_the_same_have_even_weights():
    residuals = RandomTensors().normal(2, 300, 2)
    weight = stacking_weight(residuals, residuals, TWO, torch.tensor([600, 600]))
    torch.testing.assert_close(weight, torch.full((2,), 0.5, dtype=F64))


def test_weights_of_both_models_sum_to_one():
    one, other = RandomTensors().normal(2, 2, 300, 2)
    held_out = torch.tensor([600, 600])
    weight, rest = (stacking_weight(*pair, TWO, held_out) for pair in ((one, other), (other, one)))
    torch.testing.assert_close(weight + rest, torch.ones(2, dtype=F64), rtol=0, atol=1e-2)
    assert ((weight >= 0) & (weight <= 1)).all()


def test_many_cells_find_the_weight_with_the_least_error():
    """Independent errors of variance 1 and v: the best weight is ``v / (1 + v)``."""
    one, other = RandomTensors().normal(2, 1, 100_000, 1)
    for variance in (0.5, 1.0, 3.0):
        residuals = one, variance**0.5 * other
        weight = stacking_weight(*residuals, torch.zeros(1, dtype=torch.long), torch.tensor([100_000]))
        assert weight.item() == pytest.approx(variance / (1 + variance), abs=0.01)
