"""Abstract masked VAE: importance samples, expectations, training losses.

Every reading answers with the same two tensors, parameters of every cell under K draws and a log-weight per draw.

Shape letters: M members, K draws, B rows, D columns, L latent, P parameters, A answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn


class Stage(NamedTuple):
    """A part of the training: the parameters that learn, and the loss that teaches them."""

    parameters: list[nn.Parameter]
    loss: Callable[..., Tensor]


class Reading(nn.Module, ABC):
    """A stack of M masked VAEs over the cells of a row."""

    likelihoods: Any  # the product over all cells of a row
    n_members: int
    n_latent: int  # number of latent dimensions L
    n_draws: int  # K of an answer

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Any tensor of the model: it has the dtype and the device to compute with."""

    def remember(self, observed: Tensor) -> None:
        """Take what each member (M, n, D), or all of them (1, n, D), may know of the training table."""

    def stages(self) -> list[Stage]:
        """What is trained, one after the other."""
        return [Stage(list(self.parameters()), self.loss)]

    @abstractmethod
    def loss(self, values: Tensor, observed: Tensor, n_draws: int, *backbone: Any) -> Tensor:
        """Negative bound of each row, (M, B, D) to (M, B), with freshly hidden cells."""

    def cells_per_row(self, n_draws: int) -> int:
        """Numbers held at once for each row asked."""
        return self.n_members * n_draws * self.likelihoods.n_params

    @abstractmethod
    def draws(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (M, K, B, P) of every cell and log-weights (M, K, B) under the latent noise (K, L)."""

    def answers(self, values: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Importance-weighted expected numbers and class probabilities of every cell, (M, B, A)."""
        params, log_w = self.draws(values, observed, noise)
        w = torch.softmax(log_w, 1).unsqueeze(-1)
        return (w * self.likelihoods.answers(params)).sum(1)

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        """Mean of the proposal ``q(z | x_O)``, (M, B, L)."""
        raise NotImplementedError(f"{type(self).__name__} has no latent that stands for a row.")

    def decode(self, z: Tensor) -> Tensor:
        """Parameters (M, K, B, P) of every cell given latents (M, K, B, L)."""
        raise NotImplementedError(f"{type(self).__name__} decodes with the observed cells beside the latent.")

    @abstractmethod
    def header(self) -> dict:
        """What it takes to build the model anew, in plain numbers (JSON)."""

    @classmethod
    @abstractmethod
    def from_header(cls, header: Mapping) -> Self:
        """A model with untrained weights, from what `header` gave."""
