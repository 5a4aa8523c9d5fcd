"""From a table to its fitted readings: linear start, both networks, their shares per column, the spread of draws.

Everything that a default depends on is a function of (rows, columns) and stands in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from vaeimpute.gaussian.factor_analysis import FLOORS, Linear, choose_linear, fit_linear
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.families import CellSpec
from vaeimpute.tables.data import Table, cell_specs
from vaeimpute.tables.models import ConditionalVAE, JointVAE, MaskedVAE, ModelConfig
from vaeimpute.tables.smoother import HEADS
from vaeimpute.training.loop import Check, Clock, Fit, Folds, Plan, fit_model, refit_model, seeded, summed_per_column
from vaeimpute.vae.inference import Ensemble, draw_per_member, latent_noise

HELD_OUT = 0.1  # share of the observed cells that each member is asked for
N_FOLDS = 4
R = TypeVar("R", bound=MaskedVAE)
MIN_ROWS = 40  # below, the linear model alone answers
_BANK_ROWS = 8192  # training rows that vote on a cell
_CHECK_ROWS = 1000  # of the rows with held-out cells, so that a look stays cheap
_CHECK_CELLS = 60_000  # wide tables have many cells in a row
_STACKED, _PRIOR_CELLS = 2000, 100  # rows from which the readings' shares are fitted, and cells that the prior is worth
_ALIKE = 0.05  # squared difference of both answers, in squared errors, that says little
_EM_ROWS = 20_000  # a linear model does not improve with more
_FEWEST_STEPS = 50
_COST = 6e11  # floating-point operations of one training: ten to twenty seconds on a laptop's core


def fit_table(
    table: Table,
    *,
    seed: int,
    dtype: torch.dtype,
    time_budget: float | None = None,
    on_check: Callable[[str, dict, int], None] = lambda reading, record, n_steps: None,
) -> tuple[Ensemble, list[dict], bool]:
    """Fit both readings to a table.

    Parameters
    ----------
    table : Table
        On the device that shall do the work.
    seed : int
        Seeds PyTorch's generators for the time of the call; afterwards they are as before.
    dtype : torch.dtype
        Precision of the networks; the linear model is always fitted in float64.
    time_budget : float, optional
        Seconds after which the best so far is returned.
    on_check : callable
        Receives the reading's name, the newest record of its history and the number of its steps.

    Returns
    -------
    ensemble : Ensemble
    history : list of dict
        Records of all checks, each with the name of its reading.
    interrupted : bool
        Whether Ctrl-C ended the training early.
    """
    clock = Clock(time_budget or math.inf)
    with seeded(seed):
        return _fit(table, dtype, clock, on_check)


class _Trained(NamedTuple, Generic[R]):
    """A reading after its training with held-out cells, and what its refit on all cells needs."""

    model: R
    fit: Fit
    plan: Plan
    folds: Folds | None


def _fit(table: Table, dtype: torch.dtype, clock: Clock, on_check: Callable) -> tuple[Ensemble, list[dict], bool]:
    values, observed = table.values.to(dtype), table.observed
    held_out = observed & (torch.rand(_n_members(len(values)), *observed.shape, device=values.device) < HELD_OUT)
    seen = observed & ~held_out
    # Only rows with something to ask, and no more than it takes to see a difference; the same for both readings.
    rows = held_out.any(-1).any(0).nonzero().squeeze(-1)
    most = max(100, min(_CHECK_ROWS, _CHECK_CELLS // values.shape[1]))
    rows = rows[torch.randperm(len(rows), device=rows.device)[:most]]
    specs = cell_specs(table)
    start = _LinearStart(table, specs[0], held_out)

    def train(kind: type[R], name: str, specs: list[CellSpec], share: float) -> _Trained[R]:
        model = kind(_config(kind, table, start.rank, start.level), specs).to(values.device, dtype)
        linear, folds = start.backbones(model.likelihoods, dtype)
        folds = folds if kind is ConditionalVAE else None
        model.start(linear, values, observed)
        plans = _plans(model, table)
        n_steps = sum(plan.steps for plan in plans)

        def report(record: dict) -> None:
            on_check(name, record, n_steps)

        noise = latent_noise(model, 16 if kind is JointVAE else 4)
        check = Check(values[rows], seen[:, rows], held_out[:, rows], noise)
        fit = fit_model(model, values, seen, check, plans, folds=folds, clock=clock, share=share, on_check=report)
        return _Trained(model, fit, plans[-1], folds)

    joint = train(JointVAE, "joint", specs[0], share=0.45)
    conditional = train(ConditionalVAE, "conditional", specs[1], share=0.85)
    columns, n_asked = joint.model.likelihoods.answer_columns, held_out[:, rows].sum((0, 1))
    share = _shares(joint.fit.misses, conditional.fit.misses, columns, n_asked, len(values))
    continuous = torch.tensor([spec.family == "gaussian" for spec in specs[0]], device=values.device)
    spread = _spread(joint.model, conditional.model, share, values, observed, held_out, continuous)
    for trained in (joint, conditional):
        steps = int(trained.plan.refit * trained.fit.steps)
        refit_model(trained.model, values, observed, trained.plan, steps, folds=trained.folds, clock=clock)
    history = [
        {"reading": name, **record}
        for name, trained in (("joint", joint), ("conditional", conditional))
        for record in trained.fit.history
    ]
    return Ensemble(joint.model, conditional.model, share, spread), history, clock.interrupted


class _LinearStart:
    """Linear backbones of one table: rank and noise floor chosen, then one fit per member and fold, for both readings.

    The readings have the same features in another order; here they stand in the order of the table's columns.
    """

    def __init__(self, table: Table, specs: list[CellSpec], held_out: Tensor) -> None:
        n = len(table.values)
        rows = torch.randperm(n, device=table.values.device)[:_EM_ROWS]
        likelihoods = ColumnLikelihoods(specs).to(rows.device, torch.float64)
        order = likelihoods.feature_columns.argsort(stable=True)
        columns = likelihoods.feature_columns[order]
        features, observed = (
            likelihoods.features(table.values[rows].double())[:, order],
            table.observed[rows][:, columns],
        )
        hidden, floor = held_out[:, rows][..., columns], likelihoods.noise_floor().to(order.device)[order].double()
        weight = 1 / torch.bincount(columns)[columns].double()
        at_most = floor.clamp(min=FLOORS[0])
        self.rank, chosen = choose_linear(features, observed, hidden[0], at_most, weight=weight)
        self.level = min(chosen.min().item(), FLOORS[0])
        floor = floor.clamp(min=self.level)
        # Members are blind to their held-out cells, a fold's backbone to the rows of that fold.
        self.members = [fit_linear(features, observed & ~h, self.rank, floor) for h in hidden]
        self.fold_rows, self.folds = [], []
        if MIN_ROWS <= n <= _EM_ROWS:
            fold = torch.arange(n, device=rows.device) % N_FOLDS
            self.fold_rows = [rows[fold == f] for f in range(N_FOLDS)]
            parts = [fold != f for f in range(N_FOLDS)]
            self.folds = [fit_linear(features[part], observed[part], self.rank, floor, 20) for part in parts]

    def backbones(self, likelihoods: ColumnLikelihoods, dtype: torch.dtype) -> tuple[Linear, Folds | None]:
        """The members' and the folds', as one reading lays out its features."""
        place = likelihoods.feature_columns.argsort(stable=True).argsort()
        members, folds = (
            [Linear(*(p[place] for p in linear)).to(dtype) for linear in fits] for fits in (self.members, self.folds)
        )
        stacked = Linear(*(torch.stack(p) for p in zip(*members, strict=True)))
        return stacked, Folds(self.fold_rows, folds) if folds else None


def _shares(joint: Tensor, conditional: Tensor, columns: Tensor, n_asked: Tensor, n: int) -> Tensor:
    """Share of the joint reading per column, (D,), from what both miss on held-out cells, (M, n, A).

    Inversely to the fourth power of the error: close to an even average where both do as well, which is safest on small
    tables, and close to a choice where one is clearly better. Large tables can afford the share with the least squared
    error (stacking, Breiman 1996), with the former as a prior. One half where nothing was asked.
    """

    def sums(products: Tensor) -> Tensor:
        return summed_per_column(products, columns, len(n_asked))

    of_joint, of_conditional = sums(joint.square()), sums(conditional.square())
    ratio = (of_joint / of_conditional.clamp(min=1e-30)) ** 4
    prior = torch.where(of_joint + of_conditional > 0, 1 / (1 + ratio), 0.5)
    if n < _STACKED:
        return prior
    apart = sums((conditional - joint).square())
    # Where both say nearly the same, as of a linear table, only noise would choose between them.
    believed = _PRIOR_CELLS * (apart + _ALIKE * of_conditional) / n_asked.clamp(min=1)
    best = (sums((conditional - joint) * conditional) + believed * prior) / (apart + believed).clamp(min=1e-30)
    return torch.where(apart > 0, best.clamp(0, 1), prior)


def _spread(
    joint: MaskedVAE,
    conditional: MaskedVAE,
    share: Tensor,
    values: Tensor,
    observed: Tensor,
    held_out: Tensor,
    continuous: Tensor,
    n_draws: int = 48,
    level: float = 0.9,
) -> Tensor:
    """Factor per column by which the draws must spread so that their 90% intervals hold 90% of the held-out cells.

    One for levels and classes, whose draws must stay what they are.
    """
    n_rows = max(100, min(1000, 10_000 // values.shape[1]))  # wide tables have many cells in a row
    rows = held_out.any(-1).any(0).nonzero().squeeze(-1)
    rows = rows[torch.randperm(len(rows), device=rows.device)[:n_rows]]
    spread = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
    columns = continuous.nonzero().squeeze(-1)
    asked = held_out[:, rows][..., columns]
    if not asked.any():
        return spread
    x, seen = values[rows].expand(len(held_out), -1, -1), observed[rows] & ~held_out[:, rows]
    a, b = (draw_per_member(model, x, seen, n_draws, columns) for model in (joint, conditional))
    pick = torch.rand(n_draws, 1, len(rows), 1, device=values.device) < share[columns]
    drawn = torch.where(pick, a, b)
    center = drawn.mean(0)
    # The order statistic that a further draw exceeds with the right probability (Weibull's plotting position).
    position = (level * (n_draws + 1) - 1) / (n_draws - 1)
    half_width = (drawn - center).abs().quantile(position, 0).clamp(min=1e-6)
    ratio = (x[..., columns] - center).abs() / half_width
    pooled = ratio[asked].quantile(level)
    for place, column in enumerate(columns.tolist()):
        own = ratio[..., place][asked[..., place]]
        if len(own):  # as many pseudo-cells at the pooled factor as it takes to trust a quantile
            weight = len(own) / (len(own) + 50)
            spread[column] = (weight * own.quantile(level).log() + (1 - weight) * pooled.log()).exp()
        else:
            spread[column] = pooled
    return spread.clamp(0.5, 3.0)


def _n_members(n: int) -> int:
    return 4 if n < 500 else 2


def _config(kind: type[MaskedVAE], table: Table, rank: int, level: float) -> ModelConfig:
    n = len(table.values)
    log_scale_floor = 0.5 * math.log(level) - 1.2  # the network may go below the linear model's noise, not to zero
    if kind is JointVAE:
        dropout = 0.3 if any(table.n_levels) else 0.1 if n < 2000 else 0.0
        return ModelConfig(_n_members(n), rank, 96, 2, dropout, log_scale_floor)
    dropout = 0.3 if n < 500 else 0.2 if n < 2000 else 0.1
    n_bins = 10 if n < 500 else 16
    n_features = sum(max(1, n_levels) for n_levels in table.n_levels)
    n_bank = min(n, _BANK_ROWS, max(512, 32 * _BANK_ROWS // n_features)) if n >= MIN_ROWS else 0
    return ModelConfig(_n_members(n), rank, 128, 2, dropout, log_scale_floor, n_bins, n_bank)


def _plans(model: MaskedVAE, table: Table) -> list[Plan]:
    """How each stage of a reading is trained."""
    if len(table.values) < MIN_ROWS:
        return [Plan(steps=0, batch_size=1, learning_rate=1.0)] * len(model.stages())
    networks = _network_plan(model, table)
    return [networks] if isinstance(model, JointVAE) else [_smoother_plan(model, table), networks]


def _smoother_plan(model: MaskedVAE, table: Table) -> Plan:
    """Few parameters and a look at every training row: many steps with few rows each."""
    batch_size, check_every = (64, 50) if len(table.values) < 2000 else (32, 100)
    # Scores of 3 F terms and sums of 4 F values per row, head and voter; a third as fast as a plain product.
    pairs = model.config.n_members * batch_size * len(HEADS) * min(model.config.n_bank, ConditionalVAE.voters)
    steps = _affordable(300, 20 * pairs * 7 * model.likelihoods.n_features)
    return Plan(steps, batch_size, 0.1, patience=3, check_every=check_every)


def _network_plan(model: MaskedVAE, table: Table) -> Plan:
    n, has_classes = len(table.values), any(table.n_levels)
    if isinstance(model, ConditionalVAE):
        refit, patience, check_every = (0.2, 2, 50) if n < 2000 else (0.1, 1, 100)
        plan = Plan(200, 128, 2e-3, patience=patience, refit=refit, check_every=check_every)
    elif has_classes:
        rate = 1e-3 if n < 1500 else 2e-3
        most, batch_size = 600 if n < 500 else 400, 64 if n < 2000 else 128
        plan = Plan(min(most, 2 * n + 200), batch_size, rate, n_draws=(5, 5), patience=6)
    elif n < 2000:
        most, patience = (700, 5) if n < 500 else (400, 8)
        plan = Plan(min(most, 2 * n + 200), 64, 3e-3, n_draws=(5, 10), patience=patience)
    else:
        plan = Plan(400, 256, 4e-3, n_draws=(4, 4), patience=6, refit=0.1)
    weights = sum(p.numel() for p in model.parameters())
    steps = _affordable(plan.steps, 18 * weights * plan.batch_size * plan.n_draws[1])  # three times a plain product's
    batch_size = plan.batch_size if steps > _FEWEST_STEPS else min(64, plan.batch_size)  # very wide
    return replace(plan, steps=steps, batch_size=batch_size)


def _affordable(steps: int, operations: int) -> int:
    """Wide tables get fewer steps; `operations` are those of one."""
    return min(steps, max(_FEWEST_STEPS, int(_COST / operations)))
