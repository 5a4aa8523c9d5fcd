"""Defaults of a table's models: few rows are left to the linear model, wide tables get less of all that grows."""

from __future__ import annotations

import pytest
from toy import factor_analysis, mixed, numeric_table, rows_of

from vaeimpute.tables import defaults
from vaeimpute.tables.data import cell_specs
from vaeimpute.tables.models import JointVAE

WIDTHS = (1, 5, 50, 500, 5000, 50_000)


def joint_of(table, rank=2):
    return JointVAE(defaults.joint_sizes(table, rank, -3.5), cell_specs(table))


def numbers(n, n_columns=4):
    return numeric_table(*rows_of(factor_analysis(n_columns, 1), n))


def assert_falls(values, fewest):
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] >= fewest


@pytest.mark.parametrize("table", [numbers(40), numbers(3000), mixed(120), mixed(2500)], ids=len)
def test_networks_have_a_schedule(table):
    schedule = defaults.joint_schedule(joint_of(table), table)
    assert schedule.steps >= schedule.evaluate_every >= 1
    assert 0 < schedule.learning_rate <= 0.1
    assert 0 <= schedule.refit <= 1


def test_networks_of_wide_tables_get_fewer_steps_but_some():
    tables = [numbers(300, n_columns) for n_columns in (4, 300, 1500)]
    steps = [defaults.joint_schedule(joint_of(table), table).steps for table in tables]
    assert_falls(steps, 50)


def test_networks_of_the_joint_model_have_a_width_and_the_rank_they_are_given():
    sizes = defaults.joint_sizes(mixed(120), 3, -4.0)
    assert (sizes.rank, sizes.log_scale_floor) == (3, -4.0)
    assert sizes.width > 0


def test_below_so_many_rows_there_is_no_smoother():
    assert defaults.n_reference(defaults.MIN_ROWS - 1, 5) == 0
    assert defaults.n_reference(defaults.MIN_ROWS, 5) == defaults.MIN_ROWS
    assert defaults.n_random(defaults.MIN_ROWS - 1) == 0


def test_the_smoother_has_no_more_reference_rows_than_there_are():
    assert defaults.n_reference(100, 5) == 100
    assert 512 <= defaults.n_reference(20_000, 5) < 20_000
    assert_falls([defaults.n_reference(20_000, width) for width in WIDTHS], 1)


def test_wide_tables_get_less_of_all_that_grows_with_them():
    assert_falls([defaults.n_queries(width) for width in WIDTHS], 400)
    assert_falls([defaults.n_judged(width) for width in WIDTHS], 400)
    assert_falls([defaults.n_reference_in_step(width) for width in WIDTHS], 512)
    assert_falls([defaults.smoother_steps(20_000, width) for width in WIDTHS[:-1]], 30)
    assert all(defaults.n_judged(width) <= defaults.n_queries(width) for width in WIDTHS)


def test_random_features_are_fewer_than_the_rows_that_teach_them():
    sizes = [(n, defaults.n_random(n)) for n in (1, 39, 99, 100, 400, 10_000, 1_000_000)]
    assert [n_random for _, n_random in sizes] == sorted(n_random for _, n_random in sizes)
    assert all(4 * n_random <= n for n, n_random in sizes)
    assert sizes[-1][1] == sizes[-2][1] > 0


def test_an_evaluation_stays_cheap():
    assert_falls([defaults.n_validation_rows(n_columns) for n_columns in WIDTHS], 100)
    assert defaults.n_members(100) >= defaults.n_members(10_000) >= 2
