"""How the smoothers' bandwidths, slopes and gates are learnt: some hundred steps on 3 H + 1 numbers a feature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from vaeimpute.gaussian.factor_analysis import FactorAnalysis
from vaeimpute.tables.defaults import N_SMOOTHERS, SMOOTHER_BATCH
from vaeimpute.tables.queries import N_FOLDS, Queries
from vaeimpute.tables.smoother import N_HEADS, Given, Layout, Reference, estimate, mix, prepare, start_theta
from vaeimpute.training.schedule import TimeBudget

_RATE, _WARM_UP, _FINAL = 0.3, 10, 0.05  # peak rate of Adam, steps up to it, share of it at the end
_BETAS = (0.9, 0.99)


class SmootherTraining:
    """Adam on the Gaussian likelihood of the hidden cells, whose variance is a multiple of the linear model's.

    Parameters
    ----------
    queries : Queries
    given : Given
        What the linear VAEs make of them, each by those that have not seen the row.
    place : int Tensor of shape (Q,)
        Where the row of each query stands among the reference rows, or -1.
    half : int Tensor of shape (Q,)
        Which half of the rows it belongs to.
    backbones : list of FactorAnalysis
        Of each fold, the best rank.
    weight : Tensor of shape (F,)
        Of a feature's loss.
    layout : Layout
        Where classes of many levels stand.
    n_steps : int
        Steps of the whole training.
    n_reference_in_step : int
        Reference rows that are looked at in a step; a random part, if there are more.
    generator : Generator
    """

    def __init__(
        self,
        queries: Queries,
        given: Given,
        place: Tensor,
        half: Tensor,
        backbones: list[FactorAnalysis],
        weight: Tensor,
        layout: Layout,
        n_steps: int,
        n_reference_in_step: int,
        generator: Generator,
    ) -> None:
        self.queries, self.given, self.place, self.backbones, self.weight = queries, given, place, backbones, weight
        self.layout, self.n_steps, self.n_reference_in_step, self.generator = (
            layout,
            n_steps,
            n_reference_in_step,
            generator,
        )
        self.n_taken = 0
        self.theta = start_theta(given.x.shape[1]).to(given.x).repeat(N_SMOOTHERS, 1, 1)
        self._first, self._second = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        among = place >= 0
        self._pools = [
            [((queries.fold == f) & among & (half != s)).nonzero().squeeze(-1) for s in range(N_SMOOTHERS)]
            for f in range(N_FOLDS)
        ]
        self._sum, self._n_averaged = torch.zeros_like(self.theta), 0

    @property
    def averaged(self) -> Tensor:
        """Mean of the second half of the steps."""
        return self._sum / self._n_averaged if self._n_averaged else self.theta

    def run(self, steps: range, reference: Reference, budget: TimeBudget, share: float) -> int:
        """Take steps until the last, or until `share` of the budget is spent; return how many are taken by now."""
        options: dict[str, Any] = {"device": self.place.device, "generator": self.generator}
        n = len(reference.values)
        for step in steps:
            if budget.is_spent(share):
                return step
            fold = step % N_FOLDS
            if not all(map(len, self._pools[fold])):
                continue
            index = torch.stack(
                [pool[torch.randint(len(pool), (SMOOTHER_BATCH,), **options)] for pool in self._pools[fold]]
            )
            place, part = self.place[index], reference
            if n > self.n_reference_in_step:
                begin = int(torch.randint(n - self.n_reference_in_step + 1, (1,), **options))
                end = begin + self.n_reference_in_step
                part = reference.at(slice(begin, end))
                place = torch.where((place >= begin) & (place < end), place - begin, -1)
            theta = self.theta.requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(theta, part, index, place, self.backbones[fold]), [theta])
            self.theta = self._stepped(theta.detach(), gradient, step)
            self.n_taken = step + 1
            if step >= self.n_steps // 2:
                self._sum, self._n_averaged = self._sum + self.theta, self._n_averaged + 1
        return steps.stop

    def _loss(self, theta: Tensor, part: Reference, index: Tensor, place: Tensor, backbone: FactorAnalysis) -> Tensor:
        given = self.given.at(index)
        prepared = prepare(theta, part, self.layout, backbone)
        mean, _ = mix(theta, given.mean, estimate(theta, prepared, given, place, backbone))
        log_error, squared = theta[:, 3 * N_HEADS :], (self.queries.truth[index] - mean).square()
        nll = 0.5 * squared * torch.exp(-2 * log_error) / given.variance + log_error
        return (self.queries.held_out[index] * self.weight * nll).sum() / SMOOTHER_BATCH

    def _stepped(self, theta: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Adam, each smoother's gradient clipped by itself; PyTorch's first takes a second to import its compiler."""
        gradient = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1).view(-1, 1, 1)
        self._first.lerp_(gradient, 1 - _BETAS[0])
        self._second.lerp_(gradient.square(), 1 - _BETAS[1])
        cosine = _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        rate = _RATE * min(1.0, (step + 1) / _WARM_UP) * cosine
        scale = (self._second / (1 - _BETAS[1] ** (step + 1))).sqrt() + 1e-8
        return theta - rate / (1 - _BETAS[0] ** (step + 1)) * self._first / scale
