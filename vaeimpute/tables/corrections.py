"""Ridge regressions on what a stage leaves: of its own estimates (stacking), and of random features of the filled row.

Penalties and gains are judged by halves of the folds: one half of the queries is answered with what the other taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from vaeimpute.tables.queries import Queries

_STACKING_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # in units of the inputs' mean square
_FEATURE_PENALTIES = (1e-2, 1e-1, 1.0)
_STACKING_GAIN, _FEATURE_GAIN = 0.003, 0.005  # share of the error that a regression must take away
_PSEUDO_CELLS = (2, 4)  # and so many cells' worth of it: few cells prove little, and copies of them nothing more
_NEWTON_STEPS = 15
_SMALLEST_PROBABILITY = 1e-3  # of a class, before a regression moves it
_FEWEST = 20  # cells of a half
_INSIDE = 3.0  # standard deviations up to which random features look: beyond, they would extrapolate
_FARTHEST = 5.0  # standard deviations of an input
_SMALLEST_SCALE = 1e-2  # of an input that is nearly constant
_MOST_TOGETHER = 3  # cells that a random feature looks at
_WIDEST = 100  # features up to which the cells themselves, and which are visible, are inputs too


class Correction(NamedTuple):
    """What regressions add to an answer: coefficients (F, I), and the largest that was seen to help, (F,)."""

    coef: Tensor
    most: Tensor

    def bounded(self, correction: Tensor) -> Tensor:
        """Corrections (B, F) no larger than those that were judged."""
        return torch.minimum(torch.maximum(correction, -self.most), self.most)


def stack(queries: Queries, residual: Tensor, inputs: Tensor) -> tuple[Correction, Tensor]:
    """Regress what an answer leaves of each feature on the estimates behind it (stacking, Breiman 1996).

    Parameters
    ----------
    queries : Queries
    residual : Tensor of shape (Q, F)
        Truth less answer.
    inputs : Tensor of shape (Q, F, I)
        Estimates less answer.

    Returns
    -------
    Correction
    added : Tensor of shape (Q, F)
        What the other half of the queries would have added to each answer.
    """
    x, y = inputs.permute(1, 0, 2).double(), residual.T.unsqueeze(-1).double()  # (F, Q, I), (F, Q, 1)
    held_out = queries.held_out.T.unsqueeze(-1).double()
    halves = [held_out * (queries.fold % 2 == half).view(1, -1, 1) for half in range(2)]
    of_half = [half * x for half in halves]
    grams, moments = (torch.stack([part.mT @ target for part in of_half]) for target in (x, y))  # (2, F, I, ...)
    unit = grams.sum(0).diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-8).view(-1, 1, 1) / 2  # (F, 1, 1)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    penalties = torch.tensor(_STACKING_PENALTIES, dtype=x.dtype, device=x.device)
    ridge = penalties.view(-1, 1, 1, 1, 1) * unit * eye  # (penalties, 1, F, I, I)
    coefs = torch.linalg.solve(grams.flip(0) + ridge, moments.flip(0))  # of each half by what the other teaches
    before = (held_out * y.square()).sum((1, 2))
    changes = (coefs * (grams @ coefs - 2 * moments)).sum((1, 3, 4))  # of the squared error, (penalties, F)
    least, best = changes.min(0)
    n_cells = held_out.sum((1, 2))
    few = torch.stack([half.sum((1, 2)) for half in halves]).amin(0) < _FEWEST
    share = 1 - _STACKING_GAIN - _PSEUDO_CELLS[0] * queries.copies / n_cells.clamp(min=1)
    gained = (before + least < share * before) & ~few
    coef = torch.linalg.solve(grams.sum(0) + 2 * penalties[best].view(-1, 1, 1) * unit * eye, moments.sum(0))
    coef = torch.where(gained.view(-1, 1), coef.squeeze(-1), 0)
    of_best = coefs.take_along_dim(best.view(1, 1, -1, 1, 1), 0).squeeze(0)  # (2, F, I, 1)
    added = sum(part @ own for part, own in zip(of_half, of_best, strict=True)).squeeze(-1)
    added = torch.where(gained.view(-1, 1), added, 0).T.to(residual)
    return Correction(coef.to(inputs), added.abs().amax(0)), added


class RandomFeatures(NamedTuple):
    """Rectified random directions of few cells each, the cells, and which are visible; standardised (I,).

    Random features whose last layer is solved: extreme learning machines (Huang et al. 2006), random kitchen sinks
    (Rahimi and Recht 2008).

    Attributes
    ----------
    directions : Tensor of shape (F, P)
    knots : Tensor of shape (P,)
        Where each begins to rise.
    center, scale : Tensor of shape (I,)
    """

    directions: Tensor
    knots: Tensor
    center: Tensor
    scale: Tensor

    @staticmethod
    def n_inputs(n_features: int, n_random: int) -> int:
        """Number of inputs I."""
        return 1 + n_random + (2 * n_features if n_features <= _WIDEST else 0)

    @classmethod
    def drawn(cls, filled: Tensor, visible: Tensor, n_random: int, generator: Generator) -> RandomFeatures:
        """So many random directions, whose knots are training rows."""
        F = filled.shape[1]
        options: dict[str, Any] = {"device": filled.device, "generator": generator}
        size = torch.randint(1, _MOST_TOGETHER + 1, (n_random,), **options)
        order = torch.rand(F, n_random, **options).argsort(0).argsort(0)
        directions = torch.randn(F, n_random, dtype=filled.dtype, **options) * (order < size)
        directions = directions / directions.norm(dim=0).clamp(min=1e-6)
        rows = torch.randint(len(filled), (n_random,), **options)
        knots = (filled[rows].clamp(-_INSIDE, _INSIDE) * directions.T).sum(1)
        raw = cls(directions, knots, filled.new_zeros(1), filled.new_ones(1))._raw(filled, visible)
        center, scale = raw.mean(0), raw.std(0).clamp(min=_SMALLEST_SCALE)
        center[0], scale[0] = 0, 1  # the constant
        return cls(directions, knots, center, scale)

    def __call__(self, filled: Tensor, visible: Tensor) -> Tensor:
        """Inputs (B, I) of rows (B, F) whose hidden cells are filled."""
        return ((self._raw(filled, visible) - self.center) / self.scale).clamp(-_FARTHEST, _FARTHEST)

    def _raw(self, filled: Tensor, visible: Tensor) -> Tensor:
        inside = filled.clamp(-_INSIDE, _INSIDE)
        cells = [inside, visible] if filled.shape[1] <= _WIDEST else []
        return torch.cat([torch.ones_like(filled[:, :1]), torch.relu(inside @ self.directions - self.knots), *cells], 1)


class Indicators:
    """The features that stand for the classes of a column, and what they say as probabilities.

    Parameters
    ----------
    columns : Tensor of shape (F,)
        Column of each feature.
    low_high : Tensor of shape (2, F)
        What each is where it says no and where it says yes; NaN for numbers.
    """

    def __init__(self, columns: Tensor, low_high: Tensor) -> None:
        self.features = low_high[0].isfinite().nonzero().squeeze(-1)
        self.columns = columns[self.features].unique(return_inverse=True)[1]
        self.low, high = low_high[:, self.features]
        self.step = high - self.low

    def moved(self, mean: Tensor, added: Tensor) -> Tensor:
        """Means (B, F) with corrections (B, F): of numbers themselves, of classes the log-odds; normalised again."""
        if not len(self.features):
            return mean + added
        logits = self.logits(mean) + added[:, self.features]
        weight = torch.exp(logits - logits.amax(1, keepdim=True)).clamp(min=1e-30)
        n_columns = int(self.columns.max()) + 1
        total = weight.new_zeros(len(weight), n_columns).index_add_(1, self.columns, weight)
        moved = self.low + self.step * weight / total[:, self.columns]
        return (mean + added).index_copy(1, self.features, moved)

    def logits(self, mean: Tensor) -> Tensor:
        """Logarithms (B, C) of what the means (B, F) of these features say."""
        return ((mean[:, self.features] - self.low) / self.step).clamp(min=_SMALLEST_PROBABILITY).log()


def regress_on_features(
    queries: Queries, answers: Tensor, inputs: Tensor, doubt: Tensor, columns: Tensor, indicators: Indicators
) -> tuple[Correction, Tensor]:
    """Regress what answers leave of each column on inputs that all columns share.

    Numbers by least squares, classes by multinomial logistic regression.

    Parameters
    ----------
    queries : Queries
    answers : Tensor of shape (Q, F)
    inputs : Tensor of shape (Q, I)
    doubt : Tensor of shape (Q, F)
        How far each number may be moved.
    columns : Tensor of shape (F,)
    indicators : Indicators

    Returns
    -------
    Correction
        Of means; of the log-odds of classes.
    added : Tensor of shape (Q, F)
        What the other half of the queries would have added, for `Indicators.moved`.
    """
    coef, added = inputs.new_zeros(len(columns), inputs.shape[1]), torch.zeros_like(answers)
    is_class = torch.zeros_like(columns, dtype=torch.bool).index_fill(0, indicators.features, True)
    residual, logits = queries.truth - answers, answers.clone()
    logits[:, indicators.features] = indicators.logits(answers)
    for column in columns.unique():
        own = (columns == column).nonzero().squeeze(-1)  # levels of a class are hidden together: one system for all
        halves = _halves(queries, int(own[0]))
        if min(map(len, halves)) < _FEWEST:
            continue
        if is_class[own[0]]:
            one_hot = torch.nn.functional.one_hot(queries.truth[:, own].argmax(1), len(own)).to(answers)
            of_halves = [(inputs[rows], logits[rows.unsqueeze(1), own], one_hot[rows]) for rows in halves]
            solved = _logistic(of_halves, _FEATURE_PENALTIES, _FEATURE_GAIN, _PSEUDO_CELLS[1] * queries.copies)
        else:
            scaled = inputs * doubt[:, own]  # a number is one feature
            parts = [(scaled[rows], residual[rows.unsqueeze(1), own]) for rows in halves]
            solved = _ridge(parts, _FEATURE_PENALTIES, _FEATURE_GAIN, _PSEUDO_CELLS[1] * queries.copies)
        if solved is not None:
            coef[own] = solved.coef.T
            for rows, answer in zip(halves, solved.answers, strict=True):
                added[rows.unsqueeze(1), own] = answer
    return Correction(coef, added.abs().amax(0)), added


class _Solved(NamedTuple):
    """Coefficients (I, T) by all rows, and the answers for each half by the other one's coefficients."""

    coef: Tensor
    answers: list[Tensor]


def _halves(queries: Queries, feature: int) -> list[Tensor]:
    """Numbers of the queries of each half that ask for a feature."""
    held_out = queries.held_out[:, feature] > 0
    return [(held_out & (queries.fold % 2 == half)).nonzero().squeeze(-1) for half in range(2)]


def _ridge(
    parts: Sequence[tuple[Tensor, Tensor]], penalties: Sequence[float], gain: float, pseudo_cells: float
) -> _Solved | None:
    """Ridge regression of targets (m, T) on inputs (m, I), two halves of them; None where it gains too little."""
    gram, moment = torch.stack([a.T @ a for a, _ in parts]), torch.stack([a.T @ y for a, y in parts])
    unit = gram.sum(0).diagonal().mean().clamp(min=1e-8) / 2
    penalty = unit * torch.tensor(penalties, dtype=gram.dtype, device=gram.device)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    chol, _ = torch.linalg.cholesky_ex(gram.flip(0).unsqueeze(1) + penalty.view(1, -1, 1, 1) * eye)
    coef = torch.cholesky_solve(moment.flip(0).unsqueeze(1).expand(-1, len(penalty), -1, -1), chol)
    answers = [a @ c for (a, _), c in zip(parts, coef, strict=True)]  # (penalties, m, T)
    errors = sum((y - answer).square().sum((1, 2)) for (_, y), answer in zip(parts, answers, strict=True))
    before = sum(y.square().sum() for _, y in parts)
    n_cells = sum(len(y) for _, y in parts)
    best = int(torch.as_tensor(errors).argmin())
    if not errors[best] < (1 - gain - pseudo_cells / n_cells) * before:
        return None
    chol, _ = torch.linalg.cholesky_ex(gram.sum(0) + 2 * penalty[best] * eye)
    return _Solved(torch.cholesky_solve(moment.sum(0), chol), [answer[best] for answer in answers])


def _logistic(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], penalties: Sequence[float], gain: float, pseudo_cells: float
) -> _Solved | None:
    """Multinomial logistic regression of classes (m, L) on inputs (m, I), beside logits (m, L) that are there already.

    Newton's method with a bound of the Hessian that never changes, ``(A'A / 2 + penalty)``: one factorisation for all
    steps, and each lowers the loss (Boehning, Annals of the Institute of Statistical Mathematics 1992).
    """
    gram = torch.stack([a.T @ a for a, _, _ in parts])
    unit = gram.sum(0).diagonal().mean().clamp(min=1e-8) / 2
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def solve(rows: Sequence[tuple[Tensor, Tensor, Tensor]], bound: Tensor, penalty: float) -> Tensor:
        inputs, logits, one_hot = (torch.cat(part) for part in zip(*rows, strict=True))
        chol, _ = torch.linalg.cholesky_ex(bound / 2 + penalty * eye)
        coef = inputs.new_zeros(inputs.shape[1], one_hot.shape[1])
        for _ in range(_NEWTON_STEPS):
            surprise = torch.softmax(logits + inputs @ coef, 1) - one_hot
            coef = coef - torch.cholesky_solve(inputs.T @ surprise + penalty * coef, chol)
        return coef

    def loss(answers: Sequence[Tensor]) -> float:
        each = zip(parts, answers, strict=True)
        return sum(-(y * (logits + answer).log_softmax(1)).sum().item() for (_, logits, y), answer in each)

    before, n_cells = loss([torch.zeros_like(y) for _, _, y in parts]), sum(len(y) for _, _, y in parts)
    best: tuple[float, float, list[Tensor]] | None = None
    for penalty in penalties:
        scaled = penalty * unit.item()
        coefs = [solve([parts[1 - half]], gram[1 - half], scaled) for half in range(2)]
        answers = [a @ coef for (a, _, _), coef in zip(parts, coefs, strict=True)]
        after = loss(answers)
        if best is None or after < best[0]:
            best = after, scaled, answers
    if best is None or not best[0] < (1 - gain - pseudo_cells / n_cells) * before:
        return None
    return _Solved(solve(parts, gram.sum(0), 2 * best[1]), best[2])
