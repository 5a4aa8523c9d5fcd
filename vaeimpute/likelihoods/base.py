"""The contract of a likelihood ``p(x | theta)`` of cells.

A family says four things about a group of its columns: how a cell enters the linear backbone (``features``), which
parameters the backbone's prediction of these features stands for (``from_gaussian``), which distribution a row of
parameters is (``forward``), and what to average when several draws are taken of one cell (``expectations``,
``point_estimates``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch import distributions as dist


@dataclass(frozen=True)
class CellSpec:
    """What a family learnt about one column, in plain numbers (JSON in and out).

    Attributes
    ----------
    family : str
        Key of ``LIKELIHOODS``.
    points : tuple of float
        Frequencies of the categories, or values of a discrete number.
    edges : tuple of float
        Cut points between categories or values.
    """

    family: str
    points: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` gave, once it has been JSON."""
        return cls(state["family"], tuple(state["points"]), tuple(state["edges"]))


class Likelihood(nn.Module, ABC):
    """The likelihood of a group of C columns of one family; subclasses are final.

    Shape letters: C columns of the group, N values, categories or bins (padded to the widest column), P parameters per
    column.
    """

    n_params: int
    n_features: int  # of the whole group
    n_expectations: int  # of the whole group
    is_numeric: bool = True  # whether the cells are numbers, and not codes of classes

    @classmethod
    @abstractmethod
    def fit(cls, x: Tensor, n_categories: int) -> CellSpec:
        """Learn the specification of a column from its observed cells `x` (n,)."""

    @abstractmethod
    def forward(self, params: Tensor) -> dist.Distribution:
        """Distributions of shape (..., C) for parameters (..., C, P)."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """One draw (..., C) from each of these distributions, which have no generator of their own in PyTorch."""

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """What the linear backbone sees: (..., C) to (..., n_features)."""

    @abstractmethod
    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Parameters (..., C, P) that say the same as a Gaussian prediction (..., n_features) of the features."""

    @abstractmethod
    def expectations(self, params: Tensor) -> Tensor:
        """Expected value or class probabilities: (..., C, P) to (..., n_expectations); linear to average over draws."""

    def gaussian_expectations(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Expectations (..., n_expectations) of a Gaussian prediction (..., n_features); of a number its mean."""
        return self.expectations(self.from_gaussian(mean, log_scale))

    def targets(self, values: Tensor) -> Tensor:
        """Expectations of an oracle that knows the cells: (..., C) to (..., n_expectations)."""
        return values

    def point_estimates(self, expectations: Tensor) -> Tensor:
        """Cells (..., C) from averaged expectations (..., n_expectations)."""
        return expectations

    def feature_columns(self) -> Tensor:
        """Group-local column of each feature, (n_features,)."""
        return torch.arange(self.n_features)

    def expectation_columns(self) -> Tensor:
        """Group-local column of each expectation, (n_expectations,)."""
        return torch.arange(self.n_expectations)

    def indicator_range(self) -> Tensor:
        """What a feature is where it says no and where it says yes, (2, n_features); NaN where it is a number."""
        return torch.full((2, self.n_features), torch.nan)

    def noise_floor(self) -> Tensor:
        """Smallest noise variance of each feature in the linear backbone, (n_features,)."""
        return torch.zeros(self.n_features)
