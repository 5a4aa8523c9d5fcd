"""Every default of a table's models and their training, as functions of its rows and columns."""

from __future__ import annotations

from dataclasses import replace

from vaeimpute.tables.data import Table
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.tables.smoother import N_HEADS
from vaeimpute.training.schedule import Schedule

MIN_ROWS = 40  # below, the linear model alone imputes
EM_ROWS = 20_000  # a linear model does not improve with more
DRAWN_ROWS = 4096  # that draw the parameters of completed tables: with more, their doubt is a small part of a cell's
_REFERENCE_ROWS = 8192  # training rows that the smoother looks at
_VALIDATION_ROWS = 1000  # of those with held-out cells, so that an evaluation stays cheap
_VALIDATION_CELLS = 60_000  # wide tables have many cells in a row
N_SMOOTHERS = 2  # each is taught by one half of the rows and judged by the other
SMOOTHER_BATCH = 64  # rows of each in a step
_QUERIES, _JUDGED = 20_000, 4000  # rows with cells hidden that smoothers learn from, and that stages are judged by
FULL_REPEATS = 4  # of a full fit: rows of middling tables come so much more often, and more queries judge
_REFERENCE_IN_STEP = 2048  # reference rows that are looked at in a step of the smoothers' training
_RANDOM_FEATURES, _RANDOM_ROWS = 256, 4  # at most, and rows for each
_SMOOTHER_STEPS, _FEWEST_SMOOTHER_STEPS = 85, 30
_SMOOTHER_COST = 1.2e11  # floating-point operations of their training: a second or two on a laptop's core
_WIDE = 1000  # features beyond which all that grows with them is cut
_FEWEST_STEPS = 50
_COST = 6e11  # floating-point operations of one training: ten to twenty seconds on a laptop's core


def n_queries(n_features: int) -> int:
    """Rows with hidden cells that the smoothers learn from."""
    return max(400, min(_QUERIES, 2_000_000 // n_features))


def n_judged(n_features: int, repeats: int = 1) -> int:
    """Rows with hidden cells by which the stages of the closed form are judged."""
    return max(400, repeats * min(_JUDGED, 400_000 // n_features))


def n_reference(n_rows: int, n_features: int) -> int:
    """Training rows that the smoothers look at; wide tables get fewer, and tiny ones none."""
    if n_rows < MIN_ROWS:
        return 0
    fewest = 512 if n_features <= _WIDE else 512 * _WIDE // n_features
    return min(n_rows, _REFERENCE_ROWS, max(fewest, 32 * _REFERENCE_ROWS // n_features))


def n_reference_in_step(n_features: int) -> int:
    """Reference rows that are looked at in a step of the smoothers' training."""
    return min(_REFERENCE_IN_STEP, max(512, 32 * _REFERENCE_IN_STEP // n_features))


def smoother_steps(n_rows: int, n_features: int) -> int:
    """Steps of the smoothers' training; what is very wide gets fewer."""
    pairs = (
        N_SMOOTHERS * SMOOTHER_BATCH * N_HEADS * min(n_reference_in_step(n_features), n_reference(n_rows, n_features))
    )
    operations = max(
        1, 8 * pairs * 3 * n_features
    )  # a product of 3 F terms a pair, one of 3 F sums, and both ways back
    return max(_FEWEST_SMOOTHER_STEPS, min(_SMOOTHER_STEPS, int(_SMOOTHER_COST / operations)))


def n_random(n_rows: int) -> int:
    """Random features; few rows would only teach them noise."""
    return min(_RANDOM_FEATURES, n_rows // _RANDOM_ROWS) if n_rows >= 100 else 0


def n_members(n_rows: int) -> int:
    """Members of an ensemble: more where each is less sure."""
    return 4 if n_rows < 500 else 2


def n_validation_rows(n_columns: int) -> int:
    """Rows with held-out cells that are enough to see a difference."""
    return max(100, min(_VALIDATION_ROWS, _VALIDATION_CELLS // n_columns))


def joint_sizes(table: Table, rank: int, log_scale_floor: float) -> Sizes:
    """Sizes of the joint model with networks, whose linear start has this rank."""
    n = len(table.values)
    dropout = 0.3 if any(table.n_categories) else 0.1 if n < 2000 else 0.0
    return Sizes(n_members(n), rank, 96, 2, dropout, log_scale_floor)


def joint_schedule(model: JointVAE, table: Table) -> Schedule:
    """How the networks of the joint model are trained."""
    n, has_classes = len(table.values), any(table.n_categories)
    if has_classes:
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
