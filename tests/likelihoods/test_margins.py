"""Margins: a column's quantile function comes back from the normal, and cells have the moments that are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import F64

from vaeimpute.likelihoods.margins import Margins

N = 1000


def _normal(g):
    return 3 + 2 * torch.randn(N, dtype=F64, generator=g)


def _skewed(g):
    return torch.randn(N, dtype=F64, generator=g).exp()


def _zeros(g):
    x = torch.randn(N, dtype=F64, generator=g).abs() + 0.1
    return torch.where(torch.rand(N, generator=g) < 0.56, 0.0, x)


def _ceiling(g):
    return torch.randn(N, dtype=F64, generator=g).clamp(max=1.0)


def _listed(g):
    values, weight = torch.tensor([-1.0, 0.0, 0.7, 4.0], dtype=F64), torch.tensor([0.2, 0.4, 0.3, 0.1])
    return values[torch.multinomial(weight, N, replacement=True, generator=g)]


def _heaps(g):
    x = 0.2 * torch.randn(N, dtype=F64, generator=g)
    return torch.where(torch.rand(N, generator=g) < 0.3, -2.0, 2.0) + x


COLUMNS = {make.__name__[1:]: make for make in (_normal, _skewed, _zeros, _ceiling, _listed, _heaps)}


@pytest.fixture(params=COLUMNS)
def column(request):
    return COLUMNS[request.param](torch.Generator().manual_seed(0))


def margins_of(*columns):
    values = torch.stack([torch.as_tensor(column, dtype=F64) for column in columns], 1)
    return Margins.fit(values, torch.ones_like(values, dtype=torch.bool))


def even(n=40_001):
    """Normal scores of equal weight."""
    return torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)


def cells(margins, mu, sigma, n=20_001):
    """Cells (n,) of a normal's scores, of equal weight."""
    return margins.quantile((mu + sigma * even(n)).unsqueeze(1))[:, 0]


def matched(margins, mean, deviation):
    each = margins.matched(*(torch.as_tensor([[part]], dtype=F64) for part in (mean, deviation)))
    return tuple(part.item() for part in each)


# ---- the quantile function ---------------------------------------------------------------------------------------


def test_the_quantile_function_of_the_standard_normal_gives_back_the_column(column):
    drawn = margins_of(column).quantile(even().unsqueeze(1))[:, 0]
    levels = torch.quantile(column, torch.linspace(0, 1, 41, dtype=F64))
    for inside in (torch.lt, torch.le):
        ours, own = (inside(x.unsqueeze(1), levels).double().mean(0) for x in (drawn, column))
        torch.testing.assert_close(ours, own, rtol=0, atol=0.025)
    assert drawn.mean().item() == pytest.approx(column.mean().item(), abs=0.03 * column.std().item())
    assert drawn.std().item() == pytest.approx(column.std().item(), rel=0.06)


@pytest.mark.parametrize(
    ("name", "value"), [("zeros", 0.0), ("ceiling", 1.0), *(("listed", v) for v in (-1, 0, 0.7, 4))]
)
def test_values_that_repeat_have_their_frequency(name, value):
    """In the quantile function, and where no more than the column's own moments is known."""
    column = COLUMNS[name](torch.Generator().manual_seed(0))
    margins, share = margins_of(column), (column == value).double().mean().item()
    assert share > 0.05
    unconditional = matched(margins, column.mean().item(), column.std(correction=0).item())
    for mu, sigma in ((0.0, 1.0), unconditional):
        assert (cells(margins, mu, sigma) == value).double().mean().item() == pytest.approx(share, abs=0.02)


def test_who_knows_the_columns_moments_alone_draws_the_column(column):
    mu, sigma = matched(margins_of(column), column.mean().item(), column.std(correction=0).item())
    assert mu == pytest.approx(0, abs=0.08)
    assert sigma == pytest.approx(1, abs=0.12)


def test_ends_that_repeat_are_ends_and_others_are_not():
    g = torch.Generator().manual_seed(0)
    zeros, ceiling, normal = (margins_of(make(g)) for make in (_zeros, _ceiling, _normal))
    far = torch.tensor([[-30.0], [30.0]], dtype=F64)
    assert zeros.quantile(far)[0] == 0
    assert ceiling.quantile(far)[1] == 1
    rare = margins_of(torch.randn(N, dtype=F64, generator=g).clamp(-1.9, 1.9))  # three of a hundred at each end
    assert rare.quantile(far)[:, 0].tolist() == [-1.9, 1.9]
    assert zeros.quantile(far)[1] > zeros.value.max()
    assert ceiling.quantile(far)[0] < ceiling.value.min()
    assert (normal.quantile(far)[:, 0] - torch.tensor([3.0, 3.0])).abs().min() > 50


def test_normal_cells_are_linear_in_their_score_however_far():
    column = _normal(torch.Generator().manual_seed(0))
    margins, score = margins_of(column), torch.linspace(-50, 50, 11, dtype=F64).unsqueeze(1)
    torch.testing.assert_close(margins.quantile(score), column.mean() + column.std(correction=0) * score)


@settings(deadline=None)
@given(
    x=st.lists(st.one_of(st.floats(-1e3, 1e3), st.integers(-2, 2).map(float)), max_size=60),
    times=st.integers(1, 4),
)
def test_quantile_functions_never_fall(x, times):
    margins = margins_of(x * times)
    score = torch.linspace(-10, 10, 801, dtype=F64).unsqueeze(1)
    drawn = margins.quantile(score)[:, 0]
    assert drawn.isfinite().all()
    assert (drawn.diff() >= -1e-9).all()
    if x:
        middle = margins.quantile(torch.zeros(1, 1, dtype=F64)).item()
        assert min(x) - 1e-9 <= middle <= max(x) + 1e-9


@settings(max_examples=30, deadline=None)
@given(x=st.lists(st.floats(-10, 10, width=16), max_size=25), n=st.integers(0, 4))
def test_matched_normals_are_finite_whatever_is_asked_for(x, n):
    margins = margins_of(x)
    mean = torch.linspace(-30, 30, 7, dtype=F64).unsqueeze(1)
    for deviation in (1e-8, 0.1, 1.0, 50.0):
        mu, sigma = margins.matched(mean, torch.full_like(mean, deviation))
        assert mu.isfinite().all()
        assert (sigma >= 0).all()
        assert (sigma <= 2.5).all()
        assert (mu.diff(dim=0) >= -1e-9).all()


@pytest.mark.parametrize("x", [[], [2.5], [2.5, 2.5], [2.5] * 9], ids=len)
def test_a_column_without_spread_is_what_it_is(x):
    drawn = margins_of(x).quantile(torch.linspace(-5, 5, 11, dtype=F64).unsqueeze(1))[:, 0]
    expected = torch.full((11,), 2.5, dtype=F64) if x else torch.linspace(-5, 5, 11, dtype=F64)
    torch.testing.assert_close(drawn, expected)


# ---- moments -----------------------------------------------------------------------------------------------------


NOT_SEEN = {  # too large a spread, in standard deviations of the column, where few cells have all of it
    ("skewed", -1.0, 1.1): 0.10,
    ("zeros", -1.0, 0.5): 0.16,
    ("heaps", 0.0, 0.2): 0.08,
    ("heaps", 1.0, 0.5): 0.09,
}


def _case(name, mu, sigma):
    missed = NOT_SEEN.get((name, mu, sigma))
    reason = f"48 nodes do not see the few cells that are far: the spread is {missed} of the column's too large"
    marks = pytest.mark.xfail(reason=reason, strict=True) if missed else ()
    return pytest.param(name, mu, sigma, marks=marks)


@pytest.mark.parametrize(
    ("name", "mu", "sigma"),
    [_case(name, mu, sigma) for name in COLUMNS for mu in (-1.0, 0.0, 1.0) for sigma in (0.2, 0.5, 0.85, 1.1)],
)
def test_matched_cells_have_the_moments_that_are_asked_for(name, mu, sigma):
    """Of means and spreads that the column can have: those of some normal."""
    column = COLUMNS[name](torch.Generator().manual_seed(0))
    margins = margins_of(column)
    asked = cells(margins, mu, sigma)
    mean, deviation = asked.mean().item(), asked.std().item()
    ours = cells(margins, *matched(margins, mean, deviation))
    scale = column.std().item()
    assert ours.mean().item() == pytest.approx(mean, abs=0.03 * scale)
    assert ours.std().item() == pytest.approx(deviation, abs=0.055 * scale)


def test_matching_a_normal_column_is_exact():
    column = _normal(torch.Generator().manual_seed(0))
    margins, m, s = margins_of(column), column.mean().item(), column.std(correction=0).item()
    for mean, deviation in ((m, s), (m + 20 * s, 0.3 * s), (m - 4 * s, 1.7 * s), (m, 1e-6 * s)):
        mu, sigma = matched(margins, mean, deviation)
        assert m + s * mu == pytest.approx(mean, abs=1e-5 * s)
        assert s * sigma == pytest.approx(deviation, rel=1e-5)


@pytest.mark.parametrize("name", ["normal", "skewed"])
def test_a_nearly_certain_cell_stands_at_its_mean(name):
    column = COLUMNS[name](torch.Generator().manual_seed(0))
    margins, scale = margins_of(column), column.std().item()
    for level in (0.1, 0.3, 0.5, 0.7, 0.9):
        mean, deviation = torch.quantile(column, level).item(), 0.02 * scale
        mu, sigma = matched(margins, mean, deviation)
        at = margins.quantile(torch.tensor([[mu]], dtype=F64)).item()
        assert at == pytest.approx(mean, abs=0.15 * deviation)
        assert cells(margins, mu, sigma).std().item() == pytest.approx(deviation, rel=0.25)


def test_the_surer_the_cell_the_nearer_it_stands(column):
    margins, mean = margins_of(column), column.mean().item()
    sigmas = [matched(margins, mean, share * column.std().item())[1] for share in (1e-4, 1e-2, 0.1, 0.5, 1.0)]
    assert sigmas == sorted(sigmas)
    assert matched(margins, mean, 0.0)[1] == 0


# ---- tables ------------------------------------------------------------------------------------------------------


def test_columns_do_not_depend_on_their_company_nor_on_missing_cells():
    columns = [make(torch.Generator().manual_seed(0)) for make in COLUMNS.values()]
    together, score = margins_of(*columns), torch.linspace(-4, 4, 31, dtype=F64)
    observed = torch.arange(N) % 3 > 0
    for j, column in enumerate(columns):
        alone = margins_of(column)
        torch.testing.assert_close(
            together.quantile(score.unsqueeze(1).expand(-1, len(columns)))[:, j],
            alone.quantile(score.unsqueeze(1))[:, 0],
        )
        part = Margins.fit(torch.where(observed, column, 1e3).unsqueeze(1), observed.unsqueeze(1))
        torch.testing.assert_close(
            part.quantile(score.unsqueeze(1)), margins_of(column[observed]).quantile(score.unsqueeze(1))
        )
