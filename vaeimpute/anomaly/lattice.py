"""Where the clean cells of a column stand: on a lattice, as whole numbers and prices do, and among values seen before.

A density of numbers does not see that 4.37 cannot be a number of children.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vaeimpute.persistence import Fitted

_DIVISORS = 10  # a step is the smallest gap between two values, or one divided by up to this
_NEAR = 0.01  # of a step
_FINEST = 1e-3  # step in standard deviations; finer ones drown in single precision
_STRAY = 0.02  # share of clean cells that may stand off a lattice
_REPEATING = 0.25  # share of new values up to which the values of a column are a list
_HALF = 0.5  # of the surprisal of a new value: most stand far out, and the density finds them unlikely already
_TOGETHER = 100  # cells that what all lattices show together is worth to each


class Lattice(Fitted):
    """A lattice, a list of values, both or neither for each column.

    Attributes
    ----------
    origin, step : Tensor of shape (D,), in float64
        Of the lattices; a step of 0 is none.
    known : Tensor of shape (U, D), in float64
        Sorted values of the lists, up to inf.
    log_off, log_new : Tensor of shape (D,)
        Log-probability that a clean cell stands off the lattice, and that its value is not in the list.
    """

    origin: Tensor
    step: Tensor
    known: Tensor
    log_off: Tensor
    log_new: Tensor

    buffer_names = ("origin", "step", "known", "log_off", "log_new")

    @classmethod
    def fit(cls, values: Tensor, observed: Tensor, n_categories: Sequence[int], wrong: float = 0.0) -> Self:
        """Learn from cells (n, D), of which a share `wrong` may be errors; `n_categories` is 0 for numbers.

        Examples
        --------
        >>> values = torch.arange(100.0).repeat(3).unsqueeze(1) / 10
        >>> lattice = Lattice.fit(values, torch.ones_like(values, dtype=torch.bool), [0])
        >>> lattice.log_probability(torch.tensor([[1.0], [1.05]])).squeeze()
        tensor([ 0.0000, -7.0967])
        """
        origin, step, log_new, strays, counts = values.new_zeros(5, values.shape[1], dtype=torch.float64)
        lists = [origin.new_full((1,), math.inf)] * values.shape[1]
        for j, is_class in enumerate(n_categories):
            if is_class:
                continue
            x = values[observed[:, j], j].double()
            n_errors = wrong * len(x) + 2 * (wrong * len(x)) ** 0.5  # as many as there may well be
            distinct, count = x.unique(return_counts=True)
            start, width = _find_lattice(distinct[count > 1])
            n_off = int((_distance(x, start, width) > _NEAR).sum())
            if width and n_off <= _STRAY * len(x) + n_errors:
                origin[j], step[j], strays[j], counts[j] = start, width, max(n_off - n_errors, 0.0), len(x)
            n_new = max(int((count == 1).sum()) - n_errors, 0.0)  # as often as values came once (Good and Turing)
            unseen = (n_new + 1) / (len(x) + 2)
            if unseen <= _REPEATING:
                lists[j], log_new[j] = distinct, math.log(unseen)
        rate = (strays.sum() + 1) / (counts.sum() + 2)
        log_off = ((strays + _TOGETHER * rate) / (counts + _TOGETHER)).log()
        known = pad_sequence(lists, padding_value=math.inf)
        return cls(origin=origin, step=step, known=known, log_off=log_off, log_new=log_new)

    def is_off(self, values: Tensor) -> Tensor:
        """Which cells (n, D) do not stand on their column's lattice."""
        return _distance(values.double(), self.origin, self.step) > _NEAR

    def nearest(self, values: Tensor) -> Tensor:
        """Cells (n, D) moved to where cells stand: to the next value of a list, or the next point of a lattice."""
        x = values.double()
        below, above = self._listed(x)
        listed = torch.where((x - below <= above - x) & below.isfinite() | ~above.isfinite(), below, above)
        on_lattice = self.origin + self.step * ((x - self.origin) / self.step).round()
        return torch.where(listed.isfinite(), listed, torch.where(self.step > 0, on_lattice, x))

    def between(self, values: Tensor, uniform: Tensor) -> Tensor:
        """The same by chance, up or down, so that means stay; beyond a list its last value.

        Examples
        --------
        >>> values = torch.arange(10.0).repeat(9).unsqueeze(1)
        >>> lattice = Lattice.fit(values, torch.ones_like(values, dtype=torch.bool), [0])
        >>> lattice.between(torch.full((2, 1), 2.25), torch.tensor([[0.2], [0.3]])).squeeze()
        tensor([3., 2.], dtype=torch.float64)
        """
        x = values.double()
        below, above = self._listed(x)
        floor = self.origin + self.step * ((x - self.origin) / self.step + 1e-9).floor()
        has_list = below.isfinite() | above.isfinite()
        below = torch.where(has_list, torch.where(below.isfinite(), below, above), floor)
        above = torch.where(has_list, torch.where(above.isfinite(), above, below), floor + self.step)
        goes_up = x - below > uniform * (above - below)
        return torch.where(has_list | (self.step > 0), torch.where(goes_up, above, below), x)

    def _listed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Next values of the lists below, and at or above; infinite where there is none."""
        at = torch.searchsorted(self.known.T.contiguous(), x.T.contiguous()).T.clamp(1, max(len(self.known) - 1, 1))
        return self.known.gather(0, at - 1), self.known.gather(0, at.clamp(max=len(self.known) - 1))

    def log_probability(self, values: Tensor) -> Tensor:
        """What standing where it does adds to the log-density of each cell (n, D), if it is clean."""
        x = values.double()
        place = torch.searchsorted(self.known.T.contiguous(), x.T.contiguous()).T.clamp(max=len(self.known) - 1)
        new = self.known.gather(0, place) != x
        return torch.where(self.is_off(values), self.log_off, torch.where(new, _HALF * self.log_new, 0)).to(values)


def _find_lattice(often: Tensor) -> tuple[float, float]:
    """Origin and step of a lattice on which all of these sorted values stand; (0, 0) if there is none."""
    if len(often) < 2:
        return 0.0, 0.0
    origin, gap, span = often[0].item(), often.diff().min().item(), (often[-1] - often[0]).item()
    for divisor in range(1, _DIVISORS + 1):
        step = span / max(1, round(span / gap * divisor))  # from the widest gap, lest many small errors add up
        if step < _FINEST:
            break
        if (_distance(often, origin, step) <= _NEAR).all():
            return origin, step
    return 0.0, 0.0


def _distance(values: Tensor, origin: Tensor | float, step: Tensor | float) -> Tensor:
    """From the nearest point of the lattice, in steps; NaN without one."""
    place = (values - origin) / step
    return (place - place.round()).abs()
