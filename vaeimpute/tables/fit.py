"""From a table to its fitted models, stage by stage: closed form first, networks only where they are asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from vaeimpute.anomaly.density import FittedModels
from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.gaussian.factor_analysis import FactorAnalysis, fit_factor_analysis
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.tables import defaults
from vaeimpute.tables.closed_form import SMALLEST_VARIANCE, ClosedFormStack
from vaeimpute.tables.closed_form_fit import ClosedForm, fit_closed_form, fit_linear_stage
from vaeimpute.tables.data import Table, cell_specs
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.tables.ensemble_density import fit_ensemble_density
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.tables.stacking import stacking_weight
from vaeimpute.training.loop import Validation, fit_model, refit_model
from vaeimpute.training.runtime import OnEvaluation, make_generator
from vaeimpute.training.schedule import TimeBudget, shortened
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import latent_noise

_CLOSED_FORMS = 4  # of a full fit, each with other smoothers and other random features
_DRAWS = 16  # of an evaluation
_MIN_GAIN = 0.03  # in squared error, below which a column's margins are the linear VAE's
_DRAWN_FLOOR = 1e-2  # largest noise floor of drawn parameters: that of classes serves guesses, and flattens draws
_CALIBRATION_QUERIES, _CALIBRATION_CELLS = 2000, 250_000  # at most, that calibrate intervals
_BLIND_SWEEPS = 8  # of a member's linear VAE, from that of all cells
# Shares of a time budget: no further closed form begins after the first, no networks after the second, whose training
# ends at the third; beyond the fourth, scores are calibrated on few rows.
_CLOSED_SHARE, _NETWORKS_SHARE, _JOINT_SHARE, _CALIBRATION_SHARE = 0.3, 0.5, 0.85, 0.9


def fit_imputer(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    effort: str = "auto",
    time_budget: float | None = None,
    max_iter: int | None = None,
    self_masked: Tensor | None = None,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> FittedModels:
    """Fit the models of a table, and learn what its rows and cells score under them.

    Parameters
    ----------
    table : Table
        On the device that shall do the work.
    seed : int
    dtype : torch.dtype
        Precision of models and sums; small linear systems are solved in float64.
    effort : {"auto", "full"}
        "auto" is the closed form: linear VAEs, smoothers, random features. "full" averages several of them, and adds
        the networks of the joint model.
    time_budget : float, optional
        Seconds after which the best so far is returned.
    max_iter : int, optional
        Largest number of training steps of each stage.
    self_masked : bool Tensor of shape (D,), optional
        Columns of numbers whose cells are taken to hide themselves.
    on_evaluation : callable
        Receives the stage's name, the newest record of its history and the number of its steps.
    """
    budget = TimeBudget(time_budget)
    options: dict[str, Any] = {"effort": effort, "max_iter": max_iter, "on_evaluation": on_evaluation}
    ensemble, history, closed = _fit_stages(table, seed=seed, dtype=dtype, budget=budget, **options)
    if self_masked is not None and self_masked.any():
        ensemble.hide_themselves(self_masked)
    hurry = not budget.allows("most of the rows that calibrate scores", _CALIBRATION_SHARE)
    has_networks = isinstance(ensemble.joint, JointVAE) and ensemble.joint.sizes.width
    blind = None if has_networks else _blind_to_folds(closed, len(table.values))
    density = fit_ensemble_density(ensemble, table, seed=seed, blind=blind, hurry=hurry)
    return FittedModels(density, ensemble, tuple(history), budget.interrupted, tuple(budget.left_out))


def fit_ensemble(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    budget: TimeBudget,
    effort: str = "auto",
    max_iter: int | None = None,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> tuple[TableEnsemble, list[dict]]:
    """The models of `fit_imputer`, and the records of their evaluations."""
    options: dict[str, Any] = {"effort": effort, "max_iter": max_iter, "on_evaluation": on_evaluation}
    return _fit_stages(table, seed=seed, dtype=dtype, budget=budget, **options)[:2]


def _fit_stages(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    budget: TimeBudget,
    effort: str,
    max_iter: int | None,
    on_evaluation: OnEvaluation,
) -> tuple[TableEnsemble, list[dict], ClosedForm]:
    specs, history = cell_specs(table), []
    values = table.values.to(dtype)

    def report(stage: str, step: int, error: float, relative: float) -> None:
        record = {"model": stage, "step": step, "error": error, "relative_error": relative}
        history.append(record | {"seconds": budget.elapsed()})
        try:
            on_evaluation(stage, history[-1], step)
        except KeyboardInterrupt:
            budget.interrupted = True

    generator = make_generator(seed, values.device)
    repeats = defaults.FULL_REPEATS if effort == "full" else 1
    linear = fit_linear_stage(values, table.observed, specs, budget=budget, generator=generator, repeats=repeats)
    fits: list[ClosedForm] = []
    options: dict[str, Any] = {"max_iter": max_iter, "budget": budget, "report": report}
    for k in range(_CLOSED_FORMS if effort == "full" else 1):
        if fits and not budget.allows("further closed forms", _CLOSED_SHARE):
            break
        generator = make_generator(seed + k, values.device) if k else generator
        fits.append(fit_closed_form(linear, specs, generator=generator, **options))
    conditional = fits[0].model if len(fits) == 1 else ClosedFormStack(*(fit.model for fit in fits)).eval()
    weight = torch.zeros(values.shape[1], dtype=dtype, device=values.device)
    wants_networks = effort == "full" and len(values) >= defaults.MIN_ROWS
    if wants_networks and budget.allows("networks of the joint model", _NETWORKS_SHARE):
        options = {"seed": seed, "budget": budget, "max_iter": max_iter, "on_evaluation": on_evaluation}
        joint, weight, more = _train_joint(table, values, specs, fits, **options)
        history += more
    else:
        joint = _linear_joint(fits[0], [fits[0].start.fits[0].whole])
    some = linear.rows[: defaults.DRAWN_ROWS]
    ensemble = TableEnsemble(
        joint,
        conditional,
        Margins.fit(table.values, table.observed),
        Lattice.fit(table.values, table.observed, table.n_categories),
        _interval_calibration(table, fits[0]),
        stacking_weight=weight,
        rows=table.values[some].double(),
        known=table.observed[some],
        floor=linear.start.floor.clamp(max=_DRAWN_FLOOR),
        is_linear=_is_linear(fits, conditional.likelihoods.feature_columns),
    )
    return ensemble, history, fits[0]


def _interval_calibration(table: Table, closed: ClosedForm) -> IntervalCalibration:
    """What was made of held-out cells of numbers by fits that have not seen them."""
    likelihoods, queries = closed.model.likelihoods, closed.queries
    most = min(_CALIBRATION_QUERIES, _CALIBRATION_CELLS // len(likelihoods.specs))
    first, step = likelihoods.first_features, -(-len(queries.row) // max(most, 1))
    some = torch.arange(0, len(queries.row), step, device=first.device)
    held_out = (queries.held_out[some][:, first] > 0) & ~closed.model.is_class[first]
    return IntervalCalibration(
        truth=table.values[closed.rows[queries.row[some]]].double(),  # exact: values that repeat are to be told as such
        held_out=held_out,
        mean=closed.answers[some][:, first],
        deviation=closed.variance[some][:, first].clamp(min=SMALLEST_VARIANCE).sqrt(),
    )


def _is_linear(fits: list[ClosedForm], columns: Tensor) -> Tensor:
    """Columns (D,) whose held-out cells no later stage has come nearer to than the linear VAEs have."""
    errors = torch.stack([torch.stack([fit.linear_errors, fit.errors]) for fit in fits]).mean(0)  # (2, F)
    linear, all_stages = errors.new_zeros(2, int(columns.max()) + 1).index_add_(1, columns, errors)
    return all_stages >= (1 - _MIN_GAIN) * linear


def _linear_joint(closed: ClosedForm, fits: list[FactorAnalysis]) -> JointVAE:
    """The joint model without networks: linear VAEs, one a member."""
    sizes = Sizes(len(fits), fits[0].rank, 0, 0, 0.0, closed.model.sizes.log_scale_floor)
    joint = JointVAE(sizes, closed.model.likelihoods.specs).to(fits[0].W)
    joint.start(FactorAnalysis(*(torch.stack(part) for part in zip(*fits, strict=True))))
    return joint.eval()


def _blind_to_folds(closed: ClosedForm, n_rows: int) -> tuple[JointVAE, Tensor]:
    """The joint model without networks, whose members have not seen a fold; and which has not seen a row, or -1."""
    unseen_by = torch.full((n_rows,), -1, device=closed.fold.device)
    unseen_by[closed.rows] = closed.fold
    return _linear_joint(closed, closed.start.fits[0].folds), unseen_by


def _train_joint(
    table: Table,
    values: Tensor,
    specs: list[CellSpec],
    fits: list[ClosedForm],
    *,
    seed: int,
    budget: TimeBudget,
    max_iter: int | None,
    on_evaluation: OnEvaluation,
) -> tuple[JointVAE, Tensor, list[dict]]:
    """The joint model with networks, its weight in each column beside the closed forms, and its history.

    Each member is blind to some cells of the rows of one fold, which judge it, as they judged the closed forms.
    """
    device, closed = values.device, fits[0]
    init, generator = make_generator(seed), make_generator(seed, device)
    sizes = defaults.joint_sizes(table, closed.start.fits[0].whole.rank, closed.model.sizes.log_scale_floor)
    model = JointVAE(sizes, specs, init).to(closed.model.W)
    M = model.n_members
    queries, first = closed.queries, model.likelihoods.first_features
    chosen = (queries.fold < M).nonzero().squeeze(-1)
    order = torch.randperm(len(chosen), device=device, generator=generator)
    chosen = _one_of_each_row(queries.row, chosen[order])[: defaults.n_validation_rows(values.shape[1])]
    judged = queries.at(chosen)
    visible, of_query = judged.visible[:, first] > 0, judged.held_out[:, first] > 0
    member = torch.arange(M, device=device).unsqueeze(1)
    held_out = (judged.fold == member).unsqueeze(-1) & of_query  # (M, Q, D)
    rows = closed.rows[judged.row]
    validation = Validation(values[rows], visible.expand(M, -1, -1), held_out, latent_noise(model, _DRAWS))

    hidden = torch.zeros(M, len(closed.rows), values.shape[1], dtype=torch.bool, device=device)
    hidden[judged.fold, judged.row] = of_query
    model.start(_blind_backbones(closed, values, table.observed, hidden))

    def get_batch(size: int, generator: Generator, *, blind: bool = False) -> Batch:
        index = torch.randint(len(closed.rows), (M, size), device=device, generator=generator)
        picked = closed.rows[index]
        observed = table.observed[picked]
        return Batch(values[picked], observed & ~hidden[member, index] if blind else observed)

    schedules = shortened([defaults.joint_schedule(model, table)], max_iter)
    options: dict[str, Any] = {"generator": generator, "budget": budget}
    extra: dict[str, Any] = {"name": "joint", "share": _JOINT_SHARE, "on_evaluation": on_evaluation}
    result = fit_model(model, partial(get_batch, blind=True), validation, schedules, **options, **extra)
    budget.allows("further steps of the joint model's networks", _JOINT_SHARE)
    answers = torch.stack([fit.answers for fit in fits]).mean(0)[chosen]
    variance = closed.variance[chosen].clamp(min=SMALLEST_VARIANCE)
    expected = model.likelihoods.gaussian_expectations(answers, 0.5 * variance.log())
    residuals = expected - model.likelihoods.targets(values[rows])
    of_cells = model.likelihoods.expectation_columns
    residuals = torch.where(held_out[:, :, of_cells], residuals, 0)
    weight = stacking_weight(result.residuals, residuals, of_cells, held_out.sum((0, 1)))
    refit_model(model, get_batch, schedules[-1].for_refit(result.steps), **options)
    return model.eval(), weight, result.history


def _blind_backbones(closed: ClosedForm, values: Tensor, observed: Tensor, hidden: Tensor) -> FactorAnalysis:
    """A linear VAE for each member (M, ...), fitted without the cells that are hidden from it (M, n, D)."""
    best, likelihoods = closed.start.fits[0].whole, closed.model.likelihoods
    x, columns = likelihoods.features(values[closed.rows]), likelihoods.feature_columns
    seen = observed[closed.rows]
    fits = [
        fit_factor_analysis(x, (seen & ~own)[:, columns], best.rank, closed.start.floor, _BLIND_SWEEPS, start=best)
        for own in hidden
    ]
    return FactorAnalysis(*(torch.stack(part) for part in zip(*fits, strict=True)))


def _one_of_each_row(row: Tensor, chosen: Tensor) -> Tensor:
    """The first of the chosen queries (C,) of each row."""
    place = torch.arange(len(chosen), device=chosen.device)
    first = torch.full((int(row.max()) + 1,), len(chosen), device=chosen.device)
    first.scatter_reduce_(0, row[chosen], place, "amin")
    return chosen[first[row[chosen]] == place]
