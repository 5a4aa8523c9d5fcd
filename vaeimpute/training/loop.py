"""Training: the one loop for all models, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vaeimpute.batching import row_slices
from vaeimpute.training.runtime import OnEvaluation
from vaeimpute.training.schedule import Schedule, TimeBudget
from vaeimpute.vae.base import VAE, Batch, Stage

_MIN_GAIN = 0.005  # a network must lower the held-out error by this share of the start's

GetBatch = Callable[[int, Generator], Batch]  # so many rows for each member, drawn by the generator


class Validation(NamedTuple):
    """Cells kept from the training, and what is visible when they are predicted.

    Attributes
    ----------
    values : Tensor of shape (n, D)
    visible, held_out : Tensor of shape (M, n, D)
        What each member is given, and what it has to predict.
    noise : Tensor of shape (K, L)
        Latent noise of the predictions.
    one_unit : bool
        Whether all columns are measured in the same unit, as pixels are: the sum of their errors then decides.
    """

    values: Tensor
    visible: Tensor
    held_out: Tensor
    noise: Tensor
    one_unit: bool = False


def held_out_residuals(model: VAE, validation: Validation) -> Tensor:
    """Expectations of held-out cells less the truth, (M, n, A); zero elsewhere."""
    values, visible, held_out, noise, _ = validation
    M, n, _ = visible.shape
    columns = model.likelihoods.expectation_columns
    residuals = values.new_zeros(M, n, len(columns))
    for rows in row_slices(n, model.numbers_per_row(len(noise))):
        x = values[rows].expand(M, -1, -1)
        residual = model.expectations(x, visible[:, rows], noise) - model.likelihoods.targets(x)
        residuals[:, rows] = torch.where(held_out[:, rows].index_select(-1, columns), residual, 0)
    return residuals


def summed_per_column(products: Tensor, columns: Tensor, n_columns: int) -> Tensor:
    """What stands for each expectation (M, n, A), of columns `columns` (A,), summed up for each column (D,)."""
    return products.new_zeros(n_columns).index_add_(0, columns, products.sum((0, 1)))


class TrainingResult(NamedTuple):
    """What `fit_model` found out.

    Attributes
    ----------
    steps : int
        Steps of the last stage up to the weights that were kept.
    residuals : Tensor of shape (M, n, A)
        Expectations of held-out cells less the truth; zero elsewhere.
    history : list of dict
    """

    steps: int
    residuals: Tensor
    history: list[dict]


def fit_model(
    model: VAE,
    get_batch: GetBatch,
    validation: Validation,
    schedules: Sequence[Schedule],
    *,
    generator: Generator,
    budget: TimeBudget,
    name: str = "model",
    share: float = 1.0,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> TrainingResult:
    """Train all members of `model` in place, stage by stage, with early stopping on their held-out cells.

    A stage that gains nothing is taken back, so that the result is never worse than the start on these cells.

    Parameters
    ----------
    model : VAE
        As it starts.
    get_batch : callable
        Gives a batch of random rows, with the cells that each member may see.
    validation : Validation
        What decides when to stop, and whether a stage is kept.
    schedules : sequence of Schedule
        One for each of the model's stages.
    generator : Generator
    budget : TimeBudget
        Training ends with the best so far when `share` of it is spent; Ctrl-C marks it and ends as well.
    name : str
        Of the model, in the history.
    on_evaluation : callable
        Receives the name, each record of the history and the number of all steps.
    """
    n_held_out = max(int(validation.held_out.sum()), 1)
    columns = model.likelihoods.expectation_columns
    history: list[dict] = []
    n_steps = sum(schedule.steps for schedule in schedules)

    def errors_of(residuals: Tensor) -> Tensor:
        return summed_per_column(residuals.square(), columns, validation.held_out.shape[-1])

    def evaluate(step: int) -> tuple[float, Tensor]:
        """Error relative to the start, averaged over columns (outlying cells must not decide alone), and residuals."""
        with torch.no_grad():
            residuals = held_out_residuals(model.eval(), validation)
        errors = errors_of(residuals)
        begin = first if history else errors
        weight = begin if validation.one_unit else (begin > 0).to(begin)
        ratio = errors / begin.clamp(min=1e-12)
        relative = ((ratio * weight).sum() / weight.sum()).item() if weight.any() else 1.0
        pooled = errors.sum().item() / n_held_out
        record = {"model": name, "step": step, "error": pooled, "relative_error": relative}
        history.append(record | {"seconds": budget.elapsed()})
        return relative, residuals

    relative, residuals = evaluate(0)
    first = errors_of(residuals)
    kept_steps, done = 0, 0
    for stage, schedule in zip(model.stages(), schedules, strict=True):
        best = relative, residuals, 0, _copies(stage.parameters)
        enough = (1 - _MIN_GAIN) * relative  # less is as good as noise: an exactly linear table keeps the exact start
        loop = _Loop(model, stage, schedule, get_batch, generator)
        try:
            for begin in range(0, schedule.steps, schedule.evaluate_every):
                if budget.is_spent(share):
                    break
                steps = range(begin, min(begin + schedule.evaluate_every, schedule.steps))
                step = loop.run(steps, lambda: budget.is_spent(share))
                with loop.averaged():
                    now = (*evaluate(done + step), step, _copies(stage.parameters))
                on_evaluation(name, history[-1], n_steps)
                if now[0] < min(best[0], enough):
                    best = now
                elif step - best[2] >= schedule.patience * schedule.evaluate_every:
                    break
        except KeyboardInterrupt:
            budget.interrupted = True
        relative, residuals, kept_steps, parameters = best
        _restore(stage.parameters, parameters)
        done += schedule.steps
    model.eval()
    return TrainingResult(kept_steps, residuals, history)


def refit_model(
    model: VAE, get_batch: GetBatch, schedule: Schedule, *, generator: Generator, budget: TimeBudget
) -> None:
    """Go on with the last stage from its best weights, on batches that have the held-out cells back."""
    if not schedule.steps:
        return
    stage = model.stages()[-1]
    loop = _Loop(model, stage, schedule, get_batch, generator)
    try:
        if not budget.is_spent():
            loop.run(range(schedule.steps), budget.is_spent)
    except KeyboardInterrupt:
        budget.interrupted = True
    _restore(stage.parameters, loop.average)
    model.eval()


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))


class _Loop:
    """Optimiser and averaged weights of one stage of training."""

    def __init__(self, model: VAE, stage: Stage, schedule: Schedule, get_batch: GetBatch, generator: Generator) -> None:
        self.model, self.stage, self.schedule = model, stage, schedule
        self.get_batch, self.generator = get_batch, generator
        names = {id(p): name for name, p in model.named_parameters()}
        decayed = [p for p in stage.parameters if names[id(p)].endswith("weight")]
        rest = [p for p in stage.parameters if not names[id(p)].endswith("weight")]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.99), fused=True)
        self.average = _copies(stage.parameters)
        self.update_average = get_ema_multi_avg_fn(0.98)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights for a while."""
        current = _copies(self.stage.parameters)
        _restore(self.stage.parameters, self.average)
        yield
        _restore(self.stage.parameters, current)

    def run(self, steps: range, is_over: Callable[[], bool]) -> int:
        """Take optimiser steps, at least one, until the last or until it is over; return how many are taken by now."""
        self.model.train()
        learning = {id(p) for p in self.stage.parameters}
        for p in self.model.parameters():  # no gradients for what stands still
            p.requires_grad_(id(p) in learning)
        schedule, parameters = self.schedule, self.stage.parameters
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            batch = self.get_batch(schedule.batch_size, self.generator)
            n_draws = schedule.n_draws[0] if step < 0.3 * schedule.steps else schedule.n_draws[1]
            loss = self.stage.loss(batch, n_draws, self.generator).mean(1).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # Members are independent: their gradients' common norm grows with the root of their number.
            torch.nn.utils.clip_grad_norm_(parameters, self.model.n_members**0.5)
            self.optimizer.step()
            self.update_average(self.average, parameters, step)
            if is_over():
                return step + 1
        return steps.stop
