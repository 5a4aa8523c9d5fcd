"""benchmarks: every peer keeps its contract, runs resume and survive failures, the report says what the lines say."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks import pictures, report, run, speed
from benchmarks.datasets import TABLES, Table, codes, hide, load, numeric_columns
from benchmarks.markdown import markdown
from benchmarks.peer_densities import gaussian_mixture
from benchmarks.peers import PEERS, Peer, fitted
from benchmarks.run import Case
from benchmarks.scores import METRICS
from vaeimpute.amputation import MECHANISMS, ampute

BUNDLED = ["breast_cancer_wdbc", "diabetes_lars", "iris", "wine_recognition"]
OTHERS = [name for name in PEERS if name not in ("vaeimpute", "hyperimpute")]
SHORT: dict[str, dict] = {
    "mice-draws": {"n_draws": 2},
    "gain": {"n_steps": 300},
    "plain-vae": {"n_epochs": 50},
    "miwae": {"n_epochs": 20, "n_draws": 20},
}


@pytest.fixture
def toy(monkeypatch) -> str:
    """A table with numbers, classes, a constant column and a row with a hole: one row in TABLES."""

    def source() -> pd.DataFrame:
        rng = np.random.default_rng(0)
        x = rng.standard_normal(60)
        frame = pd.DataFrame({"x": x, "y": 2 * x + 0.1 * rng.standard_normal(60), "n": rng.integers(0, 9, 60)})
        frame["colour"] = np.where(x > 0, "red", np.where(x < -1, "blue", "green"))
        frame["flag"] = x > 0.5
        frame["constant"] = 1
        frame.loc[3, "x"] = np.nan
        return frame

    monkeypatch.setitem(TABLES, "toy", Table(source, "held-out"))
    return "toy"


def invoke(command, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def import_all(method: str) -> None:
    """Skip where the method's packages are missing; their own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in PEERS[method].imports:
            pytest.importorskip(module)


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tables(name):
    frame = load(name)
    assert not frame.isna().any().any()
    assert (frame.nunique() > 1).all()
    assert all(dtype.kind == "f" or isinstance(dtype, pd.CategoricalDtype) for dtype in frame.dtypes)
    pd.testing.assert_frame_equal(frame, load(name))


def test_cleaning_and_subsampling(toy):
    frame = load(toy)
    assert list(frame) == ["x", "y", "n", "colour", "flag"]
    assert numeric_columns(frame) == ["x", "y", "n"]
    assert len(frame) == 59
    few = load(toy, max_rows=20)
    assert len(few) == 20
    pd.testing.assert_frame_equal(few, load(toy, max_rows=20))
    assert len(few.merge(frame)) == 20


def test_unknown_table_and_missing_folder(monkeypatch):
    with pytest.raises(ValueError, match="Unknown table 'nope'"):
        load("nope")
    monkeypatch.delenv("VAEIMPUTE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set VAEIMPUTE_DATA"):
        TABLES["airfoil"].source()


def test_parquet_tables_come_from_the_folder(monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "tabular").mkdir()
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "tabular" / "concrete.parquet")
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    pd.testing.assert_frame_equal(TABLES["concrete"].source(), frame)


def test_codes_and_hide_keep_levels(toy):
    frame = load(toy)
    table = codes(frame)
    observed = ampute(table, 0.4, random_state=0)
    holed = hide(frame, observed)
    assert (holed.dtypes == frame.dtypes).all()
    np.testing.assert_array_equal(np.isnan(codes(holed)), ~observed)
    np.testing.assert_array_equal(codes(holed)[observed], table[observed])


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("table", ["toy", "iris"])
def test_every_peer_completes_and_beats_or_equals_chance(toy, table, method):
    import_all(method)
    truth = load(table, max_rows=60)
    observed = ampute(codes(truth), 0.2, random_state=0)
    X = hide(truth, observed)
    before = X.copy()
    with joblib.parallel_config(n_jobs=1):
        completed = PEERS[method].complete(X, 0, **SHORT.get(method, {}))
        if table == "toy":
            pd.testing.assert_frame_equal(completed, PEERS[method].complete(X, 0, **SHORT.get(method, {})))
    run.check_completed(completed, truth, observed)
    pd.testing.assert_frame_equal(X, before)
    assert run.judge(truth, completed, observed)["nrmse"] < 1.3


@pytest.mark.parametrize("method", [name for name in OTHERS if PEERS[name].fit])
def test_what_was_fitted_completes_further_rows_one_by_one(toy, method):
    truth = load(toy)
    observed = ampute(codes(truth), 0.2, random_state=0)
    X = hide(truth, observed)
    transform = PEERS[method].fit(X[:40], 0)
    new = transform(X[40:])
    run.check_completed(new, truth[40:], observed[40:])
    alone = pd.concat([transform(X[i : i + 1]) for i in range(40, len(X))])
    np.testing.assert_allclose(codes(alone), codes(new), atol=1e-8)


def test_a_mixture_of_one_component_is_the_gaussian(toy):
    X = hide(load(toy), ampute(codes(load(toy)), 0.3, random_state=0))
    one = gaussian_mixture(X, 0, n_components=(1,))(X)
    pd.testing.assert_frame_equal(one, PEERS["em"].complete(X, 0))


def test_the_gaussian_finds_the_conditional_mean_it_was_drawn_from():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 4))
    truth = pd.DataFrame(rng.standard_normal((4000, 4)) @ mix, columns=list("abcd"))
    observed = np.ones(truth.shape, dtype=bool)
    observed[::2, 0] = False
    cov = mix.T @ mix
    expected = truth[["b", "c", "d"]] @ np.linalg.solve(cov[1:, 1:], cov[1:, 0])
    answer = PEERS["em"].complete(hide(truth, observed), 0)["a"]
    assert (answer - expected)[::2].std() < 0.03 * truth["a"].std()


def test_a_mixture_of_two_clusters_beats_one_gaussian():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    truth = pd.DataFrame({"x": x, "y": np.abs(x) + 0.05 * rng.standard_normal(300)})
    observed = np.ones(truth.shape, dtype=bool)
    observed[::3, 1] = False
    X = hide(truth, observed)
    errors = {m: run.judge(truth, PEERS[m].complete(X, 0), observed)["nrmse"] for m in ("em", "mixture")}
    assert errors["mixture"] < 0.5 * errors["em"]


def test_the_copula_sees_ranks_only(toy):
    truth = load(toy)
    observed = ampute(codes(truth), 0.3, random_state=0)
    X = hide(truth, observed)
    stretched = X.assign(x=np.exp(X["x"]), y=X["y"] ** 3)
    plain, other = (PEERS["copula"].complete(frame, 0) for frame in (X, stretched))
    for name in ("x", "y"):  # every answer lies between the same two observed values
        places = [np.searchsorted(np.sort(h[name].dropna()), c[name]) for h, c in ((X, plain), (stretched, other))]
        assert np.abs(places[0] - places[1]).max() <= 1  # an answer at an observed value may round to either side
    pd.testing.assert_frame_equal(plain[["n", "colour"]], other[["n", "colour"]])


def test_a_network_of_dependent_classes_finds_the_rule():
    import_all("bayes-net")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    frame = pd.DataFrame({"a": a, "b": b, "both": a * b}).astype(str).astype("category")
    observed = np.ones(frame.shape, dtype=bool)
    observed[::4, 2] = False
    pd.testing.assert_frame_equal(PEERS["bayes-net"].complete(hide(frame, observed), 0), frame)


def test_draws_of_chained_equations_vary_and_keep_what_is_observed(toy):
    truth = load(toy)
    observed = ampute(codes(truth), 0.3, random_state=0)
    point, draw = PEERS["mice-draws"].draws(hide(truth, observed), 0, n_draws=2)
    run.check_completed(point, truth, observed)
    one, other = draw(2)
    for drawn in (one, other):
        run.check_completed(drawn, truth, observed)
    assert (one["x"] != other["x"]).any()


def test_hyperimpute_refuses_the_pandas_it_fails_with(toy, tmp_path):
    run.run_cases([Case("imputation", toy, 5000, "mcar", 0.3, 0, "hyperimpute", 0)], tmp_path / "lines.jsonl")
    error = lines_of(tmp_path / "lines.jsonl")[0]["error"]
    assert "needs pandas < 2.3" in error or "needs the package hyperimpute" in error


def test_peers_that_model_find_a_linear_relation(toy):
    truth = load(toy)
    observed = np.ones(truth.shape, dtype=bool)
    observed[::3, 1] = False
    errors = {
        method: run.judge(truth, PEERS[method].complete(hide(truth, observed), 0), observed)["nrmse"]
        for method in ("mean", "knn", "mice", "em")
    }
    assert errors["mice"] < 0.1
    assert errors["em"] < 0.2
    assert errors["knn"] < errors["mean"] == pytest.approx(1.0, abs=0.3)


def test_peers_stand_a_column_without_any_value_left(toy):
    truth = load(toy)
    observed = np.ones(truth.shape, dtype=bool)
    observed[1:, 4] = False  # one class left
    for method in ("mean", "knn", "mice", "em", "missforest"):
        with joblib.parallel_config(n_jobs=1):
            run.check_completed(PEERS[method].complete(hide(truth, observed), 0), truth, observed)


def test_run_writes_valid_lines_and_the_same_holes_for_each_method(toy, tmp_path):
    out = tmp_path / "lines.jsonl"
    invoke(run.main, "--tables", f"{toy},iris", "--methods", "mean,knn", "--mechanisms", "mcar,mar", "--out", out)
    lines = lines_of(out)
    assert len(lines) == 2 * 2 * 2
    assert [line["table"] for line in lines] == ["toy"] * 4 + ["iris"] * 4  # smallest first
    for line in lines:
        assert "error" not in line
        assert line["nrmse"] > 0
        assert line["seconds"] >= 0
        assert line["peak_mb"] > 10
        assert {"python", "numpy", "sklearn"} <= line["versions"].keys()
        assert len(line["nrmse_columns"]) == line["numeric_columns"]
    holes = {}
    for line in lines:
        holes.setdefault((line["table"], line["mechanism"]), set()).add(line["holes"])
    assert all(len(fingerprints) == 1 for fingerprints in holes.values())
    assert len(set.union(*holes.values())) == len(holes)


def test_judge_agrees_with_a_hand_count():
    truth = pd.DataFrame({"x": [0.0, 2.0, 0.0, 2.0], "c": pd.Categorical(["a", "b", "a", "b"])})
    observed = np.array([[False, False], [True, False], [True, True], [True, True]])
    completed = pd.DataFrame({"x": [3.0, 2.0, 0.0, 2.0], "c": pd.Categorical(["a", "a", "a", "b"])})
    line = run.judge(truth, completed, observed)
    assert line["nrmse"] == line["nmae"] == 3.0  # the standard deviation is 1
    assert line["class_error"] == line["class_error_columns"]["c"] == 0.5
    assert run.judge(truth, truth, observed)["energy_distance"] == pytest.approx(0.0, abs=1e-9)


def test_resume(toy, tmp_path, monkeypatch):
    calls = []

    def counted(X, seed):
        calls.append(seed)
        return PEERS["mean"].complete(X, seed)

    monkeypatch.setitem(PEERS, "counted", Peer(counted))
    out = tmp_path / "lines.jsonl"
    arguments = ("--tables", toy, "--methods", "counted", "--mechanisms", "mcar", "--out", out, "--seeds")
    invoke(run.main, *arguments, "0,1")
    first = out.read_text()
    out.write_text(first + '{"task": "imputation", "tab')  # killed in the middle of a line
    assert len(run.read_lines(out)) == 2
    invoke(run.main, *arguments, "0,1,2")
    assert calls == [0, 1, 2]
    assert out.read_text().startswith(first)
    assert [line["seed"] for line in lines_of(out)] == [0, 1, 2]


def test_a_failing_method_writes_its_error_and_is_tried_again(toy, tmp_path, monkeypatch):
    def broken(X, seed):
        raise RuntimeError("no luck")

    monkeypatch.setitem(PEERS, "flaky", Peer(broken))
    out = tmp_path / "lines.jsonl"
    arguments = ("--tables", toy, "--methods", "flaky,mean", "--mechanisms", "mcar", "--out", out)
    assert "1 lines failed" in invoke(run.main, *arguments)
    error, line = lines_of(out)
    assert error["error"] == "RuntimeError: no luck"
    assert "error" not in line
    results, failures = report.read_results([out])
    assert (len(results), len(failures)) == (1, 1)

    monkeypatch.setitem(PEERS, "flaky", PEERS["median"])
    invoke(run.main, *arguments)
    assert len(lines_of(out)) == 3
    results, failures = report.read_results([out])
    assert (len(results), len(failures)) == (2, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.mask(frame.isna().cumsum().eq(1) & frame.isna()), "left"),
        (lambda frame: frame.assign(y=0.0), "changed"),
        (lambda frame: frame.drop(columns="y"), "columns or their types"),
    ],
)
def test_answers_that_break_the_contract_are_errors(toy, tmp_path, monkeypatch, spoil, message):
    monkeypatch.setitem(PEERS, "bad", Peer(lambda X, seed: spoil(X if message == "left" else X.bfill().ffill())))
    case = Case("imputation", toy, 5000, "mcar", 0.3, 0, "bad", 0)
    run.run_cases([case], tmp_path / "lines.jsonl")
    assert message in lines_of(tmp_path / "lines.jsonl")[0]["error"]


def test_draws_and_settings(toy, tmp_path, monkeypatch):
    """A sampler that knows the truth but for noise of a known size covers at the nominal rate."""
    truth = load(toy)

    def oracle(X, seed, sd=1.0):
        rng, numbers = np.random.default_rng(seed), numeric_columns(X)

        def draw():
            frame = truth.copy()
            noise = sd * rng.standard_normal((len(frame), len(numbers)))
            frame[numbers] = X[numbers].where(X[numbers].notna(), frame[numbers] + noise)
            return frame

        return draw(), lambda m: [draw() for _ in range(m)]

    peer = Peer(lambda X, seed, **params: oracle(X, seed, **params)[0], draws=oracle)
    monkeypatch.setitem(PEERS, "vaeimpute", peer)
    out = tmp_path / "lines.jsonl"
    base = ("--tables", toy, "--methods", "mean,vaeimpute", "--mechanisms", "mcar", "--out", out)
    invoke(run.main, *base, "--draws", "20", "--set", "sd=0.5")
    plain, drawn = lines_of(out)
    assert "coverage" not in plain
    assert drawn["method"] == "vaeimpute[sd=0.5]"
    assert drawn["coverage"].keys() == {"0.5", "0.8", "0.9"}  # 20 draws do not reach the ends of 95%
    assert drawn["coverage"]["0.9"] > 0.9  # draws centred on the truth
    assert 0 < drawn["width"]["0.5"] < drawn["width"]["0.9"]
    assert drawn["crps"] < drawn["nmae"]
    invoke(run.main, *base, "--draws", "20", "--set", "sd=0.5")
    assert len(lines_of(out)) == 2
    readme = tmp_path / "README.md"
    invoke(report.main, "--results", out, "--readme", readme)
    assert "### Intervals" in readme.read_text()
    assert "inside 0.9" in readme.read_text()
    assert (tmp_path / "results" / "coverage.png").exists()


@pytest.fixture
def dicts():
    """The dicts that a newcomer adds a row to, put back at the end."""
    rows = {"PEERS": PEERS, "TABLES": TABLES, "METRICS": METRICS}
    before = {name: dict(row) for name, row in rows.items()}
    yield rows
    for name, row in rows.items():
        row.clear()
        row.update(before[name])


def test_the_newcomers_peer_table_and_score_reach_the_report(tmp_path, dicts):
    """What benchmarks/README.md shows: one function and one row each, then run and report."""
    shown = re.search(r"^```python\n(.*?)^```", (run.RESULTS.parent / "README.md").read_text(), re.M | re.S)[1]
    exec(shown, dicts | {"Peer": Peer, "Table": Table, "numeric_columns": numeric_columns, "pd": pd})
    out, readme = tmp_path / "lines.jsonl", tmp_path / "README.md"
    invoke(run.main, "--tables", "ladder", "--methods", "zeros,mean", "--mechanisms", "mcar", "--out", out)
    zeros, mean = lines_of(out)
    assert (zeros["method"], zeros["rows"]) == ("zeros", 100)
    assert zeros["bias"] < -100 < mean["bias"]
    invoke(report.main, "--results", out, "--readme", readme)
    header = next(row for row in readme.read_text().splitlines() if row.startswith("| method | mean rank | nrmse"))
    assert "| bias |" in header
    assert "| zeros |" in readme.read_text()


def test_out_of_sample_judges_rows_that_a_fit_has_not_seen(toy, tmp_path, monkeypatch):
    seen = []

    def fit(X, seed):
        seen.append(X.index)
        return PEERS["mean"].fit(X, seed)

    def complete(X, seed):
        seen.append(X.index)
        return PEERS["mean"].complete(X, seed)

    monkeypatch.setitem(PEERS, "fits", fitted(fit))
    monkeypatch.setitem(PEERS, "completes", Peer(complete))
    out = tmp_path / "lines.jsonl"
    invoke(run.main, "--task", "out-of-sample", "--tables", toy, "--methods", "fits,completes", "--out", out)
    fits, completes = lines_of(out)[:2]
    assert [len(rows) for rows in seen[:2]] == [42, 59]  # 42 = 70% of 59
    assert (fits["transductive"], completes["transductive"]) == (False, True)
    assert fits["holes"] == completes["holes"]
    assert "transform_seconds" in fits
    readme = tmp_path / "README.md"
    invoke(report.main, "--results", out, "--readme", readme)
    assert "completes (saw the new rows)" in readme.read_text()


def test_a_missing_package_is_named_and_ends_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(PEERS, "rare", Peer(PEERS["mean"].complete, imports=("no_such_package",)))
    out = tmp_path / "lines.jsonl"
    arguments = ("--tables", toy, "--methods", "rare,mean", "--mechanisms", "mcar", "--out", out)
    assert "1 lines failed" in invoke(run.main, *arguments)
    assert "rare needs the package no_such_package: pip install" in lines_of(out)[0]["error"]
    assert "error" not in lines_of(out)[1]


@pytest.mark.slow
def test_several_processes_work_on_one_suite(tmp_path):
    out = tmp_path / "lines.jsonl"
    arguments = ("--tables", "iris", "--methods", "mean,knn", "--seeds", "0,1", "--mechanisms", "mcar", "--out", out)
    invoke(run.main, *arguments, "--jobs", 2)
    assert {(line["method"], line["seed"]) for line in lines_of(out)} == {
        ("mean", 0),
        ("mean", 1),
        ("knn", 0),
        ("knn", 1),
    }
    assert all("error" not in line and line["cores"] >= 1 for line in lines_of(out))


@pytest.mark.slow
def test_a_process_that_dies_costs_its_case_only(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "compute", die_on_seed_0)
    cases = [Case("imputation", "iris", 5000, "mcar", 0.3, seed, "mean", 0) for seed in range(3)]
    lines = list(run._in_processes(cases, 1, 1))
    assert "a process died" in lines[0]["error"]
    assert [line["seed"] for line in lines[1:]] == [1, 2]
    assert not any("error" in line for line in lines[1:])


def die_on_seed_0(case, cores):
    if case.seed == 0:
        os._exit(1)
    return case.key()


def test_a_suite_is_the_union_of_its_grids(toy, monkeypatch):
    wide = run.Grid((toy,), ("mean", "knn"), mechanisms=("mcar",), seeds=(0, 1))
    narrow = run.Grid((toy,), ("mean", "median"), mechanisms=("mcar",))
    keys = [(case.method, case.seed) for case in run._cases((wide, narrow), None, {})]
    assert keys == [("mean", 0), ("knn", 0), ("mean", 1), ("knn", 1), ("median", 0)]


def test_full_suite_covers_what_it_promises():
    tables = run.SUITES["full"][0].tables
    assert len(tables) >= 16
    splits = [TABLES[name].split for name in tables]
    assert splits.count("tuning") == splits.count("held-out")
    assert set(run.SUITES["full"][0].methods) | set(run.SUITES["full"][-1].methods) == PEERS.keys() - {"hyperimpute"}


@pytest.mark.parametrize("option", [("--tables", "nope"), ("--methods", "nope"), ("--mechanisms", "nope")])
def test_unknown_names_are_refused_before_anything_runs(option):
    result = CliRunner().invoke(run.main, list(option))
    assert result.exit_code == 2
    assert "unknown nope; known: " in result.output


def test_suites_name_what_exists():
    for grid in (grid for grids in run.SUITES.values() for grid in grids):
        assert set(grid.tables) <= TABLES.keys()
        assert set(grid.methods) <= PEERS.keys()
        assert set(grid.mechanisms) <= MECHANISMS.keys()
        assert grid.task in run.TASKS
    assert {table.split for table in TABLES.values()} == {"tuning", "held-out"}


def test_report_writes_between_the_markers_only(toy, tmp_path):
    out, readme = tmp_path / "lines.jsonl", tmp_path / "page" / "README.md"
    invoke(run.main, "--tables", f"{toy},iris", "--methods", "mean,knn", "--out", out)
    invoke(report.main, "--results", out, "--readme", readme)
    page = readme.read_text()
    assert "## What was tried" in page
    assert "| toy 59×5 |" in page
    for picture in ("accuracy_time", "heatmap"):
        assert (readme.parent / "results" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"results/{picture}.png" in page

    readme.write_text(page + "| an idea by hand |\n")
    invoke(report.main, "--results", str(tmp_path / "*.jsonl"), "--readme", readme)
    assert readme.read_text() == page + "| an idea by hand |\n"

    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the markers"):
        invoke(report.main, "--results", out, "--readme", readme)


def test_the_report_passes_over_lines_of_other_benchmarks(tmp_path):
    (tmp_path / "anomaly.jsonl").write_text('{"set": "breast_cancer", "auroc": 0.9}\n{"task": "speed", "rows": 10}\n')
    results, failures = report.read_results([tmp_path / "anomaly.jsonl"])
    assert results.empty
    assert failures.empty


def test_report_without_results(tmp_path):
    assert "No results yet." in invoke(report.main, "--results", tmp_path / "*.jsonl", "--readme", tmp_path / "R.md")


def test_methods_without_a_common_case_do_not_empty_the_tables():
    errors = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, np.nan, 2.0], "c": [np.nan, 1.0, np.nan]})
    assert list(pictures.most_finished(errors)) == ["a", "b"]
    assert list(pictures.most_finished(errors, 0.2)) == ["a", "b"]  # c has none in common with b
    assert pictures.most_finished(errors, 0.9).shape == (3, 1)


def test_columns_won_counts_columns():
    lines = [
        {"nrmse_columns": {"x": 1.0, "y": 2.0}, "class_error_columns": {"c": 0.5}, "method": "a"},
        {"nrmse_columns": {"x": 2.0, "y": 1.0}, "class_error_columns": {"c": 0.5}, "method": "b"},
        {"nrmse_columns": {"x": 3.0, "y": 3.0}, "class_error_columns": {"c": 1.0}, "method": "d"},
    ]
    case = {"table": "t", "mechanism": "mcar", "rate": 0.3, "seed": 0}
    won = report.columns_won(pd.DataFrame([case | line for line in lines]), ["a", "b", "d"])
    assert won.loc["a", "b"] == won.loc["b", "a"] == 0.5
    assert won.loc["a", "d"] == 1.0


def test_lines_on_other_holes_are_listed_as_failures(toy, tmp_path):
    out, readme = tmp_path / "lines.jsonl", tmp_path / "README.md"
    invoke(run.main, "--tables", toy, "--methods", "mean,median,knn", "--mechanisms", "mcar", "--out", out)
    lines = lines_of(out)
    lines[1]["holes"] = "another"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke(report.main, "--results", out, "--readme", readme)
    assert "toy mcar 0.3 0 median: saw other holes than the rest of its case" in readme.read_text()
    assert "| median |" not in readme.read_text()


def test_critical_difference_joins_methods_that_do_not_differ():
    pytest.importorskip("scikit_posthocs")
    rng = np.random.default_rng(0)
    rows = [
        {
            "table": f"t{t}",
            "mechanism": "mcar",
            "rate": 0.3,
            "seed": 0,
            "method": m,
            "nrmse": level + 0.01 * rng.random(),
        }
        for t in range(20)
        for m, level in (("good", 0.1), ("twin", 0.1), ("bad", 0.9))
    ]
    figure = pictures.critical_difference(pd.DataFrame(rows))
    assert "20 tables" in figure.axes[0].get_title()


def test_speed_points_and_their_tables(tmp_path):
    made = speed.made_table(200, 5)
    assert made.shape == (200, 5)
    assert made.isna().to_numpy().mean() == pytest.approx(0.2, abs=0.05)
    lines = [speed.measure("mean", rows, columns) for rows, columns in ((100, 5), (200, 5), (100, 10))]
    assert all(line["fit_seconds"] > 0 and line["peak_mb"] >= line["before_mb"] for line in lines)
    lines.append(
        {"task": "speed", "method": "mean", "rows": 400, "columns": 5, "device": "cpu", "cores": 1, "error": "over 1 s"}
    )
    tables = speed.speed_tables(lines)
    assert any("against rows, 5 columns" in title for title in tables)
    assert any("against columns, 100 rows" in title for title in tables)
    assert any("over 1 s" in str(table.to_numpy()) for table in tables.values())
    out = tmp_path / "speed.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke(report.main, "--results", out, "--readme", tmp_path / "README.md")
    assert "Speed: growth of time" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_speed_command_resumes_and_stops_at_the_limit(tmp_path):
    out = tmp_path / "speed.jsonl"
    arguments = ("--methods", "mean", "--columns", "5", "--middle-rows", 50, "--cores", 1, "--out", out)
    invoke(speed.main, *arguments, "--rows", "50,100", "--middle-columns", 5)
    first = out.read_text()
    assert [line["rows"] for line in lines_of(out)] == [50, 100]
    invoke(speed.main, *arguments, "--rows", "50,100", "--middle-columns", 5)
    assert out.read_text() == first
    invoke(speed.main, *arguments, "--rows", "150,200", "--middle-columns", 5, "--limit", 0.01)
    assert [line["rows"] for line in lines_of(out)] == [50, 100, 150]
    assert lines_of(out)[-1]["error"] == "over 0.01 s"


def test_share_of_matrix_products_is_a_share():
    torch = pytest.importorskip("torch")

    def fit(X, seed):
        a = torch.ones(300, 300)
        return a @ a

    line = speed._share(fitted(fit), pd.DataFrame(), {}, "cpu", seconds=1.0)
    assert line["fit_gflop"] == pytest.approx(2 * 300**3 / 1e9)
    assert 0 < line["matmul_share"] < 1


def test_ratios_are_geometric_means_over_common_cases():
    errors = pd.DataFrame({"a": [1.0, 4.0, np.nan], "b": [2.0, 2.0, 5.0]})
    table = report.ratios(errors)
    assert table.loc["a", "b"] == pytest.approx(math.sqrt(0.5 * 2.0))
    assert table.loc["a", "b"] * table.loc["b", "a"] == pytest.approx(1.0)


def test_markdown_marks_the_smallest():
    frame = pd.DataFrame({"a": [0.5, 2.0], "b": [1.0, np.nan]}, index=pd.Index(["t", "u"], name="table"))
    assert markdown(frame, bold_smallest=True).splitlines() == [
        "| table | a | b |",
        "| --- | --- | --- |",
        "| t | **0.50** | 1.00 |",
        "| u | **2.00** |  |",
    ]
