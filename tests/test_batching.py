"""Row slices: every row once and in order, and never more numbers at a time than the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeimpute.batching import BUDGET, row_slices


@given(st.integers(0, 3000), st.floats(BUDGET / 500, 3 * BUDGET))
def test_slices_cover_all_rows_once_in_order_within_the_budget(n_rows, numbers_per_row):
    slices = list(row_slices(n_rows, numbers_per_row))
    assert [row for part in slices for row in range(n_rows)[part]] == list(range(n_rows))
    for part in slices:
        size = part.stop - part.start
        assert size == 1 or size * numbers_per_row <= BUDGET


@given(st.integers(1, 3000), st.floats(BUDGET / 500, 3 * BUDGET))
def test_slices_are_as_long_as_the_budget_lets_them(n_rows, numbers_per_row):
    sizes = [part.stop - part.start for part in row_slices(n_rows, numbers_per_row)]
    assert len(set(sizes[:-1])) <= 1
    assert len(sizes) == 1 or (sizes[0] + 1) * numbers_per_row > BUDGET


@pytest.mark.parametrize("numbers_per_row", [0, 1e-9, 1])
def test_rows_of_nothing_are_one_slice(numbers_per_row):
    assert list(row_slices(1000, numbers_per_row)) == [slice(0, 1000)]


def test_a_row_beyond_the_budget_is_a_slice_of_its_own():
    assert list(row_slices(2, 10.0 * BUDGET)) == [slice(0, 1), slice(1, 2)]
