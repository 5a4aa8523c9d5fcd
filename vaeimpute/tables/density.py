"""What an outlier detector learns: densities of rows and of wrong cells, neighbours, and what ordinary rows score.

The density is a mixture of linear VAEs. Every member is blind to the rows of its fold, so that all rows of the table
can say what ordinary rows score. (A network on top raises the likelihood, but finds no more strange rows: see
benchmarks/README.md.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaeimpute.anomaly.calibration import RowCalibration
from vaeimpute.anomaly.cellwise import Cells, doubtful
from vaeimpute.anomaly.contamination import Corruption
from vaeimpute.anomaly.lattice import Support
from vaeimpute.gaussian.factor_analysis import Linear
from vaeimpute.gaussian.mixture import (
    Mixture,
    choose_mixture,
    chunks,
    fit_mixture,
    leave_block_out,
    leave_one_out,
    log_evidence,
)
from vaeimpute.gaussian.trimmed import ERRORS, fit_robust
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.families import CellSpec
from vaeimpute.tables.data import Table, density_specs

FLOOR = 0.05  # smallest noise variance of a standardised column
N_FOLDS = 4
_MIN_ROWS = 4  # below, one member sees all rows
_REACH = 30.0  # standard deviations that a cell is away at most when a robust fit begins
_EM_ROWS = 10_000  # a mixture does not improve with more
_BANK = 4096  # rows that can be neighbours
_NEIGHBOURS = 3
_SAME = 1e-10  # squared distance per feature of two copies of a row: classes are not exact in single precision
_MANY_NEIGHBOURS = 20  # where some may be outliers
_BULK = 0.8  # share of the rows that can be neighbours then
_NARROW = 1e-3  # half an interquartile range that says nothing: most cells of the column are equal
_CALIBRATION_ROWS = 8000
_REMASKED = 4000  # of these, with further cells hidden
_SUSPICION = 0.5  # of the log-odds by value; all of them would trust the densities too much
_PARTS: dict[str, Any] = {"corruption": Corruption, "support": Support}


class Density(NamedTuple):
    """A fitted density of rows.

    Attributes
    ----------
    likelihoods : ColumnLikelihoods
    mixture : Mixture
        Of all members: ``log_weight`` (M, C), ``W`` (M, C, F, L) and so on.
    cell_mixture : Mixture
        The one that is asked for cells. A robust fit leaves out rows for the other, but of a row with a wrong cell this
        one learns from the rest.
    bank : Tensor of shape (N, F)
        Rows to be neighbours, their holes filled by the first member.
    margins : Tensor of shape (2, F)
        Median and half the interquartile range of each feature.
    corruption : Corruption
        Density of wrong cells.
    support : Support
        Where right cells stand.
    robust : bool
        Whether there were outliers among the training rows.
    """

    likelihoods: ColumnLikelihoods
    mixture: Mixture
    cell_mixture: Mixture
    bank: Tensor
    margins: Tensor
    corruption: Corruption
    support: Support
    robust: bool

    @property
    def n_components(self) -> int:
        """Components of each member."""
        return self.mixture.log_weight.shape[1]

    @property
    def weights(self) -> Tensor:
        """Any tensor that has the dtype and the device to compute with."""
        return self.bank

    def mask(self, observed: Tensor) -> np.ndarray:
        """What scores depend on besides the values, (n, D)."""
        return observed.cpu().numpy()

    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Scores of each row under each member, (V, M, n)."""
        return row_scores(self, values, observed)

    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        """Log-likelihood of each row's observed cells (n,), in nats."""
        return log_likelihood(self, values, observed)

    def cells(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Expected cells and scores, (n, D)."""
        return cells(self, values, observed)


def fit_density(
    table: Table, *, seed: int, dtype: torch.dtype, trimmed: float = 0.0
) -> tuple[Density, RowCalibration, bool]:
    """Fit a mixture to the rows outside of each fold, and learn what the rows of the fold score.

    Parameters
    ----------
    table : Table
    seed : int
    dtype : torch.dtype
        Precision of scores; the fit itself is in float64.
    trimmed : float
        Share of the strangest rows to leave out, where the table may hold outliers. Few components then: more would
        find one for each group of outliers.

    Returns
    -------
    density : Density
    calibration : RowCalibration
    interrupted : bool
        Whether Ctrl-C ended a training early: there is none.
    """
    rng = np.random.default_rng(seed)
    likelihoods = ColumnLikelihoods(density_specs(table), log_scale_floor=-10.0).to(table.values.device, torch.float64)
    n = len(table.values)
    order = torch.as_tensor(rng.permutation(n), device=table.values.device)
    n_members = N_FOLDS if n >= _MIN_ROWS else 1
    fold = torch.empty_like(order)
    fold[order] = torch.arange(n, device=order.device) % n_members
    some = order[:_EM_ROWS]
    values, observed = table.values[some].to(dtype), table.observed[some]
    support = Support.fit(values, observed, table.n_levels, wrong=ERRORS if trimmed else 0.0)
    corruption = Corruption.fit(table.values.to(dtype), table.observed, table.n_levels, some)
    x, o = likelihoods.features(table.values[some].double()), observed[:, likelihoods.feature_columns]
    x = x.clamp(-_REACH, _REACH) if trimmed else x
    members = [(fold[some] != m) | (n_members == 1) for m in range(n_members)]
    floor = likelihoods.noise_floor().to(x).clamp(min=FLOOR)
    if trimmed:
        off = support.off(values)[:, likelihoods.feature_columns]
        mixtures, of_cells = fit_robust(x, o, off, members, floor, trimmed, seed)
    else:
        sizes = choose_mixture(x, o, ~members[0], floor, seed=seed)
        mixtures = of_cells = [fit_mixture(x[own], o[own], *sizes, floor, seed=seed) for own in members]
    margins = _margins(x, o)
    x, o = x[:_BANK], o[:_BANK]
    near = _ordinary(x, o, mixtures[0], margins) if trimmed else slice(None)
    bank = _filled(x[near], o[near], mixtures[0])
    parts = (_stacked(mixtures).to(dtype), _stacked(of_cells).to(dtype), bank.to(dtype), margins.to(dtype))
    density = Density(likelihoods.to(dtype), *parts, corruption, support, trimmed > 0)
    return density, _calibrate(density, table, fold, rng), False


def _ordinary(x: Tensor, o: Tensor, mixture: Mixture, margins: Tensor) -> Tensor:
    """Which rows are likely no outliers."""
    scores = torch.stack([-log_evidence(x, o, mixture), _tails(x, o, margins)]) / o.sum(1).clamp(min=1)
    rank = scores.argsort(1).argsort(1).sum(0)
    return rank <= rank.double().quantile(_BULK)


def _calibrate(density: Density, table: Table, fold: Tensor, rng: np.random.Generator) -> RowCalibration:
    """What rows score under the member that has not seen them, as they are and with further cells hidden."""
    n = len(fold)
    plain = rng.permutation(n)[:_CALIBRATION_ROWS]
    again = rng.choice(plain, _REMASKED)
    rows = torch.as_tensor(np.concatenate([plain, again]), device=fold.device)
    rate = np.concatenate([np.zeros(len(plain)), rng.uniform(0, 0.8, _REMASKED)])
    kept = torch.as_tensor(rng.random((len(rows), table.observed.shape[1])) >= rate[:, None], device=fold.device)
    values, observed = table.values[rows].to(density.bank), table.observed[rows] & kept
    scores = row_scores(density, values, observed)
    own = scores[:, fold[rows], torch.arange(len(rows), device=fold.device)]
    return RowCalibration.fit(*(part.cpu().numpy() for part in (own, observed, fold[rows], rows)))


def _stacked(members: Sequence[Mixture]) -> Mixture:
    linear = zip(*(member.linear for member in members), strict=True)
    return Mixture(torch.stack([member.log_weight for member in members]), Linear(*map(torch.stack, linear)))


def _filled(x: Tensor, o: Tensor, mixture: Mixture) -> Tensor:
    """Rows with their holes at the expected value."""
    parts = [x[:0]]
    for rows in chunks(len(x), 4 * mixture.linear.W.numel()):
        rest = leave_one_out(x[rows], o[rows], mixture)  # of a hole, the others are all that is known
        parts.append((rest.log_weight.exp() * rest.mean).sum(0))
    return torch.where(o, x, torch.cat(parts))


def _margins(x: Tensor, o: Tensor) -> Tensor:
    """Median and half the interquartile range of each feature, (2, F)."""
    low, middle, high = torch.where(o, x, math.nan).nanquantile(torch.tensor([0.25, 0.5, 0.75]).to(x), 0)
    half = (high - low) / 2
    deviation = ((x - middle).square() * o).sum(0).div(o.sum(0)).sqrt()
    return torch.stack([middle, torch.where(half > _NARROW, half, deviation.clamp(min=_NARROW))])


def row_scores(density: Density, values: Tensor, observed: Tensor) -> Tensor:
    """Three scores of each row under each member, (3, M, n) in float64: higher is stranger.

    The first is the negative log-likelihood of the observed cells, in nats. The others, the same for all members, are
    the distance to the nearest row of the bank over these cells and the mean distance to some of the nearest. After a
    robust fit, where a few outliers may have found their way into the bank, the second is the negative log-likelihood
    of independent Cauchy-distributed columns, which see no relation between columns, and so none between outliers,
    and more neighbours are asked.

    Parameters
    ----------
    values, observed : Tensor of shape (n, D)
    """
    x, o = _inputs(density, values, observed)
    nll = -log_evidence(x, o, density.mixture)
    k = _MANY_NEIGHBOURS if density.robust else _NEIGHBOURS
    parts = chunks(len(x), len(density.bank) + k * x.shape[1])
    nearest = torch.cat([_distances(density.bank, x[rows], o[rows], k) for rows in parts])
    other = _tails(x, o, density.margins) if density.robust else nearest[:, 0]
    return torch.stack([nll, other.expand_as(nll), nearest.mean(-1).expand_as(nll)]).double()


def _tails(x: Tensor, o: Tensor, margins: Tensor) -> Tensor:
    """Negative log-likelihood (n,) of independent Cauchy-distributed features, up to a constant."""
    middle, half = margins
    return torch.where(o, ((x - middle) / half).square().log1p(), 0).sum(-1)


def _distances(bank: Tensor, x: Tensor, observed: Tensor, k: int) -> Tensor:
    """Distances (B, k) to the nearest rows of the bank but one that is the same, over the observed features.

    So the rows of the training table, which are in the bank, are treated as new ones.
    """
    o = observed.to(x.dtype)
    terms, features = torch.cat([o, -2 * o * x], -1), torch.cat([bank.square(), bank], -1)
    candidates = (terms @ features.T).topk(min(k + 1, len(bank)), largest=False).indices
    way = torch.where(observed.unsqueeze(1), bank[candidates] - x.unsqueeze(1), 0)  # not a difference of large numbers
    nearest = way.square().sum(-1).sort(-1).values
    same = (nearest[:, :1] <= _SAME * o.sum(1, keepdim=True)) & (len(bank) > 1)
    return torch.where(same, nearest.roll(-1, 1), nearest)[:, : min(k, max(1, len(bank) - 1))].sqrt()


def log_likelihood(density: Density, values: Tensor, observed: Tensor) -> Tensor:
    """Log-likelihood of each row's observed cells (n,), in nats: members are averaged as densities."""
    x, o = _inputs(density, values, observed)
    members = log_evidence(x, o, density.mixture)
    return torch.logsumexp(members, 0) - math.log(len(members))


def cells(density: Density, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """What the rest of its row says of each cell, where cells that are likely wrong have as little say.

    Parameters
    ----------
    values, observed : Tensor of shape (n, D)
        Cells that are not observed have no say, but are answered for like the others.

    Returns
    -------
    expected, score : Tensor of shape (n, D)
        The expected cell, and how strange the one that stands in `values` is: ``-log p(x_j | the believed others)``
        and half of the log-density that it would have if it were wrong. What stands off its column's grid, or is new
        to it, is so much less likely.
    """
    likelihoods, (weight, linear) = density.likelihoods, density.cell_mixture
    flat = Mixture((weight - math.log(len(weight))).flatten(), Linear(*(p.flatten(0, 1) for p in linear)))
    answers, scores = [], []
    for rows in chunks(len(values), 4 * linear.W.numel()):
        wrong = density.corruption.log_density(values[rows])
        right = density.support.log_probability(values[rows])
        said = doubtful(
            lambda x, believed: _cells(likelihoods, flat, x, believed),
            values[rows],
            observed[rows],
            math.log(1 / ERRORS - 1) - wrong + right,
            likelihoods.answer_columns,
        )
        answers.append(said.answers)
        scores.append(_SUSPICION * wrong - said.log_density - right)
    return likelihoods.points(torch.cat(answers)), torch.cat(scores)


def _cells(likelihoods: ColumnLikelihoods, mixture: Mixture, values: Tensor, observed: Tensor) -> Cells:
    columns, answer_columns = likelihoods.feature_columns, likelihoods.answer_columns
    x, o = likelihoods.features(values), observed[:, columns]
    mean, variance, log_weight = leave_one_out(x, o, mixture)
    log_weight = log_weight[..., _first_features(columns, values.shape[1])]  # (C, B, D)
    for j in torch.bincount(columns).gt(1).nonzero().squeeze(-1).tolist():  # the levels of a class tell one another
        own = (columns == j).nonzero().squeeze(-1)
        mean[..., own], variance[..., own], weight = leave_block_out(x, o, mixture, own)
        log_weight[..., j] = weight[..., 0]
    params = likelihoods.base(mean, 0.5 * variance.log())
    log_px = likelihoods.log_prob(params, values)
    answers = (log_weight[..., answer_columns].exp() * likelihoods.answers(params)).sum(0)
    return Cells(answers, torch.logsumexp(log_weight + log_px, 0))


def _first_features(columns: Tensor, n_columns: int) -> Tensor:
    """Position of one feature of each column."""
    first = torch.zeros(n_columns, dtype=torch.long, device=columns.device)
    return first.scatter_(0, columns, torch.arange(len(columns), device=columns.device))


def _inputs(density: Density, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    likelihoods = density.likelihoods
    return likelihoods.features(values), observed[:, likelihoods.feature_columns]


def to_state(density: Density) -> tuple[dict[str, np.ndarray], dict]:
    """Everything that makes up a density, as arrays and as plain numbers (JSON)."""
    tensors = {"bank": density.bank, "margins": density.margins}
    for part, (weight, linear) in (("rows", density.mixture), ("cells", density.cell_mixture)):
        tensors |= {f"{part}/{key}": value for key, value in {"log_weight": weight, **linear._asdict()}.items()}
    for part in _PARTS:
        tensors |= {f"{part}/{key}": value for key, value in getattr(density, part)._asdict().items()}
    header = {"specs": [asdict(spec) for spec in density.likelihoods.specs], "robust": density.robust}
    return {key: value.cpu().numpy() for key, value in tensors.items()}, header


def from_state(tensors: Mapping[str, np.ndarray], header: Mapping, device: torch.device) -> Density:
    """The inverse of `to_state`, on any device."""
    specs = [CellSpec(s["family"], tuple(s["points"]), tuple(s["edges"])) for s in header["specs"]]
    arrays = {key: torch.tensor(array, device=device) for key, array in tensors.items()}
    likelihoods = ColumnLikelihoods(specs, log_scale_floor=-10.0).to(device, arrays["bank"].dtype)
    mixture, cell_mixture = (
        Mixture(arrays[f"{part}/log_weight"], Linear(*(arrays[f"{part}/{key}"] for key in Linear._fields)))
        for part in ("rows", "cells")
    )
    corruption, support = (kind(*(arrays[f"{name}/{key}"] for key in kind._fields)) for name, kind in _PARTS.items())
    own = (arrays["bank"], arrays["margins"], corruption, support, header["robust"])
    return Density(likelihoods, mixture, cell_mixture, *own)
