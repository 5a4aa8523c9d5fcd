"""Outcome: what it refuses, and terms as numbers."""

import sys

import numpy as np
import pandas as pd
import pytest

from vaeimpute import Outcome
from vaeimpute.outcomes.outcome import check_rowwise, designer

TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["u", "v", "u"]})


def test_parameters_are_checked_at_once():
    with pytest.raises(TypeError, match=r"terms must be a function of a table or a formula .* got a list"):
        Outcome("y", ["x1"])
    with pytest.raises(ValueError, match=r"family must be one of .*'gaussian'.* got 'gamma'"):
        Outcome("y", lambda table: table, family="gamma")


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        (lambda t: np.ones((2, 1)), ValueError, r"shape \(n, p\) with n = 3 rows, but got \(2, 1\)"),
        (lambda t: np.ones((3, 1, 1)), ValueError, r"got \(3, 1, 1\)"),
        (lambda t: np.ones((3, 0)), ValueError, r"got \(3, 0\)"),
        (lambda t: t["b"], TypeError, "terms must be numbers"),
        (lambda t: np.array([1, np.nan, 2]), ValueError, "term 0 is nan at row 1"),
    ],
)
def test_terms_that_cannot_be_used_are_refused(terms, error, message):
    with pytest.raises(error, match=message):
        designer(terms)(TABLE, 3)


def test_one_term_may_be_a_column():
    np.testing.assert_array_equal(designer(lambda t: t["a"])(TABLE, 3), [[1], [2], [3]])
    np.testing.assert_array_equal(designer(lambda t: t[["a"]])(TABLE, 3), [[1], [2], [3]])


def test_terms_take_each_row_by_itself():
    check_rowwise(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="must take each row by itself"):
        check_rowwise(np.ones((2, 1)), np.zeros((2, 1)))


def test_a_formula_keeps_what_it_learns_of_the_first_table():
    pytest.importorskip("formulaic")
    design = designer("a * b")
    first = design(TABLE, 3)
    assert first.shape == (3, 4)
    np.testing.assert_array_equal(design(TABLE[2:], 1), first[2:])
    with pytest.raises(TypeError, match="needs a frame with names"):
        design(np.ones((3, 2)), 3)


def test_a_formula_without_formulaic_says_what_to_pass(monkeypatch):
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(ImportError, match=r"needs formulaic.* Pass a function"):
        designer("a * b")
