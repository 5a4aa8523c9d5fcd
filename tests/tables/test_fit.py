"""From a table to its models: seeds, threads, steps and seconds, and tables that are odd."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy import F64, KINDS, N_CATEGORIES, factor_analysis, mixed, numeric_table, rows_of

from vaeimpute.gaussian.factor_analysis import log_likelihood as exact_log_likelihood
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.data import Table
from vaeimpute.tables.defaults import MIN_ROWS
from vaeimpute.tables.fit import fit_ensemble, fit_imputer
from vaeimpute.tables.models import ConditionalVAE, JointVAE
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.inference import Ensemble, draw, impute, log_likelihood, sample

NAMES = ("joint", "conditional")
CLASSES = {kind.__name__: kind for kind in (JointVAE, ConditionalVAE, Ensemble)}


def numbers(n, n_columns, missing=0.2):
    return numeric_table(*rows_of(factor_analysis(n_columns, 1), n, missing))


def fit(table, seed=0, *, time_budget=None, **options):
    """Ensemble and history."""
    return fit_ensemble(table, seed=seed, dtype=F64, budget=TimeBudget(time_budget), **options)


def tensors_of(module):
    return to_state({"ensemble_": module})[0]


def are_equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def assert_cells_are_possible(cells, table):
    """Observed cells are the user's own, classes are codes, and nothing is infinite."""
    assert cells.isfinite().all()
    assert torch.equal(cells[..., table.observed], table.values[table.observed].expand_as(cells[..., table.observed]))
    for column, n_categories in enumerate(table.n_categories):
        if n_categories:
            assert torch.isin(cells[..., column], torch.arange(n_categories, dtype=cells.dtype)).all()


# ---- seeds and threads -------------------------------------------------------------------------------------------


def test_the_same_seed_and_steps_give_the_same_fit_bit_for_bit():
    table, states = numbers(MIN_ROWS, 2), []
    for global_seed, seed, max_iter in ((0, 3, 10), (1, 3, 10), (0, 4, 10), (0, 3, 5)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            states.append(tensors_of(fit(table, seed, max_iter=max_iter)[0]))
            assert torch.equal(torch.get_rng_state(), state)
    assert are_equal(states[0], states[1])
    assert not are_equal(states[0], states[2])
    assert not are_equal(states[0], states[3])


def test_a_whole_fit_leaves_the_global_generator_as_it_was():
    state = torch.get_rng_state()
    models = fit_imputer(mixed(60), seed=0, dtype=torch.float32, max_iter=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert models.ensemble is not None
    assert not models.interrupted


def test_two_threads_that_fit_at_once_give_what_each_gives_alone():
    tables = [mixed(60, seed=seed) for seed in range(2)]

    def learnt(place):
        ensemble, _ = fit(tables[place], place, max_iter=6)
        drawn = draw(ensemble, *tables[place][:2], 2, make_generator(place))
        return tensors_of(ensemble), drawn

    alone = [learnt(place) for place in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(learnt, range(2)))
    for (tensors, draws), (same, again) in zip(alone, together, strict=True):
        assert are_equal(tensors, same)
        assert torch.equal(draws, again)


# ---- steps and seconds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_iter", [1, 7, 40])
def test_no_model_takes_more_steps_than_max_iter(max_iter):
    seen = []
    _, history = fit(mixed(60), max_iter=max_iter, on_evaluation=lambda *told: seen.append(told))
    assert [dict(record, model=name) for name, record, _ in seen] == [r for r in history if r["step"]]
    for name in NAMES:
        own = [record for record in history if record["model"] == name]
        assert own[0]["step"] == 0
        assert max(record["step"] for record in own) <= max_iter
        totals = {n_steps for model, _, n_steps in seen if model == name}
        assert all(n_steps <= max_iter for n_steps in totals)
    assert max(record["step"] for record in history) > max_iter / 2


def test_history_tells_of_both_models():
    _, history = fit(numbers(60, 3), max_iter=60)
    for name in NAMES:
        own = [record for record in history if record["model"] == name]
        assert own[0]["step"] == 0
        steps, seconds, errors = ([record[key] for record in own] for key in ("step", "seconds", "error"))
        assert steps == sorted(set(steps))
        assert seconds == sorted(seconds)
        assert all(math.isfinite(error) for error in errors)


def test_a_spent_budget_leaves_the_linear_model():
    table = mixed(60)
    models = fit_imputer(table, seed=0, dtype=F64, time_budget=1e-9)
    assert not models.interrupted
    assert [record["step"] for record in models.history] == [0, 0]
    assert_cells_are_possible(impute(models.ensemble, table.values, table.observed), table)


def test_an_interrupt_leaves_the_best_so_far():
    def interrupt(model, record, n_steps):
        raise KeyboardInterrupt

    table = mixed(60)
    models = fit_imputer(table, seed=0, dtype=F64, on_evaluation=interrupt)
    assert models.interrupted
    assert max(record["step"] for record in models.history) <= 50
    assert_cells_are_possible(impute(models.ensemble, table.values, table.observed), table)


# ---- odd tables --------------------------------------------------------------------------------------------------


def test_below_forty_rows_the_linear_model_alone_imputes():
    table = numbers(MIN_ROWS - 5, 4)
    ensemble, history = fit(table)
    assert [record["step"] for record in history] == [0, 0]
    backbone, values = ensemble.joint.backbone, [part.expand(4, -1, -1) for part in table[:2]]
    members = exact_log_likelihood(*values, backbone)
    expected = torch.logsumexp(members, 0) - math.log(len(members))
    torch.testing.assert_close(log_likelihood(ensemble, *table[:2]), expected, rtol=0, atol=1e-9)
    again = from_state(*to_state({"e": ensemble}), CLASSES, torch.device("cpu"))["e"]
    assert torch.equal(impute(again, *table[:2]), impute(ensemble, *table[:2]))
    assert not ensemble.conditional.sizes.n_reference


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
    table = numbers(*shape)
    spoil(*table[:2])
    table = table._replace(values=torch.where(table.observed, table.values, 0))
    ensemble, _ = fit(table, max_iter=8)
    assert_cells_are_possible(impute(ensemble, *table[:2]), table)
    assert_cells_are_possible(draw(ensemble, *table[:2], 3, make_generator(0)), table)
    assert log_likelihood(ensemble, *table[:2]).isfinite().all()


@pytest.mark.parametrize("kind", ["ordinal", "categorical", "boolean"])
def test_classes_that_never_vary_or_never_occur(kind):
    values = torch.zeros(20, 3, dtype=F64)
    observed = torch.ones(20, 3, dtype=torch.bool)
    observed[:, 1] = False  # categories are known, cells are not
    observed[::3, 2] = False
    values[:, 2] = torch.arange(20) % 2
    table = Table(values, observed, [kind] * 3, [1, 2, 2])
    ensemble, _ = fit(table)
    assert_cells_are_possible(impute(ensemble, values, observed), table)
    assert_cells_are_possible(draw(ensemble, values, observed, 3, make_generator(0)), table)


# ---- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_fit_on_the_gpu_works_there_and_here():
    device = torch.device("cuda")
    table = mixed(200, dtype=torch.float32)
    on_gpu = table._replace(values=table.values.to(device), observed=table.observed.to(device))
    models = fit_imputer(on_gpu, seed=0, dtype=torch.float32)
    ensemble = models.ensemble
    assert all(p.device.type == "cuda" for p in ensemble.parameters())
    there = impute(ensemble, *on_gpu[:2])
    assert there.device.type == "cuda"
    assert_cells_are_possible(there.cpu(), table)
    assert_cells_are_possible(draw(ensemble, *on_gpu[:2], 3, make_generator(0, device)).cpu(), table)
    assert sample(ensemble, 5, make_generator(0, device)).shape == (5, len(KINDS))
    here = from_state(*to_state({"e": ensemble}), CLASSES, torch.device("cpu"))["e"]
    torch.testing.assert_close(
        log_likelihood(here, *table[:2]), log_likelihood(ensemble, *on_gpu[:2]).cpu(), rtol=0, atol=0.05
    )
    numeric = [column for column, n in enumerate(N_CATEGORIES) if not n]
    torch.testing.assert_close(impute(here, *table[:2])[:, numeric], there.cpu()[:, numeric], rtol=0, atol=0.01)
    assert all(math.isfinite(record["error"]) for record in models.history)
