"""From a table to its models: seeds, threads, steps and seconds, and tables that are odd."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy import F64, KINDS, N_CATEGORIES, factor_analysis, mixed, numeric_table, rows_of

from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.gaussian.factor_analysis import FactorAnalysis
from vaeimpute.gaussian.factor_analysis import log_likelihood as exact_log_likelihood
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.closed_form import ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.data import Table
from vaeimpute.tables.defaults import MIN_ROWS
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.tables.fit import fit_ensemble, fit_imputer
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE
from vaeimpute.tables.smoother_fit import SmootherTraining
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.inference import impute, log_likelihood

CLOSED = ["linear", "smoother"]  # stages of less than 100 rows
PARTS = (TableEnsemble, JointVAE, ClosedFormVAE, ClosedFormStack, Margins, IntervalCalibration, Lattice)
CLASSES = {kind.__name__: kind for kind in PARTS}
EFFORTS = pytest.mark.parametrize("effort", ["auto", "full"])


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


@pytest.mark.parametrize("effort", ["auto", pytest.param("full", marks=pytest.mark.slow)])
def test_the_same_seed_and_steps_give_the_same_fit_bit_for_bit(effort):
    table, states = numbers(MIN_ROWS, 2), []
    for global_seed, seed, max_iter in ((0, 3, 6), (1, 3, 6), (0, 4, 6), (0, 3, 3)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            states.append(tensors_of(fit(table, seed, max_iter=max_iter, effort=effort)[0]))
            assert torch.equal(torch.get_rng_state(), state)
    assert are_equal(states[0], states[1])
    assert not are_equal(states[0], states[2])
    assert not are_equal(states[0], states[3])


@EFFORTS
def test_a_whole_fit_leaves_the_global_generator_as_it_was(effort):
    state = torch.get_rng_state()
    models = fit_imputer(mixed(60), seed=0, dtype=torch.float32, max_iter=4, effort=effort)
    assert torch.equal(torch.get_rng_state(), state)
    assert models.ensemble is not None
    assert not models.interrupted
    assert models.left_out == ()


def test_two_threads_that_fit_at_once_give_what_each_gives_alone():
    tables = [mixed(45, seed=seed) for seed in range(2)]

    def learnt(place):
        ensemble, _ = fit(tables[place], place, max_iter=3, effort=("auto", "full")[place])
        drawn = ensemble.draw(*tables[place][:2], 2, place)
        return tensors_of(ensemble), drawn

    alone = [learnt(place) for place in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(learnt, range(2)))
    for (tensors, draws), (same, again) in zip(alone, together, strict=True):
        assert are_equal(tensors, same)
        assert torch.equal(draws, again)


# ---- steps and seconds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_iter", "effort"),
    [(1, "auto"), (7, "auto"), (40, "auto"), (7, "full"), pytest.param(40, "full", marks=pytest.mark.slow)],
)
def test_no_stage_takes_more_steps_than_max_iter(max_iter, effort):
    seen = []
    _, history = fit(mixed(60), max_iter=max_iter, effort=effort, on_evaluation=lambda *told: seen.append(told))
    assert [record for _, record, _ in seen] == [r for r in history if r["model"] != "joint" or r["step"]]
    assert all(name == record["model"] for name, record, _ in seen)
    assert max(record["step"] for record in history) <= max_iter
    assert all(n_steps <= max_iter for _, _, n_steps in seen)
    assert max(record["step"] for record in history) > max_iter / 2


@pytest.mark.parametrize(
    ("n", "effort"), [(60, "auto"), (110, "auto"), pytest.param(110, "full", marks=pytest.mark.slow)]
)
def test_history_tells_of_all_stages_in_their_order(n, effort):
    _, history = fit(numbers(n, 3), max_iter=60, effort=effort)
    stages = [record["model"] for record in history]
    closed = CLOSED if n < 100 else [*CLOSED, "random features"]
    if effort == "auto":
        assert stages == closed
    else:
        assert stages[: 4 * len(closed)] == 4 * closed
        assert set(stages[4 * len(closed) :]) == {"joint"}
        steps = [record["step"] for record in history[4 * len(closed) :]]
        assert steps[0] == 0
        assert steps == sorted(set(steps))
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    for record in history:
        assert math.isfinite(record["error"])
        assert record["relative_error"] == 1 or record["step"]


def test_an_auto_fit_is_one_closed_form_and_the_joint_model_is_its_linear_vae():
    ensemble, _ = fit(mixed(60))
    assert isinstance(ensemble.conditional, ClosedFormVAE)
    assert not ensemble.joint.sizes.width
    best = ensemble.conditional.linear_vaes[0]
    assert torch.equal(ensemble.joint.W[0], best.W[:, : ensemble.joint.n_latent])
    assert torch.equal(ensemble.joint.b[0], best.b)
    assert not ensemble.stacking_weight.any()


def test_a_full_fit_has_networks_and_averages_four_closed_forms():
    ensemble, _ = fit(mixed(60), effort="full", max_iter=20)
    assert isinstance(ensemble.conditional, ClosedFormStack)
    assert len(ensemble.conditional.models) == 4
    assert ensemble.joint.sizes.width
    assert ensemble.joint.n_members > 1
    assert ((ensemble.stacking_weight >= 0) & (ensemble.stacking_weight <= 1)).all()
    assert ensemble.stacking_weight.any()
    alone, _ = fit(mixed(60), max_iter=20)
    first = ensemble.conditional.models[0]
    assert are_equal(tensors_of(first), tensors_of(alone.conditional))  # what a full fit adds, it adds to the auto fit
    assert not are_equal(tensors_of(first), tensors_of(ensemble.conditional.models[1]))


def test_a_full_fit_of_few_rows_has_no_networks():
    ensemble, history = fit(numbers(MIN_ROWS - 1, 3), effort="full")
    assert [record["model"] for record in history] == ["linear"] * 4
    assert not ensemble.joint.sizes.width


@EFFORTS
def test_a_spent_budget_leaves_the_linear_model_and_says_so(effort):
    table = mixed(60)
    models = fit_imputer(table, seed=0, dtype=F64, time_budget=1e-9, effort=effort)
    assert not models.interrupted
    assert [(record["model"], record["step"]) for record in models.history] == [("linear", 0)]
    linear = ("further ranks of the linear start", "lower noise floors of the linear start")
    more = ("further closed forms", "networks of the joint model") if effort == "full" else ()
    assert models.left_out == (*linear, "smoothers", *more, "most of the rows that calibrate scores")
    assert_cells_are_possible(impute(models.ensemble, table.values, table.observed), table)


def test_an_interrupt_leaves_the_best_so_far_of_the_networks():
    def interrupt(model, record, n_steps):
        if model == "joint":
            raise KeyboardInterrupt

    table = mixed(60)
    models = fit_imputer(table, seed=0, dtype=F64, on_evaluation=interrupt, effort="full", max_iter=30)
    assert models.interrupted
    assert max(record["step"] for record in models.history if record["model"] == "joint") <= 50
    assert_cells_are_possible(impute(models.ensemble, table.values, table.observed), table)


def test_an_interrupt_of_the_smoothers_ends_a_full_fit(monkeypatch):
    """What comes after it does not begin."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(SmootherTraining, "run", interrupt)
    table = mixed(60)
    models = fit_imputer(table, seed=0, dtype=F64, effort="full")
    assert models.interrupted
    assert [record["model"] for record in models.history] == CLOSED
    assert models.left_out[-3:-1] == ("further closed forms", "networks of the joint model")
    assert_cells_are_possible(impute(models.ensemble, table.values, table.observed), table)


# ---- odd tables --------------------------------------------------------------------------------------------------


def test_below_forty_rows_the_linear_model_alone_imputes():
    table = numbers(MIN_ROWS - 5, 4)
    ensemble, history = fit(table)
    assert [record["step"] for record in history] == [0]
    backbone = FactorAnalysis(*(part[0] for part in ensemble.joint.backbone))
    expected = exact_log_likelihood(*table[:2], backbone)
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


def _one_cell_left(values, observed):
    observed[:, 0] = False
    observed[0, 0] = True


def assert_fits(shape, spoil, effort):
    table = numbers(*shape)
    if spoil is not None:
        spoil(*table[:2])
    table = table._replace(values=torch.where(table.observed, table.values, 0))
    ensemble, _ = fit(table, max_iter=4, effort=effort)
    assert_cells_are_possible(impute(ensemble, *table[:2]), table)
    assert_cells_are_possible(ensemble.draw(*table[:2], 3, 0), table)
    assert log_likelihood(ensemble, *table[:2]).isfinite().all()


SPOILT = [None, _all_missing, _one_cell_left, _constant, _empty_rows, _complete, _nothing]
SHAPES = [(1, 1), (1, 3), (2, 2), (3, 1), (5, 3), (MIN_ROWS - 1, 2), (MIN_ROWS, 1), (MIN_ROWS, 3)]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_tables_do_not_break(shape, spoil):
    assert_fits(shape, spoil, "auto")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("shape", [(2, 2), (MIN_ROWS, 1), (MIN_ROWS, 3)], ids=str)
def test_odd_tables_do_not_break_a_full_fit(shape, spoil):
    assert_fits(shape, spoil, "full")


@pytest.mark.parametrize(
    ("n", "effort"),
    [
        (2, "auto"),
        (5, "auto"),
        (MIN_ROWS, "auto"),
        (110, "auto"),
        (5, "full"),
        pytest.param(110, "full", marks=pytest.mark.slow),
    ],
)
def test_classes_alone(n, effort):
    table = mixed(n)
    table = Table(table.values[:, 4:], table.observed[:, 4:], table.kinds[4:], table.n_categories[4:])
    ensemble, _ = fit(table, max_iter=4, effort=effort)
    assert_cells_are_possible(impute(ensemble, *table[:2]), table)
    assert_cells_are_possible(ensemble.draw(*table[:2], 3, 0), table)


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
    assert_cells_are_possible(ensemble.draw(values, observed, 3, 0), table)


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
    in_double = table._replace(values=table.values.double())
    assert_cells_are_possible(ensemble.draw(*on_gpu[:2], 3, 0).cpu(), in_double)
    assert ensemble.sample(5, 0).shape == (5, len(KINDS))
    here = from_state(*to_state({"e": ensemble}), CLASSES, torch.device("cpu"))["e"]
    torch.testing.assert_close(
        log_likelihood(here, *table[:2]), log_likelihood(ensemble, *on_gpu[:2]).cpu(), rtol=0, atol=0.05
    )
    numeric = [column for column, n in enumerate(N_CATEGORIES) if not n]
    torch.testing.assert_close(impute(here, *table[:2])[:, numeric], there.cpu()[:, numeric], rtol=0, atol=0.01)
    assert all(math.isfinite(record["error"]) for record in models.history)
