"""Random completions, new rows and latents: as the training table had them, and as a seed has them."""

import numpy as np
import pandas as pd
import pytest
from containers import N, array, assert_completes, columns, dtypes, rows_of

from vaeimpute import VAEImputer


@pytest.fixture(scope="module")
def fitted():
    return VAEImputer(random_state=0).fit(array())


# --- containers -------------------------------------------------------------------------------------------------------


def test_samples_have_the_training_container_and_dtypes(make, fits):
    X = make()
    drawn = fits[make].sample(7, random_state=0)
    assert type(drawn) is type(X)
    assert dtypes(drawn) == dtypes(X)
    assert len(drawn) == 7
    assert all(None not in cells for cells in columns(drawn).values())


def test_samples_given_rows_complete_them(make, fits):
    X = rows_of(make(), slice(0, 5))
    twice = fits[make].sample(2, given=X, random_state=0)
    assert len(twice) == 10
    for part in (slice(0, 5), slice(5, 10)):
        assert_completes(rows_of(twice, part), X)


def test_latents_round_trip_in_shape_and_container(make, fits):
    Z = fits[make].encode(make())
    back = fits[make].decode(Z)
    assert len(Z) == N
    assert type(back) is type(make())
    assert dtypes(back) == dtypes(make())
    for wrong, message in [(Z[0], "must have shape"), (Z[:, :0], "must have shape"), (Z * np.nan, "must be finite")]:
        with pytest.raises(ValueError, match=message):
            fits[make].decode(wrong)


# --- draws ------------------------------------------------------------------------------------------------------------


def test_draws_differ_where_cells_are_missing_and_seeds_reproduce_them(fitted):
    X = array()
    one, two = fitted.impute(X, n_imputations=2, random_state=0)
    missing = np.isnan(X)
    # some are alike: a draw beyond what was seen in training becomes the last value that was
    assert (one[missing[:, 0], 0] != two[missing[:, 0], 0]).mean() > 0.5
    np.testing.assert_array_equal(one[~missing], two[~missing])
    np.testing.assert_array_equal(fitted.impute(X, n_imputations=2, random_state=0), [one, two])
    assert (fitted.impute(X, 1, random_state=1)[0] != one).any()
    assert (fitted.impute(X, 1)[0] != fitted.impute(X, 1)[0]).any()  # without a seed, new ones each time
    generator = np.random.RandomState(0)
    assert (fitted.impute(X, 1, generator)[0] != fitted.impute(X, 1, generator)[0]).any()


def test_samples_given_rows_know_what_was_given_even_out_of_range(fitted):
    drawn = fitted.sample(50, given=[[1e4 + 0.1, np.nan]], random_state=0)
    assert (drawn[:, 0] == 1e4 + 0.1).all()
    assert len(np.unique(drawn[:, 1])) > 1 or (drawn[:, 1] == drawn[0, 1]).all()
    np.testing.assert_array_equal(drawn, fitted.sample(50, given=[[1e4 + 0.1, np.nan]], random_state=0))
    assert (fitted.sample(5, random_state=1) != fitted.sample(5, random_state=2)).any()


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_counts_of_draws_are_positive_integers(fitted, count):
    with pytest.raises(ValueError, match="n_imputations must be a positive integer"):
        fitted.impute(array(), n_imputations=count)
    with pytest.raises(ValueError, match="n_samples must be a positive integer"):
        fitted.sample(count)


def test_samples_have_the_moments_of_the_table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2)) @ [[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]] + 0.3 * rng.normal(size=(600, 3)) + [0, 5, 9]
    drawn = VAEImputer(random_state=0, max_iter=10).fit(X).sample(20_000, random_state=0)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(X.T), atol=0.15)


@pytest.fixture(scope="module")
def shop():
    """Whole numbers, cents, a list of values, a ceiling, and zeros, of one factor; a fifth of the cells missing."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=600)
    y = z[:, None] + rng.normal(size=(600, 5))
    table = pd.DataFrame(
        {
            "whole": np.round(20 * y[:, 0]),
            "cents": np.round(50 + 7 * y[:, 1], 2),
            "listed": np.array([-0.1, 0.7, 2.123456, 9.99])[np.digitize(y[:, 2], [-1, 0, 1])],
            "score": np.minimum(np.exp(0.3 * y[:, 3]), 1.2),
            "spent": np.where(y[:, 4] < np.quantile(y[:, 4], 0.56), 0, np.exp(y[:, 4])),
        }
    )
    X = table.mask(rng.random(table.shape) < 0.2)
    return X, VAEImputer(random_state=0).fit(X)


def test_draws_look_like_the_column_bit_for_bit(shop):
    X, fitted = shop
    drawn = [*fitted.impute(X, n_imputations=5, random_state=0), fitted.sample(3000, random_state=0)]
    drawn += [fitted.sample(2, given=X, random_state=0)]
    for rows in drawn:
        np.testing.assert_array_equal(rows["whole"], np.round(rows["whole"]))
        np.testing.assert_array_equal(rows["cents"], np.round(rows["cents"], 2))
        assert set(rows["listed"]) <= {-0.1, 0.7, 2.123456, 9.99}
        assert rows["score"].max() == 1.2
        assert rows["spent"].min() == 0
    assert len(np.unique(drawn[5]["cents"])) > 600  # and is no list of what was seen


def test_repeated_values_that_are_no_decimals_come_back_bit_for_bit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    X = np.column_stack([x, np.round(5 * x) / 3])
    values, X[::2, 1] = set(X[:, 1]), np.nan
    drawn = VAEImputer(random_state=0, max_iter=10).fit(X).impute(X, n_imputations=1, random_state=0)[0]
    assert set(drawn[:, 1]) <= values


def test_draws_and_samples_have_the_zeros_of_the_column(shop):
    X, fitted = shop
    drawn = pd.concat(fitted.impute(X, n_imputations=20, random_state=0))
    hidden = np.tile(X["spent"].isna(), 20)
    assert 0.52 < (drawn["spent"] == 0)[hidden].mean() < 0.60  # 120 cells
    assert 0.54 < (fitted.sample(20_000, random_state=0)["spent"] == 0).mean() < 0.58


def test_draws_do_not_depend_on_the_partition(shop):
    X, fitted = shop
    whole = fitted.impute(X, n_imputations=2, random_state=0)
    for rows in (slice(0, 1), slice(200, 350), slice(None, None, -1)):
        for draw, part in zip(whole, fitted.impute(X.iloc[rows], n_imputations=2, random_state=0), strict=True):
            pd.testing.assert_frame_equal(part, draw.iloc[rows])


def test_score_samples_is_the_log_likelihood(fitted):
    np.testing.assert_array_equal(fitted.score_samples(array()), fitted.log_likelihood(array()))
    assert fitted.score(array()) == fitted.log_likelihood(array()).mean()
