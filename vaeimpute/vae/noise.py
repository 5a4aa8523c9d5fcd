"""Noise that depends on the row and not on its batch: imputations and draws are the same in any company.

Expectations take quasi-random latents, the same for every row. Draws take numbers that are hashed from the row's cells,
the seed and the number of the draw: the same whichever rows come along, in whatever order, part or thread.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # SplitMix64's, as signed


@lru_cache(maxsize=64)  # drawing it takes longer than encoding a row
def sobol_normal(n_latent: int, n_draws: int) -> Tensor:
    """Quasi-random standard normal noise (K, L), in float64."""
    with torch.inference_mode(mode=False):  # what is kept may be used in any later mode
        uniform = SobolEngine(n_latent, scramble=True, seed=0).draw(n_draws, dtype=torch.float64)
        return torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))


def row_keys(values: Tensor, observed: Tensor) -> Tensor:
    """A number (n,) for each row (n, D), from its observed cells; equal rows are counted, so that theirs differ too."""
    bits = torch.where(observed, values.double() + 0.0, torch.nan).view(torch.int64)  # -0.0 is 0.0
    column = torch.arange(values.shape[1], device=values.device)
    key = _mix(bits ^ _mix(column)).sum(1)
    order = key.argsort(stable=True)
    place = torch.arange(len(key), device=key.device)
    begins = torch.ones_like(key, dtype=torch.bool)
    begins[1:] = key[order][1:] != key[order][:-1]
    first = torch.where(begins, place, 0).cummax(0).values
    return _mix(key.scatter(0, order, key[order] + place - first))


def row_uniform(keys: Tensor, size: int, *seeds: int) -> Tensor:
    """Uniform numbers (n, size) in float64 for rows with these keys (n,), others for every tuple of seeds."""
    stream = torch.zeros((), dtype=torch.int64, device=keys.device)
    for seed in seeds:
        stream = _mix(stream + seed)
    place = torch.arange(size, device=keys.device)
    numbers = _mix(_mix(keys ^ stream).unsqueeze(1) + _GOLDEN * (place + 1))
    return (((numbers >> 11) & (2**53 - 1)).double() + 0.5) * 2.0**-53


def row_normal(keys: Tensor, size: int, *seeds: int) -> Tensor:
    """The same, standard normal."""
    return torch.special.ndtri(row_uniform(keys, size, *seeds))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), on signed numbers that wrap around."""
    x = x + _GOLDEN
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
