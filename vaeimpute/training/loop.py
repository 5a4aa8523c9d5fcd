"""Training: the one loop for both readings, read top to bottom."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vaeimpute.gaussian.factor_analysis import Linear
from vaeimpute.vae.base import Reading, Stage

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


class Check(NamedTuple):
    """Cells kept from the training, and what is known when they are asked for.

    Attributes
    ----------
    values : Tensor of shape (n, D)
    seen, asked : Tensor of shape (M, n, D)
        What each member is given, and what it is asked for.
    noise : Tensor of shape (K, L)
        Latent noise of the answers.
    one_unit : bool
        Whether all columns are measured in the same unit, as pixels are: the sum of their errors then decides.
    """

    values: Tensor
    seen: Tensor
    asked: Tensor
    noise: Tensor
    one_unit: bool = False


def held_out_misses(model: Reading, check: Check) -> Tensor:
    """Answers on held-out cells less the truth, (M, n, A); zero elsewhere."""
    values, seen, asked, noise, _ = check
    M, n, _ = seen.shape
    columns = model.likelihoods.answer_columns
    misses = values.new_zeros(M, n, len(columns))
    chunk = max(1, 2**22 // model.cells_per_row(len(noise)))
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        x = values[rows].expand(M, -1, -1)
        miss = model.answers(x, seen[:, rows], noise) - model.likelihoods.targets(x)
        misses[:, rows] = torch.where(asked[:, rows].index_select(-1, columns), miss, 0)
    return misses


def summed_per_column(products: Tensor, columns: Tensor, n_columns: int) -> Tensor:
    """What stands for each answer (M, n, A), whose columns are `columns` (A,), summed up for each column (D,)."""
    return products.new_zeros(n_columns).index_add_(0, columns, products.sum((0, 1)))


_GENERATOR = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's generators for a while; afterwards they are as before. One thread at a time: they are shared."""
    with _GENERATOR, torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


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
    """What `fit_model` found out.

    Attributes
    ----------
    steps : int
        Steps of the last stage up to the weights that were kept.
    misses : Tensor of shape (M, n, A)
        Answers on held-out cells less the truth; zero elsewhere.
    history : list of dict
    """

    steps: int
    misses: Tensor
    history: list[dict]


def fit_model(
    model: Reading,
    values: Tensor,
    seen: Tensor,
    check: Check,
    plans: Sequence[Plan],
    *,
    folds: Folds | None = None,
    clock: Clock,
    share: float = 1.0,
    on_check: Callable[[dict], None] = lambda record: None,
) -> Fit:
    """Train all members of `model` in place, stage by stage, with early stopping on their held-out cells.

    A stage that gains nothing is taken back, so that the result is never worse than the start on these cells.

    Parameters
    ----------
    model : Reading
        Started on its linear backbone.
    values : Tensor of shape (n, D)
    seen : Tensor of shape (M, n, D)
        What each member may see.
    check : Check
        What decides when to stop, and whether a stage is kept.
    plans : sequence of Plan
        One for each of the model's stages.
    folds : Folds, optional
        Backbones fitted on other rows than those of a batch.
    clock : Clock
        Training ends with the best so far when `share` of its budget is spent; Ctrl-C marks it and ends as well.
    on_check : callable
        Receives each record of the history.
    """
    n_asked = max(int(check.asked.sum()), 1)
    columns = model.likelihoods.answer_columns
    model.remember(seen)
    history: list[dict] = []

    def errors_of(misses: Tensor) -> Tensor:
        return summed_per_column(misses.square(), columns, check.asked.shape[-1])

    def look(step: int) -> tuple[float, Tensor]:
        """Error relative to the start, averaged over columns (outlying cells must not decide alone), and the misses."""
        with torch.no_grad():
            misses = held_out_misses(model.eval(), check)
        errors = errors_of(misses)
        begin = first if history else errors
        weight = begin if check.one_unit else (begin > 0).to(begin)
        ratio = errors / begin.clamp(min=1e-12)
        relative = ((ratio * weight).sum() / weight.sum()).item() if weight.any() else 1.0
        pooled = errors.sum().item() / n_asked
        history.append({"step": step, "error": pooled, "relative_error": relative, "seconds": clock.seconds()})
        return relative, misses

    relative, misses = look(0)
    first = errors_of(misses)
    kept_steps, done = 0, 0
    for stage, plan in zip(model.stages(), plans, strict=True):
        best = relative, misses, 0, _copies(stage.parameters)
        enough = (1 - _MIN_GAIN) * relative  # less is as good as noise: an exactly linear table keeps the exact answer
        loop = _Loop(model, stage, plan)
        try:
            for begin in range(0, plan.steps, plan.check_every):
                if clock.over(share):
                    break
                steps = range(begin, min(begin + plan.check_every, plan.steps))
                step = loop.run(values, seen, steps, folds, lambda: clock.over(share))
                with loop.averaged():
                    now = (*look(done + step), step, _copies(stage.parameters))
                on_check(history[-1])
                if now[0] < min(best[0], enough):
                    best = now
                elif step - best[2] >= plan.patience * plan.check_every:
                    break
        except KeyboardInterrupt:
            clock.interrupted = True
        relative, misses, kept_steps, parameters = best
        _restore(stage.parameters, parameters)
        done += plan.steps
    model.eval()
    return Fit(kept_steps, misses, history)


def refit_model(
    model: Reading, values: Tensor, observed: Tensor, plan: Plan, steps: int, *, folds: Folds | None, clock: Clock
) -> None:
    """Go on with the last stage from its best weights, at a fifth of the rate, with the held-out cells back."""
    model.remember(observed.unsqueeze(0))
    plan = replace(plan, steps=max(steps, 1), learning_rate=0.2 * plan.learning_rate)
    cells = observed.expand(model.n_members, -1, -1)
    stage = model.stages()[-1]
    loop = _Loop(model, stage, plan)
    try:
        for step in range(0, steps, plan.check_every):
            if clock.over():
                break
            loop.run(values, cells, range(step, min(step + plan.check_every, steps)), folds, clock.over)
    except KeyboardInterrupt:
        clock.interrupted = True
    _restore(stage.parameters, loop.average)
    model.eval()


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))


class _Loop:
    """Optimiser and averaged weights of one stage of training."""

    def __init__(self, model: Reading, stage: Stage, plan: Plan) -> None:
        self.model, self.stage, self.plan = model, stage, plan
        names = {id(p): name for name, p in model.named_parameters()}
        decayed = [p for p in stage.parameters if names[id(p)].endswith("weight")]
        rest = [p for p in stage.parameters if not names[id(p)].endswith("weight")]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
        self.average = _copies(stage.parameters)
        self.update_average = get_ema_multi_avg_fn(0.98)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights for a while."""
        current = _copies(self.stage.parameters)
        _restore(self.stage.parameters, self.average)
        yield
        _restore(self.stage.parameters, current)

    def run(self, values: Tensor, cells: Tensor, steps: range, folds: Folds | None, over: Callable[[], bool]) -> int:
        """Take optimiser steps, at least one, until the last or until it is `over`; return how many are taken by now.

        `cells` (M, n, D) is what each member may see.
        """
        self.model.train()
        learning = {id(p) for p in self.stage.parameters}
        for p in self.model.parameters():  # no gradients for what stands still
            p.requires_grad_(id(p) in learning)
        plan, parameters = self.plan, self.stage.parameters
        n_members, n = cells.shape[:2]
        member = torch.arange(n_members, device=values.device).unsqueeze(1)
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = plan.rate(step)
            rows, linear = _batch(n, plan.batch_size, n_members, folds, values.device)
            n_draws = plan.n_draws[0] if step < 0.3 * plan.steps else plan.n_draws[1]
            loss = self.stage.loss(values[rows], cells[member, rows], n_draws, linear, rows).mean(1).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # Members are independent: their gradients' common norm grows with the root of their number.
            torch.nn.utils.clip_grad_norm_(parameters, n_members**0.5)
            self.optimizer.step()
            self.update_average(self.average, parameters, step)
            if over():
                return step + 1
        return steps.stop


def _batch(
    n: int, size: int, n_members: int, folds: Folds | None, device: torch.device
) -> tuple[Tensor, Linear | None]:
    """Rows (M, B) of the next batch, all from one fold, and the backbone that has not seen them."""
    if folds is None:
        return torch.randint(n, (n_members, size), device=device), None
    chosen = int(torch.randint(len(folds.rows), (1,)))
    rows = folds.rows[chosen]
    return rows[torch.randint(len(rows), (n_members, size), device=device)], folds.linears[chosen]
