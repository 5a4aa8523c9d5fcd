"""The closed form of a fit, stage by stage: linear VAEs, smoothers, stacking, random features, variances.

All stages are judged on the same cells, hidden from rows whose fold the linear VAEs have not seen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import FLOORS, FactorAnalysis, cell_variance
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.tables import corrections, defaults
from vaeimpute.tables.closed_form import ClosedFormSizes, ClosedFormVAE, Smoothed
from vaeimpute.tables.linear_start import LinearStart, fit_linear_start
from vaeimpute.tables.queries import Queries, hide_each_cell_once
from vaeimpute.tables.smoother import Given
from vaeimpute.tables.smoother_fit import SmootherTraining
from vaeimpute.tables.stacking import stacked_weight
from vaeimpute.training.schedule import TimeBudget

_SMOOTHER_SHARE, _FEATURES_SHARE = 0.6, 0.65  # of a time budget, after which stages end, or do not begin
_MIN_GAIN = 0.01  # a smoother that lowers the error by less is noise: an exactly linear table keeps the exact answer
_REFILL = 0.5  # of the steps, after which the reference rows are filled by the smoothers
_PSEUDO_VARIANCES, _NEWTON_STEPS = 3.0, 15
_LONGEST_STEP, _LARGEST_POWER = 0.5, 3.0
_MANY_FEATURES = 2  # a column, from which on it pays that they are observed together

Report = Callable[[str, int, float, float], None]  # stage, steps, error, error in units of the linear VAEs'


class ClosedForm(NamedTuple):
    """A closed-form model, and what later stages go on from.

    Attributes
    ----------
    model : ClosedFormVAE
    start : LinearStart
    rows : Tensor of shape (n,)
        Numbers of the rows that were looked at.
    fold : Tensor of shape (n,)
    queries : Queries
        By which all stages were judged.
    answers, variance : Tensor of shape (Q, F)
        Out of fold.
    linear_errors, errors : Tensor of shape (F,)
        Sums of squares of the linear VAEs, and of all stages.
    """

    model: ClosedFormVAE
    start: LinearStart
    rows: Tensor
    fold: Tensor
    queries: Queries
    answers: Tensor
    variance: Tensor
    linear_errors: Tensor
    errors: Tensor


class _Judge:
    """Queries by which stages are judged, and the report of what each makes of them."""

    def __init__(self, queries: Queries, weight: Tensor, report: Report) -> None:
        self.queries, self.weight, self.report = queries, weight, report
        self.total = (queries.held_out * queries.truth.square()).sum(0)
        self.first: float | None = None

    def __call__(self, stage: str, steps: int, answers: Tensor) -> None:
        """Report the squared error in units of the columns' variances, averaged over columns."""
        errors = self.queries.errors(answers) / self.total.clamp(min=1e-9)
        error = ((errors * self.weight).sum() / self.weight.sum()).item()
        self.first = error if self.first is None else self.first
        self.report(stage, steps, error, error / max(self.first, 1e-12))


class LinearStage(NamedTuple):
    """What the closed forms of one table share: the linear start, and the questions by which it was judged.

    Attributes
    ----------
    rows, fold : Tensor of shape (n,)
        Numbers of the rows that are looked at, and the part of each.
    x, known : Tensor of shape (n, F)
        Their features, and which are observed.
    weight : Tensor of shape (F,)
        Of a feature's error, so that a class counts once, and not once per level.
    queries : Queries
        That the smoothers learn from.
    few : Tensor of shape (Q,)
        Numbers of those that judge.
    start : LinearStart
    """

    rows: Tensor
    fold: Tensor
    x: Tensor
    known: Tensor
    weight: Tensor
    queries: Queries
    few: Tensor
    start: LinearStart


def fit_linear_stage(
    values: Tensor,
    observed: Tensor,
    specs: list[CellSpec],
    *,
    budget: TimeBudget,
    generator: Generator,
    repeats: int = 1,
) -> LinearStage:
    """Fit the linear start to cells (n, D), of whose rows at most `defaults.EM_ROWS` are looked at.

    Parameters
    ----------
    values, observed : Tensor of shape (n, D)
        In the precision of the model.
    specs : list of CellSpec
    budget : TimeBudget
    generator : Generator
    repeats : int
        How much more often a row is queried than by default.
    """
    rows = torch.randperm(len(values), device=values.device, generator=generator)[: defaults.EM_ROWS]
    likelihoods = ColumnLikelihoods(specs).to(values.device, values.dtype)
    columns, observed = likelihoods.feature_columns, observed[rows]
    known = observed[:, columns]
    x = torch.where(known, likelihoods.features(values[rows]), 0)
    weight = (1 / torch.bincount(columns)[columns]).to(x)
    queries, fold = hide_each_cell_once(x, observed, columns, defaults.n_queries(x.shape[1]), generator, repeats)
    few = queries.some(defaults.n_judged(x.shape[1], repeats), generator)
    shared = columns if len(columns) > _MANY_FEATURES * observed.shape[1] else None
    start = fit_linear_start(x, known, fold, queries.at(few), likelihoods.noise_floor().to(x), weight, budget, shared)
    return LinearStage(rows, fold, x, known, weight, queries, few, start)


def fit_closed_form(
    linear: LinearStage,
    specs: list[CellSpec],
    *,
    max_iter: int | None,
    budget: TimeBudget,
    generator: Generator,
    report: Report,
) -> ClosedForm:
    """Go on from the linear stage: smoothers, stacking, random features, variances.

    Parameters
    ----------
    linear : LinearStage
    specs : list of CellSpec
    max_iter : int, optional
        Largest number of steps of the smoothers.
    budget : TimeBudget
        Stages that do not fit in are left out.
    generator : Generator
    report : callable
        Receives what each stage made of the judged cells.
    """
    rows, fold, x, known, weight, queries, few, start = linear
    judge = _Judge(queries.at(few), weight, report)
    with torch.no_grad():
        smooths = budget.allows("smoothers", _SMOOTHER_SHARE)
        model = _start_model(start, specs, defaults.n_reference(*x.shape) if smooths else 0, len(x))
        given = _given_out_of_fold(model, start, queries)
        of_few = given.at(few)
        judge("linear", 0, of_few.mean)
        answers, of_smoothers = of_few.mean, torch.zeros_like(of_few.variance)
    if model.sizes.n_reference:
        place = _choose_reference(model, x, known, generator)[queries.row]
        half = (torch.randperm(len(x), device=x.device, generator=generator) % defaults.N_SMOOTHERS)[queries.row]
        backbones = [_padded(fit, model.sizes.rank) for fit in start.fits[0].folds]
        n_steps = min(defaults.smoother_steps(*x.shape), max_iter or sys.maxsize)
        n_reference_in_step = defaults.n_reference_in_step(x.shape[1])
        training = SmootherTraining(
            queries, given, place, half, backbones, weight, model.layout, n_steps, n_reference_in_step, generator
        )
        taken = _train_smoothers(model, training, budget)
        with torch.no_grad():
            smoothed = _judged(model, judge.queries, of_few, place[few], half[few], backbones)
            answers = _stack(model, judge.queries, of_few, smoothed)
            judge("smoother", taken, answers)
            if model.sizes.n_random and budget.allows("random features", _FEATURES_SHARE):
                answers = _add_features(model, judge.queries, answers, model.doubt(of_few.variance), generator)
                judge("random features", 1, answers)
        of_smoothers = smoothed.variance
        model.empty_variance[1] = _smoothed_empty_row(model)
    miss = judge.queries.held_out * (judge.queries.truth - answers).square()
    logs = model.log_variances(of_few.variance, of_smoothers)
    model.variance_power.copy_(_variance_powers(miss, judge.queries.held_out, logs))
    variance = model.variance(of_few.variance, of_smoothers)
    errors = judge.queries.errors(of_few.mean), judge.queries.errors(answers)
    return ClosedForm(model.eval(), start, rows, fold, judge.queries, answers, variance, *errors)


def _given_out_of_fold(model: ClosedFormVAE, start: LinearStart, queries: Queries) -> Given:
    """What the linear VAEs that have not seen the row make of each query."""
    parts = []
    for f, part in enumerate(queries.slices()):
        vaes = [_padded(fit.folds[f], model.sizes.rank) for fit in start.fits]
        parts.append(model.given(queries.x[part], queries.visible[part] > 0, vaes))
    return Given(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _choose_reference(model: ClosedFormVAE, x: Tensor, known: Tensor, generator: Generator) -> Tensor:
    """Take random rows as the reference; gives where each row stands among them, or -1."""
    rows = torch.randperm(len(x), device=x.device, generator=generator)[: model.sizes.n_reference]
    of_rows = _given_all_rows(model, x[rows], known[rows])
    _set_reference(model, x[rows], known[rows], of_rows.mean, of_rows.variance)
    place = torch.full((len(x),), -1, device=x.device)
    place[rows] = torch.arange(len(rows), device=x.device)
    return place


@torch.no_grad()
def _given_all_rows(model: ClosedFormVAE, x: Tensor, known: Tensor) -> Given:
    numbers = 2 * model.sizes.rank**2 + 4 * x.shape[1]
    parts = [model.given(x[part], known[part]) for part in row_slices(len(x), numbers)]
    return Given(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _train_smoothers(model: ClosedFormVAE, training: SmootherTraining, budget: TimeBudget) -> int:
    """Half of the steps; then the reference rows are filled by the smoothers instead of the linear VAEs; the rest."""
    middle = int(_REFILL * training.n_steps)
    try:
        taken = training.run(range(middle), model.reference_rows, budget, _SMOOTHER_SHARE)
        if taken == middle:
            _refill(model, training.theta)
            taken = training.run(range(middle, training.n_steps), model.reference_rows, budget, _SMOOTHER_SHARE)
    except KeyboardInterrupt:
        budget.interrupted = True
        taken = training.n_taken
    if taken < training.n_steps:
        budget.left_out.append(f"{training.n_steps - taken} of {training.n_steps} steps of the smoothers")
    model.theta.copy_(training.averaged)
    return taken


@torch.no_grad()
def _refill(model: ClosedFormVAE, theta: Tensor) -> None:
    x, known = model.reference * model.reference_known, model.reference_known > 0
    given, place = _given_all_rows(model, x, known), torch.arange(len(x), device=x.device)
    answers = torch.stack([model.smooth(each, given, place, model.linear_vaes[0]).answer for each in theta]).mean(0)
    less = torch.exp(2 * theta[:, -1].mean(0)).clamp(max=1)  # squared errors in units of the linear VAE's
    _set_reference(model, x, known, answers, less * given.variance)


@torch.no_grad()
def _smoothed_empty_row(model: ClosedFormVAE) -> Tensor:
    """Variance (F,) of what the smoothers average for a row without cells."""
    nothing = torch.zeros_like(model.b[:1])
    given = model.given(nothing, nothing > 0)
    place = torch.full((1,), -1, device=nothing.device)
    return torch.stack([model.smooth(t, given, place, model.linear_vaes[0]).variance for t in model.theta]).mean((0, 1))


def _stack(model: ClosedFormVAE, queries: Queries, given: Given, smoothed: Smoothed) -> Tensor:
    """Mix the linear mean and the smoothers', then regress on their differences; gives the answers."""
    n_held_out = queries.held_out.sum(0)
    typical = (queries.held_out * given.variance).sum(0) / n_held_out.clamp(min=1)
    model.typical_variance.copy_(torch.where(n_held_out > 0, typical, given.variance.mean(0)))
    doubt = model.doubt(given.variance)
    smooth = given.mean + doubt * (smoothed.answer - given.mean)
    gained = queries.errors(smooth) < (1 - _MIN_GAIN) * queries.errors(given.mean)
    model.linear_share.copy_(torch.where(gained, _linear_share(queries, given.mean, smooth), 1))
    answers = given.mean + (1 - model.linear_share) * (smooth - given.mean)
    inputs = doubt.unsqueeze(-1) * model.stacking_inputs(smoothed, given.mean, answers)
    correction, added = corrections.stack(queries, queries.truth - answers, inputs)
    model.stack_coef.copy_(correction.coef)
    model.stack_most.copy_(correction.most)
    return answers + added


def _start_model(start: LinearStart, specs: list[CellSpec], n_reference: int, n_rows: int) -> ClosedFormVAE:
    """The model as it is before any smoother: the average of the linear VAEs."""
    rank = max(fit.whole.rank for fit in start.fits)
    log_scale_floor = 0.5 * math.log(min(start.floor.min().item(), FLOORS[0])) - 1.2
    sizes = ClosedFormSizes(
        len(start.fits),
        rank,
        defaults.N_SMOOTHERS,
        n_reference,
        defaults.n_random(n_rows) if n_reference else 0,
        log_scale_floor,
    )
    model = ClosedFormVAE(sizes, specs).to(start.weight)
    wide = [_padded(fit.whole, rank) for fit in start.fits]
    for name, parts in zip(("W", "b", "psi"), zip(*wide, strict=True), strict=True):
        getattr(model, name).copy_(torch.stack(parts))
    model.linear_weight.copy_(start.weight)
    model.linear_share.fill_(1)
    model.scale.fill_(1)
    model.variance_power[0] = 1
    model.empty_variance[0] = cell_variance(torch.eye(rank).to(start.weight), model.linear_vaes[0])
    return model


def _padded(model: FactorAnalysis, rank: int) -> FactorAnalysis:
    return FactorAnalysis(pad(model.W, (0, rank - model.rank)), model.b, model.psi)


def _set_reference(model: ClosedFormVAE, x: Tensor, known: Tensor, mean: Tensor, variance: Tensor) -> None:
    model.reference.copy_(torch.where(known, x, mean))
    model.reference_variance.copy_(torch.where(known, 0, variance))
    model.reference_known.copy_(known)


def _judged(
    model: ClosedFormVAE, queries: Queries, given: Given, place: Tensor, half: Tensor, backbones: list[FactorAnalysis]
) -> Smoothed:
    """What is made of each query by the smoother that was taught by the other half of the rows."""
    parts, order = [], []
    for f, backbone in enumerate(backbones):
        for s, theta in enumerate(model.theta):
            rows = ((queries.fold == f) & (half == s)).nonzero().squeeze(-1)
            if len(rows):
                parts.append(model.smooth(theta, given.at(rows), place[rows], backbone))
                order.append(rows)
    back = torch.cat(order).argsort()
    return Smoothed(*(torch.cat(part)[back] for part in zip(*parts, strict=True)))


def _add_features(
    model: ClosedFormVAE, queries: Queries, answers: Tensor, doubt: Tensor, generator: Generator
) -> Tensor:
    """Draw random features, solve their regressions, and give the answers with what they add."""
    filled = torch.where(queries.visible > 0, queries.x, answers)
    features = corrections.RandomFeatures.drawn(filled, queries.visible, model.sizes.n_random, generator)
    inputs = features(filled, queries.visible)
    columns = model.likelihoods.feature_columns
    correction, added = corrections.regress_on_features(queries, answers, inputs, doubt, columns, model.indicators)
    names = ("directions", "knots", "center", "scale", "feature_coef", "feature_most")
    for name, value in zip(names, (*features, *correction), strict=True):
        getattr(model, name).copy_(value)
    return model.indicators.moved(answers, added)


def _linear_share(queries: Queries, linear: Tensor, smooth: Tensor) -> Tensor:
    """Weight of the linear mean beside the smoothers' in each feature, (F,)."""

    def total(products: Tensor) -> Tensor:
        return (queries.held_out * products).sum(0)

    # Cells that are held out again tell nothing more.
    return stacked_weight(
        linear - queries.truth, smooth - queries.truth, total, queries.held_out.sum(0) / queries.copies
    )


def _variance_powers(miss: Tensor, held_out: Tensor, logs: Tensor) -> Tensor:
    """Powers (2, F) of both variances under which squared misses (Q, F) are likeliest, by Newton steps in turn.

    The normal likelihood of a log-linear variance, which is convex, and some pseudo-cells for the linear VAE's alone.
    """
    power = torch.tensor([[1.0], [0.0]]).to(miss).repeat(1, miss.shape[1])
    prior = power.clone()
    for step in range(2 * _NEWTON_STEPS):
        i = step % 2
        relative = held_out * miss * torch.exp(-(power.unsqueeze(1) * logs).sum(0))
        gradient = (logs[i] * (held_out - relative)).sum(0) + _PSEUDO_VARIANCES * (power[i] - prior[i])
        curvature = (logs[i].square() * relative).sum(0) + _PSEUDO_VARIANCES
        power[i] = (power[i] - (gradient / curvature).clamp(-_LONGEST_STEP, _LONGEST_STEP)).clamp(0, _LARGEST_POWER)
    return power
