"""Stages of the closed form: each is judged, none does harm, and what does not fit into a budget is named."""

from __future__ import annotations

import math

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, mixed, rows_of

from vaeimpute.gaussian.factor_analysis import conditional
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables.closed_form_fit import (
    _linear_share,
    _variance_powers,
    fit_closed_form,
    fit_linear_stage,
)
from vaeimpute.tables.data import Table, cell_specs
from vaeimpute.tables.defaults import MIN_ROWS
from vaeimpute.tables.queries import Queries
from vaeimpute.tables.smoother_fit import SmootherTraining
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget

STAGES = ["linear", "smoother", "random features"]
GAUSSIAN = CellSpec("gaussian")


def fit(values, observed, specs=None, *, seed=0, budget=None, max_iter=None):
    """The closed form, and what was reported of it."""
    told = []
    specs, budget = [GAUSSIAN] * values.shape[1] if specs is None else specs, budget or TimeBudget()
    options = {"budget": budget, "generator": make_generator(seed)}
    linear = fit_linear_stage(torch.where(observed, values, 0), observed, specs, **options)
    closed = fit_closed_form(linear, specs, max_iter=max_iter, report=lambda *record: told.append(record), **options)
    return closed, told


def moments(closed, values, observed):
    with torch.no_grad():
        return closed.model.moments(torch.where(observed, values, 0), observed)[:2]


def step(n=200, seed=0):
    random = RandomTensors(seed)
    x = random.normal(n, 1)
    return torch.cat([x, torch.sign(x)], 1) + 0.1 * random.normal(n, 2), ~random.mask(n, 2, rate=0.1)


# ---- stages ------------------------------------------------------------------------------------------------------


def test_stages_follow_each_other():
    closed, told = fit(*step())
    assert [record[0] for record in told] == STAGES
    assert [record[1] for record in told] == [0, 85, 1]
    errors = [record[2] for record in told]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]
    assert [record[3] for record in told] == pytest.approx([error / errors[0] for error in errors])
    assert closed.model.sizes.n_reference == 200


@pytest.mark.parametrize(("n", "stages"), [(MIN_ROWS - 1, 1), (MIN_ROWS, 2), (99, 2), (100, 3)])
def test_few_rows_have_few_stages(n, stages):
    _, told = fit(*step(n), max_iter=3)
    assert [record[0] for record in told] == STAGES[:stages]


def test_the_error_is_that_of_the_answers():
    """In units of the columns' variances."""
    closed, told = fit(*step())
    total = (closed.queries.held_out * closed.queries.truth.square()).sum(0)
    expected = (closed.queries.errors(closed.answers) / total).mean().item()
    assert told[-1][2] == pytest.approx(expected)


def test_a_class_counts_once_however_many_levels_it_has():
    table = mixed(120)
    closed, told = fit(*table[:2], cell_specs(table))
    columns, q = closed.model.likelihoods.feature_columns, closed.queries
    ratio = q.errors(closed.answers) / (q.held_out * q.truth.square()).sum(0)
    per_column = torch.stack([ratio[columns == column].mean() for column in range(7)])
    assert told[-1][2] == pytest.approx(per_column.mean().item())


def test_out_of_fold_errors_are_those_of_fresh_rows():
    """What stages were chosen by is close to what they are worth."""
    closed, told = fit(*step(600))
    values, observed = step(3000, seed=1)
    hidden = torch.zeros_like(observed)
    hidden[torch.arange(3000), RandomTensors(2).integers(2, 3000)] = True
    hidden &= observed
    mean, _ = moments(closed, values, observed & ~hidden)
    error = ((mean - values).square() * hidden).sum(0) / (values.square() * hidden).sum(0)
    assert error.mean().item() == pytest.approx(told[-1][2], rel=0.25)


def test_on_linear_rows_the_answers_stay_exact():
    truth = factor_analysis()
    closed, told = fit(*rows_of(truth, 1500))
    values, observed = rows_of(truth, 1000, seed=2)
    exact = conditional(values, observed, truth)
    mean, variance = moments(closed, values, observed)
    assert (mean - exact.mean)[~observed].square().mean().sqrt() < 0.1  # of a standard deviation
    assert (variance / exact.variance)[~observed].log().abs().mean() < 0.1
    assert told[-1][3] <= 1.001


def test_many_rows_are_looked_at_in_part(monkeypatch):
    from vaeimpute.tables import defaults

    monkeypatch.setattr(defaults, "EM_ROWS", 150)
    values, observed = step(400)
    closed, _ = fit(values, observed)
    assert len(closed.rows) == len(closed.rows.unique()) == len(closed.fold) == 150
    x = torch.where(observed, values, 0)[closed.rows]
    assert torch.equal(closed.queries.truth, x[closed.queries.row])


def test_fewer_reference_rows_than_rows(monkeypatch):
    from vaeimpute.tables import defaults

    monkeypatch.setattr(defaults, "n_reference", lambda n_rows, n_features: 100)
    values, observed = step(400)
    closed, told = fit(values, observed)
    assert len(closed.model.reference) == 100
    assert told[-1][3] < 0.8
    assert all(part.isfinite().all() for part in moments(closed, values, observed))


def test_missing_cells_of_reference_rows_are_filled_by_the_smoothers():
    """Nearer to the truth than by the linear VAE, and with less doubt."""
    values, observed = step(400)
    closed, _ = fit(values, observed)
    model = closed.model
    known = model.reference_known > 0
    x = torch.where(known, model.reference, 0)
    (place, row) = (x.unsqueeze(1) == torch.where(observed, values, 0)).all(-1).nonzero(as_tuple=True)
    once = torch.bincount(place, minlength=400)[place] == 1  # rows without a cell are all the same
    place, row = place[once], row[once]
    assert len(place) > 380
    with torch.no_grad():
        given = model.given(x[place], known[place])
    hidden = ~known[place][:, 1]
    truth = values[row][:, 1]
    ours, linear = ((fill[:, 1] - truth)[hidden].square().mean() for fill in (model.reference[place], given.mean))
    assert ours < 0.8 * linear
    assert (model.reference_variance[place][:, 1][hidden] < given.variance[:, 1][hidden]).all()
    assert not model.reference_variance[known].any()


def test_the_smoothers_are_the_average_of_their_training(monkeypatch):
    run, seen = SmootherTraining.run, []

    def watched(self, *args):
        seen.append(self)
        return run(self, *args)

    monkeypatch.setattr(SmootherTraining, "run", watched)
    closed, _ = fit(*step(60), max_iter=20)
    assert torch.equal(closed.model.theta, seen[-1].averaged)
    assert not torch.equal(closed.model.theta, seen[-1].theta)


@pytest.mark.parametrize("max_iter", [1, 7, 10**6])
def test_smoothers_take_no_more_steps_than_max_iter(max_iter):
    budget = TimeBudget()
    _, told = fit(*step(60), max_iter=max_iter, budget=budget)
    assert told[1][1] == min(max_iter, 85)
    assert budget.left_out == []  # it is what was asked for


def test_the_same_generator_gives_the_same_fit():
    state = torch.get_rng_state()
    one, same, other = (fit(*step(120), seed=seed, max_iter=10)[0] for seed in (0, 0, 1))
    tensors = [closed.model.state_dict() for closed in (one, same, other)]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert not torch.equal(tensors[0]["theta"], tensors[2]["theta"])
    assert torch.equal(one.variance, same.variance)
    assert torch.equal(state, torch.get_rng_state())


# ---- never worse than the linear start ---------------------------------------------------------------------------


def nearly_constant(random, n):
    """A column of which 95 of 100 cells are the same."""
    values = random.normal(n, 2) @ random.normal(2, 4) + 0.3 * random.normal(n, 4)
    values[:, 0] = torch.where(random.mask(n, rate=0.95), 0.0, 3.0)
    return values


def exact(random, n):
    """``y = 2 x``, and a column that knows nothing of it."""
    x = random.normal(n, 1)
    return torch.cat([x, 2 * x, random.normal(n, 1)], 1)


def lumpy(random, n):
    """Half of a column is zero, the rest is positive; another has three values."""
    values = random.normal(n, 2) @ random.normal(2, 4) + 0.3 * random.normal(n, 4)
    values[:, 0] = values[:, 0].clamp(min=0)
    values[:, 1] = values[:, 1].sign() * (values[:, 1].abs() > 0.7)
    return values


def heavy_tails(random, n):
    """Ratios of normal numbers: a few cells are all of the variance."""
    values = random.normal(n, 2) @ random.normal(2, 4) + 0.3 * random.normal(n, 4)
    return values / random.normal(n, 1).abs().clamp(min=0.02)


def only_noise(random, n):
    return random.normal(n, 4)


def of_fresh_rows(make, n, seed):
    """Mean absolute errors of each column, after all stages and of the linear start, and the fit's last record."""
    random = RandomTensors(seed)
    values = make(random, n + 500)
    values = (values - values[:n].mean(0)) / values[:n].std(0)
    observed = ~random.mask(*values.shape, rate=0.2)
    closed, told = fit(values[:n], observed[:n], seed=seed)
    fresh, seen = values[n:], observed[n:]
    mean, variance = moments(closed, fresh, seen)
    assert mean.isfinite().all()
    assert (variance > 0).all()
    with torch.no_grad():
        linear = closed.model.given(torch.where(seen, fresh, 0), seen).mean
    return *(((~seen) * (answer - fresh).abs()).sum(0) for answer in (mean, linear)), told[-1]


@pytest.mark.parametrize("n", [60, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [nearly_constant, exact, lumpy, heavy_tails, only_noise])
def test_stages_do_no_harm_on_hard_tables(make, n):
    """Judged they are better, or left out; on fresh rows they are no worse than noise may make them."""
    ratios = []
    for seed in range(3):
        ours, linear, told = of_fresh_rows(make, n, seed)
        assert told[3] <= 1 + 1e-6
        ratios.append((ours / linear).log())
    ratio = torch.stack(ratios).mean(0).exp()
    assert ratio.log().mean().exp() < 1.05
    assert (ratio < 1.25).all()


@pytest.mark.xfail(
    reason="one table of 24 misses: .037 of a standard deviation where the linear VAE has .012",
    strict=True,
)
def test_an_exactly_linear_table_keeps_the_exact_answer():
    """``y = 2 x`` where x is visible."""
    for seed in range(4):
        random = RandomTensors(300 + seed)
        values = exact(random, 560)
        values = (values - values[:60].mean(0)) / values[:60].std(0)
        observed = ~random.mask(560, 3, rate=0.2)
        closed, _ = fit(values[:60], observed[:60], seed=seed)
        seen = torch.tensor([True, False, True]).expand(500, 3)
        mean, _ = moments(closed, values[60:], seen)
        assert (mean - values[60:])[:, 1].square().mean().sqrt() < 0.03  # of a standard deviation


# ---- time --------------------------------------------------------------------------------------------------------


def test_a_spent_budget_leaves_the_linear_start_and_says_so():
    budget = TimeBudget(0.0)
    closed, told = fit(*step(), budget=budget)
    assert [record[0] for record in told] == STAGES[:1]
    # two columns have but one rank
    assert budget.left_out == ["lower noise floors of the linear start", "smoothers"]
    assert not closed.model.feature_coef.any()
    assert all(part.isfinite().all() for part in moments(closed, *step()))


@pytest.mark.parametrize("at", ["at once", "in the middle", "after the refill"])
def test_an_interrupt_of_the_smoothers_keeps_the_best_so_far(monkeypatch, at):
    run, calls = SmootherTraining.run, []

    def interrupted(self, steps, reference, budget, share):
        calls.append(steps)
        if at == "at once":
            raise KeyboardInterrupt
        if at == "in the middle" or len(calls) == 2:
            run(self, range(steps.start, steps.start + 20), reference, budget, share)
            raise KeyboardInterrupt
        return run(self, steps, reference, budget, share)

    monkeypatch.setattr(SmootherTraining, "run", interrupted)
    budget = TimeBudget()
    closed, told = fit(*step(), budget=budget)
    assert budget.interrupted
    assert [record[0] for record in told] == STAGES[:2]
    assert any("steps of the smoothers" in part for part in budget.left_out)
    assert budget.left_out[-1] == "random features"
    assert told[-1][3] <= 1
    assert all(part.isfinite().all() for part in moments(closed, *step()))
    if at != "at once":
        assert told[-1][3] < 0.9


# ---- shares ------------------------------------------------------------------------------------------------------


def all_held_out(truth):
    n = len(truth)
    fold = torch.arange(n) * 4 // n
    return Queries(0 * truth, 0 * truth, truth, torch.ones_like(truth), torch.arange(n), fold)


def test_the_linear_share_is_the_one_with_the_least_error():
    """Independent errors of variance 1 and v: the best share of the first is ``v / (1 + v)``."""
    truth, one, other = RandomTensors().normal(3, 40_000, 1)
    for variance in (0.5, 1.0, 3.0):
        share = _linear_share(all_held_out(truth), truth + one, truth + variance**0.5 * other)
        assert share.item() == pytest.approx(variance / (1 + variance), abs=0.02)


def test_shares_of_both_means_sum_to_one_and_are_no_less_than_zero():
    truth, one, other = RandomTensors().normal(3, 300, 5)
    queries = all_held_out(truth)
    share, rest = _linear_share(queries, one, other), _linear_share(queries, other, one)
    torch.testing.assert_close(share + rest, torch.ones(5, dtype=F64), rtol=0, atol=1e-3)
    assert ((share >= 0) & (share <= 1)).all()
    far = _linear_share(queries, truth + 3, truth + 3.5)  # both on one side of the truth: all of the nearer
    torch.testing.assert_close(far, torch.ones(5, dtype=F64))


def test_means_that_are_the_same_have_even_shares():
    truth, one = RandomTensors().normal(2, 300, 2)
    torch.testing.assert_close(_linear_share(all_held_out(truth), one, one), torch.full((2,), 0.5, dtype=F64))


@pytest.mark.parametrize("powers", [(0.5, 2.0), (1.0, 0.0), (0.0, 0.7), (1.3, 0.4)])
def test_variances_find_the_powers_that_squared_errors_have(powers):
    random, n = RandomTensors(), 100_000
    logs, power = -2 * random.uniform(2, n, 1), torch.tensor(powers, dtype=F64)
    miss = torch.einsum("i,inf->nf", power, logs).exp() * random.normal(n, 1).square()
    found = _variance_powers(miss, torch.ones_like(miss), logs)
    torch.testing.assert_close(found[:, 0], power, rtol=0, atol=0.03)


def test_powers_of_variances_are_never_negative():
    random, n = RandomTensors(), 300
    logs = -2 * random.uniform(2, n, 4)
    miss = (-logs[0]).exp() * random.normal(n, 4).square()  # the surer the farther
    found = _variance_powers(miss, torch.ones_like(miss), logs)
    assert (found >= 0).all()
    assert (found[0] < 0.1).all()
    nothing = _variance_powers(miss, torch.zeros_like(miss), logs)
    assert nothing.tolist() == [[1] * 4, [0] * 4]


def test_a_few_cells_leave_the_linear_variance_as_it_is():
    """Three cells weigh about as much as the prior's pseudo-cells: the power stays between one and theirs."""
    logs = torch.full((2, 3, 1), -1.0, dtype=F64)
    logs[1] = 0
    miss = torch.full((3, 1), math.exp(-2.0), dtype=F64)  # alone they ask for a power of two
    power, none = _variance_powers(miss, torch.ones_like(miss), logs)[:, 0].tolist()
    assert 1.2 < power < 1.8
    assert none == 0


def test_errors_are_those_of_the_linear_vaes_and_of_all_stages():
    closed, told = fit(*step())
    total = (closed.queries.held_out * closed.queries.truth.square()).sum(0)
    for errors, record in ((closed.linear_errors, told[0]), (closed.errors, told[-1])):
        assert record[2] == pytest.approx((errors / total).mean().item())


def test_variances_of_a_fit_are_as_large_as_its_squared_misses():
    closed, _ = fit(*step(400))
    q = closed.queries
    relative = (q.held_out * (q.truth - closed.answers).square() / closed.variance).sum(0) / q.held_out.sum(0)
    torch.testing.assert_close(relative, torch.ones(2, dtype=F64), rtol=0, atol=0.1)


# ---- odd tables --------------------------------------------------------------------------------------------------


def _one_cell_left(values, observed):
    observed[:, 0] = False
    observed[0, 0] = True


def _constant(values, observed):
    values[:, 0] = 1.0


def _complete(values, observed):
    observed[:] = True


def _nothing(values, observed):
    observed[:] = False


def _one_row_over_and_over(values, observed):
    values[:] = values[:1].clone()


@pytest.mark.parametrize("spoil", [None, _one_cell_left, _constant, _complete, _nothing, _one_row_over_and_over])
@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (5, 3), (MIN_ROWS - 1, 2), (MIN_ROWS, 1), (120, 3)], ids=str)
def test_odd_tables_do_not_break(shape, spoil):
    values, observed = rows_of(factor_analysis(shape[1], 1), shape[0])
    if spoil is not None:
        spoil(values, observed)
    closed, told = fit(values, observed, max_iter=6)
    assert all(math.isfinite(number) for record in told for number in record[1:])
    mean, variance = moments(closed, values, observed)
    assert mean.isfinite().all()
    assert (variance > 0).all()


@pytest.mark.parametrize("n", [2, 5, 39, 40, 120])
def test_classes_alone(n):
    table = mixed(n)
    table = Table(table.values[:, 4:], table.observed[:, 4:], table.kinds[4:], table.n_categories[4:])
    closed, _ = fit(*table[:2], cell_specs(table), max_iter=6)
    mean, variance = moments(closed, *table[:2])
    assert mean.isfinite().all()
    assert (variance > 0).all()
