"""By how much hidden cells are not what they would be if they were missing at random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shift(NamedTuple):
    """By how much the hidden cells of rows are not what they would be if they were missing at random.

    Attributes
    ----------
    columns : bool Tensor of shape (D,)
        Which columns are shifted. The hidden cells of the others follow.
    added : Tensor of shape (n, D)
        To numbers, in standard deviations of the observed column.
    log_odds : Tensor of shape (n, A)
        Towards classes, where expectations have their columns.
    expectation_columns : Tensor of shape (A,)
        Which column each of those is of.
    """

    columns: Tensor
    added: Tensor
    log_odds: Tensor
    expectation_columns: Tensor

    @classmethod
    def none(cls, n_rows: int, expectation_columns: Tensor, n_columns: int) -> Shift:
        """No shift of so many rows, to which shifts are added."""
        columns = torch.zeros(n_columns, dtype=torch.bool, device=expectation_columns.device)
        added = columns.new_zeros(n_rows, n_columns, dtype=torch.float64)
        return cls(columns, added, added.new_zeros(n_rows, len(expectation_columns)), expectation_columns)

    def add(self, column: int, category: int | None, amounts: Tensor) -> None:
        """Shift a column by amounts (n,), towards a class if there is one."""
        self.columns[column] = True
        if category is None:
            self.added[:, column] += amounts
        else:
            of_column = (self.expectation_columns == column).nonzero().squeeze(-1)
            self.log_odds[:, of_column[category]] += amounts

    def at(self, rows: slice | Tensor) -> Shift:
        """That of some rows."""
        return self._replace(added=self.added[rows], log_odds=self.log_odds[rows])
