"""What held-out cells tell of two models: the weight of each per column, and how far their draws must disperse."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from vaeimpute.training.loop import summed_per_column
from vaeimpute.vae.base import VAE
from vaeimpute.vae.inference import draw_per_member

_STACKED, _PRIOR_CELLS = 2000, 100  # rows from which weights are fitted, and cells that the prior is worth
_ALIKE = 0.05  # squared difference of both expectations, in squared errors, that tells little
_PSEUDO_CELLS = 50  # at the pooled factor: as many as it takes to trust a quantile of a column's own
_FACTORS = (0.5, 3.0)  # bounds of a dispersion


def stacking_weight(joint: Tensor, conditional: Tensor, columns: Tensor, n_held_out: Tensor, n: int) -> Tensor:
    """Weight of the joint model per column, (D,), from the residuals of both on held-out cells, (M, n, A).

    Inversely to the fourth power of the error: close to an even average where both do as well, which is safest on small
    tables, and close to a choice where one is clearly better. Large tables can afford the weight with the least squared
    error (stacking, Breiman 1996), with the former as a prior. One half where nothing was held out.
    """

    def sums(products: Tensor) -> Tensor:
        return summed_per_column(products, columns, len(n_held_out))

    of_joint, of_conditional = sums(joint.square()), sums(conditional.square())
    ratio = (of_joint / of_conditional.clamp(min=1e-30)) ** 4
    prior = torch.where(of_joint + of_conditional > 0, 1 / (1 + ratio), 0.5)
    if n < _STACKED:
        return prior
    apart = sums((conditional - joint).square())
    # Where both expect nearly the same, as of a linear table, only noise would choose between them.
    strength = _PRIOR_CELLS * (apart + _ALIKE * of_conditional) / n_held_out.clamp(min=1)
    best = (sums((conditional - joint) * conditional) + strength * prior) / (apart + strength).clamp(min=1e-30)
    return torch.where(apart > 0, best.clamp(0, 1), prior)


def dispersion(
    joint: VAE,
    conditional: VAE,
    weight: Tensor,
    values: Tensor,
    visible: Tensor,
    held_out: Tensor,
    is_continuous: Tensor,
    generator: Generator,
    n_draws: int = 48,
    level: float = 0.9,
) -> Tensor:
    """Factor per column (D,) by which draws must disperse so that their 90% intervals hold 90% of the held-out cells.

    One for discrete numbers and classes, whose draws must stay what they are.

    Parameters
    ----------
    joint, conditional : VAE
    weight : Tensor of shape (D,)
        Of the joint model.
    values : Tensor of shape (n, D)
    visible, held_out : Tensor of shape (M, n, D)
        What each member is given, and what it has to predict.
    is_continuous : bool Tensor of shape (D,)
    generator : Generator
    n_draws : int
    level : float
    """
    factor = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
    columns = is_continuous.nonzero().squeeze(-1)
    held_out = held_out[..., columns]
    if not held_out.any():
        return factor
    x = values.expand(len(held_out), -1, -1)
    of_joint, of_conditional = (
        draw_per_member(model, x, visible, n_draws, columns, generator) for model in (joint, conditional)
    )
    uniform = torch.rand(n_draws, 1, len(values), 1, device=values.device, generator=generator)
    cells = torch.where(uniform < weight[columns], of_joint, of_conditional)
    center = cells.mean(0)
    # The order statistic that a further draw exceeds with the right probability (Weibull's plotting position).
    position = (level * (n_draws + 1) - 1) / (n_draws - 1)
    half_width = (cells - center).abs().quantile(position, 0).clamp(min=1e-6)
    ratio = (x[..., columns] - center).abs() / half_width
    pooled = ratio[held_out].quantile(level)
    for place, column in enumerate(columns.tolist()):
        own = ratio[..., place][held_out[..., place]]
        if len(own):
            share = len(own) / (len(own) + _PSEUDO_CELLS)
            factor[column] = (share * own.quantile(level).log() + (1 - share) * pooled.log()).exp()
        else:
            factor[column] = pooled
    return factor.clamp(*_FACTORS)
