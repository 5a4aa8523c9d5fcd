"""Scores that can be compared: row likelihoods between masks, cell likelihoods between columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from vaeimpute.vae import inference
from vaeimpute.vae.inference import Ensemble

_BODY = 0.95  # quantile up to which a tail is counted; an exponential carries it on
_STEPS = (0.3, 0.5, 0.7, 0.9)  # shares of observed cells between which rows are compared
_MIN_GROUP = 100
_CALIBRATION_ROWS = 2000
_SURPRISE_ROWS = 200  # the mean of a column needs no more
_SURPRISE_PASSES = 20  # over these rows; in wide tables several columns share one
_SURPRISE_DRAWS = 16
_SURPRISE_CELLS = 1.5e8  # parameters decoded by all passes: some three seconds on a laptop's core
_ORDINARY = 0.97  # share of the rows that shape the calibration by mask


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
        average = max(float(squares.mean()), 1e-12)  # the solver wants targets of ordinary size
        variance = Ridge(1.0, positive=True).fit(bits, squares / average)
        return cls(
            np.append(location.coef_, location.intercept_),
            average * np.append(variance.coef_, variance.intercept_),
            0.01 * average,
        )

    def score(self, nll: NDArray, observed: NDArray) -> NDArray:
        """Standardised negative log-likelihood (n,); 0 for a row with nothing observed."""
        bits = np.column_stack([observed, np.ones(len(observed))]).astype(float)
        z = (nll - bits @ self.location) / np.sqrt(np.maximum(bits @ self.variance, self.floor))
        return np.where(observed.any(1), z, 0.0)

    def to_state(self) -> tuple[dict[str, NDArray], dict]:
        """As arrays and as plain numbers (JSON)."""
        return {"location": self.location, "variance": self.variance}, {"floor": self.floor}

    @classmethod
    def from_state(cls, tensors: Mapping[str, NDArray], header: Mapping, device: object = None) -> MaskCalibration:
        """The inverse of `to_state`."""
        return cls(tensors["location"], tensors["variance"], header["floor"])


def column_surprise(log_density: NDArray, observed: NDArray) -> NDArray:
    """Average negative log-density of each column's observed cells (D,): what an ordinary cell scores."""
    count = observed.sum(0)
    return -np.where(observed, log_density, 0).sum(0) / np.maximum(count, 1)


@dataclass(frozen=True)
class RowCalibration:
    """What ordinary rows score: makes several scores of a row one, and says how rare it is.

    Every score (of V) is standardised for the row's mask, and then becomes a surprise: minus the log of the share of
    ordinary rows with about as many cells observed that are at least as strange. Surprises of several scores add up
    (Fisher's way of combining tests), and the sum is ranked among those of the ordinary rows once more.

    Attributes
    ----------
    masks : tuple of MaskCalibration
        One per score.
    ordinary : ndarray of shape (V, N)
        Standardised scores of the ordinary rows, by members that have not seen them.
    group : int ndarray of shape (N,)
        How many of their cells are observed, in coarse steps.
    member : int ndarray of shape (N,)
        The member that has not seen each of them.
    weight : ndarray of shape (N,)
        One divided by how often a row is among those of its group, with other cells hidden: a row is one row's worth of
        evidence.
    """

    masks: tuple[MaskCalibration, ...]
    ordinary: NDArray
    group: NDArray
    member: NDArray
    weight: NDArray

    @classmethod
    def fit(cls, scores: NDArray, observed: NDArray, member: NDArray, row: NDArray | None = None) -> RowCalibration:
        """Learn from scores (V, N) of ordinary rows with masks (N, D), by members that have not seen them.

        `row` (N,) numbers the rows, where they come more than once.
        """
        masks = tuple(_ordinary_calibration(score, observed) for score in scores)
        standard = [mask.score(score, observed) for mask, score in zip(masks, scores, strict=True)]
        group = _group(observed)
        numbers = np.arange(len(group)) if row is None else row
        _, place, copies = np.unique(numbers * (len(_STEPS) + 1) + group, return_inverse=True, return_counts=True)
        return cls(masks, np.stack(standard), group, member, 1 / copies[place])

    def combined(self, scores: NDArray, observed: NDArray) -> NDArray:
        """Scores (V, M, n) by each member of rows with masks (n, D) as one sum of surprises, (M, n)."""
        standard = np.stack([mask.score(score, observed) for mask, score in zip(self.masks, scores, strict=True)])
        total = np.zeros(standard.shape[1:])
        for like, rows in self._groups(observed):
            total[:, rows] = sum(surprise(o[like], s[:, rows]) for o, s in zip(self.ordinary, standard, strict=True))
        return total

    def rarity(self, combined: NDArray, observed: NDArray) -> NDArray:
        """How surprising the combined scores (M, n) are, averaged over the members: (n,), in nats."""
        out = np.zeros(combined.shape[1])
        for like, rows in self._groups(observed):
            out[rows] = surprise(self._combined_ordinary(like), combined[:, rows].mean(0))
        return out

    def quantile(self, level: float) -> float:
        """Surprise that a share `level` of new ordinary rows stays below: nats. (Of few rows it is the largest.)"""
        everyone = np.ones(len(self.member), dtype=bool)
        ordinary = self._combined_ordinary(everyone)
        n = self.weight.sum()
        return float(surprise(ordinary, np.quantile(ordinary, min(1.0, level * (n + 1) / n))))

    def p_values(self, combined: NDArray, observed: NDArray) -> NDArray:
        """Conformal p-values (n,) of combined scores (M, n).

        ``(1 + #{ordinary rows at least as strange}) / (N + 1)``, where each member counts among the rows that it has
        not seen (cross-conformal; Vovk 2015), those with about as many cells observed (Mondrian; Vovk et al. 2005).
        """
        out = np.ones(combined.shape[1])
        for like, rows in self._groups(observed):
            ordinary, member, weight = self._combined_ordinary(like), self.member[like], self.weight[like]
            count = np.zeros(rows.sum())
            for m, score in enumerate(combined[:, rows]):
                own = np.flatnonzero(member == m)
                own = own[np.argsort(-ordinary[own])]
                above = np.append(0, np.cumsum(weight[own]))
                count += above[np.searchsorted(-ordinary[own], -score, side="right")]
            out[rows] = np.minimum((1 + count) / (weight.sum() + 1), 1)  # 1 but for rounding
        return out

    def to_state(self) -> tuple[dict[str, NDArray], dict]:
        """As arrays and as plain numbers (JSON)."""
        tensors = {name: getattr(self, name) for name in ("ordinary", "group", "member", "weight")}
        tensors |= {name: np.stack([getattr(mask, name) for mask in self.masks]) for name in ("location", "variance")}
        return tensors, {"floors": [mask.floor for mask in self.masks]}

    @classmethod
    def from_state(cls, tensors: Mapping[str, NDArray], header: Mapping, device: object = None) -> RowCalibration:
        """The inverse of `to_state`."""
        masks = zip(tensors["location"], tensors["variance"], header["floors"], strict=True)
        parts = (tensors[name] for name in ("ordinary", "group", "member", "weight"))
        return cls(tuple(MaskCalibration(*mask) for mask in masks), *parts)

    def _combined_ordinary(self, like: NDArray) -> NDArray:
        return sum((surprise(own[like], own[like]) for own in self.ordinary), np.zeros(like.sum()))

    def _groups(self, observed: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
        """Per group of the rows with masks (n, D): the ordinary rows that are like them, and the rows."""
        group = _group(observed)
        for g in np.unique(group):
            distance = np.abs(self.group - g)
            like = next(
                (distance <= d for d in range(len(_STEPS)) if (distance <= d).sum() >= _MIN_GROUP), distance >= 0
            )
            yield like, group == g


def _group(observed: NDArray) -> NDArray:
    return np.digitize(observed.mean(1), _STEPS)


def _ordinary_calibration(score: NDArray, observed: NDArray) -> MaskCalibration:
    """Without the strangest rows, whose scores have no bound."""
    first = MaskCalibration.fit(score, observed).score(score, observed)
    kept = first <= np.quantile(first, _ORDINARY)
    return MaskCalibration.fit(score[kept], observed[kept])


def surprise(ordinary: NDArray, scores: NDArray) -> NDArray:
    """``-log P(an ordinary score is at least as high)``: counted, and exponential above the ordinary 95% quantile.

    Parameters
    ----------
    ordinary : ndarray of shape (N,)
    scores : ndarray of any shape

    Examples
    --------
    >>> surprise(np.arange(1000.0), np.array([0.0, 499.0, 899.0, 999.0])).round(1)
    array([0. , 0.7, 2.3, 4.9])
    """
    # ties count half, so that a score that all rows share is neither strange nor the most ordinary
    values, count = np.unique(ordinary, return_counts=True)
    below = (np.cumsum(count) - 0.5 * count) / (len(ordinary) + 1)
    high = np.quantile(ordinary, _BODY)
    excess = (ordinary[ordinary > high] - high).mean() if (ordinary > high).any() else 0.0
    start = -np.log1p(-np.interp(high, values, below))
    body = -np.log1p(-np.interp(scores, values, below))
    return np.where(scores <= high, body, start + (scores - high) / max(excess, 1e-12))


def calibrate(ensemble: Ensemble, values: Tensor, observed: Tensor, seed: int) -> tuple[MaskCalibration, NDArray]:
    """Location and scale of row scores by mask, and the ordinary surprise of each column's cells.

    Parameters
    ----------
    ensemble : Ensemble
    values, observed : Tensor of shape (n, D)
        The training table.
    seed : int
    """
    rng = np.random.default_rng(seed)
    rows = torch.as_tensor(rng.permutation(len(values))[:_CALIBRATION_ROWS], device=values.device)
    values, observed = values[rows].to(ensemble.share), observed[rows]
    n_passes = min(values.shape[1], _SURPRISE_PASSES)
    affordable = int(_SURPRISE_CELLS / (n_passes * ensemble.joint.cells_per_row(_SURPRISE_DRAWS)))
    few = slice(0, max(20, min(_SURPRISE_ROWS, affordable)))
    # Columns that are hidden together are others in every row: two that tell one another must not always be.
    order = torch.as_tensor(rng.random(values[few].shape).argsort(1), device=values.device)
    log_density = inference.cell_log_density(ensemble, values[few], observed[few], _SURPRISE_DRAWS, n_passes, order)
    surprise = column_surprise(log_density.double().cpu().numpy(), observed[few].cpu().numpy())
    rate = rng.uniform(0, 0.8, (len(rows), 1)) * (rng.random((len(rows), 1)) < 0.75)
    kept = observed & torch.as_tensor(rng.random(observed.shape) >= rate).to(observed.device)
    nll = -inference.log_evidence(ensemble, values, kept)
    return MaskCalibration.fit(nll.double().cpu().numpy(), kept.cpu().numpy()), surprise
