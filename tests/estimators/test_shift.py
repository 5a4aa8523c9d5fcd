"""What if cells are not missing at random: shifted cells move by what is asked, and others as they depend on them."""

import numpy as np
import pandas as pd
import pytest

from vaeimpute import VAEImputer


def table(n=160):
    rng = np.random.default_rng(0)
    z = rng.normal(size=n)
    X = pd.DataFrame(
        {
            "a": z + 0.5 * rng.normal(size=n),
            "b": 2 * z + rng.normal(size=n),
            "alone": rng.normal(size=n),
            "whole": np.round(3 * z),
            "flag": z + rng.normal(size=n) > 0,
            "word": np.array(["r", "g", "b"])[np.digitize(z + rng.normal(size=n), [-0.5, 0.5])],
        }
    )
    X["flag"] = X["flag"].astype("boolean")
    return X.mask(rng.random(X.shape) < 0.25)


@pytest.fixture(scope="module")
def X():
    return table()


@pytest.fixture(scope="module")
def fitted(X):
    return VAEImputer(random_state=0, max_iter=20).fit(X)


def moved(after, before, X, name):
    """Mean movement of the hidden cells of a column, in its standard deviations."""
    missing = X[name].isna()
    return (after[name][missing].astype(float) - before[name][missing].astype(float)).mean() / X[name].std(ddof=0)


@pytest.mark.parametrize("point", ["mean", "median"])
@pytest.mark.parametrize("amount", [0.5, -0.25])
def test_the_mean_of_shifted_cells_moves_by_the_shift(fitted, X, amount, point):
    before = fitted.impute(X, 3, random_state=0)
    after = fitted.impute(X, 3, random_state=0, shift={"a": amount})
    assert [moved(*pair, X, "a") for pair in zip(after, before, strict=True)] == pytest.approx([amount] * 3, abs=1e-9)
    fitted.set_params(point=point)
    points = fitted.impute(X, shift={"a": amount}), fitted.impute(X)
    fitted.set_params(point="mean")
    assert moved(*points, X, "a") == pytest.approx(amount, abs=1e-6)


def test_whole_numbers_stay_whole_and_their_mean_moves(fitted, X):
    before, after = (fitted.impute(X, 20, random_state=0, shift=shift) for shift in (None, {"whole": 0.2}))
    movements = [moved(*pair, X, "whole") for pair in zip(after, before, strict=True)]
    assert np.mean(movements) == pytest.approx(0.2, abs=0.02)
    assert (after[0]["whole"] % 1 == 0).all()


def test_other_cells_follow_only_in_rows_with_shifted_ones_and_as_they_depend(fitted, X):
    before, after = (fitted.impute(X, 10, random_state=0, shift=shift) for shift in (None, {"a": 1.0}))
    rows = X["a"].isna()
    for one, other in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(one[~rows], other[~rows])
    both = rows & X["b"].isna()
    follow = np.mean([(o["b"] - b["b"])[both].mean() for b, o in zip(before, after, strict=True)])
    assert follow > 0.05
    alone = rows & X["alone"].isna()
    by_chance = 3 / np.sqrt((X["a"].notna() & X["alone"].notna()).sum())  # three standard errors of a correlation
    assert (
        abs(np.mean([(o["alone"] - b["alone"])[alone].mean() for b, o in zip(before, after, strict=True)])) < by_chance
    )


@pytest.mark.parametrize("shift", [{"a": 0.5}, {"flag": {True: 1.0}}, {"a": lambda t: (t["word"] == "r") * 0.5}])
def test_observed_cells_stay_bit_for_bit_and_dtypes_as_they_are(fitted, X, shift):
    for completed in (*fitted.impute(X, 2, random_state=0, shift=shift), fitted.impute(X, shift=shift)):
        assert completed.notna().all(axis=None)
        pd.testing.assert_series_equal(completed.dtypes, X.dtypes)
        pd.testing.assert_frame_equal(completed.mask(X.isna()), X)


def test_no_shift_changes_nothing(fitted, X):
    for options in ({}, {"n_imputations": 2, "random_state": 0}):
        plain = fitted.impute(X, **options)
        for shift in ({}, {"a": 0.0}, {"whole": 0}, {"flag": {True: 0.0}}, {"a": lambda t: np.zeros(len(t))}):
            shifted = fitted.impute(X, **options, shift=shift)
            for one, other in zip(*([t] if options == {} else t for t in (plain, shifted)), strict=True):
                pd.testing.assert_frame_equal(one, other)


def test_classes_get_other_odds(fitted, X):
    for name, category in (("flag", True), ("word", "r")):
        missing = X[name].isna()
        shares = []
        for log_odds in (-2.0, 0.0, 2.0):
            draws = fitted.impute(X, 10, random_state=0, shift={name: {category: log_odds}})
            shares.append(np.mean([(t[name][missing] == category).mean() for t in draws]))
        assert shares[0] < shares[1] - 0.1 < shares[2] - 0.2


def test_a_shift_that_depends_on_other_columns_reads_the_completed_table(fitted, X):
    def of_words(completed):
        assert completed.notna().all(axis=None)
        return np.where(completed["word"] == "r", 0.7, 0.0)

    before, after = (fitted.impute(X, 5, random_state=0, shift=shift) for shift in (None, {"a": of_words}))
    for one, other in zip(before, after, strict=True):
        move = (other["a"] - one["a"]) / X["a"].std(ddof=0)
        expected = np.where(X["a"].isna() & (one["word"] == "r"), 0.7, 0.0)
        np.testing.assert_allclose(move, expected, atol=1e-9)


def test_rows_are_shifted_alike_in_any_company(fitted, X):
    part = fitted.impute(X[:40], 2, random_state=0, shift={"a": 0.5})
    whole = fitted.impute(X, 2, random_state=0, shift={"a": 0.5})
    for one, other in zip(part, whole, strict=True):
        pd.testing.assert_frame_equal(one, other[:40])


@pytest.mark.parametrize(
    ("shift", "error", "message"),
    [
        (0.5, TypeError, "shift must be a dict"),
        ({"income": 0.5}, ValueError, "'income', which is no column"),
        ({"a": np.nan}, ValueError, r"shift\['a'\] must be a number of standard deviations"),
        ({"a": "much"}, ValueError, r"shift\['a'\] must be a number of standard deviations"),
        ({"a": lambda t: [1.0, 2.0]}, ValueError, "must give 160 numbers"),
        ({"a": lambda t: np.full(len(t), np.inf)}, ValueError, "gave inf in row 0"),
        ({"flag": 0.5}, ValueError, "is of classes: pass log-odds"),
        ({"flag": {"maybe": 0.5}}, ValueError, "'maybe', but the classes are"),
        ({"word": {"r": True}}, ValueError, "must be log-odds"),
    ],
)
def test_shifts_that_cannot_be_used_are_refused(fitted, X, shift, error, message):
    with pytest.raises(error, match=message):
        fitted.impute(X, 1, shift=shift)


def test_arrays_name_their_columns_and_empty_columns_cannot_be_shifted():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(40, 2)), np.full(40, np.nan)])
    X[3, 0] = np.nan
    with pytest.warns(UserWarning, match="without any observed value"):
        fitted = VAEImputer(random_state=0).fit(X)
    move = fitted.impute(X, shift={"x0": 0.5})[3, 0] - fitted.impute(X)[3, 0]
    assert move == pytest.approx(0.5 * np.nanstd(X[:, 0]), rel=1e-6)
    with pytest.raises(ValueError, match="no observed value in fit"):
        fitted.impute(X, shift={"x2": 0.5})
