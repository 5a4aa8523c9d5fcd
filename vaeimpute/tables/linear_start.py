"""The linear start: linear VAEs of several ranks, judged and averaged by what they make of rows they have not seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.gaussian.factor_analysis import FLOORS, FactorAnalysis, decode, fit_factor_analysis, posterior, widened
from vaeimpute.tables.queries import N_FOLDS, Queries
from vaeimpute.training.schedule import TimeBudget

_RANKS = (2, 4, 8, 12, 20, 32)
_WIDEST = 12  # features up to which the full rank is tried
_SWEEPS, _FOLD_SWEEPS, _LAST_SWEEPS = 8, 3, 6  # from a narrower fit; from the fit to all rows; on many rows
_FEW_ROWS, _FEW_ROWS_SWEEPS = 500, 8  # rows that a fold's fit would remember after so few sweeps; what they get
_TOLERANCE = 1e-3
_MANY_ROWS = 2000  # so many are enough to choose, and so many do not remember a single one
_BUDGET_SHARE = 0.3  # of a time budget
_PATIENCE = 2  # ranks without gain
_MIN_GAIN, _MIN_GAIN_OF_FLOOR = 0.002, 0.005
_NEARLY_AS_GOOD, _MOST_OTHERS = 1.15, 3  # error of a rank that is averaged in, in units of the best


class LinearFit(NamedTuple):
    """A linear VAE of all rows, those of the rows outside of each fold, and their error on the rows of the fold."""

    error: float
    whole: FactorAnalysis
    folds: list[FactorAnalysis]


class LinearStart(NamedTuple):
    """Linear fits of several ranks, the best one first, their weights in the average, and the noise floor (F,)."""

    fits: list[LinearFit]
    weight: Tensor
    floor: Tensor


def fit_linear_start(
    x: Tensor,
    observed: Tensor,
    fold: Tensor,
    queries: Queries,
    floor: Tensor,
    weight: Tensor,
    budget: TimeBudget,
    columns: Tensor | None = None,
) -> LinearStart:
    """Fit linear VAEs of growing rank, each from the one before, and lower the noise floor where that helps.

    Parameters
    ----------
    x, observed : Tensor of shape (n, F)
        Features and which are observed.
    fold : Tensor of shape (n,)
    queries : Queries
        Of rows of all folds, by whose squared error fits are chosen.
    floor : Tensor of shape (F,)
        Largest noise floor of each feature; those above the first of ``FLOORS`` stay as they are.
    weight : Tensor of shape (F,)
        Of a feature's error, so that a class counts once, and not once per level.
    budget : TimeBudget
        No further rank is tried once a third of it is spent.
    columns : int Tensor of shape (F,), optional
        Column of each feature, if features of one are observed together: it saves time where a column has many.
    """
    n_features = x.shape[1]
    all_x, all_observed, n = x, observed, len(x)
    x, observed, fold = x[:_MANY_ROWS], observed[:_MANY_ROWS], fold[:_MANY_ROWS]
    slices = queries.slices()
    n_judges = N_FOLDS if n <= _MANY_ROWS else N_FOLDS // 2
    judged = slice(0, slices[n_judges - 1].stop)
    total = (queries.held_out * queries.truth.square())[judged].sum(0).clamp(min=1e-9)

    n_fold_sweeps = _FOLD_SWEEPS if n >= _FEW_ROWS else _FEW_ROWS_SWEEPS

    def without(f: int, model: FactorAnalysis, floor: Tensor) -> FactorAnalysis:
        others = fold != f
        if not others.any():
            return model  # so few rows that they are all in one fold
        return fit_factor_analysis(
            x[others], observed[others], model.rank, floor, n_fold_sweeps, _TOLERANCE, model, columns
        )

    def trial(rank: int, floor: Tensor, start: FactorAnalysis | None, n_sweeps: int = _SWEEPS) -> LinearFit:
        whole = fit_factor_analysis(x, observed, rank, floor, n_sweeps, _TOLERANCE, start, columns)
        folds = [without(f, whole, floor) for f in range(n_judges)]
        answers = [_means(queries.at(part), model) for part, model in zip(slices, folds, strict=False)]
        errors = queries.at(judged).errors(torch.cat(answers)) / total
        return LinearFit(((errors * weight).sum() / weight.sum()).item(), whole, folds)

    low = floor.clamp(min=FLOORS[0])
    tried: list[LinearFit] = []
    best, failed = None, 0
    for rank in _ranks(n_features):
        if tried and not budget.allows("further ranks of the linear start", _BUDGET_SHARE):
            break
        start = widened(tried[-1].whole, x, observed, rank) if tried else None
        tried.append(trial(rank, low, start))
        if best is None or tried[-1].error < (1 - _MIN_GAIN) * best.error:
            best, failed = tried[-1], 0
        else:
            failed += 1
            if failed == _PATIENCE or rank > _WIDEST:
                break
    assert best is not None  # there is at least one rank
    for level in FLOORS[1:]:
        if not budget.allows("lower noise floors of the linear start", _BUDGET_SHARE):
            break
        lower = torch.where(floor <= FLOORS[0], floor.clamp(min=level), floor)
        now = trial(best.whole.rank, lower, best.whole, _FOLD_SWEEPS)
        if now.error >= (1 - _MIN_GAIN_OF_FLOOR) * best.error:
            break
        best, low = now, lower
        tried.append(now)
    others = [fit for fit in tried if fit is not best and fit.error < _NEARLY_AS_GOOD * best.error]
    chosen = [best, *sorted(others, key=lambda fit: fit.error)[:_MOST_OTHERS]]
    if n <= _MANY_ROWS:
        rest = range(n_judges, N_FOLDS)
        fits = [fit._replace(folds=fit.folds + [without(f, fit.whole, low) for f in rest]) for fit in chosen]
    else:
        last = [
            fit_factor_analysis(all_x, all_observed, fit.whole.rank, low, _LAST_SWEEPS, _TOLERANCE, fit.whole, columns)
            for fit in chosen
        ]
        fits = [LinearFit(fit.error, whole, [whole] * N_FOLDS) for fit, whole in zip(chosen, last, strict=True)]
    share = torch.tensor([(max(fit.error, 1e-9) / max(best.error, 1e-9)) ** -16 for fit in fits]).to(x)
    return LinearStart(fits, share / share.sum(), low)


def _ranks(n_features: int) -> list[int]:
    full = {max(n_features - 1, 1)} if n_features - 1 <= _WIDEST else set()
    return sorted({rank for rank in _RANKS if rank < n_features} | full)


def _means(queries: Queries, model: FactorAnalysis) -> Tensor:
    m, _ = posterior(queries.x, queries.visible > 0, model)
    return decode(m, model)
