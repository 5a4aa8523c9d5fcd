"""Scores that can be compared: surprisal of rows and of cells among reference ones, and conformal p-values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from vaeimpute.persistence import Fitted

_BODY = 0.95  # quantile up to which a tail is counted; an exponential carries it on
_NARROWEST = 0.01  # scale of that tail at least, in standard deviations of the reference
_SMALLEST_SCALE = 1e-3  # of a score, in units of its size: a score that never varies says nothing finer
_STEPS = (0.3, 0.5, 0.7, 0.9)  # shares of observed cells between which rows are compared
_MIN_GROUP = 100
_INLIERS = 0.97  # share of the rows that shape the calibration by mask
_NEWTON_STEPS, _NEWTON_TOLERANCE, _SHORTEST_STEP = 50, 1e-9, 1e-6
_QUANTILES = 4096  # of the reference cells' scores: more tell no more of a tail


def surprisal(reference: NDArray, scores: NDArray, narrowest: float = 0.0) -> NDArray:
    """``-log P(a reference score is at least as high)``: counted, and exponential above the reference's 95% quantile.

    Parameters
    ----------
    reference : ndarray of shape (N,)
    scores : ndarray of any shape
    narrowest : float, default=0.0
        Smallest scale of the exponential, in units of the scores.

    Returns
    -------
    ndarray
        In nats, of the shape of `scores`.

    Examples
    --------
    >>> surprisal(np.arange(1000.0), np.array([0.0, 499.0, 899.0, 999.0])).round(1)
    array([0. , 0.7, 2.3, 4.9])
    """
    # ties count half, so that a score that all rows share is neither anomalous nor the most normal
    values, count = np.unique(reference, return_counts=True)
    below = (np.cumsum(count) - 0.5 * count) / (len(reference) + 1)
    high = np.quantile(reference, _BODY)
    excess = (reference[reference > high] - high).mean() if (reference > high).any() else 0.0
    start = -np.log1p(-np.interp(high, values, below))
    body = -np.log1p(-np.interp(scores, values, below))
    # where many share the highest score there is no excess: as far beyond as the reference is wide is still one nat
    scale = max(excess, _NARROWEST * float(reference.std())) or 1.0
    return np.where(scores <= high, body, start + (scores - high) / max(scale, narrowest))


def baseline_nll(log_px: NDArray, observed: NDArray) -> NDArray:
    """Average negative log-likelihood of each column's observed cells (D,): what a normal cell has."""
    count = observed.sum(0)
    return -np.where(observed, log_px, 0).sum(0) / np.maximum(count, 1)


@dataclass(frozen=True)
class MaskCalibration:
    """Location and scale of a row's score as functions of which cells are observed.

    A raw likelihood shrinks with every missing cell. Two ridge regressions on the mask's bits, over training rows with
    further cells hidden, predict the score and its squared residual (a sum over cells, hence linear with positive
    weights); the calibrated score is what remains, in standard deviations.

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
    def fit(cls, score: NDArray, observed: NDArray) -> MaskCalibration:
        """Learn from the scores (n,) of rows with masks (n, D).

        Examples
        --------
        >>> observed = np.array([[True, True], [True, False]] * 50)
        >>> nll = observed.sum(1) + np.tile([0.5, 0.5, -0.5, -0.5], 25)  # half a nat off what the mask explains
        >>> MaskCalibration.fit(nll, observed).score(nll, observed)[:4].round(1)
        array([ 1.,  1., -1., -1.])
        """
        bits = observed.astype(float)
        location = Ridge(1.0).fit(bits, score)
        squares = (score - location.predict(bits)) ** 2
        average = max(float(squares.mean()), 1e-12)  # the solver wants targets of usual size
        return cls(
            np.append(location.coef_, location.intercept_),
            average * _positive_ridge(bits, squares / average),
            max(0.01 * average, (_SMALLEST_SCALE * (1 + float(np.abs(score).mean()))) ** 2),
        )

    @classmethod
    def fit_inliers(cls, score: NDArray, observed: NDArray) -> MaskCalibration:
        """The same without the rows that score highest, whose scores have no bound."""
        first = cls.fit(score, observed).score(score, observed)
        kept = first <= np.quantile(first, _INLIERS)
        return cls.fit(score[kept], observed[kept])

    def score(self, score: NDArray, observed: NDArray) -> NDArray:
        """Standardised scores (n,); 0 for a row with nothing observed."""
        bits = np.column_stack([observed, np.ones(len(observed))]).astype(float)
        z = (score - bits @ self.location) / np.sqrt(np.maximum(bits @ self.variance, self.floor))
        return np.where(observed.any(1), z, 0.0)


def _positive_ridge(inputs: NDArray, target: NDArray) -> NDArray:
    """Ridge regression (penalty one) of targets (n,) on inputs (n, D): coefficients, none negative, and the intercept.

    With more inputs than rows by Newton's method for its dual, ``r + X max(0, X' r) = y``, whose root is the residual:
    the Hessian is piecewise constant, so that few steps reach it.
    """
    if inputs.shape[1] <= len(inputs):
        ridge = Ridge(1.0, positive=True).fit(inputs, target)
        return np.append(ridge.coef_, ridge.intercept_)
    center, mean = inputs.mean(0), target.mean()
    X, y = inputs - center, target - mean

    def dual(r: NDArray) -> float:
        return float(0.5 * r @ r + 0.5 * np.square(np.maximum(r @ X, 0)).sum() - y @ r)

    r = np.zeros_like(y)
    for _ in range(_NEWTON_STEPS):
        active = X[:, r @ X > 0]
        step = np.linalg.solve(np.eye(len(y)) + active @ active.T, y) - r
        length = 1.0
        while dual(r + length * step) > dual(r) and length > _SHORTEST_STEP:
            length /= 2
        r = r + length * step
        if np.abs(step).max() < _NEWTON_TOLERANCE:
            break
    coef = np.maximum(r @ X, 0)
    return np.append(coef, mean - center @ coef)


class RowCalibration(Fitted):
    """What reference rows score: makes several scores of a row one, its surprisal among these rows.

    Every score (of V) is standardised for the row's mask, and then becomes a surprisal: minus the log of the share of
    reference rows with about as many cells observed that score at least as high. Surprisals of several scores add up
    (Fisher's way of combining tests), and the sum is ranked among those of the reference rows once more.

    Attributes
    ----------
    location, variance : Tensor of shape (V, D + 1)
    floor : Tensor of shape (V,)
        Of a `MaskCalibration` for each score.
    reference : Tensor of shape (V, N)
        Standardised scores of the reference rows, by members that have not seen them.
    group : int Tensor of shape (N,)
        How many of their cells are observed, in coarse steps.
    member : int Tensor of shape (N,)
        The member that has not seen each of them.
    weight : Tensor of shape (N,)
        One divided by how often a row is among those of its group, with other cells hidden: a row is one row's worth of
        evidence.
    """

    location: Tensor
    variance: Tensor
    floor: Tensor
    reference: Tensor
    group: Tensor
    member: Tensor
    weight: Tensor

    buffer_names = ("location", "variance", "floor", "reference", "group", "member", "weight")

    @classmethod
    def fit(cls, scores: NDArray, observed: NDArray, member: NDArray, row: NDArray | None = None) -> Self:
        """Learn from scores (V, N) of reference rows with masks (N, D), by members that have not seen them.

        `row` (N,) numbers the rows, where they come more than once.
        """
        masks = [MaskCalibration.fit_inliers(score, observed) for score in scores]
        group = _group(observed)
        numbers = np.arange(len(group)) if row is None else row
        _, place, copies = np.unique(numbers * (len(_STEPS) + 1) + group, return_inverse=True, return_counts=True)
        parts = {
            "location": [mask.location for mask in masks],
            "variance": [mask.variance for mask in masks],
            "floor": [mask.floor for mask in masks],
            "reference": [mask.score(score, observed) for mask, score in zip(masks, scores, strict=True)],
            "group": group,
            "member": member,
            "weight": 1 / copies[place],
        }
        return cls(**{name: torch.as_tensor(np.asarray(part)) for name, part in parts.items()})

    def combined(self, scores: NDArray, observed: NDArray) -> NDArray:
        """Scores (V, M, n) by each member of rows with masks (n, D) as one sum of surprisals, (M, n)."""
        parts = zip(_array(self.location), _array(self.variance), _array(self.floor), scores, strict=True)
        standard = [MaskCalibration(at, var, floor).score(s, observed) for at, var, floor, s in parts]
        total = np.zeros(scores.shape[1:])
        for like, rows in self._groups(observed):
            pairs = zip(_array(self.reference), standard, strict=True)
            total[:, rows] = sum(surprisal(reference[like], s[:, rows]) for reference, s in pairs)
        return total

    def surprisal(self, combined: NDArray, observed: NDArray) -> NDArray:
        """Surprisal of combined scores (M, n), averaged over the members: (n,), in nats."""
        out = np.zeros(combined.shape[1])
        for like, rows in self._groups(observed):
            out[rows] = surprisal(self._combined_reference(like), combined[:, rows].mean(0))
        return out

    def quantile(self, level: float) -> float:
        """Surprisal in nats that a share `level` of new reference rows stays below; of few rows it is the largest."""
        weight = _array(self.weight)
        reference = self._combined_reference(np.ones(len(weight), dtype=bool))
        n = weight.sum()
        return float(surprisal(reference, np.quantile(reference, min(1.0, level * (n + 1) / n))))

    def p_values(self, combined: NDArray, observed: NDArray) -> NDArray:
        """Conformal p-values (n,) of combined scores (M, n).

        ``(1 + #{reference rows that score at least as high}) / (N + 1)``, where each member counts among the rows that
        it has not seen (cross-conformal; Vovk 2015), those with about as many cells observed (Mondrian; Vovk et al.
        2005).
        """
        out = np.ones(combined.shape[1])
        members, weights = _array(self.member), _array(self.weight)
        for like, rows in self._groups(observed):
            reference, member, weight = self._combined_reference(like), members[like], weights[like]
            count = np.zeros(rows.sum())
            for m, score in enumerate(combined[:, rows]):
                own = np.flatnonzero(member == m)
                own = own[np.argsort(-reference[own])]
                above = np.append(0, np.cumsum(weight[own]))
                count += above[np.searchsorted(-reference[own], -score, side="right")]
            out[rows] = np.minimum((1 + count) / (weight.sum() + 1), 1)  # 1 but for rounding
        return out

    def _combined_reference(self, like: NDArray) -> NDArray:
        return sum((surprisal(own[like], own[like]) for own in _array(self.reference)), np.zeros(like.sum()))

    def _groups(self, observed: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
        """Per group of the rows with masks (n, D): the reference rows that are like them, and the rows."""
        group, known = _group(observed), _array(self.group)
        for g in np.unique(group):
            distance = np.abs(known - g)
            like = next(
                (distance <= d for d in range(len(_STEPS)) if (distance <= d).sum() >= _MIN_GROUP), distance >= 0
            )
            yield like, group == g


class CellCalibration(Fitted):
    """What reference cells score, of all columns together: makes a cell's score its surprisal among them.

    Attributes
    ----------
    reference : Tensor of shape (Q,)
        Quantiles of their scores, evenly spaced.
    """

    reference: Tensor

    buffer_names = ("reference",)

    @classmethod
    def fit(cls, scores: NDArray) -> Self:
        """Learn from scores (N,) of cells that are as they should be.

        Examples
        --------
        >>> CellCalibration.fit(np.arange(10_000.0)).surprisal(torch.tensor([5000.0, 9900.0])).round(decimals=1)
        tensor([0.7000, 4.6000])
        """
        ordered = np.sort(scores) if len(scores) else np.zeros(1)
        places = np.linspace(0, len(ordered) - 1, min(len(ordered), _QUANTILES)).round().astype(int)
        return cls(reference=torch.as_tensor(ordered[places]))

    def surprisal(self, scores: Tensor) -> Tensor:
        """``-log P(a reference cell scores at least as high)``, of the shape of `scores`, in nats.

        Scores are in nats themselves: the surprisal does not grow faster than they do.
        """
        return torch.as_tensor(surprisal(_array(self.reference), _array(scores), narrowest=1.0)).to(scores)


def _group(observed: NDArray) -> NDArray:
    return np.digitize(observed.mean(1), _STEPS)


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()
