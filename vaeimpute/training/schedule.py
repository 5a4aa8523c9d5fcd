"""How long and how fast: the schedule of a stage, and the budget of time of a whole fit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

_WARM_UP = 50  # steps
_REFIT_RATE = 0.2  # of the rate of the training


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train a stage.

    Attributes
    ----------
    steps, batch_size : int
        Optimiser steps and rows of each member per step.
    learning_rate : float
        Peak rate of AdamW; warm-up of 50 steps, cosine to 5%.
    n_draws : tuple of int
        Latent draws K in the first 30% of the steps and in the rest.
    patience : int
        Evaluations without a better held-out error before training stops.
    refit : float
        Steps of the refit on all cells, as a share of the best step's number.
    evaluate_every : int
        Steps between two evaluations on the held-out cells.
    """

    steps: int
    batch_size: int
    learning_rate: float
    n_draws: tuple[int, int] = (1, 1)
    patience: int = 10
    refit: float = 0.3
    evaluate_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate at a step: warm-up, then cosine."""
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))
        return self.learning_rate * min(1.0, (step + 1) / _WARM_UP) * cosine

    def for_refit(self, best_step: int) -> Schedule:
        """That of the refit on all cells, if the best weights were those of `best_step`; it may have no steps."""
        steps = int(self.refit * best_step)
        return replace(self, steps=steps, learning_rate=_REFIT_RATE * self.learning_rate)


def shortened(schedules: Sequence[Schedule], max_iter: int | None) -> list[Schedule]:
    """Schedules of a model's stages that have no more than `max_iter` steps together, each stage its share of them.

    The longest refit that may follow counts as well.

    Examples
    --------
    >>> long = [Schedule(steps=300, batch_size=64, learning_rate=0.1), Schedule(200, 128, 0.002)]
    >>> [schedule.steps for schedule in shortened(long, 100)]
    [53, 36]
    """
    total = sum(schedule.steps for schedule in schedules) + int(schedules[-1].refit * schedules[-1].steps)
    if max_iter is None or total <= max_iter:
        return list(schedules)
    short = [replace(schedule, steps=schedule.steps * max_iter // total) for schedule in schedules[:-1]]
    last, left = schedules[-1], max_iter - sum(schedule.steps for schedule in short)
    most = math.ceil((left + 1) / (1 + last.refit)) - 1  # so many, and their refit, are no more than what is left
    return [*short, replace(last, steps=min(last.steps, most))]


class TimeBudget:
    """When to stop: a number of seconds after the start, or Ctrl-C.

    Parameters
    ----------
    seconds : float, optional
        None when there is no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.began, self.limit = time.monotonic(), math.inf if seconds is None else seconds
        self.interrupted = False
        self.left_out: list[str] = []

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def allows(self, stage: str, share: float) -> bool:
        """Whether a stage may begin while no more than this share is spent; what may not is noted in `left_out`."""
        if self.is_spent(share) and stage not in self.left_out:
            self.left_out.append(stage)
        return stage not in self.left_out

    def is_spent(self, share: float = 1.0) -> bool:
        """Whether this share of the budget is spent, or the user wants an end."""
        return self.interrupted or self.elapsed() >= share * self.limit
