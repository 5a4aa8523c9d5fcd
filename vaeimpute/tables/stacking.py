"""What held-out cells tell of two estimates: the weight of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vaeimpute.training.loop import summed_per_column

_PRIOR_CELLS = 100  # cells that the prior is worth
_POWER, _POOLED_POWER = 4, 8  # of the squared errors, by which it goes
_ALIKE = 0.05  # squared difference of both expectations, in squared errors, that tells little


def stacked_weight(
    one: Tensor, other: Tensor, total: Callable[[Tensor], Tensor], n_cells: Tensor, *, pooled: bool = False
) -> Tensor:
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
    pooled : bool
        Whether the prior goes by the errors of all where a weight has few cells of its own, and by their eighth power.
    """
    of_one, of_other = total(one.square()), total(other.square())
    ratio, power, known = of_one / of_other.clamp(min=1e-30), _POWER, of_one + of_other > 0
    if pooled:
        n_known = n_cells * (known & ratio.isfinite())
        ratio, power, known = _drawn_together(ratio, n_known), _POOLED_POWER, n_known.sum() > 0
    prior = torch.where(known, 1 / (1 + ratio**power), 0.5)
    apart = total((other - one).square())
    # Where both expect nearly the same, as of a linear table, only noise would choose between them.
    strength = _PRIOR_CELLS * (apart + _ALIKE * of_other) / n_cells.clamp(min=1)
    best = (total((other - one) * other) + strength * prior) / (apart + strength).clamp(min=1e-30)
    return torch.where(apart > 0, best.clamp(0, 1), prior)


def _drawn_together(ratio: Tensor, n_cells: Tensor) -> Tensor:
    """Ratios of errors, as far as each has few cells drawn to the geometric mean of all."""
    log_ratio = torch.where(n_cells > 0, ratio.clamp(1e-6, 1e6).log(), 0)
    mean = (n_cells * log_ratio).sum() / n_cells.sum().clamp(min=1)
    return torch.exp((n_cells * log_ratio + _PRIOR_CELLS * mean) / (n_cells + _PRIOR_CELLS))


def stacking_weight(joint: Tensor, conditional: Tensor, columns: Tensor, n_held_out: Tensor) -> Tensor:
    """`stacked_weight` of the joint model per column, (D,), from the residuals of both on held-out cells, (M, n, A)."""
    return stacked_weight(
        joint,
        conditional,
        lambda products: summed_per_column(products, columns, len(n_held_out)),
        n_held_out,
        pooled=True,
    )
