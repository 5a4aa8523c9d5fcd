"""Completed rows that are compatible with an outcome's model: proposed without it, and taken by how likely it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vaeimpute.outcomes.families import Family


class Taken(NamedTuple):
    """What was taken of some proposals.

    Attributes
    ----------
    proposal : int ndarray of shape (r,)
        Number of the proposal of each row.
    effective : ndarray of shape (r,)
        Effective number (Kish) of proposals where the outcome is observed, all of them elsewhere; a mean over sweeps.
    """

    proposal: NDArray
    effective: NDArray


class OutcomeChain:
    """Parameters, rows and hidden outcomes, drawn in turn (Bartlett, Seaman, White and Carpenter, SMMR 2015).

    Parameters
    ----------
    family : Family
    terms : ndarray of shape (n, p)
        Of all rows, some completed by a first proposal.
    rows : int ndarray of shape (r,)
        Which these are.
    y : ndarray of shape (n,)
        Outcomes, NaN where hidden.
    rng : Generator
    """

    def __init__(self, family: Family, terms: NDArray, rows: NDArray, y: NDArray, rng: Generator) -> None:
        self.family, self.terms, self.rows, self.rng = family, terms.copy(), rows, rng
        self.hidden = np.isnan(y)
        self.y = np.where(self.hidden, 0, y)
        self.parameters = family.draw(terms[~self.hidden], y[~self.hidden], rng)

    def take(self, proposed: NDArray, n_sweeps: int) -> Taken:
        """Take one of the proposals, of terms (K, r, p), of each row, after some sweeps.

        Rows of one sweep are drawn in proportion to their likelihood of the outcome. This leaves the posterior as it is
        if the first proposals are what was taken before, and the others new (Andrieu, Lee and Vihola, Bernoulli 2018).
        """
        family, place = self.family, np.arange(len(self.rows))
        y, matters = self.y[self.rows], ~self.hidden[self.rows]
        square = np.zeros(len(self.rows))
        for _ in range(n_sweeps):
            likelihood = family.log_likelihood(y, proposed @ self.parameters.coef, self.parameters)
            log_w = np.where(matters, likelihood, 0.0)
            w = np.exp(log_w - log_w.max(0))
            w /= w.sum(0)
            square += (w**2).sum(0) / n_sweeps
            taken = np.minimum((np.cumsum(w, 0) < self.rng.random(len(self.rows))).sum(0), len(proposed) - 1)
            self.terms[self.rows] = proposed[taken, place]
            predictor = self.terms[self.hidden] @ self.parameters.coef
            self.y[self.hidden] = family.sample(predictor, self.parameters, self.rng)
            self.parameters = family.draw(self.terms, self.y, self.rng)
        return Taken(taken, 1 / square)
