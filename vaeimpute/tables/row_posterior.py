"""What the cells of a row share, and what a table leaves open: posterior draws of a linear VAE as wide as the table.

The linear VAE that guesses best shrinks what draws must keep. This one's parameters are drawn anew for each completed
table, the same for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae.noise import row_keys, row_normal

N_DRAWS = 50  # of the parameters; more completed tables get them again, with other noise
_MAX_RANK = 32
_BETWEEN, _WORK = 8, 3e8  # sweeps from one draw to the next; products of all sweeps: some second
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
    """

    @torch.no_grad()
    def __init__(self, x: Tensor, known: Tensor, start: FactorAnalysis, floor: Tensor, seed: int) -> None:
        x, start = x.double(), start.to(torch.float64)
        rank = max(start.rank, min(x.shape[1] - 1, _MAX_RANK))
        if rank > start.rank:
            start = widened(start, x, known, rank)
        between = min(_BETWEEN, max(1, int(_WORK / (N_DRAWS * x.numel() * rank))))
        generator = make_generator(seed, x.device)
        options = {"n_warm_up": 4 * between, "n_between": between}
        self.draws = draw_parameters(x, known, start, floor.double(), N_DRAWS, generator, **options)
        self.mean = average(self.draws)
        self.variance = self._scatter(x[:_CHECKED_ROWS], known[:_CHECKED_ROWS], seed)

    @property
    def n_noise(self) -> int:
        """Noise that the deviates of a row take."""
        return sum(self.mean.W.shape)

    def given(self, x: Tensor, visible: Tensor) -> ConditionalGaussian:
        """Mean and variance of every feature of rows (B, F) under the average parameters."""
        parts = [conditional(x[rows].double(), visible[rows], self.mean) for rows in self._slices(len(x))]
        return ConditionalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def deviates(self, x: Tensor, visible: Tensor, given: ConditionalGaussian, which: int, noise: Tensor) -> Tensor:
        """Features (B, F) drawn with one draw of the parameters, in standard deviations from what `given` expects.

        Their variance is one, and what the parameters leave open (``variance``).

        Parameters
        ----------
        x, visible : Tensor of shape (B, F)
        given : ConditionalGaussian
            What `given` says of these rows.
        which : int
            Number of the draw of the parameters.
        noise : Tensor of shape (B, L + F)
        """
        model = FactorAnalysis(*(part[which] for part in self.draws))
        of_latents, of_cells = noise.split([model.rank, x.shape[1]], 1)
        parts = []
        for rows in self._slices(len(x)):
            z = draw_latents(x[rows].double(), visible[rows], model, of_latents[rows])
            parts.append(decode(z, model) + model.psi.sqrt() * of_cells[rows])
        return (torch.cat(parts) - given.mean) / given.variance.sqrt()

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
            total += self.deviates(x, visible, given, k, row_normal(keys, self.n_noise, k)).square().mean(0)
        return (total / _CHECKED_DRAWS).clamp(min=1)

    def _slices(self, n_rows: int) -> Iterator[slice]:
        F, L = self.mean.W.shape
        return row_slices(n_rows, F + 4 * L**2)
