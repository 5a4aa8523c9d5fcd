"""``vaeimpute pool``: regressions against closed forms, the command line around them, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from vaeimpute import pool
from vaeimpute.cli.main import main
from vaeimpute.cli.regression import Regression


def fit(table, outcome, *predictors, family="linear"):
    return Regression.of([table], outcome, predictors, family).fit(table)


def run(command):
    return CliRunner().invoke(main, command.split())


def succeeds(command):
    result = run(command)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three completed tables that differ in a few cells."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, city = rng.normal(size=40), rng.choice(["Bonn", "Oslo", "Rome"], 40)
    frame = pd.DataFrame({"x": x, "city": city, "y": 1 + x + (city == "Rome") + rng.normal(size=40), "ok": x > 0})
    frame["ok"] ^= rng.random(40) < 0.2
    for k in range(1, 4):
        frame.loc[:5, "y"] = rng.normal(size=6)
        frame.to_csv(f"draw_{k}.csv", index=False)
        frame.to_parquet(f"draw_{k}.parquet")
    return tmp_path


# --- regressions ------------------------------------------------------------------------------------------------------


def test_least_squares_of_one_predictor():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=20), "y": rng.normal(size=20)})
    estimates, covariance, df = fit(table, "y", "x")
    np.testing.assert_allclose(estimates, np.polyfit(table["x"], table["y"], 1)[::-1])
    np.testing.assert_allclose(covariance, np.polyfit(table["x"], table["y"], 1, cov=True)[1][::-1, ::-1])
    assert list(estimates.index) == ["intercept", "x"]
    assert df == 18


def test_classes_are_coded_against_the_first():
    """Coefficients are differences of means, with the pooled variance of the groups."""
    table = pd.DataFrame({"city": list("bbaaccab"), "y": [3.0, 5.0, 1.0, 2.0, 9.0, 7.0, 3.0, 4.0]})
    estimates, covariance, _ = fit(table, "y", "city")
    assert estimates.to_dict() == pytest.approx({"intercept": 2, "city[b]": 2, "city[c]": 6})
    within = table["y"].groupby(table["city"]).var().mul([2, 2, 1]).sum() / 5
    np.testing.assert_allclose(np.diag(covariance), within * np.array([1 / 3, 1 / 3 + 1 / 3, 1 / 3 + 1 / 2]))
    ordered = table.assign(city=pd.Categorical(table["city"], ["c", "x", "a", "b"]))
    assert list(fit(ordered, "y", "city")[0].index) == ["intercept", "city[a]", "city[b]"]


def test_logistic_of_two_by_two_is_the_odds_ratio():
    """Its log has the variance 1/a + 1/b + 1/c + 1/d (Woolf, 1955)."""
    counts = {(True, "sick"): 7, (True, "well"): 3, (False, "sick"): 2, (False, "well"): 8}
    rows = [pair for pair, count in counts.items() for _ in range(count)]
    table = pd.DataFrame(rows, columns=["smokes", "state"])
    estimates, covariance, df = fit(table, "state", "smokes", family="logistic")
    assert estimates["smokes[True]"] == pytest.approx(np.log(3 * 2 / (7 * 8)), rel=1e-9)  # of the second class, "well"
    assert covariance.loc["smokes[True]", "smokes[True]"] == pytest.approx(1 / 7 + 1 / 3 + 1 / 2 + 1 / 8, rel=1e-7)
    assert df == 18
    as_numbers = table.assign(state=(table["state"] == "well").astype(int))
    pd.testing.assert_series_equal(fit(as_numbers, "state", "smokes", family="logistic")[0], estimates)


@pytest.mark.parametrize("family", ["linear", "logistic"])
def test_units_do_not_matter(family):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=60), "y": rng.integers(0, 2, 60)})
    estimates, covariance, _ = fit(table, "y", "x", family=family)
    large = fit(table.assign(x=1e9 * table["x"]), "y", "x", family=family)
    np.testing.assert_allclose(large[0] * [1, 1e9], estimates, rtol=1e-6)
    np.testing.assert_allclose(large[1] * np.outer([1, 1e9], [1, 1e9]), covariance, rtol=1e-6)


def test_classes_are_those_of_all_tables():
    tables = [pd.DataFrame({"city": list(cities), "y": np.arange(6.0) ** 2}) for cities in ("aabbcc", "aabbab")]
    regression = Regression.of(tables, "y", ["city"], "linear")
    assert list(regression.fit(tables[0])[0].index) == ["intercept", "city[b]", "city[c]"]
    with pytest.raises(ValueError, match="determine the others"):
        regression.fit(tables[1])


BASE = pd.DataFrame({"x": range(8), "t": list("abababab"), "y": [0, 0, 1, 0, 1, 0, 1, 1]}).astype({"x": float})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [np.nan, *range(7)]}, "column 'x' lacks 1 cells; want completed tables"),
        ({"t": pd.date_range("2020", periods=8)}, "Column 't' holds dates"),
        ({"y": list("abcabcab")}, "two classes, but 'y' holds a, b, c"),
        ({"y": [0] * 8}, "two classes, but 'y' holds 0"),
        ({"y": [0, 0, 0, 0, 1, 1, 1, 1]}, "no finite estimates"),
        ({"y": [0, 1, 0, 0, 0, 0, 0, 0], "x": [1, 1, 0, 0, 0, 0, 0, 0]}, "no finite estimates"),
        ({"x": 1.0}, "intercept, x, t.b. determine the others"),
    ],
)
def test_tables_that_do_not_suit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(BASE.assign(**changes), "y", "x", "t", family="logistic")


def test_too_few_or_exact_rows_are_refused():
    with pytest.raises(ValueError, match=r"more rows than coefficients \(2\), but got 2"):
        fit(BASE.head(2), "y", "x")
    with pytest.raises(ValueError, match="determine the outcome exactly"):
        fit(BASE.assign(y=0.0), "y", "x")
    with pytest.raises(ValueError, match="numbers in some tables and classes in others"):
        Regression.of([BASE, BASE.assign(x=list("abcdefgh"))], "y", ["x"], "linear")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_draws_are_pooled(folder, suffix):
    files = " ".join(f"draw_{k}.{suffix}" for k in range(1, 4))
    output = succeeds(f"pool {files} --outcome y --predictors x,city --level 0.9 -o out.csv")
    draws = [pd.read_csv(f"draw_{k}.csv") for k in range(1, 4)]
    fits = [fit(draw, "y", "x", "city") for draw in draws]
    want = pool([each[0] for each in fits], [each[1] for each in fits], n_obs=40, n_parameters=4, level=0.9)
    got = pd.read_csv("out.csv", index_col="parameter")
    pd.testing.assert_frame_equal(got, want.table.rename_axis("parameter"))
    assert repr(want) in output
    assert "linear regression of 'y', 3 tables of 40 rows" in output
    assert f"want {want.n_needed()} tables" in output


def test_logistic_draws_are_pooled(folder):
    output = succeeds("pool draw_1.csv draw_2.csv --outcome ok --predictors x,y --family logistic")
    assert re.search(r"^x +\d", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pool", "Missing argument 'IN IN ...'"),
        ("pool draw_1.csv --outcome y --predictors x", "two or more completed tables: vaeimpute impute"),
        ("pool draw_1.csv none.csv --outcome y --predictors x", "'none.csv' does not exist"),
        ("pool draw_1.csv draw_2.csv --predictors x", "Missing option '--outcome'"),
        ("pool draw_1.csv draw_2.csv --outcome z --predictors x", "no column 'z'; there are: x, city, y, ok"),
        ("pool draw_1.csv draw_2.csv --outcome y --predictors x,y", "each named once, but got y, x, y"),
        ("pool draw_1.csv draw_2.csv --outcome city --predictors x", "holds classes, not numbers. Pass --family"),
        ("pool draw_1.csv holed.csv --outcome y --predictors x", "'holed.csv': column 'y' lacks 1 cells"),
        ("pool draw_1.csv other.csv --outcome y --predictors x", "'other.csv' has 3 rows and columns x, y; want those"),
        ("pool draw_1.csv draw_2.csv --outcome y --predictors x -o draw_1.csv", "'draw_1.csv' exists"),
        ("pool draw_1.csv draw_2.csv --outcome y --predictors x --level 1", "is not in the range"),
        ("pool draw_1.csv notes.txt --outcome y --predictors x", "'notes.txt' ends in '.txt'"),
    ],
)
def test_refusals_name_what_is_wrong(folder, command, message):
    draw = pd.read_csv("draw_2.csv")
    draw.assign(y=draw["y"].where(draw.index != 3)).to_csv("holed.csv", index=False)
    (folder / "other.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    (folder / "notes.txt").touch()
    result = run(command)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert message in " ".join(result.output.replace("│", " ").split()), result.output


def test_true_run(folder):
    frame = pd.read_csv("draw_1.csv")
    frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2).to_csv("holed.csv", index=False)
    succeeds("impute holed.csv -o filled.csv --n-imputations 3 --max-iter 20")
    succeeds("pool filled_1.csv filled_2.csv filled_3.csv --outcome y --predictors x,city,ok -o out.parquet")
    table = pd.read_parquet("out.parquet")
    assert table["parameter"].tolist() == ["intercept", "x", "city[Oslo]", "city[Rome]", "ok[True]"]
    assert (table["fmi"] > 0).all()
