"""Model, training, inference, fitting: what holds of every fitted table, whatever the networks inside."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vaeimpute.gaussian import factor_analysis as linear
from vaeimpute.likelihoods.families import LIKELIHOODS, CellSpec
from vaeimpute.tables import fit as fitting
from vaeimpute.tables.data import Table
from vaeimpute.tables.fit import MIN_ROWS, fit_table
from vaeimpute.tables.models import ConditionalVAE, JointVAE, ModelConfig
from vaeimpute.training.loop import Check, Clock, Plan, fit_model, held_out_misses
from vaeimpute.vae.inference import (
    cell_log_density,
    draw,
    encode,
    from_state,
    impute,
    latent_noise,
    log_evidence,
    sample,
    to_state,
)

F64 = torch.float64
KINDS = ("numeric", "numeric", "positive", "count", "ordinal", "categorical", "boolean")
N_LEVELS = (0, 0, 0, 0, 5, 4, 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mixed(n=80, missing=0.2, seed=0, dtype=F64):
    """A table with all kinds of columns, driven by two factors; holes hold zero."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, dtype=F64, generator=g)
    y = z @ torch.randn(2, 7, dtype=F64, generator=g) + 0.3 * torch.randn(n, 7, dtype=F64, generator=g)
    y = (y - y.mean(0)) / y.std(0)
    y[:, 1] = y[:, 1].mul(2).round().clamp(-2, 2) / 2  # few values: levels
    y[:, 4] = torch.bucketize(y[:, 4].contiguous(), torch.tensor([-1.0, -0.3, 0.3, 1.0], dtype=F64)).double()
    y[:, 5] = torch.bucketize(y[:, 5].contiguous(), torch.tensor([-0.7, 0.0, 0.7], dtype=F64)).double()
    y[:, 6] = (y[:, 6] > 0).double()
    observed = torch.rand(n, 7, generator=g) >= missing
    return Table(torch.where(observed, y, 0).to(dtype), observed, KINDS, N_LEVELS)


def numeric(n, n_features, *, missing=0.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 1, dtype=F64, generator=g) + 0.5 * torch.randn(n, n_features, dtype=F64, generator=g)
    observed = torch.rand(n, n_features, generator=g) >= missing
    return Table(torch.where(observed, values, 0), observed, ["numeric"] * n_features, [0] * n_features)


@pytest.fixture(scope="module")
def table():
    return mixed()


@pytest.fixture(scope="module")
def fit(table):
    return fit_table(table, seed=0, dtype=F64, time_budget=5)


@pytest.fixture(scope="module")
def ensemble(fit):
    return fit[0]


def assert_cells_are_possible(cells, table):
    """Observed cells are the user's own, classes are codes, and nothing is infinite."""
    assert cells.isfinite().all()
    assert torch.equal(cells[..., table.observed], table.values[table.observed].expand_as(cells[..., table.observed]))
    for column, levels in enumerate(table.n_levels):
        if levels:
            codes = torch.arange(levels, dtype=cells.dtype)
            assert torch.isin(cells[..., column], codes).all()


def test_one_table_holds_all_families(ensemble):
    families = {spec.family for model in ensemble.readings for spec in model.likelihoods.specs}
    assert families == LIKELIHOODS.keys()


def test_holes_are_filled_with_possible_cells(ensemble, table):
    assert_cells_are_possible(impute(ensemble, table.values, table.observed), table)
    draws = draw(ensemble, table.values, table.observed, 9)
    assert draws.shape == (9, *table.values.shape)
    assert_cells_are_possible(draws, table)
    free = table._replace(observed=torch.zeros_like(table.observed))
    cells = sample(ensemble, len(table.values))
    assert cells.shape == table.values.shape
    assert_cells_are_possible(cells, free)
    assert_cells_are_possible(impute(ensemble, free.values, free.observed), free)


def test_what_a_hole_holds_has_no_influence(ensemble, table):
    other = torch.where(table.observed, table.values, 1.0)
    for function in (impute, log_evidence, cell_log_density, encode):
        torch.testing.assert_close(
            function(ensemble, other, table.observed), function(ensemble, table.values, table.observed)
        )


def test_imputing_the_imputed_changes_nothing(ensemble, table):
    filled = impute(ensemble, table.values, table.observed)
    assert torch.equal(impute(ensemble, filled, torch.ones_like(table.observed)), filled)


@pytest.mark.parametrize("function", [impute, log_evidence, cell_log_density, encode])
def test_a_row_does_not_depend_on_its_batch(ensemble, table, function):
    whole = function(ensemble, table.values, table.observed)
    order = torch.randperm(len(whole))
    shuffled = function(ensemble, table.values[order], table.observed[order])
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-7)
    alone = torch.cat([function(ensemble, table.values[[i]], table.observed[[i]]) for i in range(5)])
    torch.testing.assert_close(alone, whole[:5], rtol=0, atol=1e-7)


def test_chunks_of_rows_do_not_matter(ensemble, table, monkeypatch):
    whole = impute(ensemble, table.values, table.observed)
    monkeypatch.setattr("vaeimpute.vae.inference._CELLS", 1)
    rows = slice(0, 7)
    torch.testing.assert_close(impute(ensemble, table.values[rows], table.observed[rows]), whole[rows])
    assert draw(ensemble, table.values[rows], table.observed[rows], 3).shape == (3, 7, 7)
    assert sample(ensemble, 7).shape == (7, 7)


def test_draws_scatter_around_the_answer(ensemble, table):
    draws = draw(ensemble, table.values, table.observed, 400)
    points = impute(ensemble, table.values, table.observed)
    numbers = torch.tensor([levels == 0 for levels in table.n_levels])
    hidden = ~table.observed & numbers
    error = (draws.mean(0) - points)[hidden] / (draws.std(0)[hidden] / 400**0.5)
    assert error.square().mean().sqrt() < 2.5  # importance resampling and finite noise add to one
    assert (draws.std(0)[hidden] > 0).all()
    modes = (draws == points).double().mean(0)[~table.observed & ~numbers]
    assert (modes > 0.1).all()


def test_draws_come_from_the_global_generator(ensemble, table):
    once, again, other = (
        (torch.manual_seed(seed), draw(ensemble, table.values, table.observed, 2))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("column", [4, 5, 6])
def test_probabilities_of_the_classes_sum_to_one(ensemble, table, column):
    levels = table.n_levels[column]
    values, observed = torch.zeros(levels, 7, dtype=F64), torch.zeros(levels, 7, dtype=torch.bool)
    values[:, column], observed[:, column] = torch.arange(levels), True
    total = log_evidence(ensemble, values, observed).exp().sum().item()
    assert total == pytest.approx(1.0, abs=0.15)  # 64 draws: Monte Carlo noise


def test_density_of_a_number_integrates_to_one(ensemble):
    grid = torch.linspace(-8, 8, 801, dtype=F64)
    values, observed = torch.zeros(801, 7, dtype=F64), torch.zeros(801, 7, dtype=torch.bool)
    values[:, 0], observed[:, 0] = grid, True
    density = log_evidence(ensemble, values, observed).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=0.1)


def test_an_empty_row_says_nothing(ensemble, table):
    nothing = torch.zeros_like(table.observed)
    torch.testing.assert_close(
        log_evidence(ensemble, table.values, nothing), torch.zeros(80, dtype=F64), rtol=0, atol=0.05
    )
    assert not cell_log_density(ensemble, table.values, nothing).any()


def test_cells_of_a_lone_cell_are_the_row(ensemble, table):
    """With one observed cell its density given the rest is the density of the row."""
    one = torch.zeros_like(table.observed)
    one[:, 5] = True
    cells = cell_log_density(ensemble, table.values, one)
    assert not cells[:, [0, 1, 2, 3, 4, 6]].any()
    torch.testing.assert_close(cells[:, 5], log_evidence(ensemble, table.values, one), rtol=0, atol=0.25)


def test_columns_hidden_together_do_not_see_each_other(ensemble, table):
    each = cell_log_density(ensemble, table.values, table.observed)
    assert torch.equal(cell_log_density(ensemble, table.values, table.observed, n_passes=7), each)
    together = cell_log_density(ensemble, table.values, table.observed, n_passes=1)
    for column in range(7):
        alone = torch.zeros_like(table.observed)
        alone[:, column] = table.observed[:, column]
        torch.testing.assert_close(together[:, column], cell_log_density(ensemble, table.values, alone)[:, column])


def test_both_readings_have_the_same_backbone(ensemble):
    by_column = [r.likelihoods.feature_columns.argsort(stable=True) for r in ensemble.readings]
    for joint, conditional in zip(*(r.linear for r in ensemble.readings), strict=True):
        assert torch.equal(joint[:, by_column[0]], conditional[:, by_column[1]])


# ---- seeds, files, time ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_fit(monkeypatch):
    monkeypatch.setattr("vaeimpute.tables.fit._COST", 1, raising=False)  # as few steps as a plan may have
    table = numeric(MIN_ROWS, 2)
    states = []
    for global_seed, seed, budget in ((0, 3, None), (1, 3, None), (0, 4, 1e-9)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states.append(to_state(fit_table(table, seed=seed, dtype=F64, time_budget=budget)[0])[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert states[0].keys() == states[1].keys()
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    assert any((states[0][key] != states[2][key]).any() for key in states[0] if states[0][key].shape)


MODELS = {kind.__name__: kind for kind in (JointVAE, ConditionalVAE)}


def test_state_round_trip(ensemble, table):
    tensors, header = to_state(ensemble)
    again = from_state(tensors, json.loads(json.dumps(header)), torch.device("cpu"), MODELS)
    for function in (impute, log_evidence, cell_log_density):
        one, other = (function(e, table.values, table.observed) for e in (ensemble, again))
        assert torch.equal(one, other)
    back, header_back = to_state(again)
    assert header_back == header
    assert back.keys() == tensors.keys()
    assert all((back[key] == tensors[key]).all() for key in tensors)


def test_history_tells_of_both_readings(fit):
    _, history, interrupted = fit
    assert not interrupted
    for reading in ("joint", "conditional"):
        own = [record for record in history if record["reading"] == reading]
        assert own[0]["step"] == 0
        steps, seconds, errors = ([record[key] for record in own] for key in ("step", "seconds", "error"))
        assert steps == sorted(set(steps))
        assert seconds == sorted(seconds)
        assert all(math.isfinite(error) for error in errors)


def test_a_spent_budget_leaves_the_linear_model():
    table = mixed(60)
    ensemble, history, interrupted = fit_table(table, seed=0, dtype=F64, time_budget=1e-9)
    assert not interrupted
    assert [record["step"] for record in history] == [0, 0]
    assert_cells_are_possible(impute(ensemble, table.values, table.observed), table)


def test_an_interrupt_leaves_the_best_so_far():
    def stop(reading, record, plan):
        raise KeyboardInterrupt

    table = mixed(60)
    ensemble, history, interrupted = fit_table(table, seed=0, dtype=F64, on_check=stop)
    assert interrupted
    assert max(record["step"] for record in history) <= 50
    assert_cells_are_possible(impute(ensemble, table.values, table.observed), table)


# ---- training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trial():
    """A joint reading on its linear start, and what it takes to train it."""
    table = numeric(200, 5)
    observed = table.observed
    held_out = observed & (torch.rand(2, *observed.shape) < 0.15)
    fits = [linear.fit_linear(table.values, observed & ~h, 2) for h in held_out]
    model = JointVAE(ModelConfig(2, 2, 16, 1, 0.0, -3.5), [CellSpec("gaussian")] * 5).double()
    model.start(linear.Linear(*(torch.stack(p) for p in zip(*fits, strict=True))), table.values, observed)
    return model.eval(), table.values, observed, held_out, latent_noise(model, 16)


@pytest.mark.parametrize("learning_rate", [3e-3, 30.0])
def test_the_best_look_at_the_held_out_cells_is_kept(trial, learning_rate):
    model, values, observed, held_out, noise = trial
    seen = observed & ~held_out
    check = Check(values, seen, held_out, noise)
    with torch.no_grad():
        before = held_out_misses(model, check)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        plan = Plan(100, 32, learning_rate, (2, 2), patience=10, check_every=20)
    fit = fit_model(model, values, seen, check, [plan], clock=Clock())
    with torch.no_grad():
        after = held_out_misses(model, check)
    torch.testing.assert_close(after, fit.misses)
    assert fit.history[0]["error"] == pytest.approx(before.square().sum().item() / held_out.sum().item())
    errors = {record["step"]: record["relative_error"] for record in fit.history}
    assert errors[0] == pytest.approx(1.0)
    if fit.steps:  # a real gain, and none was better
        assert errors[fit.steps] == min(errors.values()) < 1
        assert (after.sum(0) / before.sum(0)).mean() == pytest.approx(errors[fit.steps])
    assert not model.training
    if learning_rate > 1:  # nothing to gain: the start itself
        assert fit.steps == 0
        assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())


def test_patience_ends_the_training(trial):
    model, values, observed, held_out, noise = trial
    plan = Plan(1000, 32, 30.0, (1, 1), patience=2, check_every=10)
    seen = observed & ~held_out
    fit = fit_model(model, values, seen, Check(values, seen, held_out, noise), [plan], clock=Clock())
    assert [record["step"] for record in fit.history] == [0, 10, 20]


def test_a_budget_spent_between_two_looks_ends_the_training(trial):
    model, values, observed, held_out, noise = trial
    seen = observed & ~held_out
    clock, plan = Clock(0.2), Plan(10**6, 8, 1e-3, check_every=10**6)
    fit = fit_model(model, values, seen, Check(values, seen, held_out, noise), [plan], clock=clock)
    assert [record["step"] == 0 for record in fit.history] == [True, False]
    assert fit.history[-1]["step"] < 1000


def test_misses_are_those_of_the_answers(trial):
    model, values, observed, held_out, noise = trial
    seen = observed & ~held_out
    with torch.no_grad():
        ours = held_out_misses(model, Check(values, seen, held_out, noise))
        miss = model.answers(values.expand(2, -1, -1), seen, noise) - values
    torch.testing.assert_close(ours, torch.where(held_out, miss, 0))


@pytest.mark.parametrize(("n", "expected"), [(500, 256 / 257), (5000, 2 / 3)])
def test_shares_of_the_readings(n, expected):
    """Errors of s and 2 s, opposite in sign: the least error is where they cancel, and few rows do not look for it."""
    miss = torch.ones(2, 40_000, 2) * torch.tensor([1.0, 0.0])  # nobody asked for the second column
    asked = torch.tensor([80_000, 0])
    shares = fitting._shares(miss, -2 * miss, torch.arange(2), asked, n)
    torch.testing.assert_close(shares, torch.tensor([expected, 0.5]), rtol=2e-3, atol=0)


def test_the_rate_warms_up_and_falls():
    plan = Plan(1000, 1, 2.0)
    rates = [plan.rate(step) for step in range(1001)]
    peak = rates.index(max(rates))
    assert 40 <= peak <= 60
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * 2.0)


# ---- odd tables --------------------------------------------------------------------------------------------------


def test_below_forty_rows_the_linear_model_alone_answers():
    table = numeric(MIN_ROWS - 5, 4)
    ensemble, history, _ = fit_table(table, seed=0, dtype=F64)
    assert [record["step"] for record in history] == [0, 0]
    backbone = ensemble.joint.linear
    members = linear.log_likelihood(*(t.expand(len(backbone.b), -1, -1) for t in table[:2]), backbone)
    expected = torch.logsumexp(members, 0) - math.log(len(members))
    torch.testing.assert_close(log_evidence(ensemble, *table[:2]), expected, rtol=0, atol=1e-9)
    model = ensemble.conditional
    _, _, given, votes = model._ask(*(t.unsqueeze(0) for t in table[:2]), None, None, slice(None))
    torch.testing.assert_close(model.neighbours.mix(given, votes)[0], given.mean)
    again = from_state(*to_state(ensemble), torch.device("cpu"), MODELS)
    assert torch.equal(impute(again, *table[:2]), impute(ensemble, *table[:2]))


def _all_missing(values, observed):
    observed[:, 0] = False


def _constant(values, observed):
    values[:, 0] = 1.0


def _empty_rows(values, observed):
    observed[::2] = False


def _complete(values, observed):
    observed[:] = True


def _nothing(values, observed):
    observed[:] = False


@pytest.mark.parametrize("spoil", [_all_missing, _constant, _empty_rows, _complete, _nothing])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (20, 1), (20, 3), (MIN_ROWS, 1), (MIN_ROWS, 3)], ids=str)
def test_odd_tables_do_not_break(shape, spoil):
    table = numeric(*shape)
    spoil(*table[:2])
    table = table._replace(values=torch.where(table.observed, table.values, 0))
    ensemble, _, _ = fit_table(table, seed=0, dtype=F64, time_budget=0.2)
    assert_cells_are_possible(impute(ensemble, *table[:2]), table)
    assert_cells_are_possible(draw(ensemble, *table[:2], 3), table)
    assert log_evidence(ensemble, *table[:2]).isfinite().all()


@pytest.mark.parametrize("kind", ["ordinal", "categorical", "boolean"])
def test_classes_that_never_vary_or_never_occur(kind):
    values = torch.zeros(20, 3, dtype=F64)
    observed = torch.ones(20, 3, dtype=torch.bool)
    observed[:, 1] = False  # levels are known, cells are not
    observed[::3, 2] = False
    values[:, 2] = torch.arange(20) % 2
    table = Table(values, observed, [kind] * 3, [1, 2, 2])
    ensemble, _, _ = fit_table(table, seed=0, dtype=F64)
    assert_cells_are_possible(impute(ensemble, values, observed), table)
    assert_cells_are_possible(draw(ensemble, values, observed, 3), table)


# ---- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_fit_on_the_gpu_answers_there_and_here():
    device = torch.device("cuda")
    table = mixed(200, dtype=torch.float32)
    on_gpu = table._replace(values=table.values.to(device), observed=table.observed.to(device))
    ensemble, history, _ = fit_table(on_gpu, seed=0, dtype=torch.float32)
    assert all(p.device.type == "cuda" for model in ensemble.readings for p in model.parameters())
    there = impute(ensemble, *on_gpu[:2])
    assert there.device.type == "cuda"
    assert_cells_are_possible(there.cpu(), table)
    assert_cells_are_possible(draw(ensemble, *on_gpu[:2], 3).cpu(), table)
    assert sample(ensemble, 5).shape == (5, 7)
    here = from_state(*to_state(ensemble), torch.device("cpu"), MODELS)
    torch.testing.assert_close(
        log_evidence(here, *table[:2]), log_evidence(ensemble, *on_gpu[:2]).cpu(), rtol=0, atol=0.05
    )
    numbers = [column for column, levels in enumerate(table.n_levels) if not levels]
    torch.testing.assert_close(impute(here, *table[:2])[:, numbers], there.cpu()[:, numbers], rtol=0, atol=0.01)
    assert all(math.isfinite(record["error"]) for record in history)
