"""What the cells of a row share, and what a table leaves open: posterior draws of a linear VAE as wide as the table.

The linear VAE that guesses best shrinks what draws must keep. This one's parameters are drawn anew for each completed
table, the same for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import (
    ConditionalGaussian,
    FactorAnalysis,
    conditional,
    decode,
    posterior,
    widened,
)
from vaeimpute.gaussian.gibbs import average, draw_latents, draw_parameters
from vaeimpute.gaussian.self_masking import SelfMasking, Sweep, draw_rows
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae.noise import row_keys, row_normal

N_DRAWS = 50  # of the parameters; more completed tables get them again, with other noise
_MAX_RANK = 32
_BETWEEN, _WORK = 8, 3e8  # sweeps from one draw to the next; products of all sweeps: some second
_SELF_MASKED_WARM_UP = 15  # times as many sweeps: slopes move slowly
_ROW_SWEEPS, _POINT_SWEEPS, _POINTS = 8, 20, 2  # of a chain of hidden cells: warm-up, end, and the noise of points
_CHECKED_ROWS, _CHECKED_DRAWS = 256, 10  # that tell how far parameters scatter a cell


class RowPosterior:
    """Draws of a linear VAE's parameters given training rows, and rows drawn with them; all in float64.

    Parameters
    ----------
    x, known : Tensor of shape (N, F)
        Features of the rows, and which are observed.
    start : FactorAnalysis
        Where the chain begins.
    floor : Tensor of shape (F,)
        Smallest noise variance.
    seed : int
    self_masked : int Tensor of shape (J,), optional
        Features of cells that hide themselves; all that is said of hidden cells then takes the mask into account.
    """

    @torch.no_grad()
    def __init__(
        self,
        x: Tensor,
        known: Tensor,
        start: FactorAnalysis,
        floor: Tensor,
        seed: int,
        self_masked: Tensor | None = None,
    ) -> None:
        x, start = x.double(), start.to(torch.float64)
        rank = max(start.rank, min(x.shape[1] - 1, _MAX_RANK))
        if rank > start.rank:
            start = widened(start, x, known, rank)
        between = min(_BETWEEN, max(1, int(_WORK / (N_DRAWS * x.numel() * rank))))
        generator = make_generator(seed, x.device)
        warm_up = 4 * between if self_masked is None else _SELF_MASKED_WARM_UP * between
        options: dict[str, Any] = {"n_warm_up": warm_up, "n_between": between, "self_masked": self_masked}
        self.self_masked = self_masked
        self.draws, self.masking = draw_parameters(x, known, start, floor.double(), N_DRAWS, generator, **options)
        self.mean = average(self.draws)
        self.variance = self._scatter(x[:_CHECKED_ROWS], known[:_CHECKED_ROWS], seed)

    def given(self, x: Tensor, visible: Tensor) -> ConditionalGaussian:
        """Mean and variance of every feature of rows (B, F) under the average parameters, whatever the mask."""
        parts = [conditional(x[rows].double(), visible[rows], self.mean) for rows in self._slices(len(x))]
        return ConditionalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def deviates(
        self, x: Tensor, visible: Tensor, given: ConditionalGaussian, which: int, keys: Tensor, *seeds: int
    ) -> Tensor:
        """Features (B, F) drawn with one draw of the parameters, in standard deviations from what `given` expects.

        Their variance is one, and what the parameters leave open (``variance``); where cells hide themselves, that they
        are hidden moves them too.

        Parameters
        ----------
        x, visible : Tensor of shape (B, F)
        given : ConditionalGaussian
            What `given` says of these rows.
        which : int
            Number of the draw of the parameters.
        keys : Tensor of shape (B,)
            Of the rows' noise.
        *seeds : int
        """
        drawn = self._drawn if self.masking is None else self._drawn_given_masks
        return (drawn(x.double(), visible, which, keys, *seeds) - given.mean) / given.variance.sqrt()

    def given_masks(self, x: Tensor, visible: Tensor, keys: Tensor) -> ConditionalGaussian:
        """Mean and variance of hidden features (B, F) given observed cells and masks, over draws of the parameters."""
        first, second = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
        draws = range(0, N_DRAWS, N_DRAWS // _CHECKED_DRAWS)
        n_kept = len(draws) * (_POINT_SWEEPS - _ROW_SWEEPS)
        for rows in self._slices(len(x)):
            for k in draws:
                sweeps = self._sweeps(x[rows].double(), visible[rows], k, keys[rows], _POINTS, k)
                for sweep in islice(sweeps, _ROW_SWEEPS, _POINT_SWEEPS):
                    first[rows] += sweep.mean / n_kept
                    second[rows] += (sweep.mean.square() + sweep.variance) / n_kept
        return ConditionalGaussian(first, (second - first.square()).clamp(min=1e-12))

    def _drawn(self, x: Tensor, visible: Tensor, which: int, keys: Tensor, *seeds: int) -> Tensor:
        """Features (B, F) given the visible ones."""
        model, parts = FactorAnalysis(*(part[which] for part in self.draws)), []
        of_latents, of_cells = row_normal(keys, sum(model.W.shape), *seeds).split([model.rank, x.shape[1]], 1)
        for rows in self._slices(len(x)):
            z = draw_latents(x[rows], visible[rows], model, of_latents[rows])
            parts.append(decode(z, model) + model.psi.sqrt() * of_cells[rows])
        return torch.cat(parts)

    def _drawn_given_masks(self, x: Tensor, visible: Tensor, which: int, keys: Tensor, *seeds: int) -> Tensor:
        """The same given which cells are visible too, by a short chain."""
        slices = self._slices(len(x))
        chains = (self._sweeps(x[rows], visible[rows], which, keys[rows], *seeds) for rows in slices)
        return torch.cat([next(islice(chain, _ROW_SWEEPS - 1, None)).x for chain in chains])

    def _sweeps(self, x: Tensor, visible: Tensor, which: int, keys: Tensor, *seeds: int) -> Iterator[Sweep]:
        assert self.masking is not None
        assert self.self_masked is not None
        model, masking = FactorAnalysis(*(p[which] for p in self.draws)), SelfMasking(*(p[which] for p in self.masking))
        n_noise = sum(model.W.shape) + len(self.self_masked)
        return draw_rows(x, visible, model, masking, self.self_masked, lambda s: row_normal(keys, n_noise, *seeds, s))

    def following(self, change: Tensor, visible: Tensor, given: ConditionalGaussian, which: int) -> Tensor:
        """By how much deviates (B, F) of the other cells move with a change of some cells of their rows.

        Parameters
        ----------
        change : Tensor of shape (B, F)
            Zero where cells did not change.
        visible : bool Tensor of shape (B, F)
            Cells that are known, or changed: these do not follow one another.
        given : ConditionalGaussian
            What `given` says of these rows.
        which : int
            Number of the draw of the parameters.
        """
        W, b, psi = (part[which] for part in self.draws)
        model = FactorAnalysis(W, torch.zeros_like(b), psi)  # of differences
        parts = [decode(posterior(change[rows], visible[rows], model)[0], model) for rows in self._slices(len(change))]
        return torch.cat(parts) / given.variance.sqrt()

    def _scatter(self, x: Tensor, known: Tensor, seed: int) -> Tensor:
        """Mean square (F,) of deviates of rows of which half is visible."""
        visible = known & (torch.rand(known.shape, generator=make_generator(seed)).to(x.device) < 0.5)
        given, keys = self.given(x, visible), row_keys(x, visible)
        total = x.new_zeros(x.shape[1])
        for k in range(0, N_DRAWS, N_DRAWS // _CHECKED_DRAWS):
            deviates = (self._drawn(x, visible, k, keys, k) - given.mean) / given.variance.sqrt()
            total += deviates.square().mean(0)
        return (total / _CHECKED_DRAWS).clamp(min=1)

    def _slices(self, n_rows: int) -> Iterator[slice]:
        F, L = self.mean.W.shape
        return row_slices(n_rows, F + 4 * L**2)
