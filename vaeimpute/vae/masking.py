"""Which observed cells are hidden: afresh in every step of the training, and for good to be predicted later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from vaeimpute.batching import row_slices

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # multipliers of SplitMix64 (Steele, Lea and Flood 2014)
_STEP = 0x9E3779B97F4A7C15
_BITS = 53  # of a double


@dataclass(frozen=True)
class HeldOutCells:
    """Cells that are kept from the training: a function of row, column and member, and no array.

    So nothing grows with the table, and a row has the same held-out cells in whatever batch or process it comes.

    Parameters
    ----------
    rate : float
        Share of the cells that each member does not see.
    n_members : int
    seed : int
    """

    rate: float
    n_members: int
    seed: int

    def __call__(self, rows: Tensor, n_columns: int) -> Tensor:
        """Which cells of the rows with these numbers are held out, for each member.

        Parameters
        ----------
        rows : int Tensor of shape (B,), or (M, B) where each member has rows of its own
        n_columns : int

        Returns
        -------
        bool Tensor of shape (M, B, D)

        Examples
        --------
        >>> held_out = HeldOutCells(rate=0.1, n_members=2, seed=0)
        >>> together, alone = held_out(torch.arange(1000), 5), held_out(torch.tensor([7]), 5)
        >>> together.shape, bool((together[:, 7] == alone[:, 0]).all()), round(together.double().mean().item(), 2)
        (torch.Size([2, 1000, 5]), True, 0.1)
        """
        member = torch.arange(self.n_members, device=rows.device).view(-1, 1, 1)
        column = torch.arange(n_columns, device=rows.device)
        row = rows.expand(self.n_members, -1).unsqueeze(-1)
        out = torch.empty(*row.shape[:2], n_columns, dtype=torch.bool, device=rows.device)
        for part in row_slices(row.shape[1], 4 * self.n_members * n_columns):
            out[:, part] = _uniform(self.seed, member, row[:, part], column) < self.rate
        return out


def _uniform(seed: int, *keys: Tensor) -> Tensor:
    """Numbers in [0, 1) in double precision that look random, one for each tuple of integers (broadcast)."""
    state = torch.tensor(_signed(seed * _STEP), device=keys[0].device)
    for key in keys:
        state = _scrambled(state + (key + 1) * _signed(_STEP))
    return (_shifted(state, 64 - _BITS)).double() * 2.0**-_BITS


def _scrambled(x: Tensor) -> Tensor:
    """SplitMix64's finalizer: every bit of the input changes half of those that come out."""
    x = (x ^ _shifted(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shifted(x, 27)) * _signed(_MIX[1])
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; PyTorch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The 64 bits of x as PyTorch's int64 reads them."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x


def random_mask(observed: Tensor, generator: Generator, *, max_hidden: float, hide_all: float = 0.0) -> Tensor:
    """Hide each observed cell (..., D) at the row's own rate ``U(0, max_hidden)``, and all of them in some rows.

    Parameters
    ----------
    observed : Tensor of shape (..., D)
    generator : Generator
    max_hidden : float
        Largest share of a row's cells.
    hide_all : float
        Share of the rows that keep nothing.
    """
    rate = max_hidden * _random(observed[..., :1], generator)
    rate = torch.where(_random(rate, generator) < hide_all, 1.0, rate) if hide_all else rate
    return observed & (_random(observed, generator) >= rate)


def random_mask_of_half(observed: Tensor, generator: Generator, *, max_hidden: float) -> Tensor:
    """The same in every second row of a batch (..., B, D); the others stay as they are."""
    rate = max_hidden * _random(observed[..., :1], generator)
    rate[..., ::2, :] = 0
    return observed & (_random(observed, generator) >= rate)


def _random(like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(like.shape, device=like.device, generator=generator)
