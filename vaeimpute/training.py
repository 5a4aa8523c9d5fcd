"""Training: the one loop for both readings, read top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaeimpute.linear import Linear
from vaeimpute.model import MaskedVAE

_CHECK_ROWS = 1000  # of the rows with held-out cells, so that a look stays cheap
_MIN_GAIN = 0.005  # a network must lower the held-out error by this share of the start's


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    steps, batch_size : int
        Optimiser steps and rows of each member per step.
    learning_rate : float
        Peak rate of AdamW; warm-up of 50 steps, cosine to 5%.
    n_draws : tuple of int
        Latent draws K in the first 30% of the steps and in the rest.
    patience : int
        Checks without a better held-out error before training stops.
    refit : float
        Steps of the refit on all cells, as a share of the best step's number.
    check_every : int
        Steps between two looks at the held-out cells.
    """

    steps: int
    batch_size: int
    learning_rate: float
    n_draws: tuple[int, int] = (1, 1)
    patience: int = 10
    refit: float = 0.3
    check_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate at a step: warm-up, then cosine."""
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))
        return self.learning_rate * min(1.0, (step + 1) / 50) * cosine


class Folds(NamedTuple):
    """Row numbers of each fold, and per fold a linear backbone fitted on the rows of the others."""

    rows: list[Tensor]
    linears: list[Linear]


def held_out_error(model: MaskedVAE, values: Tensor, seen: Tensor, held_out: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the answers on held-out cells, summed per column: (M, D).

    Parameters
    ----------
    values : Tensor of shape (n, D)
    seen, held_out : Tensor of shape (M, n, D)
        What each member is given, and what it is asked for.
    noise : Tensor of shape (K, L)
    """
    M, n, D = seen.shape
    total = values.new_zeros(M, D)
    chunk = max(1, 2**21 // (model.likelihoods.n_params * len(noise)))
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        x = values[rows].expand(M, -1, -1)
        miss = model.answers(x, seen[:, rows], noise) - model.likelihoods.targets(x)
        asked = held_out[:, rows].index_select(-1, model.likelihoods.answer_columns)
        total.index_add_(-1, model.likelihoods.answer_columns, torch.where(asked, miss, 0).square().sum(1))
    return total


class Clock:
    """When to stop: a number of seconds after the start, or Ctrl-C.

    Parameters
    ----------
    budget : float
        Seconds; infinite when there is no limit.
    """

    def __init__(self, budget: float = math.inf) -> None:
        self.began, self.budget, self.interrupted = time.monotonic(), budget, False

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is spent, or the user wants an end."""
        return self.interrupted or self.seconds() >= share * self.budget


class Fit(NamedTuple):
    """What `fit_model` found out: the step it kept, the held-out squared error per column (M, D), the history."""

    best_step: int
    errors: Tensor
    history: list[dict]


def fit_model(
    model: MaskedVAE,
    values: Tensor,
    observed: Tensor,
    held_out: Tensor,
    noise: Tensor,
    plan: Plan,
    *,
    folds: Folds | None = None,
    clock: Clock,
    share: float = 1.0,
    on_check: Callable[[dict], None] = lambda record: None,
) -> Fit:
    """Train all members of `model` in place, with early stopping on their held-out cells.

    The start is a candidate, so that the result is never worse than the linear backbone on these cells.

    Parameters
    ----------
    model : MaskedVAE
        Started on its linear backbone.
    values, observed : Tensor of shape (n, D)
        The table.
    held_out : Tensor of shape (M, n, D)
        Cells that each member does not see.
    noise : Tensor of shape (K, L)
        Latent noise for the checks.
    plan : Plan
    folds : Folds, optional
        Backbones fitted on other rows than those of a batch.
    clock : Clock
        Training ends with the best so far when `share` of its budget is spent; Ctrl-C marks it and ends as well.
    on_check : callable
        Receives each record of the history.
    """
    seen = observed & ~held_out
    # Only rows with something to ask, and no more than it takes to see a difference.
    rows = held_out.any(-1).any(0).nonzero().squeeze(-1)
    rows = rows[torch.randperm(len(rows), device=rows.device)[:_CHECK_ROWS]]
    asked = held_out[:, rows]
    n_asked = max(int(asked.sum()), 1)
    model.remember(seen)
    loop = _Loop(model, plan)

    def check() -> Tensor:
        candidate = loop.averaged.eval()
        with torch.no_grad():
            return held_out_error(candidate, values[rows], seen[:, rows], asked, noise)

    def progress(errors: Tensor) -> float:
        """Error relative to the start, averaged over columns: a few outlying cells must not decide alone."""
        ratio = errors.sum(0) / first.clamp(min=1e-12)
        return ratio[first > 0].mean().item() if (first > 0).any() else 0.0

    def report(step: int, errors: Tensor) -> dict:
        pooled = errors.sum().item() / n_asked
        return {"step": step, "error": pooled, "relative_error": progress(errors), "seconds": clock.seconds()}

    errors = check()
    first = errors.sum(0)
    start = best = 0, errors, copy.deepcopy(loop.averaged.state_dict())
    history = [report(0, errors)]
    try:
        for step in range(plan.check_every, plan.steps + plan.check_every, plan.check_every):
            if clock.over(share):
                break
            loop.run(values, seen, range(step - plan.check_every, step), folds)
            errors = check()
            history.append(report(step, errors))
            on_check(history[-1])
            if progress(errors) < progress(best[1]):
                best = step, errors, copy.deepcopy(loop.averaged.state_dict())
            elif step - best[0] >= plan.patience * plan.check_every:
                break
    except KeyboardInterrupt:
        clock.interrupted = True
    if progress(best[1]) > 1 - _MIN_GAIN:  # as good as noise: an exactly linear table keeps the exact answer
        best = start
    best_step, errors, state = best
    model.load_state_dict(state)
    model.eval()
    return Fit(best_step, errors, history)


def refit_model(
    model: MaskedVAE, values: Tensor, observed: Tensor, plan: Plan, steps: int, *, folds: Folds | None, clock: Clock
) -> None:
    """Go on from the best weights at a fifth of the rate, with the held-out cells back in the table."""
    plan = replace(plan, steps=max(steps, 1), learning_rate=0.2 * plan.learning_rate)
    cells = observed.expand(model.config.n_members, -1, -1)
    model.remember(cells)
    loop = _Loop(model, plan)
    try:
        for step in range(0, steps, plan.check_every):
            if clock.over():
                break
            loop.run(values, cells, range(step, min(step + plan.check_every, steps)), folds)
    except KeyboardInterrupt:
        clock.interrupted = True
    model.load_state_dict(loop.averaged.state_dict())
    model.eval()


class _Loop:
    """Model, optimiser and averaged weights of one run of training."""

    def __init__(self, model: MaskedVAE, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.parameters = list(model.parameters())
        decayed = [p for name, p in model.named_parameters() if name.endswith("weight")]
        rest = [p for name, p in model.named_parameters() if not name.endswith("weight")]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.average.update_parameters(model)

    @property
    def averaged(self) -> MaskedVAE:
        """The model with averaged weights."""
        return cast(MaskedVAE, self.average.module)

    def run(self, values: Tensor, cells: Tensor, steps: range, folds: Folds | None) -> None:
        """Take some optimiser steps; `cells` (M, n, D) is what each member may see."""
        model, plan = self.model.train(), self.plan
        n_members, n = cells.shape[:2]
        member = torch.arange(n_members, device=values.device).unsqueeze(1)
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = plan.rate(step)
            rows, linear = _batch(n, plan.batch_size, n_members, folds, values.device)
            n_draws = plan.n_draws[0] if step < 0.3 * plan.steps else plan.n_draws[1]
            loss = model.loss(values[rows], cells[member, rows], n_draws, linear, rows).mean(1).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # Members are independent: their gradients' common norm grows with the root of their number.
            torch.nn.utils.clip_grad_norm_(self.parameters, n_members**0.5)
            self.optimizer.step()
            self.average.update_parameters(model)


def _batch(
    n: int, size: int, n_members: int, folds: Folds | None, device: torch.device
) -> tuple[Tensor, Linear | None]:
    """Rows (M, B) of the next batch, all from one fold, and the backbone that has not seen them."""
    if folds is None:
        return torch.randint(n, (n_members, size), device=device), None
    chosen = int(torch.randint(len(folds.rows), (1,)))
    rows = folds.rows[chosen]
    return rows[torch.randint(len(rows), (n_members, size), device=device)], folds.linears[chosen]
