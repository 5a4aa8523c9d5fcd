"""The linear start: exact on linear rows, judged on rows that are not its own, and no lower a floor than is told."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FLOORS, FactorAnalysis, conditional, fit_factor_analysis
from vaeimpute.tables.linear_start import fit_linear_start
from vaeimpute.tables.queries import N_FOLDS, hide_each_cell_once
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget

FURTHER = "further ranks of the linear start"


class Case:
    """A linear start, and the queries that judged it."""

    def __init__(self, values, observed, floor=0.0, weight=None, budget=None, order=None):
        self.x, self.observed = torch.where(observed, values, 0), observed
        F = values.shape[1]
        self.floor = torch.as_tensor(floor, dtype=values.dtype).expand(F)
        self.weight = torch.ones(F, dtype=values.dtype) if weight is None else weight
        self.queries, self.fold = hide_each_cell_once(self.x, observed, torch.arange(F), 10_000, make_generator(0))
        self.start = fit_linear_start(
            *(self.x, observed, self.fold, self.queries, self.floor, self.weight, budget or TimeBudget())
        )

    def relative_error(self, models):
        """On the hidden cells of each fold, by its own model: mean over features, by weight."""
        q, total, errors = self.queries, 0, 0
        for f, model in enumerate(models):
            own = q.at(q.fold == f)
            answers = conditional(own.x, own.visible > 0, model).mean
            errors, total = errors + own.errors(answers), total + (own.held_out * own.truth.square()).sum(0)
        return ((errors / total) * self.weight).sum().item() / self.weight.sum().item()


@pytest.fixture(scope="module")
def linear():
    """So few rows that a fit remembers them."""
    return Case(*rows_of(factor_analysis(10, 3), 100, seed=12))


@pytest.mark.parametrize("n", [1500, 4000])
def test_on_linear_rows_all_fits_have_the_true_conditional_means(n):
    truth = factor_analysis()
    start = Case(*rows_of(truth, n)).start
    values, observed = rows_of(truth, 1000, seed=2)
    exact = conditional(values, observed, truth).mean
    for fit in start.fits:
        for model in (fit.whole, *fit.folds):
            ours = conditional(values, observed, model).mean
            assert (ours - exact)[~observed].square().mean().sqrt() < 0.08  # of a standard deviation


def test_the_error_is_that_of_the_folds_on_their_own_rows(linear):
    for fit in linear.start.fits:
        assert fit.error == pytest.approx(linear.relative_error(fit.folds))


def test_features_count_by_their_weight():
    values, observed = rows_of(factor_analysis(4, 1), 200)
    weight = torch.tensor([1.0, 0.0, 0.25, 2.0], dtype=F64)
    case = Case(values, observed, weight=weight)
    assert case.start.fits[0].error == pytest.approx(case.relative_error(case.start.fits[0].folds))
    assert case.start.fits[0].error != pytest.approx(Case(values, observed).start.fits[0].error, rel=1e-3)


def test_folds_have_all_but_forgotten_their_own_rows(linear):
    """They begin at the fit to all rows; what that owes to a row must go from the fold that it belongs to."""
    best = linear.start.fits[0]
    of_whole = linear.relative_error([best.whole] * N_FOLDS)
    honest = linear.relative_error(
        [
            fit_factor_analysis(*(part[linear.fold != f] for part in (linear.x, linear.observed)), best.whole.rank)
            for f in range(N_FOLDS)
        ]
    )
    assert of_whole < 0.9 * honest  # there is something to forget
    assert best.error - of_whole > 0.7 * (honest - of_whole)


def test_what_a_row_holds_moves_its_own_fold_least(linear):
    values = linear.x.clone()
    own = linear.fold == 0
    values[own] += 0.5 * linear.observed[own]
    other = Case(values, linear.observed)
    assert torch.equal(other.fold, linear.fold)
    before, after = linear.start.fits[0], other.start.fits[0]
    assert before.whole.rank == after.whole.rank
    moved = [(b.b - a.b).norm().item() for b, a in zip(before.folds, after.folds, strict=True)]
    assert moved[0] < 0.25 * min(moved[1:])


def test_many_rows_remember_no_single_one():
    """Then the fit to all rows stands for each fold."""
    for fit in Case(*rows_of(factor_analysis(4, 1), 2500)).start.fits:
        assert len(fit.folds) == N_FOLDS
        assert all(fold is fit.whole for fold in fit.folds)


def test_weights_sum_to_one_and_the_best_fit_has_most(linear):
    fits, weight, _ = linear.start
    assert len(weight) == len(fits) > 1
    assert weight.sum().item() == pytest.approx(1)
    assert (weight > 0).all()
    errors = torch.tensor([fit.error for fit in fits], dtype=F64)
    assert errors.argmin() == weight.argmax() == 0
    assert torch.equal(errors[1:], errors[1:].sort().values)
    torch.testing.assert_close(weight / weight[0], (errors / errors[0]) ** -16, rtol=1e-4, atol=0)
    assert (errors < 1.15 * errors[0]).all()


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_enough_latents_are_chosen_and_no_more_than_do_no_harm(rank, seed):
    """By the error of who knows the truth."""
    random = RandomTensors(seed)
    W = torch.linalg.qr(random.normal(16, rank))[0] * 3
    truth = FactorAnalysis(W, torch.zeros(16, dtype=F64), torch.full((16,), 0.1, dtype=F64))
    case = Case(*rows_of(truth, 1500, missing=0.1, seed=seed))
    best = case.start.fits[0]
    assert best.whole.rank >= rank
    assert best.error < 1.03 * case.relative_error([truth] * N_FOLDS)
    assert (case.start.floor == FLOORS[0]).all()  # noise of 0.1 supports no smaller one


@pytest.mark.parametrize(("noise", "expected"), [(0.1, FLOORS[0]), (1e-6, FLOORS[-1])])
def test_the_floor_follows_the_noise(noise, expected):
    random = RandomTensors()
    values = random.normal(600, 2) @ random.normal(2, 8) + noise**0.5 * random.normal(600, 8)
    values = values / values.std(0)
    floor = torch.zeros(8, dtype=F64)
    floor[0] = 0.5  # a floor above the ladder, as classes have, stays
    start = Case(values, torch.ones(600, 8, dtype=torch.bool), floor).start
    assert start.floor[0] == 0.5
    assert (start.floor[1:] == expected).all()
    for fit in start.fits:
        assert (fit.whole.psi >= start.floor * (1 - 1e-9)).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_floor_is_never_raised(seed):
    floor = torch.tensor([0.0, 5e-3, 1e-2, 0.3], dtype=F64)
    lowered = Case(*rows_of(factor_analysis(4, 1, seed, noise=(1e-5, 1e-3)), 300), floor).start.floor
    assert (lowered <= floor.clamp(min=FLOORS[0])).all()
    assert (lowered >= floor.clamp(min=FLOORS[-1])).all()
    assert lowered[3] == 0.3


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_spent_budget_leaves_one_rank_and_says_so(interrupted):
    budget = TimeBudget(None if interrupted else 0.0)
    budget.interrupted = interrupted
    values, observed = rows_of(factor_analysis(8, 3, noise=(1e-6, 1e-5)), 200)
    start = Case(values, observed, budget=budget).start
    assert len(start.fits) == 1
    assert start.weight.tolist() == [1]
    assert (start.floor == FLOORS[0]).all()
    assert budget.left_out == [FURTHER, "lower noise floors of the linear start"]
    unhurried = TimeBudget()
    better = Case(values, observed, budget=unhurried).start
    assert better.fits[0].whole.rank > start.fits[0].whole.rank
    assert better.fits[0].error < start.fits[0].error
    assert unhurried.left_out == []


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (3, 1), (5, 4), (40, 1), (40, 3)], ids=str)
def test_tiny_tables_have_a_start(shape, dtype):
    values, observed = rows_of(factor_analysis(shape[1], 1), shape[0])
    start = Case(values.to(dtype), observed).start
    assert start.weight.sum().item() == pytest.approx(1)
    for fit in start.fits:
        assert len(fit.folds) == N_FOLDS
        for model in (fit.whole, *fit.folds):
            assert all(part.isfinite().all() and part.dtype == dtype for part in model)


def test_the_same_queries_give_the_same_start(linear):
    again = Case(linear.x, linear.observed).start
    assert torch.equal(again.weight, linear.start.weight)
    assert all(torch.equal(a, b) for a, b in zip(again.fits[0].whole, linear.start.fits[0].whole, strict=True))
