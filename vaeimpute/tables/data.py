"""A table as tensors, and which likelihood each kind of its columns gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.families import LIKELIHOODS, is_discrete

# Kind of a column -> family of its likelihood. A number with few distinct values becomes "discrete". (Kinds are
# strings: the model knows no tables.)
FAMILIES = {
    "numeric": "gaussian",
    "positive": "gaussian",
    "count": "gaussian",
    "datetime": "gaussian",
    "ordinal": "ordinal",
    "categorical": "categorical",
    "boolean": "categorical",
}


class Table(NamedTuple):
    """A table as tensors: values and observed (n, D), kind and number of categories per column (0: numbers)."""

    values: Tensor
    observed: Tensor
    kinds: Sequence[str]
    n_categories: Sequence[int]


def cell_specs(table: Table) -> list[CellSpec]:
    """The likelihood of each column in an imputer's models, where few distinct numbers are decoded as classes."""
    few = [not n and is_discrete(_cells(table, j)) for j, n in enumerate(table.n_categories)]
    families = ["discrete" if is_few else FAMILIES[kind] for kind, is_few in zip(table.kinds, few, strict=True)]
    return _fitted(table, families)


def density_specs(table: Table) -> list[CellSpec]:
    """The likelihood of each column in a density, which takes every number as a number on a line."""
    return _fitted(table, [FAMILIES[kind] for kind in table.kinds])


def _cells(table: Table, column: int) -> Tensor:
    return table.values[table.observed[:, column], column].double().cpu()


def _fitted(table: Table, families: Sequence[str]) -> list[CellSpec]:
    columns = zip(families, table.n_categories, strict=True)
    return [LIKELIHOODS[family].fit(_cells(table, j), n_categories) for j, (family, n_categories) in enumerate(columns)]
