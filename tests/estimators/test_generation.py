"""Random completions, new rows and latents: as the training table had them, and as a seed has them."""

import numpy as np
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
    """The prior of an exactly linear table: a Gaussian whose covariance is that of the rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2)) @ [[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]] + 0.3 * rng.normal(size=(600, 3)) + [0, 5, 9]
    drawn = VAEImputer(random_state=0, max_iter=10).fit(X).sample(20_000, random_state=0)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(X.T), atol=0.15)


def test_score_samples_is_the_log_likelihood(fitted):
    np.testing.assert_array_equal(fitted.score_samples(array()), fitted.log_likelihood(array()))
    assert fitted.score(array()) == fitted.log_likelihood(array()).mean()
