"""What stands in a cell that is wrong: another row's value, or anything at all.

With the density q of such values, ``log q(x) - log p(x | the rest of the row)`` says how much likelier a cell is wrong
than right, in every column by the same measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vaeimpute.persistence import Fitted

_ATOMS = 64  # values that stand for a column of numbers
_WIDTH = 0.2  # of a kernel around each, in standard deviations
_ANYWHERE = 4.0  # scale of the Cauchy distribution of other errors


class ContaminationDensity(Fitted):
    """The density of wrong values: half of it stands at `atoms`, half anywhere.

    Attributes
    ----------
    atoms, log_weight : Tensor of shape (K, D)
        Values of each column (-inf weight: none), with kernels of standard deviation `width` (D,).
    width, log_anywhere : Tensor of shape (D,)
        Log-weight of the Cauchy distribution; -inf for classes, whose atoms are all that there is.
    """

    atoms: Tensor
    log_weight: Tensor
    width: Tensor
    log_anywhere: Tensor

    buffer_names = ("atoms", "log_weight", "width", "log_anywhere")

    @classmethod
    def fit(cls, values: Tensor, observed: Tensor, n_categories: Sequence[int], some: Tensor | None = None) -> Self:
        """Learn from cells (n, D); `n_categories` is 0 for numbers.

        Only rows `some` are looked at, but where a column has too few cells in them.

        Examples
        --------
        >>> values = torch.arange(100.0).repeat(3).unsqueeze(1) / 10
        >>> wrong = ContaminationDensity.fit(values, torch.ones_like(values, dtype=torch.bool), [0])
        >>> wrong.log_density(torch.tensor([[1.0], [20.0]])).squeeze()
        tensor([-2.4235, -6.4823])
        """
        atoms, weights = [], []
        for j, count in enumerate(n_categories):
            rows = observed[:, j].nonzero().squeeze(-1)
            if some is not None and observed[some, j].sum() >= _ATOMS:
                rows = some[observed[some, j]]
            x = values[rows, j]
            if count:
                share = torch.bincount(x.long(), minlength=count)[:count] / max(len(x), 1)
                atoms.append(torch.arange(count).to(x))
                weights.append((0.5 * share + 0.5 / count).to(x).log())
            else:
                atoms.append(x.quantile((torch.arange(_ATOMS).to(x) + 0.5) / _ATOMS))
                weights.append(torch.full_like(atoms[-1], -math.log(2 * _ATOMS * _WIDTH * math.sqrt(2 * math.pi))))
        number = torch.tensor([not count for count in n_categories], device=values.device)
        return cls(
            atoms=pad_sequence(atoms),
            log_weight=pad_sequence(weights, padding_value=-math.inf),
            width=torch.where(number, _WIDTH, 0.01).to(values),
            log_anywhere=torch.where(number, math.log(0.5), -math.inf).to(values),
        )

    def log_density(self, values: Tensor) -> Tensor:
        """``log q(x)`` of each cell, (n, D)."""
        kernel = self.log_weight - 0.5 * ((values.unsqueeze(-2) - self.atoms) / self.width).square()
        cauchy = -(math.pi * _ANYWHERE * (1 + (values / _ANYWHERE).square())).log()
        return torch.logaddexp(kernel.logsumexp(-2), self.log_anywhere + cauchy)
