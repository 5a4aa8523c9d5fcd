"""What held-out cells tell of two estimates: the weight of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vaeimpute.training.loop import summed_per_column

_PRIOR_CELLS = 100  # cells that the prior is worth
_ALIKE = 0.05  # squared difference of both expectations, in squared errors, that tells little


def stacked_weight(one: Tensor, other: Tensor, total: Callable[[Tensor], Tensor], n_cells: Tensor) -> Tensor:
    """Weight of one of two estimates in their average, from the residuals of both.

    The weight with the least squared error (stacking, Breiman 1996), drawn to a prior that goes inversely with the
    fourth power of the squared errors: an even average where both do as well, a choice where one is clearly better. One
    half where nothing was held out.

    Parameters
    ----------
    one, other : Tensor
        Residuals, of one shape.
    total : callable
        Sums such a tensor up to one number for each weight.
    n_cells : Tensor
        Number of the cells behind each.
    """
    of_one, of_other = total(one.square()), total(other.square())
    ratio = (of_one / of_other.clamp(min=1e-30)) ** 4
    prior = torch.where(of_one + of_other > 0, 1 / (1 + ratio), 0.5)
    apart = total((other - one).square())
    # Where both expect nearly the same, as of a linear table, only noise would choose between them.
    strength = _PRIOR_CELLS * (apart + _ALIKE * of_other) / n_cells.clamp(min=1)
    best = (total((other - one) * other) + strength * prior) / (apart + strength).clamp(min=1e-30)
    return torch.where(apart > 0, best.clamp(0, 1), prior)


def stacking_weight(joint: Tensor, conditional: Tensor, columns: Tensor, n_held_out: Tensor) -> Tensor:
    """`stacked_weight` of the joint model per column, (D,), from the residuals of both on held-out cells, (M, n, A)."""
    return stacked_weight(
        joint, conditional, lambda products: summed_per_column(products, columns, len(n_held_out)), n_held_out
    )
