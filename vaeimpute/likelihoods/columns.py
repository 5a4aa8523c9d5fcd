"""The product of the columns' likelihoods: the one place that knows where each column's numbers stand in a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaeimpute.likelihoods.base import CellSpec, Likelihood
from vaeimpute.likelihoods.families import LIKELIHOODS


class ColumnLikelihoods(nn.Module):
    """The product of the columns' likelihoods: the one place that splits the decoder's output.

    Columns of one family and of similar width form a group, so that 500 Gaussian columns are one call. Parameters and
    features are laid out group after group; cells and expectations stay in the table's column order, so that the
    expectations of two models of one table can be averaged.

    Parameters
    ----------
    specs : sequence of CellSpec
        One per column.
    log_scale_floor : float
        Smallest log standard deviation of a Gaussian, in units of the standardised column.
    """

    order: Tensor  # (D,) columns group after group
    inverse: Tensor  # (D,)
    feature_columns: Tensor  # (F,) column of each feature
    expectation_columns: Tensor  # (A,) column of each expectation
    expectation_order: Tensor  # (A,)
    expectation_inverse: Tensor  # (A,)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float = -3.5) -> None:
        super().__init__()
        self.specs = tuple(specs)
        members: dict[tuple[str, int], list[int]] = {}
        for column, spec in enumerate(specs):
            width = math.ceil(math.log2(max(len(spec.points), 4)))
            members.setdefault((spec.family, width), []).append(column)
        self.groups: list[Likelihood] = [
            LIKELIHOODS[family]([specs[c] for c in columns], log_scale_floor)
            for (family, _), columns in members.items()
        ]
        self._modules_to_move = nn.ModuleList(self.groups)  # so that `to` reaches their buffers
        order = torch.tensor([column for columns in members.values() for column in columns])
        self._sizes = [len(columns) for columns in members.values()]
        self._param_sizes = [size * g.n_params for size, g in zip(self._sizes, self.groups, strict=True)]
        self._feature_sizes = [g.n_features for g in self.groups]
        self._expectation_sizes = [g.n_expectations for g in self.groups]
        self.n_params, self.n_features = sum(self._param_sizes), sum(self._feature_sizes)
        self.n_expectations = sum(self._expectation_sizes)
        self._sorted = bool((order.diff() > 0).all())
        local = list(zip(order.split(self._sizes), self.groups, strict=True))
        expectation_columns, expectation_order = torch.cat([c[g.expectation_columns()] for c, g in local]).sort(
            stable=True
        )
        buffers = {
            "order": order,
            "inverse": order.argsort(),
            "feature_columns": torch.cat([c[g.feature_columns()] for c, g in local]),
            "expectation_columns": expectation_columns,
            "expectation_order": expectation_order,
            "expectation_inverse": expectation_order.argsort(),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def class_columns(self) -> list[int]:
        """Numbers of the columns whose cells are codes of classes."""
        return [j for j, spec in enumerate(self.specs) if not LIKELIHOODS[spec.family].is_numeric]

    @property
    def first_features(self) -> Tensor:
        """Position of one feature of each column, (D,)."""
        columns = self.feature_columns
        first = torch.zeros(len(self.specs), dtype=torch.long, device=columns.device)
        return first.scatter_(0, columns, torch.arange(len(columns), device=columns.device))

    def features(self, values: Tensor) -> Tensor:
        """What the linear backbone sees: (..., D) to (..., F)."""
        return torch.cat([g.features(v) for g, v in zip(self.groups, self._split(values), strict=True)], -1)

    def indicator_range(self) -> Tensor:
        """What a feature is where it says no and where it says yes, (2, F); NaN where it is a number."""
        return torch.cat([g.indicator_range().to(self.feature_columns.device) for g in self.groups], -1)

    def noise_floor(self) -> Tensor:
        """Smallest noise variance of each feature, (F,)."""
        return torch.cat([g.noise_floor() for g in self.groups])

    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Parameters (..., P) of the linear prediction with mean and log standard deviation (..., F)."""
        means, scales = mean.split(self._feature_sizes, -1), log_scale.split(self._feature_sizes, -1)
        return torch.cat(
            [g.from_gaussian(m, s).flatten(-2) for g, m, s in zip(self.groups, means, scales, strict=True)], -1
        )

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Log-likelihood of each cell: (..., P) and (..., D) to (..., D)."""
        parts = zip(self.groups, self._params(params), self._split(values), strict=True)
        return self._join([g(p).log_prob(v) for g, p, v in parts])

    def sample(self, params: Tensor, generator: torch.Generator, draws: Tensor | None = None) -> Tensor:
        """One draw of each cell, (..., D); `draws` (M, S, B) picks S among the K of the parameters (M, K, B, P)."""
        parts = []
        for group, p in zip(self.groups, self._params(params), strict=True):
            picked = p if draws is None else p.take_along_dim(draws[..., None, None], 1)
            parts.append(group.sample(picked, generator))
        return self._join(parts)

    def expectations(self, params: Tensor) -> Tensor:
        """Expected numbers and class probabilities, (..., A): what is averaged over draws, members and models."""
        parts = [g.expectations(p) for g, p in zip(self.groups, self._params(params), strict=True)]
        return self._join_expectations(parts)

    def gaussian_expectations(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """The same of a linear prediction with mean and log standard deviation (..., F), (..., A)."""
        means, scales = mean.split(self._feature_sizes, -1), log_scale.split(self._feature_sizes, -1)
        parts = zip(self.groups, means, scales, strict=True)
        return self._join_expectations([g.gaussian_expectations(m, s) for g, m, s in parts])

    def targets(self, values: Tensor) -> Tensor:
        """The expectations of an oracle, (..., A)."""
        return self._join_expectations([g.targets(v) for g, v in zip(self.groups, self._split(values), strict=True)])

    def point_estimates(self, expectations: Tensor) -> Tensor:
        """Cells (..., D) from averaged expectations: the mean of a number, the mode of a class."""
        ordered = expectations if self._sorted else expectations.index_select(-1, self.expectation_inverse)
        parts = ordered.split(self._expectation_sizes, -1)
        return self._join([g.point_estimates(e) for g, e in zip(self.groups, parts, strict=True)])

    @property
    def is_continuous(self) -> NDArray[np.bool_]:
        """Which columns have a density, and not a probability, (D,)."""
        return np.array([spec.family == "gaussian" for spec in self.specs], dtype=bool)

    def cdf(self, params: Tensor, values: Tensor) -> Tensor:
        """Probability of at most that value, (..., P) and (..., D) to (..., D); zero for classes."""
        parts = zip(self.groups, self._params(params), self._split(values), strict=True)
        return self._join([g(p).cdf(v) if g.is_numeric else torch.zeros_like(p[..., 0] * v) for g, p, v in parts])

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        ordered = values if self._sorted else values.index_select(-1, self.order)
        return ordered.split(self._sizes, -1)

    def _params(self, params: Tensor) -> list[Tensor]:
        parts = params.split(self._param_sizes, -1)
        return [p.unflatten(-1, (-1, g.n_params)) for p, g in zip(parts, self.groups, strict=True)]

    def _join(self, parts: list[Tensor]) -> Tensor:
        cells = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return cells if self._sorted else cells.index_select(-1, self.inverse)

    def _join_expectations(self, parts: list[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return joined if self._sorted else joined.index_select(-1, self.expectation_order)
