"""Networks: tensors in, tensors out; no distributions inside.

Every layer carries a leading member axis M and does all members in one batched product, so that an ensemble costs one
set of kernel calls and its members share the cores.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F


class StackedLinear(nn.Module):
    """M linear layers in one product: ``y[m] = x[m] W[m] + b[m]``.

    Parameters
    ----------
    n_members, n_in, n_out : int
        Members, inputs and outputs.
    init : Generator, optional
        Of PyTorch's own uniform start; without one, weights are zero.

    Shape
    -----
    (M, ..., n_in) to (M, ..., n_out)
    """

    def __init__(self, n_members: int, n_in: int, n_out: int, init: Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_members, n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))
        start_uniform(self, n_in, init)

    def forward(self, x: Tensor) -> Tensor:
        shape, weight = x.shape, self.weight
        x = x.reshape(shape[0], -1, shape[-1])
        if self.training and x.dtype == torch.float32 and has_fast_bfloat16(x.device):
            out = torch.bmm(x.bfloat16(), weight.bfloat16()).float() + self.bias
        else:
            out = torch.baddbmm(self.bias, x, weight)
        return out.view(*shape[:-1], out.shape[-1])


def start_uniform(layer: nn.Module, n_in: int, generator: Generator | None) -> None:
    """PyTorch's own start of a layer with `n_in` inputs, ``U(-1 / sqrt(n_in), 1 / sqrt(n_in))``, by a generator."""
    if generator is None:
        return
    bound = 1 / math.sqrt(max(n_in, 1))
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.uniform_(-bound, bound, generator=generator)


@cache
def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware: they are then two to four times as fast.

    Training uses them for the products alone; sums, norms, the linear backbone and inference stay in full precision.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


class ResidualMLP(nn.Module):
    """M residual networks: Linear, then ``depth`` times ``x + Dropout(Linear(SiLU(LayerNorm x)))``.

    Parameters
    ----------
    n_members, n_in, width, depth : int
        Members, inputs, hidden units, residual blocks.
    dropout : float
        Dropout rate inside each block.
    norm : bool
        Whether the blocks normalise their input.
    init : Generator, optional
        Of the first weights; without one they are zero.

    Shape
    -----
    (M, ..., n_in) to (M, ..., width)
    """

    def __init__(
        self,
        n_members: int,
        n_in: int,
        width: int,
        depth: int,
        dropout: float,
        *,
        norm: bool,
        init: Generator | None = None,
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.norm = width, dropout, norm
        self.first = StackedLinear(n_members, n_in, width, init)
        self.blocks = nn.ModuleList(StackedLinear(n_members, width, width, init) for _ in range(depth))

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Without a generator nothing is dropped."""
        x = self.first(x)
        for block in self.blocks:
            update = block(F.silu(F.layer_norm(x, (self.width,)) if self.norm else x))
            x = x + (_dropout(update, self.dropout, generator) if generator and self.dropout else update)
        return F.silu(x)


def _dropout(x: Tensor, rate: float, generator: Generator, period: int = 64) -> Tensor:
    """Dropout whose mask repeats every `period` rows: drawing one per row costs more than the layer itself."""
    rows = x.shape[1]
    period = period if rows % period == 0 else rows
    mask = torch.empty(x.shape[0], 1, period, x.shape[2], dtype=x.dtype, device=x.device)
    mask.bernoulli_(1 - rate, generator=generator)
    return (x.view(x.shape[0], -1, period, x.shape[2]) * (mask / (1 - rate))).view_as(x)
