"""Scores that can be compared: row likelihoods between masks, cell likelihoods between columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge


@dataclass(frozen=True)
class MaskCalibration:
    """Location and scale of the negative log-likelihood as functions of which cells are observed.

    A raw likelihood shrinks with every missing cell. Two ridge regressions on the mask's bits, over training rows with
    further cells hidden, predict the negative log-likelihood and its squared residual (a sum over cells, hence linear
    with positive weights); the score is what remains, in standard deviations.

    Attributes
    ----------
    location, variance : ndarray of shape (D + 1,)
        Coefficients of the D mask bits and intercept.
    floor : float
        Smallest variance.
    """

    location: NDArray
    variance: NDArray
    floor: float

    @classmethod
    def fit(cls, nll: NDArray, observed: NDArray) -> MaskCalibration:
        """Learn from the negative log-likelihoods (n,) of rows with masks (n, D).

        Examples
        --------
        >>> observed = np.array([[True, True], [True, False]] * 50)
        >>> nll = observed.sum(1) + np.tile([0.5, 0.5, -0.5, -0.5], 25)  # half a nat off what the mask explains
        >>> MaskCalibration.fit(nll, observed).score(nll, observed)[:4].round(1)
        array([ 1.,  1., -1., -1.])
        """
        bits = observed.astype(float)
        location = Ridge(1.0).fit(bits, nll)
        squares = (nll - location.predict(bits)) ** 2
        variance = Ridge(1.0, positive=True).fit(bits, squares)
        floor = 0.01 * max(float(squares.mean()), 1e-12)
        return cls(
            np.append(location.coef_, location.intercept_), np.append(variance.coef_, variance.intercept_), floor
        )

    def score(self, nll: NDArray, observed: NDArray) -> NDArray:
        """Standardised negative log-likelihood (n,); 0 for a row with nothing observed."""
        bits = np.column_stack([observed, np.ones(len(observed))]).astype(float)
        z = (nll - bits @ self.location) / np.sqrt(np.maximum(bits @ self.variance, self.floor))
        return np.where(observed.any(1), z, 0.0)


def column_surprise(log_density: NDArray, observed: NDArray) -> NDArray:
    """Average negative log-density of each column's observed cells (D,): what an ordinary cell scores."""
    count = observed.sum(0)
    return -np.where(observed, log_density, 0).sum(0) / np.maximum(count, 1)
