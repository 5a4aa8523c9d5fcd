"""benchmarks.run: lines are valid, runs resume and survive failures."""

from __future__ import annotations

import os

import numpy as np
import pytest
from bench_toys import invoke, lines_of
from click.testing import CliRunner

from benchmarks import report, run
from benchmarks.datasets import TABLES, load, numeric_columns
from benchmarks.peers import PEERS, Peer, fitted
from benchmarks.run import Case
from vaeimpute.amputation import MECHANISMS


def test_run_writes_valid_lines_and_the_same_mask_for_each_method(toy, tmp_path):
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
        assert len(line["nrmse_columns"]) == len(numeric_columns(load(line["table"])))
    masks = {}
    for line in lines:
        masks.setdefault((line["table"], line["mechanism"]), set()).add(line["mask"])
    assert all(len(fingerprints) == 1 for fingerprints in masks.values())
    assert len(set.union(*masks.values())) == len(masks)


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
def test_completions_that_break_the_contract_are_errors(toy, tmp_path, monkeypatch, spoil, message):
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


def test_out_of_sample_judges_rows_that_a_fit_has_not_seen(toy, tmp_path, monkeypatch):
    fitted_to = []

    def fit(X, seed):
        fitted_to.append(X.index)
        return PEERS["mean"].fit(X, seed)

    def complete(X, seed):
        fitted_to.append(X.index)
        return PEERS["mean"].complete(X, seed)

    monkeypatch.setitem(PEERS, "fits", fitted(fit))
    monkeypatch.setitem(PEERS, "completes", Peer(complete))
    out = tmp_path / "lines.jsonl"
    invoke(run.main, "--task", "out-of-sample", "--tables", toy, "--methods", "fits,completes", "--out", out)
    fits, completes = lines_of(out)[:2]
    assert [len(rows) for rows in fitted_to[:2]] == [42, 59]  # 42 = 70% of 59
    assert (fits["transductive"], completes["transductive"]) == (False, True)
    assert fits["mask"] == completes["mask"]
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
