"""Contamination: the density of wrong values is one."""

from __future__ import annotations

import math

import pytest
import torch

from vaeimpute.anomaly.contamination import ContaminationDensity
from vaeimpute.persistence import from_state, to_state


def fitted(values, n_categories=0, observed=None):
    values = values.double().unsqueeze(1)
    observed = torch.ones_like(values, dtype=torch.bool) if observed is None else observed.unsqueeze(1)
    return ContaminationDensity.fit(values, observed, [n_categories])


def density(wrong, points):
    return wrong.log_density(points.double().unsqueeze(1)).squeeze(1).exp()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_numbers_integrate_to_one(scale):
    wrong = fitted(scale * torch.randn(500, generator=torch.Generator().manual_seed(0)))
    angles = torch.linspace(-math.pi / 2, math.pi / 2, 200_002, dtype=torch.float64)[1:-1]  # the line, by its tangent
    width = angles[1] - angles[0]
    mass = (density(wrong, angles.tan()) / angles.cos().square()).sum() * width
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_classes_sum_to_one_and_rare_ones_are_no_rarer_than_half_of_an_even_share():
    wrong = fitted(torch.tensor([0.0] * 98 + [1.0, 2.0]), n_categories=5)
    p = density(wrong, torch.arange(5))
    assert p.sum() == pytest.approx(1)
    assert p.tolist() == pytest.approx([0.59, 0.105, 0.105, 0.1, 0.1])


def test_missing_cells_do_not_count():
    values, observed = torch.randn(100, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 2 == 0
    one = fitted(values, observed=observed)
    two = fitted(torch.where(observed, values, 7.0), observed=observed)
    for name in ContaminationDensity.buffer_names:
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_only_some_rows_are_looked_at_but_where_they_hold_too_little():
    g = torch.Generator().manual_seed(0)
    values = torch.stack([torch.randn(500, generator=g), torch.randn(500, generator=g)], 1)
    observed = torch.ones(500, 2, dtype=torch.bool)
    some = torch.arange(100)
    observed[:90, 1] = False
    of_some = ContaminationDensity.fit(values, observed, [0, 0], some)
    plain = ContaminationDensity.fit(values[:100], observed[:100], [0, 0])
    assert torch.equal(of_some.atoms[:, 0], plain.atoms[:, 0])
    assert torch.equal(of_some.atoms[:, 1], ContaminationDensity.fit(values, observed, [0, 0]).atoms[:, 1])


def test_columns_do_not_depend_on_their_company():
    g = torch.Generator().manual_seed(0)
    values = torch.stack([torch.randn(200, generator=g), torch.randint(3, (200,), generator=g).float()], 1)
    together = ContaminationDensity.fit(values, torch.ones(200, 2, dtype=torch.bool), [0, 3]).log_density(values)
    for column, n_categories in enumerate([0, 3]):
        alone = fitted(values[:, column], n_categories).log_density(values[:, [column]].double())
        torch.testing.assert_close(together[:, [column]], alone.float(), rtol=1e-4, atol=1e-4)


def test_it_comes_back():
    wrong = fitted(torch.randn(100, generator=torch.Generator().manual_seed(0)))
    copy = from_state(*to_state({"wrong": wrong}), {"ContaminationDensity": ContaminationDensity}, torch.device("cpu"))
    points = torch.linspace(-3, 3, 9)
    assert torch.equal(density(copy["wrong"], points), density(wrong, points))
