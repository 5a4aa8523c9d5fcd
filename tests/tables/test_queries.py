"""Queries: every observed cell is held out once, nothing missing ever is, and what is held out is not shown."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.tables.queries import N_FOLDS, Queries, hide_each_cell_once
from vaeimpute.training.runtime import make_generator

COLUMNS = torch.tensor([0, 0, 2, 1, 1, 1, 3, 4, 5])  # of each feature, not in order
D, F = 6, len(COLUMNS)
MANY = 10**6


class Case:
    """Rows of features, some missing, and the queries about them."""

    def __init__(self, n, missing=0.3, most=MANY, seed=0):
        random = RandomTensors(seed)
        self.observed = ~random.mask(n, D, rate=missing)
        self.known = self.observed[:, COLUMNS]
        self.features = torch.where(self.known, random.normal(n, F), 0)
        self.queries, self.fold = hide_each_cell_once(
            self.features, self.observed, COLUMNS, most, make_generator(seed + 1)
        )


@pytest.fixture(params=[1, 2, 3, 5, 60, 400, 3000])
def case(request):
    return Case(request.param)


def test_every_observed_cell_is_asked_for_once_per_copy(case):
    q, n = case.queries, len(case.features)
    times = torch.zeros(n, F, dtype=F64).index_add_(0, q.row, q.held_out)
    copies = len(q.row) // (4 * n)
    assert copies >= 1
    assert torch.equal(times, copies * case.known.double())
    assert q.copies == copies


def test_what_is_visible_and_what_is_asked_for_make_up_what_is_observed(case):
    q = case.queries
    assert torch.equal(q.visible + q.held_out, case.known[q.row].double())
    assert torch.equal(q.visible * q.held_out, torch.zeros_like(q.held_out))
    assert torch.equal(q.truth, case.features[q.row])
    assert torch.equal(q.x, q.visible * q.truth)


def test_features_of_a_column_are_hidden_together(case):
    for column in COLUMNS.unique():
        own = case.queries.held_out[:, column == COLUMNS]
        assert torch.equal(own, own[:, :1].expand_as(own))


def test_cells_of_a_row_are_dealt_evenly(case):
    """Of m observed cells a quarter is hidden, up to the one that cannot be parted."""
    q = case.queries
    first = [COLUMNS.tolist().index(column) for column in range(D)]
    hidden, n_observed = q.held_out[:, first].sum(1), case.observed[q.row].sum(1)
    assert (hidden >= n_observed // 4).all()
    assert (hidden <= (n_observed + 3) // 4).all()


def test_queries_are_sorted_by_fold_and_folds_are_even(case):
    q, n = case.queries, len(case.features)
    assert torch.equal(q.fold, q.fold.sort().values)
    assert torch.equal(q.fold, case.fold[q.row])
    sizes = torch.bincount(case.fold, minlength=N_FOLDS)
    assert len(sizes) == N_FOLDS
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == n
    slices = q.slices()
    assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
    assert slices[-1].stop == len(q.row)
    for f, part in enumerate(slices):
        assert (q.at(part).fold == f).all()


def test_few_rows_are_asked_in_other_groups_again():
    """With the same groups, copies would be the same queries."""
    q = Case(50, missing=0.0).queries
    of_first = q.held_out[q.row == 0]
    assert len(of_first) == 16
    assert len(of_first.unique(dim=0)) > 4


def test_repeats_ask_rows_of_middling_tables_more_often():
    """At most four times, and as long as there are no more queries than wanted."""
    for n, most, copies in ((50, MANY, 4), (600, MANY, 4), (1500, MANY, 2), (600, 4800, 2), (3000, MANY, 1)):
        case = Case(n, missing=0.0)
        q, _ = hide_each_cell_once(case.features, case.observed, COLUMNS, most, make_generator(1), repeats=4)
        assert q.copies == copies
        assert len(q.held_out[q.row == 0].unique(dim=0)) > 2 * copies


def test_of_many_rows_a_random_part_is_asked():
    case = Case(3000, most=800)
    assert len(case.queries.row) == 800
    assert len(case.queries.row.unique()) == 200
    assert case.queries.row.max() > 1500
    assert len(case.fold) == 3000


def test_of_few_rows_there_are_no_more_queries_than_wanted():
    assert len(Case(100, most=400).queries.row) <= 400


def test_queries_come_from_the_generator_alone():
    state = torch.get_rng_state()
    one, same, other = Case(60), Case(60), Case(60)
    other.queries, _ = hide_each_cell_once(other.features, other.observed, COLUMNS, MANY, make_generator(9))
    assert all(torch.equal(a, b) for a, b in zip(one.queries, same.queries, strict=True))
    assert not torch.equal(one.queries.held_out, other.queries.held_out)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_complete_and_empty_tables(rate):
    q = Case(10, missing=rate).queries
    assert q.held_out.any() == (rate == 0)
    assert (q.held_out.sum(0) == (1 - rate) * 4 * 10).all()


def test_some_are_a_random_choice_in_order():
    q = Case(60).queries
    index = q.some(100, make_generator(0))
    assert len(index) == len(index.unique()) == 100
    assert torch.equal(index, index.sort().values)
    assert index.max() > 100
    assert torch.equal(q.some(MANY, make_generator(0)), torch.arange(len(q.row)))


def test_errors_are_those_of_the_cells_that_are_asked_for():
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    held_out = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    q = Queries(0 * truth, 0 * truth, truth, held_out, torch.arange(3), torch.tensor([0, 1, 1]))
    assert q.errors(torch.zeros_like(truth)).tolist() == [1 + 9, 16]
    assert q.errors(truth).tolist() == [0, 0]
    assert q.at(slice(1, 3)).errors(torch.ones_like(truth[1:])).tolist() == [4, 9]
    assert [part.stop - part.start for part in q.slices()] == [1, 2, 0, 0]
