"""A table as tensors, and which likelihood each kind of its columns gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vaeimpute.likelihoods.families import LIKELIHOODS, CellSpec, is_discrete

# Kind of a column -> family in the joint and in the conditional reading. A number with few distinct values becomes
# "levels" in both. (Kinds are strings: the model knows no tables.)
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
    """A table as tensors: values and observed (n, D), kind and number of levels per column."""

    values: Tensor
    observed: Tensor
    kinds: Sequence[str]
    n_levels: Sequence[int]


def cell_specs(table: Table) -> tuple[list[CellSpec], list[CellSpec]]:
    """The likelihood of each column in the joint and in the conditional reading."""
    specs: tuple[list[CellSpec], list[CellSpec]] = ([], [])
    for column, (kind, n_levels) in enumerate(zip(table.kinds, table.n_levels, strict=True)):
        cells = table.values[table.observed[:, column], column].double().cpu()
        for reading, family in zip(specs, FAMILIES[kind], strict=True):
            if n_levels == 0 and is_discrete(cells):
                family = "levels"
            reading.append(LIKELIHOODS[family].fit(cells, n_levels))
    return specs


def density_specs(table: Table) -> list[CellSpec]:
    """The likelihood of each column in a density, which takes every number as a number on a line."""
    columns = enumerate(zip(table.kinds, table.n_levels, strict=True))
    return [
        LIKELIHOODS[FAMILIES[kind][0]].fit(table.values[table.observed[:, j], j].double().cpu(), n_levels)
        for j, (kind, n_levels) in columns
    ]
