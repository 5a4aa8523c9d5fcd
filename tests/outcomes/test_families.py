"""Regressions of an outcome: posterior draws have the moments of theory, likelihoods are those of SciPy."""

import numpy as np
import pytest
from scipy import optimize, stats

from vaeimpute.outcomes.families import FAMILIES, Parameters

RNG_SEED = 3


def rows_and_outcomes(family, n=120):
    rng = np.random.default_rng(RNG_SEED)
    terms = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    predictor = terms @ [0.3, 0.8, -0.5]
    return terms, FAMILIES[family].sample(predictor, Parameters(np.zeros(3), 0.5), rng)


def drawn(family, terms, y, n_draws=4000):
    rng = np.random.default_rng(0)
    draws = [FAMILIES[family].draw(terms, y, rng) for _ in range(n_draws)]
    return np.array([draw.coef for draw in draws]), np.array([draw.variance for draw in draws])


def test_gaussian_draws_are_normal_inverse_gamma():
    terms, y = rows_and_outcomes("gaussian")
    coef, variance = drawn("gaussian", terms, y)
    n, p = terms.shape
    best, (rss,), *_ = np.linalg.lstsq(terms, y)
    cov = rss / (n - p - 2) * np.linalg.inv(terms.T @ terms)
    np.testing.assert_allclose(coef.mean(0), best, atol=4 * np.sqrt(cov.diagonal().max() / len(coef)))
    np.testing.assert_allclose(np.cov(coef.T), cov, atol=0.1 * np.abs(cov).max())
    quantiles = rss / stats.chi2(n - p).ppf([0.9, 0.5, 0.1])
    np.testing.assert_allclose(np.quantile(variance, [0.1, 0.5, 0.9]), quantiles, rtol=0.03)


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_generalised_draws_are_normal_around_the_mode(family):
    terms, y = rows_and_outcomes(family, 300)
    coef, _ = drawn(family, terms, y)

    def loss(at):
        return -FAMILIES[family].log_likelihood(y, terms @ at, Parameters(at)).sum()

    best = optimize.minimize(loss, np.zeros(3)).x
    _, variance = FAMILIES[family].moments(terms @ best)
    cov = np.linalg.inv((terms.T * variance) @ terms)
    np.testing.assert_allclose(coef.mean(0), best, atol=0.01)
    np.testing.assert_allclose(np.cov(coef.T), cov, atol=0.1 * np.abs(cov).max())


@pytest.mark.parametrize(
    ("family", "law"),
    [
        ("gaussian", lambda eta: stats.norm(eta, np.sqrt(0.5))),
        ("binomial", lambda eta: stats.bernoulli(1 / (1 + np.exp(-eta)))),
        ("poisson", lambda eta: stats.poisson(np.exp(eta))),
    ],
)
def test_likelihoods_and_samples_are_those_of_the_law(family, law):
    y, eta, parameters = (
        np.array([0.0, 1.0, 1.0, 0.0]),
        np.array([[-1.0, 0.2, 3.0, 0.5], [0.0] * 4]),
        Parameters(0, 0.5),
    )
    log = getattr(law(eta), "logpdf", None) or law(eta).logpmf
    of_family = FAMILIES[family].log_likelihood(y, eta, parameters)
    np.testing.assert_allclose(of_family[0] - of_family[1], log(y)[0] - log(y)[1])
    sampled = FAMILIES[family].sample(np.full(20_000, 0.5), parameters, np.random.default_rng(0))
    assert sampled.mean() == pytest.approx(law(0.5).mean(), abs=4 * law(0.5).std() / np.sqrt(20_000))
    assert sampled.std() == pytest.approx(law(0.5).std(), rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_that_say_the_same_twice_do_no_harm(family):
    terms, y = rows_and_outcomes(family)
    twice = np.column_stack([terms, terms[:, 1], terms[:, 1] + 1])
    predictor = drawn(family, terms, y, 500)[0] @ terms.T
    of_twice = drawn(family, twice, y, 500)[0] @ twice.T
    assert (np.abs(of_twice.mean(0) - predictor.mean(0)) < 0.3 * predictor.std(0)).all()
    np.testing.assert_allclose(of_twice.std(0), predictor.std(0), rtol=0.25)


def test_separable_classes_have_finite_draws():
    x = np.linspace(-1, 1, 40)
    terms = np.column_stack([np.ones(40), x])
    coef, _ = drawn("binomial", terms, (x > 0).astype(float), 200)
    assert np.isfinite(coef).all()
    assert (coef[:, 1] > 0).mean() > 0.95
    assert np.abs(coef).max() < 200
