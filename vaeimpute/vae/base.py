"""Abstract masked VAE: importance samples, expectations, training losses.

Every model gives the same two tensors: parameters of every cell under K draws, and a log-weight per draw.

Shape letters: M members, K draws, B rows, D columns, L latent, P parameters, A expectations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from vaeimpute.persistence import Fitted
from vaeimpute.vae import objective


class Batch(NamedTuple):
    """Rows for a step of the training.

    Attributes
    ----------
    values, observed : Tensor of shape (M, B, D)
        Cells, and which of them each member may see.
    """

    values: Tensor
    observed: Tensor


class Stage(NamedTuple):
    """A part of the training: the parameters that learn, and the loss that teaches them."""

    parameters: list[nn.Parameter]
    loss: Callable[[Batch, int, Generator], Tensor]


class VAE(Fitted, ABC):
    """A stack of M masked VAEs over the cells of a row."""

    likelihoods: Any  # the product over all cells of a row
    n_members: int
    n_latent: int  # number of latent dimensions L
    n_draws: int  # K of an expectation

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Any tensor of the model: it has the dtype and the device to compute with."""

    def stages(self) -> list[Stage]:
        """What is trained, one after the other."""
        return [Stage(list(self.parameters()), self.loss)]

    @abstractmethod
    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        """Negative bound of each row, (M, B), with freshly hidden cells."""

    def numbers_per_row(self, n_draws: int) -> int:
        """Numbers held at once for each row."""
        return self.n_members * n_draws * self.likelihoods.n_params

    @abstractmethod
    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (M, K, B, P) of every cell and log-weights (M, K, B) under the latent noise (K, L)."""

    def expectations(self, values: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Importance-weighted expected numbers and class probabilities of every cell, (M, B, A)."""
        params, log_w = self.importance_samples(values, observed, noise)
        w = torch.softmax(log_w, 1).unsqueeze(-1)
        return (w * self.likelihoods.expectations(params)).sum(1)

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        """Mean of the proposal ``q(z | x_O)``, (M, B, L)."""
        raise NotImplementedError(f"{type(self).__name__} has no latent that stands for a row.")

    def decode(self, z: Tensor) -> Tensor:
        """Parameters (M, K, B, P) of every cell given latents (M, K, B, L)."""
        raise NotImplementedError(f"{type(self).__name__} decodes with the observed cells beside the latent.")

    def weighted(self, values: Tensor, observed: Tensor, z: Tensor, log_qz: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters under latents (M, K, B, L) of log-density `log_qz` (M, K, B), and their log-weights."""
        params = self.decode(z)
        log_px = self.likelihoods.log_prob(params, values.unsqueeze(1))
        return params, objective.log_weights(log_px, observed, objective.log_normal(z), log_qz)
