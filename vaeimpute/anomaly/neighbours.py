"""Distance to the nearest reference rows, over the observed features."""

from __future__ import annotations

import torch
from torch import Tensor

from vaeimpute.batching import row_slices

_SAME = 1e-10  # squared distance per feature of two copies of a row: classes are not exact in single precision


def knn_distances(reference: Tensor, x: Tensor, observed: Tensor, k: int) -> Tensor:
    """Distances (n, k) to the nearest reference rows but one that is the same, over the observed features.

    So the rows of the training table, which are among the reference rows, are treated as new ones.

    Parameters
    ----------
    reference : Tensor of shape (N, F)
        Complete rows.
    x, observed : Tensor of shape (n, F)
    k : int
        As many as there are, if they are fewer.

    Examples
    --------
    >>> reference = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> knn_distances(reference, torch.tensor([[3.0, 0.0]]), torch.tensor([[True, False]]), k=1)
    tensor([[3.]])
    """
    parts = row_slices(len(x), 3 * len(reference) + k * x.shape[1])
    return torch.cat([_distances(reference, x[rows], observed[rows], k) for rows in parts])


def _distances(reference: Tensor, x: Tensor, observed: Tensor, k: int) -> Tensor:
    o = observed.to(x.dtype)
    terms, features = torch.cat([o, -2 * o * x], -1), torch.cat([reference.square(), reference], -1)
    candidates = (terms @ features.T).topk(min(k + 1, len(reference)), largest=False).indices
    way = torch.where(observed.unsqueeze(1), reference[candidates] - x.unsqueeze(1), 0)  # no difference of large sums
    nearest = way.square().sum(-1).sort(-1).values
    same = (nearest[:, :1] <= _SAME * o.sum(1, keepdim=True)) & (len(reference) > 1)
    return torch.where(same, nearest.roll(-1, 1), nearest)[:, : min(k, max(1, len(reference) - 1))].sqrt()
