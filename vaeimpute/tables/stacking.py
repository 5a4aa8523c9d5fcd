"""What held-out cells tell of two models: the weight of each per column."""

from __future__ import annotations

import torch
from torch import Tensor

from vaeimpute.training.loop import summed_per_column

_PRIOR_CELLS = 100  # cells that the prior is worth
_ALIKE = 0.05  # squared difference of both expectations, in squared errors, that tells little


def stacking_weight(joint: Tensor, conditional: Tensor, columns: Tensor, n_held_out: Tensor) -> Tensor:
    """Weight of the joint model per column, (D,), from the residuals of both on held-out cells, (M, n, A).

    The weight with the least squared error (stacking, Breiman 1996), drawn to a prior that goes inversely with the
    fourth power of the squared errors: an even average where both do as well, a choice where one is clearly better. One
    half where nothing was held out.
    """

    def sums(products: Tensor) -> Tensor:
        return summed_per_column(products, columns, len(n_held_out))

    of_joint, of_conditional = sums(joint.square()), sums(conditional.square())
    ratio = (of_joint / of_conditional.clamp(min=1e-30)) ** 4
    prior = torch.where(of_joint + of_conditional > 0, 1 / (1 + ratio), 0.5)
    apart = sums((conditional - joint).square())
    # Where both expect nearly the same, as of a linear table, only noise would choose between them.
    strength = _PRIOR_CELLS * (apart + _ALIKE * of_conditional) / n_held_out.clamp(min=1)
    best = (sums((conditional - joint) * conditional) + strength * prior) / (apart + strength).clamp(min=1e-30)
    return torch.where(apart > 0, best.clamp(0, 1), prior)
