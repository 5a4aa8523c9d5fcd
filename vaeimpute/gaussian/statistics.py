"""Sufficient statistics of linear-Gaussian models on incomplete rows: the one E-step and the one M-step.

Statistics of batches, of partitions and of decayed streams add up; a mixture has a set of them per component.

Shape letters: B rows, F features, L latent; leading dimensions (components) are free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """What an M-step needs to know of the rows.

    Attributes
    ----------
    latent : Tensor of shape (..., L + 1, L + 1)
        Sum over rows of the second moment of ``[z; 1]``.
    design : Tensor of shape (..., F, L + 1, L + 1)
        The same over the rows in which a feature is observed: the Gram matrix of its regression on the latent.
    target : Tensor of shape (..., F, L + 1)
        Sum of ``x_j E[z; 1]`` over these rows.
    square : Tensor of shape (..., F)
        Sum of ``x_j^2`` over these rows.
    n_observed : Tensor of shape (..., F)
        Number of these rows (a sum of responsibilities in a mixture).
    """

    latent: Tensor
    design: Tensor
    target: Tensor
    square: Tensor
    n_observed: Tensor

    def plus(self, other: Statistics) -> Statistics:
        """Statistics of the rows of both."""
        return Statistics(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def double(self) -> Statistics:
        """The same in float64."""
        return Statistics(*(part.double() for part in self))

    @property
    def n_rows(self) -> Tensor:
        """Number of rows (...); a sum of responsibilities in a mixture."""
        return self.latent[..., -1, -1]


def e_step(
    values: Tensor,
    observed: Tensor,
    mean: Tensor,
    chol: Tensor,
    responsibility: Tensor | None = None,
    columns: Tensor | None = None,
) -> Statistics:
    """Expected sufficient statistics of a batch of rows, given the posterior of each row's latent.

    Parameters
    ----------
    values, observed : Tensor of shape (B, F)
        Cells, zero where they are missing, and which of them are observed.
    mean, chol : Tensor of shape (..., B, L), (..., B or 1, L, L)
        Mean of each row's latent and the Cholesky factor of its precision.
    responsibility : Tensor of shape (..., B), optional
        Weight of each row; one if None.
    columns : int Tensor of shape (F,), optional
        If features share columns, the column of each: `observed` is then of columns, (B, D).
    """
    rank = mean.shape[-1]
    z1 = torch.nn.functional.pad(mean, (0, 1), value=1.0)  # (..., B, L + 1)
    moment = z1.unsqueeze(-1) * z1.unsqueeze(-2)
    moment[..., :rank, :rank] += torch.cholesky_inverse(chol)
    moment = moment.flatten(-2)
    weight, cells, squares = observed.to(values.dtype).T, values.T, values.square().T  # (F, B)
    if responsibility is None:
        latent = moment.sum(-2)
    else:
        latent = (responsibility.unsqueeze(-2) @ moment).squeeze(-2)
        weight, cells, squares = (responsibility.unsqueeze(-2) * part for part in (weight, cells, squares))
    size = (rank + 1, rank + 1)
    design, n_observed = (weight @ moment).unflatten(-1, size), weight.sum(-1)
    if columns is not None:
        design, n_observed = design[..., columns, :, :], n_observed[..., columns]
    return Statistics(latent.unflatten(-1, size), design, cells @ z1, squares.sum(-1), n_observed)


def m_step(statistics: Statistics, psi: Tensor, prior: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of every feature on the latent, and the noise that it leaves.

    Parameters
    ----------
    statistics : Statistics
    psi : Tensor of shape (..., F)
        Noise variances of the model that the E-step used: they set the scale of the prior.
    prior : Tensor of shape (L + 1,)
        Prior precision of a feature's loadings and of its offset.
    floor : Tensor of shape (F,)
        Smallest noise variance; it enters as one pseudo-row.

    Returns
    -------
    W, b, psi : Tensor of shape (..., F, L), (..., F), (..., F)
    """
    ridge = torch.diag_embed(psi.unsqueeze(-1) * prior)
    coef = torch.linalg.solve(statistics.design + ridge, statistics.target)  # (..., F, L + 1)
    fit = (coef * (statistics.design @ coef.unsqueeze(-1)).squeeze(-1)).sum(-1)
    residual = statistics.square - 2 * (coef * statistics.target).sum(-1) + fit
    psi = torch.maximum((residual + floor) / (statistics.n_observed + 1), floor)
    return coef[..., :-1], coef[..., -1], psi
