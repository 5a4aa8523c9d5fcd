"""Which likelihood each kind of a table's columns gets."""

from __future__ import annotations

import torch
from toy import F64, factor_analysis, mixed, numeric_table, rows_of

from vaeimpute.frames.schema import Kind
from vaeimpute.likelihoods.families import LIKELIHOODS
from vaeimpute.tables.data import FAMILIES, Table, cell_specs, density_specs


def test_every_kind_has_a_family():
    assert FAMILIES.keys() == {str(kind) for kind in Kind}
    assert LIKELIHOODS.keys() >= set(FAMILIES.values())


def test_numbers_with_few_values_are_discrete_and_classes_are_what_they_are():
    table = mixed()
    expected = ["gaussian", "discrete", "gaussian", "gaussian", "ordinal", "categorical", "categorical"]
    assert [spec.family for spec in cell_specs(table)] == expected
    # A density takes every number as a number on a line.
    assert [spec.family for spec in density_specs(table)] == [f.replace("discrete", "gaussian") for f in expected]


def test_a_likelihood_follows_from_the_observed_cells_alone():
    table = mixed()
    other = table._replace(values=torch.where(table.observed, table.values, 3.0))
    assert cell_specs(table) == cell_specs(other)
    assert density_specs(table) == density_specs(other)


def test_a_class_has_all_its_categories_whatever_is_observed():
    values, observed = torch.zeros(20, 2, dtype=F64), torch.zeros(20, 2, dtype=torch.bool)
    observed[:, 0] = True
    specs = cell_specs(Table(values, observed, ["categorical", "categorical"], [3, 3]))
    assert [len(spec.points) for spec in specs] == [3, 3]
    assert specs[0].points[0] > specs[0].points[1] == specs[0].points[2]  # seen, and not seen
    assert len(set(specs[1].points)) == 1


def test_a_table_of_numbers_is_one_of_gaussians():
    specs = cell_specs(numeric_table(*rows_of(factor_analysis(), 50)))
    assert {spec.family for spec in specs} == {"gaussian"}
