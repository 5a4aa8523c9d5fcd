"""Regressions of an outcome: parameters drawn from their posterior, likelihoods of outcomes, outcomes drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit

_SMALLEST = 1e-10  # eigenvalue, of the largest, of a direction that the terms tell anything of
_PRIOR_SD = (
    10.0  # of a slope per standard deviation of its term, where classes may be separable: it hardly matters else
)
_NEWTON, _HALVINGS, _CLOSE = 50, 20, 1e-10
_LARGEST = 30.0  # linear predictor of a count: its mean is 1e13


class Parameters(NamedTuple):
    """Coefficients (p,), and the variance of the residuals where the family has one."""

    coef: NDArray
    variance: float = 1.0


class Family(ABC):
    """How an outcome depends on a linear predictor."""

    @abstractmethod
    def draw(self, terms: NDArray, y: NDArray, rng: Generator) -> Parameters:
        """Parameters from their posterior given rows of terms (n, p) and outcomes (n,)."""

    @abstractmethod
    def log_likelihood(self, y: NDArray, predictor: NDArray, parameters: Parameters) -> NDArray:
        """Of outcomes (n,) under linear predictors (..., n), up to what does not depend on these."""

    @abstractmethod
    def sample(self, predictor: NDArray, parameters: Parameters, rng: Generator) -> NDArray:
        """Outcomes (n,) given linear predictors (n,)."""


class Gaussian(Family):
    """Least squares; the prior is flat in the coefficients and the logarithm of the variance."""

    def draw(self, terms: NDArray, y: NDArray, rng: Generator) -> Parameters:
        root = _inverse_root(terms.T @ terms)
        mean = root @ (root.T @ (terms.T @ y))
        variance = float(((y - terms @ mean) ** 2).sum() / rng.chisquare(max(len(y) - root.shape[1], 1)))
        return Parameters(mean + np.sqrt(variance) * root @ rng.normal(size=root.shape[1]), variance)

    def log_likelihood(self, y: NDArray, predictor: NDArray, parameters: Parameters) -> NDArray:
        tiny = np.finfo(float).tiny  # terms may fit a table exactly
        return -0.5 * (y - predictor) ** 2 / max(parameters.variance, tiny)

    def sample(self, predictor: NDArray, parameters: Parameters, rng: Generator) -> NDArray:
        return predictor + np.sqrt(parameters.variance) * rng.normal(size=predictor.shape)


class _Generalised(Family):
    """A canonical link: the posterior is taken for normal, around its mode, by Newton's method."""

    @abstractmethod
    def moments(self, predictor: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and variance of the outcome."""

    def draw(self, terms: NDArray, y: NDArray, rng: Generator) -> Parameters:
        scale = np.sqrt((terms**2).mean(0))
        precision = scale**2 / _PRIOR_SD**2
        coef = np.zeros(terms.shape[1])

        def objective(at: NDArray) -> float:
            return float(self.log_likelihood(y, terms @ at, Parameters(at)).sum() - 0.5 * precision @ at**2)

        value = objective(coef)
        for _ in range(_NEWTON):
            mean, variance = self.moments(terms @ coef)
            root = _inverse_root((terms.T * variance) @ terms + np.diag(precision))
            step = root @ (root.T @ (terms.T @ (y - mean) - precision * coef))
            for _ in range(_HALVINGS):
                if (new := objective(coef + step)) >= value:
                    break
                step = step / 2
            coef, gain, value = coef + step, new - value, new
            if gain < _CLOSE * (1 + abs(value)):
                break
        _, variance = self.moments(terms @ coef)
        root = _inverse_root((terms.T * variance) @ terms + np.diag(precision))
        return Parameters(coef + root @ rng.normal(size=root.shape[1]))


class Binomial(_Generalised):
    """Logistic regression of an outcome that is 0 or 1."""

    def moments(self, predictor: NDArray) -> tuple[NDArray, NDArray]:
        mean = expit(predictor)
        return mean, mean * (1 - mean)

    def log_likelihood(self, y: NDArray, predictor: NDArray, parameters: Parameters) -> NDArray:
        return -np.logaddexp(0, np.where(y > 0, -predictor, predictor))

    def sample(self, predictor: NDArray, parameters: Parameters, rng: Generator) -> NDArray:
        return (rng.random(predictor.shape) < expit(predictor)).astype(float)


class Poisson(_Generalised):
    """Regression of the logarithm of a count's mean."""

    def moments(self, predictor: NDArray) -> tuple[NDArray, NDArray]:
        mean = np.exp(np.minimum(predictor, _LARGEST))
        return mean, mean

    def log_likelihood(self, y: NDArray, predictor: NDArray, parameters: Parameters) -> NDArray:
        return y * predictor - np.exp(np.minimum(predictor, _LARGEST))

    def sample(self, predictor: NDArray, parameters: Parameters, rng: Generator) -> NDArray:
        return rng.poisson(np.exp(np.minimum(predictor, _LARGEST))).astype(float)


FAMILIES: dict[str, Family] = {"gaussian": Gaussian(), "binomial": Binomial(), "poisson": Poisson()}


def _inverse_root(precision: NDArray) -> NDArray:
    """A root R (p, r) of the inverse, ``R R'``; directions without any information are left out."""
    scale = np.sqrt(np.maximum(np.diag(precision), np.finfo(float).tiny))
    eigenvalues, vectors = np.linalg.eigh(precision / np.outer(scale, scale))
    kept = eigenvalues > _SMALLEST * eigenvalues[-1]
    return vectors[:, kept] / np.sqrt(eigenvalues[kept]) / scale[:, None]
