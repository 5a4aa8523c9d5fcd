"""benchmarks.synthesis: the scores know what can be known of synthetic rows, and the lines resume."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from bench_toys import invoke, lines_of

from benchmarks import report, synthesis
from benchmarks import synthesis_scores as scores
from benchmarks.peer_synthesizers import SYNTHESIZERS, Synthesizer
from benchmarks.run import main as run_command

COLOURS = pd.CategoricalDtype(["blue", "green", "red", "white"])


def rows(n: int, seed: int, shift: float = 0.0, slope: float = 2.0) -> pd.DataFrame:
    """Two numbers on a line, a whole number, and a class that follows the first; "white" never occurs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    frame = pd.DataFrame({"x": x, "y": slope * x + rng.standard_normal(n) + shift, "n": rng.poisson(3.0, n) * 1.0})
    frame["colour"] = pd.Series(np.array(["blue", "green", "red"])[np.digitize(x, [-1, 0])]).astype(COLOURS)
    return frame


def test_the_classifier_is_at_chance_on_one_distribution_and_sees_a_shift():
    pytest.importorskip("lightgbm")
    auc = scores.classifier_auc(rows(300, 0), rows(300, 1))
    assert abs(auc - 0.5) < 4 * np.sqrt(1 / 300 / 6)  # standard error of an AUC at chance, some folds' noise on top
    assert scores.classifier_auc(rows(300, 0), rows(300, 1, shift=10)) > 0.98


def test_the_classifier_sees_numbers_off_the_grid_and_a_rare_class():
    pytest.importorskip("lightgbm")
    between, white = rows(300, 1), rows(300, 1)
    between["n"] += np.random.default_rng(2).uniform(-0.4, 0.4, 300)
    white["colour"] = white["colour"].where(white.index % 3 > 0, "white")
    assert scores.classifier_auc(rows(300, 0), between) > 0.95
    assert scores.classifier_auc(rows(300, 0), white) > 0.6


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_rows_without_the_relation_predict_worse(model):
    pytest.importorskip("lightgbm")
    test = rows(300, 0)
    for target in ("y", "colour"):
        broken = rows(300, 1)
        broken[target] = broken[target].sample(frac=1, random_state=0, ignore_index=True)
        good, bad = (scores.predictive_error(made, test, target, model) for made in (rows(300, 1), broken))
        assert good < 0.8 * bad


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_synthetic_rows_of_one_class_predict_that_class(model):
    pytest.importorskip("lightgbm")
    test, one = rows(90, 0), rows(90, 1)
    one["colour"] = pd.Series(["red"] * 90).astype(COLOURS)
    wrong = (test["colour"] != "red").mean()
    assert scores.predictive_error(one, test, "colour", model) == pytest.approx(np.sqrt(2 * wrong))


def test_shapes_are_one_minus_the_distance_of_the_columns():
    real = pd.DataFrame({"x": [0.0, 1, 2, 3], "c": pd.Categorical(list("aabb"), ["a", "b", "c"])})
    made = pd.DataFrame({"x": [2.0, 3, 4, 5], "c": pd.Categorical(list("abcc"), ["a", "b", "c"])})
    assert scores.column_shapes(real, real) == 1
    assert scores.column_shapes(real, made) == pytest.approx(1 - (2 / 4 + 1 / 2) / 2)


def test_pairs_are_one_minus_the_distance_of_correlations_and_tables():
    real = pd.DataFrame({"x": [0.0, 1, 2, 3], "y": [0.0, 1, 2, 3], "c": pd.Categorical(list("aabb"))})
    made = real.assign(y=[3.0, 2, 1, 0])
    assert scores.column_pairs(real, real) == 1
    assert scores.column_pairs(real, made) == pytest.approx(1 - (2 / 2 + 0 + 1) / 3)  # x with y, x with c, y with c
    assert scores.column_pairs(real, real.assign(x=-9.0)) == pytest.approx(1 - (1 / 2 + 1 + 0) / 3)  # no correlation


def test_the_energy_distance_grows_with_a_shift_and_knows_no_unit():
    real = rows(200, 0)
    distances = [scores.energy_distance(real, rows(200, 1, shift=shift)) for shift in (0, 1, 3)]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert scores.energy_distance(real, real) == pytest.approx(0, abs=1e-12)
    scaled = [frame.assign(y=100 * frame["y"]) for frame in (real, rows(200, 1))]
    assert scores.energy_distance(*scaled) == pytest.approx(distances[0])


def test_near_copies_are_found():
    train, test = rows(400, 0), rows(400, 1)
    assert scores.near_copies(train, test, test) == pytest.approx(0.05)
    assert 0.01 < scores.near_copies(train, test, rows(400, 2)) < 0.12
    assert scores.near_copies(train, test, train.assign(x=train["x"] + 1e-6)) == 1
    half = pd.concat([train[:200], rows(200, 2)])
    assert scores.near_copies(train, test, half) == pytest.approx(0.53, abs=0.03)


def test_where_real_rows_repeat_a_repeated_row_is_no_copy():
    """Classes only, two thirds of the test rows are training rows: a copy counts .05 for each of those."""
    train, test = (rows(400, seed)[["n", "colour"]] for seed in (0, 1))
    same = scores.exact_copies(train, test)
    assert same > 0.9
    assert scores.near_copies(train, test, test) == pytest.approx(0.05)
    assert scores.near_copies(train, test, train) == pytest.approx(0.05 / same)


def test_exact_copies_are_counted():
    train = rows(50, 0)
    mixed = pd.concat([train[:10], rows(30, 1)])
    assert scores.exact_copies(train, mixed) == 0.25
    assert scores.exact_copies(train, mixed.assign(x=mixed["x"] + 1e-6)) == 0


@pytest.mark.parametrize("method", ["training-rows", "independent", "copula"])
def test_a_method_gives_rows_like_those_it_learnt(method):
    train = rows(300, 0)
    sample = SYNTHESIZERS[method].fit(train, 0)
    drawn = sample(300)
    synthesis.check_rows(drawn, train)
    assert all(drawn[name].isin(set(train[name])).all() for name in train)
    assert scores.column_shapes(train, drawn) > 0.9


def test_independent_columns_lose_correlations_and_a_copula_keeps_them():
    train = rows(1000, 0)
    kept, lost = (SYNTHESIZERS[method].fit(train, 0)(1000) for method in ("copula", "independent"))
    truth = train[["x", "y"]].corr().iloc[0, 1]
    assert abs(kept[["x", "y"]].corr().iloc[0, 1] - truth) < 0.05
    assert abs(lost[["x", "y"]].corr().iloc[0, 1]) < 0.1
    assert scores.column_pairs(train, lost) < scores.column_pairs(train, kept)


def test_halves_share_no_row_and_depend_on_the_seed(toy):
    train, test = synthesis.halves(toy, 100, 0)
    assert len(train) == len(test) == 29  # of 59 complete rows
    assert not set(train["x"]) & set(test["x"])
    assert set(train["x"]) != set(synthesis.halves(toy, 100, 1)[0]["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.rename(columns={"x": "z"}), "columns"),
        (lambda X: X.assign(n=X["n"].astype(int)), "types"),
        (lambda X: X[1:], "19 complete rows, not 20"),
        (lambda X: X.assign(x=np.nan), "0 complete rows, not 20"),
    ],
)
def test_rows_unlike_those_learnt_are_an_error(change, message):
    train = rows(20, 0)
    with pytest.raises(ValueError, match=message):
        synthesis.check_rows(change(train), train)


def test_the_command_resumes_and_a_method_that_fails_ends_nothing(toy, tmp_path, monkeypatch):
    pytest.importorskip("lightgbm")
    out = tmp_path / "new" / "synthesis.jsonl"

    def run(methods: str) -> str:
        return invoke(run_command, "--task", "synthesis", "--tables", toy, "--methods", methods, "--out", out)

    run("training-rows")
    (line,) = lines_of(out)
    assert (line["task"], line["table"], line["rows"], line["split"]) == ("synthesis", toy, 29, "held-out")
    assert (line["ratio_trees"], line["exact_copies"], line["near_copies"]) == (1, 1, 1)
    assert {"auc", "errors", "fit_seconds", "sample_seconds", "versions"} < set(line)

    first = out.read_text()
    monkeypatch.setitem(SYNTHESIZERS, "absent", Synthesizer(None, imports=("no_such_package",)))
    monkeypatch.setitem(SYNTHESIZERS, "broken", Synthesizer(lambda X, seed: lambda n: X[:1]))
    assert "2 lines failed" in run("absent,broken,training-rows")
    assert out.read_text().startswith(first)
    assert [line["error"] for line in lines_of(out)[1:]] == [
        "absent needs the package no_such_package, see benchmarks/README.md.",
        "ValueError: the method gave 1 complete rows, not 29.",
    ]


def made(table: str, method: str, **rest) -> dict:
    line = dict.fromkeys(synthesis.SCORES, 0.5) | dict(
        zip(synthesis.KEY, ("synthesis", table, 9, 0, method), strict=True)
    )
    return line | {"split": "tuning", "rows": 10, "columns": 3} | rest


def test_the_report_shows_the_tables_between_its_markers(tmp_path):
    out, readme = tmp_path / "synthesis.jsonl", tmp_path / "README.md"
    lines = [
        made("one", "a", auc=0.6, ratio_trees=1.0),
        made("two", "a", auc=0.8, ratio_trees=4.0),
        made("one", "b", auc=0.3),
        made("two", "b", auc=0.5),
        made("two", "b", auc=0.55),  # replaces the one before
        made("one", "c", auc=0.1),
        made("two", "c", error="ValueError: no"),
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    readme.write_text(report.TEMPLATE + "\n<!-- synthesis:begin -->\nNo results yet.\n<!-- synthesis:end -->\n")
    invoke(report.main, "--results", out, "--readme", readme)
    page = readme.read_text()
    assert "**Synthetic rows, tuning tables** (one 20×3, two 20×3); not in these means: c (1 of 2 cases)\n" in page
    assert "| a | 0.700 | 2.000 |" in page  # the ratios' geometric mean
    assert page.index("| b | 0.425") < page.index("| a | 0.700")
    assert "| two 20×3 | 0.800 | 0.550 |  |" in page
    assert "Failed: c on two, seed 0: ValueError: no" in page
