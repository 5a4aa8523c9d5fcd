"""From a table to its fitted models: linear start, both networks, their weights per column, the dispersion of draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from vaeimpute.anomaly.density import FittedModels
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables import defaults
from vaeimpute.tables.data import Table, cell_specs
from vaeimpute.tables.ensemble_density import fit_ensemble_density
from vaeimpute.tables.linear_start import CrossFit, LinearStart
from vaeimpute.tables.models import ConditionalVAE, JointVAE, TableVAE
from vaeimpute.tables.stacking import dispersion, stacking_weight
from vaeimpute.training.loop import GetBatch, TrainingResult, Validation, fit_model, refit_model
from vaeimpute.training.runtime import OnEvaluation, make_generator
from vaeimpute.training.schedule import Schedule, TimeBudget, shortened
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import Ensemble, latent_noise
from vaeimpute.vae.masking import HeldOutCells

_JOINT_SHARE, _CONDITIONAL_SHARE = 0.45, 0.85  # of a time budget, after which a model's training must be done
_JOINT_DRAWS, _CONDITIONAL_DRAWS = 16, 4  # of an evaluation
_CANDIDATES = 20  # rows that are looked at for each row with held-out cells
_DISPERSION_ROWS, _DISPERSION_CELLS = 1000, 10_000

M = TypeVar("M", bound=TableVAE)


def fit_imputer(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    time_budget: float | None = None,
    max_iter: int | None = None,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> FittedModels:
    """Fit both models to a table, and learn what its rows and cells score under them.

    Parameters
    ----------
    table : Table
        On the device that shall do the work.
    seed : int
    dtype : torch.dtype
        Precision of the networks; the linear model is always fitted in float64.
    time_budget : float, optional
        Seconds after which the best so far is returned.
    max_iter : int, optional
        Largest number of training steps of each model.
    on_evaluation : callable
        Receives the model's name, the newest record of its history and the number of its steps.
    """
    budget = TimeBudget(time_budget)
    ensemble, history = fit_ensemble(
        table, seed=seed, dtype=dtype, budget=budget, max_iter=max_iter, on_evaluation=on_evaluation
    )
    density = fit_ensemble_density(ensemble, table, seed=seed)
    return FittedModels(density, ensemble, tuple(history), budget.interrupted)


class _Trained(NamedTuple, Generic[M]):
    """A model after its training with held-out cells, and what its refit on all cells needs."""

    model: M
    result: TrainingResult
    schedule: Schedule
    folds: CrossFit | None


def fit_ensemble(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    budget: TimeBudget,
    max_iter: int | None = None,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> tuple[Ensemble, list[dict]]:
    """The two models of `fit_imputer`, and the records of their evaluations."""
    device = table.values.device
    init, generator = make_generator(seed), make_generator(seed, device)
    values, observed = table.values.to(dtype), table.observed
    n, n_columns = values.shape
    held_out = HeldOutCells(defaults.HELD_OUT, defaults.n_members(n), seed)

    def visible(rows: Tensor) -> Tensor:
        return observed[rows] & ~held_out(rows, n_columns)

    # Only rows with something to predict, and no more than it takes to see a difference; the same for both models.
    most = defaults.n_validation_rows(n_columns)
    rows = torch.randperm(n, device=device, generator=generator)[: _CANDIDATES * most]
    predicted = observed[rows] & held_out(rows, n_columns)
    some = predicted.any(-1).any(0).nonzero().squeeze(-1)[:most]
    rows, predicted = rows[some], predicted[:, some]
    specs = cell_specs(table)
    start = LinearStart(table, specs[0], held_out, generator)

    def train(kind: type[M], name: str, specs: list[CellSpec], n_draws: int, share: float) -> _Trained[M]:
        model = kind(defaults.sizes(kind, table, start.rank, start.level), specs, init).to(device, dtype)
        backbone, folds = start.backbones(model.likelihoods, dtype)
        folds = folds if kind is ConditionalVAE else None
        model.start(backbone, values, observed, generator)
        model.remember(visible)
        schedules = shortened(defaults.schedules(model, table), max_iter)
        validation = Validation(values[rows], visible(rows), predicted, latent_noise(model, n_draws))
        get_batch = _batches(values, visible, held_out.n_members, folds)
        options: dict[str, Any] = {"generator": generator, "budget": budget, "on_evaluation": on_evaluation}
        result = fit_model(model, get_batch, validation, schedules, name=name, share=share, **options)
        return _Trained(model, result, schedules[-1], folds)

    joint = train(JointVAE, "joint", specs[0], _JOINT_DRAWS, _JOINT_SHARE)
    conditional = train(ConditionalVAE, "conditional", specs[1], _CONDITIONAL_DRAWS, _CONDITIONAL_SHARE)
    columns = joint.model.likelihoods.expectation_columns
    weight = stacking_weight(joint.result.residuals, conditional.result.residuals, columns, predicted.sum((0, 1)), n)
    few = slice(0, max(100, min(_DISPERSION_ROWS, _DISPERSION_CELLS // n_columns)))
    is_continuous = torch.tensor([spec.family == "gaussian" for spec in specs[0]], device=device)
    given = (values[rows[few]], visible(rows[few]), predicted[:, few], is_continuous, generator)
    factor = dispersion(joint.model, conditional.model, weight, *given)
    for trained in (joint, conditional):
        model = trained.model
        model.remember(lambda rows: observed[rows].unsqueeze(0))
        everything = _batches(values, lambda rows: observed[rows], held_out.n_members, trained.folds)
        schedule = trained.schedule.for_refit(trained.result.steps)
        refit_model(model, everything, schedule, generator=generator, budget=budget)
    history = [*joint.result.history, *conditional.result.history]
    return Ensemble(joint.model, conditional.model, weight, factor), history


def _batches(values: Tensor, visible: Callable[[Tensor], Tensor], n_members: int, folds: CrossFit | None) -> GetBatch:
    """Random rows of a table; with folds all from one of them, and the backbone that has not seen it."""

    def get_batch(size: int, generator: Generator) -> Batch:
        options: dict[str, Any] = {"device": values.device, "generator": generator}
        if folds is None:
            rows = torch.randint(len(values), (n_members, size), **options)
            return Batch(values[rows], visible(rows), rows)
        chosen = int(torch.randint(len(folds.rows), (1,), **options))
        own = folds.rows[chosen]
        rows = own[torch.randint(len(own), (n_members, size), **options)]
        return Batch(values[rows], visible(rows), rows, folds.backbones[chosen])

    return get_batch
