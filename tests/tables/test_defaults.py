"""Defaults of a table's models: few rows are left to the linear model, wide tables get fewer steps."""

from __future__ import annotations

import pytest
import torch
from toy import F64, factor_analysis, mixed, numeric_table, rows_of

from vaeimpute.tables import defaults
from vaeimpute.tables.data import cell_specs
from vaeimpute.tables.models import ConditionalVAE, JointVAE

KINDS = [JointVAE, ConditionalVAE]


def model_of(kind, table, rank=2):
    return kind(defaults.sizes(kind, table, rank, 1e-2), cell_specs(table)[kind is ConditionalVAE])


def numbers(n, n_columns=4):
    return numeric_table(*rows_of(factor_analysis(n_columns, 1), n))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", [numbers(40), numbers(3000), mixed(120), mixed(2500)], ids=len)
def test_each_stage_has_a_schedule(kind, table):
    model = model_of(kind, table)
    schedules = defaults.schedules(model, table)
    assert len(schedules) == len(model.stages())
    for schedule in schedules:
        assert schedule.steps >= schedule.evaluate_every >= 1
        assert 0 < schedule.learning_rate <= 0.1
        assert 0 <= schedule.refit <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_below_so_many_rows_nothing_is_trained(kind):
    few, enough = numbers(defaults.MIN_ROWS - 1), numbers(defaults.MIN_ROWS)
    assert not any(schedule.steps for schedule in defaults.schedules(model_of(kind, few), few))
    assert all(schedule.steps for schedule in defaults.schedules(model_of(kind, enough), enough))
    assert defaults.sizes(kind, few, 2, 1e-2).n_reference == 0


@pytest.mark.parametrize("kind", KINDS)
def test_wide_tables_get_fewer_steps_but_some(kind):
    narrow, wide, wider = (
        sum(schedule.steps for schedule in defaults.schedules(model_of(kind, table), table))
        for table in (numbers(300), numbers(300, 300), numbers(300, 1500))
    )
    assert narrow >= wide >= wider >= 50


def test_the_smoother_has_no_more_reference_rows_than_there_are():
    assert defaults.sizes(ConditionalVAE, numbers(100), 2, 1e-2).n_reference == 100
    many = numbers(20_000, 2)
    assert 512 <= defaults.sizes(ConditionalVAE, many, 2, 1e-2).n_reference < 20_000
    assert defaults.sizes(JointVAE, many, 2, 1e-2).n_reference == 0


def test_an_evaluation_stays_cheap():
    rows = [defaults.n_validation_rows(n_columns) for n_columns in (1, 50, 500, 5000)]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] >= 100
    assert defaults.n_members(100) >= defaults.n_members(10_000) >= 2


def test_networks_may_be_surer_than_the_linear_model_but_not_certain():
    floors = [defaults.sizes(JointVAE, numbers(50), 2, level).log_scale_floor for level in (1e-2, 1e-4)]
    for floor, level in zip(floors, (1e-2, 1e-4), strict=True):
        scale = torch.tensor(floor, dtype=F64).exp().item()
        assert 0.1 * level**0.5 < scale < level**0.5
