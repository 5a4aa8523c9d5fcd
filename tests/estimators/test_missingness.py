"""Columns that hide themselves: a parameter that changes only what it is about, and what a fit then says."""

import numpy as np
import pandas as pd
import pytest
from containers import array
from toy import images

from vaeimpute import VAEImputer
from vaeimpute.amputation import ampute

COLUMNS = ["column", "slope", "low", "high", "p_positive", "shift"]


def complete(n=250):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2))
    numbers = z @ rng.normal(size=(2, 4)) + 0.6 * rng.normal(size=(n, 4))
    return pd.DataFrame(numbers, columns=list("abcd")).assign(flag=np.where(z[:, 0] > 0, "yes", "no"))


def holed(mechanism="mnar", columns="abcd"):
    X = complete()
    numbers = X[list(columns)]
    return X.assign(**numbers.where(ampute(numbers, 0.3, mechanism, random_state=0)))


def fit(X, **params):
    return VAEImputer(random_state=0, max_iter=10, **params).fit(X)


@pytest.fixture(scope="module")
def X():
    return holed()


@pytest.fixture(scope="module")
def fitted(X):
    return fit(X, missingness="self")


@pytest.fixture(scope="module")
def at_random(X):
    return fit(X)


def bias(completed, X):
    """Mean error of the hidden numbers, in standard deviations."""
    truth = complete()[list("abcd")]
    error = (completed[list("abcd")] - truth) / truth.std()
    return error.to_numpy()[X[list("abcd")].isna()].mean()


def test_points_and_draws_of_cells_that_hide_themselves_lose_most_of_their_bias(fitted, at_random, X):
    before = bias(at_random.impute(X), X)
    assert before < -0.25
    assert abs(bias(fitted.impute(X), X)) < 0.4 * abs(before)
    assert abs(np.mean([bias(draw, X) for draw in fitted.impute(X, 5, random_state=0)])) < 0.5 * abs(before)
    assert abs(bias(fitted.set_params(point="median").impute(X), X)) < 0.5 * abs(before)
    fitted.set_params(point="mean")


def test_observed_cells_stay_and_a_row_is_the_same_in_any_company(fitted, X):
    for whole, part in zip(fitted.impute(X, 2, random_state=0), fitted.impute(X[:30], 2, random_state=0), strict=True):
        pd.testing.assert_frame_equal(whole.mask(X.isna()), X)
        pd.testing.assert_frame_equal(whole[:30], part)
    pd.testing.assert_frame_equal(fitted.impute(X)[:30], fitted.impute(X[:30]))


def test_a_fit_says_what_it_assumes(fitted, at_random):
    told = fitted.missingness_
    assert list(told) == COLUMNS
    assert told["column"].tolist() == list("abcd")
    assert (told["low"] < told["slope"]).all()
    assert (told["slope"] < told["high"]).all()
    assert (told["low"] > 0).all()
    assert (told["p_positive"] > 0.95).all()
    assert (told["shift"] > 0).all()
    assert at_random.missingness_.shape == (0, 6)
    assert list(at_random.missingness_) == COLUMNS


def test_completely_at_random_the_answer_is_that_of_at_random():
    X = holed("mcar")
    told = fit(X, missingness="self").missingness_
    assert (told["low"] < 0.1).all()
    assert (told["high"] > -0.1).all()
    assert told["shift"].abs().max() < 0.3


def test_random_is_the_same_bit_for_bit_however_it_is_said(at_random, X):
    for missingness in ("random", {"a": "random"}, {}):
        other = fit(X, missingness=missingness)
        pd.testing.assert_frame_equal(other.impute(X), at_random.impute(X))
        for one, two in zip(other.impute(X, 2, random_state=0), at_random.impute(X, 2, random_state=0), strict=True):
            pd.testing.assert_frame_equal(one, two)


def test_a_column_may_hide_itself_alone(X):
    fitted = fit(X, missingness={"b": "self", "c": "random"})
    assert fitted.missingness_["column"].tolist() == ["b"]
    complete_column = fit(holed(columns="abc"), missingness={"d": "self"})  # nothing is missing there
    assert len(complete_column.missingness_) == 0


def test_it_is_saved_with_the_model(fitted, X, tmp_path):
    model = fit(X, missingness={"b": "self"})
    for one in (fitted, model):
        one.save(tmp_path / "model.safetensors")
        again = VAEImputer.load(tmp_path / "model.safetensors")
        assert again.missingness == one.missingness
        pd.testing.assert_frame_equal(again.impute(X), one.impute(X))
        pd.testing.assert_frame_equal(again.missingness_, one.missingness_)


def test_shifts_are_added_to_it(fitted, X):
    before, after = (fitted.impute(X, 2, random_state=0, shift=shift) for shift in (None, {"a": 0.3}))
    missing = X["a"].isna()
    for one, other in zip(before, after, strict=True):
        move = (other["a"] - one["a"])[missing].mean() / X["a"].std(ddof=0)
        assert move == pytest.approx(0.3, abs=1e-9)


@pytest.mark.parametrize(
    ("missingness", "message"),
    [
        ("none", "'missingness' parameter"),
        ({"income": "self"}, "'income', which is no column"),
        ({"a": "selfish"}, r"missingness\['a'\] must be one of"),
        ({"flag": "self"}, "classes have no shape"),
    ],
)
def test_what_cannot_be_assumed_is_refused(X, missingness, message):
    with pytest.raises(ValueError, match=message):
        fit(X, missingness=missingness)


def test_images_are_missing_at_random():
    with pytest.raises(ValueError, match="is for tables"):
        VAEImputer(image_shape=(6, 5), missingness="self").fit(images()[:10])
    small = VAEImputer(random_state=0, missingness="self").fit(array())
    assert np.isfinite(small.impute(array())).all()
