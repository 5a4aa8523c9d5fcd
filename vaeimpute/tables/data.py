"""A table as tensors, and which likelihood each kind of its columns gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.families import LIKELIHOODS, is_discrete

# Kind of a column -> family in the joint and in the conditional model. A number with few distinct values becomes
# "discrete" in both. (Kinds are strings: the model knows no tables.)
FAMILIES = {
    "numeric": ("gaussian", "histogram"),
    "positive": ("gaussian", "histogram"),
    "count": ("gaussian", "histogram"),
    "datetime": ("gaussian", "histogram"),
    "ordinal": ("ordinal", "ordinal"),
    "categorical": ("categorical", "categorical"),
    "boolean": ("categorical", "categorical"),
}


class Table(NamedTuple):
    """A table as tensors: values and observed (n, D), kind and number of categories per column (0: numbers)."""

    values: Tensor
    observed: Tensor
    kinds: Sequence[str]
    n_categories: Sequence[int]


def cell_specs(table: Table) -> tuple[list[CellSpec], list[CellSpec]]:
    """The likelihood of each column in the joint and in the conditional model."""
    specs: tuple[list[CellSpec], list[CellSpec]] = ([], [])
    for column, (kind, n_categories) in enumerate(zip(table.kinds, table.n_categories, strict=True)):
        cells = table.values[table.observed[:, column], column].double().cpu()
        for of_model, family in zip(specs, FAMILIES[kind], strict=True):
            if n_categories == 0 and is_discrete(cells):
                family = "discrete"
            of_model.append(LIKELIHOODS[family].fit(cells, n_categories))
    return specs


def density_specs(table: Table) -> list[CellSpec]:
    """The likelihood of each column in a density, which takes every number as a number on a line."""
    columns = enumerate(zip(table.kinds, table.n_categories, strict=True))
    return [
        LIKELIHOODS[FAMILIES[kind][0]].fit(table.values[table.observed[:, j], j].double().cpu(), n_categories)
        for j, (kind, n_categories) in columns
    ]
