"""Every default of a table's models and their training, as functions of its rows and columns."""

from __future__ import annotations

import math
from dataclasses import replace

from vaeimpute.tables.data import Table
from vaeimpute.tables.models import ConditionalVAE, JointVAE, Sizes, TableVAE
from vaeimpute.tables.smoother import HEADS
from vaeimpute.training.schedule import Schedule

HELD_OUT = 0.1  # share of the observed cells that each member has to predict
MIN_ROWS = 40  # below, the linear model alone imputes
EM_ROWS = 20_000  # a linear model does not improve with more
_REFERENCE_ROWS = 8192  # training rows that the smoother looks at
_VALIDATION_ROWS = 1000  # of those with held-out cells, so that an evaluation stays cheap
_VALIDATION_CELLS = 60_000  # wide tables have many cells in a row
_FEWEST_STEPS = 50
_COST = 6e11  # floating-point operations of one training: ten to twenty seconds on a laptop's core


def n_members(n_rows: int) -> int:
    """Members of an ensemble: more where each is less sure."""
    return 4 if n_rows < 500 else 2


def n_validation_rows(n_columns: int) -> int:
    """Rows with held-out cells that are enough to see a difference."""
    return max(100, min(_VALIDATION_ROWS, _VALIDATION_CELLS // n_columns))


def sizes(kind: type[TableVAE], table: Table, rank: int, level: float) -> Sizes:
    """Sizes of a model of this table, whose linear start has this rank and this smallest noise variance."""
    n = len(table.values)
    log_scale_floor = 0.5 * math.log(level) - 1.2  # the network may go below the linear model's noise, not to zero
    if kind is JointVAE:
        dropout = 0.3 if any(table.n_categories) else 0.1 if n < 2000 else 0.0
        return Sizes(n_members(n), rank, 96, 2, dropout, log_scale_floor)
    dropout = 0.3 if n < 500 else 0.2 if n < 2000 else 0.1
    n_bins = 10 if n < 500 else 16
    n_features = sum(max(1, n_categories) for n_categories in table.n_categories)
    most = max(512, 32 * _REFERENCE_ROWS // n_features)
    n_reference = min(n, _REFERENCE_ROWS, most) if n >= MIN_ROWS else 0
    return Sizes(n_members(n), rank, 128, 2, dropout, log_scale_floor, n_bins, n_reference)


def schedules(model: TableVAE, table: Table) -> list[Schedule]:
    """How each stage of a model is trained."""
    if len(table.values) < MIN_ROWS:
        return [Schedule(steps=0, batch_size=1, learning_rate=1.0)] * len(model.stages())
    networks = _network_schedule(model, table)
    return [networks] if isinstance(model, JointVAE) else [_smoother_schedule(model, table), networks]


def _smoother_schedule(model: TableVAE, table: Table) -> Schedule:
    """Few parameters and a look at every reference row: many steps with few rows each."""
    batch_size, evaluate_every = (64, 50) if len(table.values) < 2000 else (32, 100)
    # Scores of 3 F terms and sums of 4 F values per row, head and reference row; a third as fast as a plain product.
    n_reference = min(model.sizes.n_reference, ConditionalVAE.n_reference_in_training)
    pairs = model.n_members * batch_size * len(HEADS) * n_reference
    steps = _affordable(300, 20 * pairs * 7 * model.likelihoods.n_features)
    return Schedule(steps, batch_size, 0.1, patience=3, evaluate_every=evaluate_every)


def _network_schedule(model: TableVAE, table: Table) -> Schedule:
    n, has_classes = len(table.values), any(table.n_categories)
    if isinstance(model, ConditionalVAE):
        refit, patience, evaluate_every = (0.2, 2, 50) if n < 2000 else (0.1, 1, 100)
        schedule = Schedule(200, 128, 2e-3, patience=patience, refit=refit, evaluate_every=evaluate_every)
    elif has_classes:
        rate = 1e-3 if n < 1500 else 2e-3
        most, batch_size = 600 if n < 500 else 400, 64 if n < 2000 else 128
        schedule = Schedule(min(most, 2 * n + 200), batch_size, rate, n_draws=(5, 5), patience=6)
    elif n < 2000:
        most, patience = (700, 5) if n < 500 else (400, 8)
        schedule = Schedule(min(most, 2 * n + 200), 64, 3e-3, n_draws=(5, 10), patience=patience)
    else:
        schedule = Schedule(400, 256, 4e-3, n_draws=(4, 4), patience=6, refit=0.1)
    weights = sum(p.numel() for p in model.parameters())
    # three times a plain product's
    steps = _affordable(schedule.steps, 18 * weights * schedule.batch_size * schedule.n_draws[1])
    batch_size = schedule.batch_size if steps > _FEWEST_STEPS else min(64, schedule.batch_size)  # very wide
    return replace(schedule, steps=steps, batch_size=batch_size)


def _affordable(steps: int, operations: int) -> int:
    """Wide tables get fewer steps; `operations` are those of one."""
    return min(steps, max(_FEWEST_STEPS, int(_COST / operations)))
