"""The linear start: blind to what is held out, and folds that have not seen their own rows."""

from __future__ import annotations

import pytest
import torch
from toy import F64, factor_analysis, numeric_table, rows_of

from vaeimpute.gaussian.factor_analysis import conditional
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.tables.data import cell_specs
from vaeimpute.tables.defaults import MIN_ROWS
from vaeimpute.tables.linear_start import LinearStart
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae.masking import HeldOutCells

HELD_OUT = HeldOutCells(0.1, n_members=2, seed=0)


def start_of(table, held_out=HELD_OUT):
    specs, _ = cell_specs(table)
    likelihoods = ColumnLikelihoods(specs).double()
    return *LinearStart(table, specs, held_out, make_generator(0)).backbones(likelihoods, F64), likelihoods


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_what_a_held_out_cell_holds_has_no_influence_on_its_member():
    table = numeric_table(*rows_of(factor_analysis(4, 1), 150))
    held_out = HELD_OUT(torch.arange(150), 4)
    values = table.values.clone()
    values[held_out[1] & ~held_out[0] & table.observed] += 0.5
    specs, _ = cell_specs(table)
    starts = []
    for x in (table.values, values):
        start = LinearStart(table._replace(values=x), specs, HELD_OUT, make_generator(0))
        starts.append((start.rank, start.level, start.members))
    assert starts[0][:2] == starts[1][:2]  # what is chosen was the same, or there is nothing to compare
    assert_same(starts[0][2][1], starts[1][2][1])
    assert not torch.equal(starts[0][2][0].W, starts[1][2][0].W)


@pytest.mark.parametrize("n", [MIN_ROWS, 150])
def test_folds_part_the_rows_and_have_not_seen_their_own(n):
    table = numeric_table(*rows_of(factor_analysis(2, 1), n))
    _, folds, _ = start_of(table)
    assert sorted(torch.cat(folds.rows).tolist()) == list(range(n))
    own = folds.rows[0]
    values = table.values.clone()
    values[own] += 0.5 * table.observed[own]
    _, other, _ = start_of(table._replace(values=values))
    assert_same(folds.backbones[0], other.backbones[0])
    assert not torch.equal(folds.backbones[1].b, other.backbones[1].b)


def test_few_rows_have_no_folds():
    assert start_of(numeric_table(*rows_of(factor_analysis(4, 1), MIN_ROWS - 1)))[1] is None


def test_on_linear_rows_every_member_has_the_true_conditional_means():
    truth = factor_analysis()
    backbone, _, likelihoods = start_of(numeric_table(*rows_of(truth, 4000)))
    values, observed = rows_of(truth, 1000, seed=2)
    assert likelihoods.n_features == len(truth.b)
    exact = conditional(values, observed, truth).mean
    ours = conditional(*(part.expand(2, -1, -1) for part in (values, observed)), backbone).mean
    assert (ours - exact)[:, ~observed].square().mean().sqrt() < 0.05  # of a standard deviation
