"""Lattices are found whatever their origin and step, and what stands elsewhere counts by how rare that is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaeimpute.anomaly.lattice import Lattice


def fitted(values, n_categories=0, observed=None, wrong=0.0):
    values = torch.as_tensor(values).double().unsqueeze(1)
    observed = torch.ones_like(values, dtype=torch.bool) if observed is None else observed.unsqueeze(1)
    return Lattice.fit(values, observed, [n_categories], wrong)


def log_probability(lattice, points):
    return lattice.log_probability(torch.as_tensor(points).double().unsqueeze(1)).squeeze(1)


def whole_numbers(n, seed=0):
    return torch.poisson(torch.full((n,), 8.0), generator=torch.Generator().manual_seed(seed)).double()


@given(origin=st.floats(-3, 3), step=st.floats(0.01, 2), seed=st.integers(0, 100))
def test_a_lattice_of_any_origin_and_step(origin, step, seed):
    counts = whole_numbers(300, seed)
    lattice = fitted((origin + step * counts).float())  # in single precision, as scores are
    on, off = (origin + step * (whole_numbers(100, seed + 1) + shift) for shift in (0.0, 0.4))
    assert not lattice.is_off(on.float().unsqueeze(1)).any()
    assert lattice.is_off(off.float().unsqueeze(1)).all()


def test_a_lattice_goes_on_where_no_value_was_seen():
    lattice = fitted(2 * whole_numbers(500))
    seen, beyond, between = log_probability(lattice, [16.0, 200.0, 3.0]).tolist()
    assert seen == 0
    assert beyond > between + 2
    assert between < -5


def test_a_lattice_whose_smallest_gap_is_no_step():
    values = torch.tensor([0.0, 2.0, 5.0, 9.0]).repeat(50)  # gaps of 2, 3 and 4: the step is 1
    assert fitted(values).step.tolist() == [1.0]


def test_numbers_that_do_not_repeat_have_no_lattice():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert log_probability(fitted(values), [values[0], 0.123, 40.0]).tolist() == [0, 0, 0]


def test_a_list_of_values_on_no_lattice():
    values = torch.tensor([0.0, 1.0, math.sqrt(7), math.pi]).repeat(50)
    known, new = log_probability(fitted(values), [math.pi, 2.0]).tolist()
    assert (known, new) == (0, pytest.approx(-0.5 * math.log(202)))  # half of (0 + 1) / (200 + 2)


def test_classes_have_no_lattice():
    assert log_probability(fitted(torch.arange(3.0).repeat(50), n_categories=3), [0.5]).tolist() == [0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
def test_errors_in_the_training_cells_are_no_reason_to_expect_more(share):
    generator = torch.Generator().manual_seed(0)
    right = whole_numbers(1000)
    wrong = torch.rand(1000, generator=generator) < share
    values = torch.where(wrong, right + torch.randn(1000, generator=generator), right)
    assert log_probability(fitted(values, wrong=0.05), [4.4])[0] < -6
    if share:  # who expects no errors takes them for right
        assert log_probability(fitted(values), [4.4])[0] > -5


def test_lattices_learn_from_each_other_how_rare_strays_are():
    columns = torch.stack([whole_numbers(60, seed) for seed in range(20)], 1)
    together = Lattice.fit(columns, torch.ones_like(columns, dtype=torch.bool), [0] * 20)
    assert (together.log_off < fitted(columns[:, 0]).log_off - 1).all()


def test_missing_cells_do_not_count():
    values, observed = whole_numbers(100), torch.arange(100) % 2 == 0
    one = fitted(values, observed=observed)
    two = fitted(torch.where(observed, values, 7.3), observed=observed)
    for name in Lattice.buffer_names:
        assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_cells_have_no_lattice(n):
    assert log_probability(fitted(torch.zeros(5), observed=torch.arange(5) < n), [0.0, 3.3]).tolist() == [0, 0]


def test_rounding_by_chance_keeps_means_and_what_stands_on_the_lattice():
    whole = torch.arange(40.0, dtype=torch.float64).repeat(3).unsqueeze(1)
    lattice = Lattice.fit(whole, torch.ones_like(whole, dtype=torch.bool), [0])
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = lattice.between(torch.full((20_000, 1), 7.3, dtype=torch.float64), uniform)
    assert set(rounded.flatten().tolist()) == {7.0, 8.0}
    assert abs(rounded.mean() - 7.3) < 0.02
    assert (lattice.between(whole, uniform[: len(whole)]) == whole).all()


# ---- where cells are moved to ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 100))
def test_cells_are_moved_to_the_nearest_value_of_a_list(seed):
    g = torch.Generator().manual_seed(seed)
    known = torch.randn(7, generator=g).double()
    x = 3 * torch.randn(200, 1, generator=g).double()
    ours = fitted(known.repeat(40)).nearest(x)
    assert torch.isin(ours, known).all()  # bit for bit
    assert torch.equal((ours - x).abs()[:, 0], (x - known).abs().min(1).values)


def test_cells_are_moved_to_the_nearest_point_of_a_lattice():
    lattice = Lattice(
        origin=torch.tensor([0.5], dtype=torch.float64),
        step=torch.tensor([0.25], dtype=torch.float64),
        known=torch.full((1, 1), math.inf, dtype=torch.float64),
        log_off=torch.zeros(1),
        log_new=torch.zeros(1),
    )
    x = torch.tensor([[0.6], [0.63], [-10.01], [1e4 + 0.1]])
    assert lattice.nearest(x).squeeze(1).tolist() == [0.5, 0.75, -10.0, 10_000.0]


def test_cells_without_list_and_lattice_stay_and_others_stay_once_moved():
    g = torch.Generator().manual_seed(0)
    free, listed = torch.randn(300, generator=g).double(), torch.tensor([0.0, 1.0, math.pi]).double().repeat(100)
    columns = torch.stack([free, listed], 1)
    lattice = Lattice.fit(columns, torch.ones_like(columns, dtype=torch.bool), [0, 0])
    x = 5 * torch.randn(100, 2, generator=g)
    moved = lattice.nearest(x)
    assert moved.dtype == torch.float64
    assert torch.equal(moved[:, 0], x[:, 0].double())
    assert torch.equal(lattice.nearest(moved), moved)
    assert torch.equal(lattice.nearest(columns), columns)
