"""Pooling: Rubin's rules in exact fractions and as others print them, their laws, tests, and what is refused."""

import math
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from vaeimpute import Comparison, compare, fit_pooled, pool

ESTIMATES = [Fraction(3), Fraction(7, 2), Fraction(13, 4), Fraction(4), Fraction(5, 2)]
VARIANCES = [Fraction(1, 4), Fraction(1, 2), Fraction(1, 3), Fraction(1, 5), Fraction(2, 5)]
QUANTITIES = ["estimate", "std_error", "df", "riv", "lambda_", "fmi"]


def by_hand(q, u, df_complete=None):
    """Rubin's quantities in exact fractions."""
    m = len(q)
    mean, within = sum(q) / m, sum(u) / m
    between = sum((x - mean) ** 2 for x in q) / (m - 1)
    total = within + (1 + Fraction(1, m)) * between
    riv, share = (1 + Fraction(1, m)) * between / within, (1 + Fraction(1, m)) * between / total
    df = (m - 1) / share**2
    if df_complete is not None:
        observed = Fraction(df_complete + 1, df_complete + 3) * df_complete * (1 - share)
        df = df * observed / (df + observed)
    return mean, math.sqrt(total), df, riv, share, (riv + 2 / (df + 3)) / (riv + 1)


def correlated(m=5, p=2, seed=0, spread=0.3):
    """Estimates (m, p) and covariances (m, p, p)."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, p, 2 * p))
    return 1 + spread * rng.normal(size=(m, p)), A @ A.transpose(0, 2, 1) / (2 * p)


def result(params, cov=None, df=20.0, llf=None):
    """A small fitted result, with the names that statsmodels uses."""
    params = pd.Series(params)
    cov = pd.DataFrame(np.eye(len(params)) if cov is None else cov, params.index, params.index)
    return SimpleNamespace(params=params, cov_params=lambda: cov, df_resid=df, llf=llf)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("df_complete", [None, 1, 22])
def test_rubins_rules_in_exact_fractions(m, df_complete):
    q, u = ESTIMATES[:m], VARIANCES[:m]
    exact = [float(x) for x in by_hand(q, u, df_complete)]
    n_obs = None if df_complete is None else df_complete + 3
    row = pool(np.array(q, float), np.array(u, float), n_obs=n_obs, n_parameters=3).table.loc[0]
    np.testing.assert_allclose(row[QUANTITIES].astype(float), exact, rtol=1e-12)
    estimate, error, df = exact[:3]
    assert row["statistic"] == pytest.approx(estimate / error, rel=1e-12)
    assert row["p_value"] == pytest.approx(2 * stats.t.sf(estimate / error, df), rel=1e-10)
    np.testing.assert_allclose(row[["low", "high"]].astype(float), stats.t.interval(0.95, df, estimate, error))


@pytest.mark.parametrize(
    ("m", "df_complete", "within", "between", "printed"),
    [  # mice 3, pool(): airquality, lm(Temp ~ Ozone + Solar.R + Wind); mtcars, the slopes of a logistic regression
        (5, 148, 6.595501, 0.5750036463, (101.97555, 0.1046174, 0.0947092, 0.1119569)),
        (5, 148, 4.935193e-04, 1.610921e-04, (34.09063, 0.3916979, 0.2814533, 0.3201987)),
        (5, 148, 4.324896e-05, 1.22131e-05, (39.70957, 0.3388688, 0.2531008, 0.2880765)),
        (5, 148, 3.904917e-02, 4.510840e-03, (86.94099, 0.1386203, 0.1217441, 0.1412737)),
        (5, 29, 7.093304e-04, 2.347331e-03, (2.920745, 3.971065, 0.7988359, 0.8667882)),
        (5, 29, 1.080454e-04, 2.722234e-04, (3.458294, 3.023434, 0.7514561, 0.8284250)),
    ],
)
def test_what_mice_prints(m, df_complete, within, between, printed):
    estimates = math.sqrt(between) * np.array([-1, -1, 0, 1, 1])  # of variance 1 before
    row = pool(estimates, [within] * m, n_obs=df_complete + 1).table.loc[0]
    np.testing.assert_allclose(row[["df", "riv", "lambda_", "fmi"]].astype(float), printed, rtol=2e-6)


def test_rubins_own_degrees_of_freedom_know_no_complete_ones():
    q, u = np.array(ESTIMATES, float), np.array(VARIANCES, float)
    assert pool(q, u, n_obs=10, df="rubin").table.loc[0, "df"] == pool(q, u).table.loc[0, "df"] > 9
    assert pool(q, u, n_obs=10).table.loc[0, "df"] < 9


@pytest.mark.parametrize("df", ["barnard-rubin", "rubin"])
def test_estimates_that_do_not_differ_give_the_answer_of_complete_data(df):
    pooled = pool([[0.1, 2.0]] * 3, [[0.25, 0.5]] * 3, n_obs=31, df=df)
    assert (pooled.table["df"] == 30).all()
    assert (pooled.table[["riv", "lambda_", "fmi"]] == 0).all(axis=None)
    np.testing.assert_allclose(pooled.table["std_error"], np.sqrt([0.25, 0.5]))
    assert pooled.test([0]).df2 == 30
    assert pooled.n_needed() == 2
    endless = pool([0.1] * 3, [0.25] * 3)
    assert np.isinf(endless.table.loc[0, "df"])
    assert endless.test().p_value == pytest.approx(2 * stats.norm.sf(0.2))


# --- laws -------------------------------------------------------------------------------------------------------------

numbers = st.floats(-100, 100)
cases = st.integers(2, 8).flatmap(
    lambda m: st.tuples(st.lists(numbers, min_size=m, max_size=m), st.lists(st.floats(0.01, 9), min_size=m, max_size=m))
)


@given(cases, st.floats(-50, 50), st.floats(0.01, 50))
def test_shift_and_scale_go_through(case, shift, scale):
    q, u = map(np.array, case)
    before = pool(q, u, n_obs=40).table.loc[0]
    after = pool(shift + scale * q, scale**2 * u, n_obs=40).table.loc[0]
    want = before.copy()
    want[["estimate", "low", "high"]] = shift + scale * before[["estimate", "low", "high"]]
    want["std_error"] = scale * before["std_error"]
    kept = want.index.drop(["statistic", "p_value"])
    np.testing.assert_allclose(after[kept], want[kept], rtol=1e-6, atol=1e-6)


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_the_draws_does_not_matter(case, random):
    order = list(range(len(case[0])))
    random.shuffle(order)
    q, u = map(np.array, case)
    tables = [pool(q, u).table, pool(q[order], u[order]).table]
    np.testing.assert_allclose(*tables, rtol=1e-6, atol=1e-9)


@given(cases)
def test_quantities_agree_with_one_another(case):
    row = pool(*case, n_obs=25).table.loc[0]
    assert 0 < row["df"] <= 24
    assert row["low"] <= row["estimate"] <= row["high"]
    assert row["riv"] == pytest.approx(row["lambda_"] / (1 - row["lambda_"]), rel=1e-6)
    assert row["lambda_"] <= row["fmi"] + 1e-12 < 1 + 1e-12


def test_covariances_hold_the_variances():
    q, cov = correlated(p=3)
    both = pool(q, cov), pool(q, np.diagonal(cov, axis1=1, axis2=2))
    pd.testing.assert_frame_equal(both[0].table, both[1].table)
    total = cov.mean(axis=0) + 1.2 * np.cov(q, rowvar=False)
    np.testing.assert_allclose(both[0].covariance, total)
    np.testing.assert_allclose(both[0].within + 1.2 * both[0].between, total)
    assert both[1].covariance.isna().to_numpy().tolist() == (~np.eye(3, dtype=bool)).tolist()


# --- scales -----------------------------------------------------------------------------------------------------------


def inverse(x):
    return 1 / x


@pytest.mark.parametrize(
    ("transform", "to", "back", "slope", "q"),
    [
        ("log", np.log, np.exp, inverse, [1.5, 2.0, 1.8]),
        ("fisher", np.arctanh, np.tanh, lambda q: 1 / (1 - q**2), [0.5, 0.6, 0.8]),
        ("logit", special.logit, special.expit, lambda q: 1 / q / (1 - q), [0.1, 0.2, 0.15]),
        ((inverse, inverse), inverse, inverse, lambda q: -1 / q**2, [2.0, 2.5, 2.2]),  # falls
        ((np.square, np.sqrt, lambda q: 2 * q), np.square, np.sqrt, lambda q: 2 * q, [2.0, 2.1, 2.05]),
    ],
    ids=["log", "fisher", "logit", "pair", "triple"],
)
def test_a_transform_pools_there_and_reports_here(transform, to, back, slope, q):
    q, u = np.array(q), np.array([0.01, 0.02, 0.015])
    there = pool(to(q), u * slope(q) ** 2, n_obs=50).table.loc[0]
    here = pool(q, u, n_obs=50, transform=transform).table.loc[0]
    same = ["statistic", "df", "p_value", "riv", "lambda_", "fmi"]
    np.testing.assert_allclose(here[same], there[same], rtol=1e-8)
    assert here["estimate"] == pytest.approx(back(there["estimate"]))
    assert [here["low"], here["high"]] == pytest.approx(sorted([back(there["low"]), back(there["high"])]))
    assert here["std_error"] == pytest.approx(there["std_error"] / abs(slope(here["estimate"])))


def test_covariances_go_over_to_the_scale():
    q, cov = correlated()
    q = np.exp(q)
    there = pool(np.log(q), cov / q[:, :, None] / q[:, None, :])
    assert pool(q, cov, transform="log").test().statistic == pytest.approx(there.test().statistic)


# --- tests of several parameters --------------------------------------------------------------------------------------


def test_d1_of_one_parameter_is_t_squared():
    q, cov = correlated()
    pooled = pool(q, cov, n_obs=30, n_parameters=2, names=["a", "b"])
    test = pooled.test("b")
    assert (test.df1, test.df2, test.method) == (1, pooled.table.loc["b", "df"], "D1")
    assert test.statistic == pytest.approx(pooled.table.loc["b", "statistic"] ** 2)
    assert test.p_value == pytest.approx(pooled.table.loc["b", "p_value"])
    assert pooled.test("b", null=q[:, 1].mean()).p_value == pytest.approx(1)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_d1_in_exact_fractions(m):
    """Li, Raghunathan and Rubin (1991): r = (1 + 1/m) tr(B U^-1) / k, and their degrees of freedom."""
    q = [(Fraction(k + 1), Fraction(2 * k * k, 3)) for k in range(m)]
    a, b, c = Fraction(2), Fraction(1, 2), Fraction(3)  # U = [[a, b], [b, c]]
    means = [sum(row[j] for row in q) / m for j in (0, 1)]
    B = [[sum((r[i] - means[i]) * (r[j] - means[j]) for r in q) / (m - 1) for j in (0, 1)] for i in (0, 1)]
    inverse = [[c / (a * c - b * b), -b / (a * c - b * b)], [-b / (a * c - b * b), a / (a * c - b * b)]]
    r = (1 + Fraction(1, m)) * sum(B[i][j] * inverse[j][i] for i in (0, 1) for j in (0, 1)) / 2
    d1 = sum(means[i] * inverse[i][j] * means[j] for i in (0, 1) for j in (0, 1)) / (2 * (1 + r))
    t = 2 * (m - 1)
    df2 = 4 + (t - 4) * (1 + (1 - Fraction(2, t)) / r) ** 2 if t > 4 else t * Fraction(3, 4) * (1 + 1 / r) ** 2
    cov = np.array([[[a, b], [b, c]]] * m, float)
    test = pool(np.array(q, float), cov).test()
    want = (float(d1), 2, float(df2), stats.f.sf(float(d1), 2, float(df2)), float(r))
    assert (test.statistic, test.df1, test.df2, test.p_value, test.riv) == pytest.approx(want, rel=1e-10)


def test_d1_of_small_tables_has_reiters_degrees_of_freedom():
    q, cov = correlated(m=8, p=3)
    tests = [pool(q, cov, n_obs=n).test() for n in (30, 100, 10**9)]
    large = pool(q, cov, n_obs=30, df="rubin").test()
    assert tests[0].df2 < tests[1].df2 < tests[2].df2
    assert tests[0].df2 < 29
    assert tests[2].df2 == pytest.approx(large.df2, rel=1e-4)
    # Equations 1 and 2 of Reiter (2007), as Rubin's quantities give them: t = 21.
    a, v = large.riv * 21 / 19, 30 / 32 * 29
    c1, c2 = v - 2 * (1 + a), v - 4 * (1 + a)
    z = 1 / c2 + (a**2 * c1 / ((1 + a) ** 2 * c2) + 8 * a**2 * c1 / ((1 + a) * c2**2)) / 17
    z += (4 * a**2 / ((1 + a) * c2) + 4 * a**2 / (c2 * c1) + 16 * a**2 * c1 / c2**3 + 8 * a**2 / c2**2) / 17
    assert tests[0].df2 == pytest.approx(4 + 1 / z)


@pytest.mark.parametrize(("m", "n_obs"), [(2, 30), (3, 30), (8, 6)])
def test_d1_where_reiters_expansion_does_not_exist(m, n_obs):
    q, cov = correlated(m=m)
    assert 0 < pool(q, cov, n_obs=n_obs).test().df2 < n_obs - 1


def test_d1_holds_its_level():
    """The null rejected in 5% of 500 studies, U = I and B = I / 2."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(500):
        centre = rng.normal(size=2) * math.sqrt(1.5)  # T of infinitely many draws
        q = centre + math.sqrt(0.5) * rng.normal(size=(10, 2))
        p_values.append(pool(q, [np.eye(2)] * 10).test().p_value)
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 500)


# --- how many draws ---------------------------------------------------------------------------------------------------


def test_number_of_draws_is_the_quadratic_rule():
    q, cov = correlated(m=20, p=3)
    pooled = pool(q, cov)
    logit = np.log(pooled.table["fmi"].max() / (1 - pooled.table["fmi"].max()))
    for cv, confidence in [(0.05, 0.95), (0.1, 0.8)]:
        upper = 1 / (1 + np.exp(-logit - stats.norm.isf((1 - confidence) / 2) * math.sqrt(2 / 20)))
        assert pooled.n_needed(cv, confidence) == math.ceil(1 + 0.5 * (upper / cv) ** 2)
    # 51 draws at half of the information missing (von Hippel, 2020), once so many draws have said so exactly.
    sure = pool(np.tile([-1.0, 1.0], 20_000), np.ones(40_000))
    assert sure.table.loc[0, "fmi"] == pytest.approx(0.5, abs=1e-3)
    assert 51 <= sure.n_needed() <= 53


@pytest.mark.parametrize("wrong", [{"cv": 0}, {"confidence": 1.0}])
def test_wrong_precision_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pool([1.0, 2.0], [1.0, 1.0]).n_needed(**wrong)


# --- names and refusals -----------------------------------------------------------------------------------------------


def test_pandas_gives_names_and_aligns():
    q, cov = correlated()
    series = [pd.Series(row, ["a", "b"]) for row in q]
    frames = [pd.DataFrame(part, ["a", "b"], ["a", "b"]).loc[["b", "a"], ["b", "a"]] for part in cov]
    series[1] = series[1][["b", "a"]]
    want = pool(q, cov, names=["a", "b"])
    for labelled in (series, pd.DataFrame(q, columns=["a", "b"])):
        pd.testing.assert_frame_equal(pool(labelled, frames).covariance, want.covariance)
    assert list(pool(series, frames, names=["x", "y"]).table.index) == ["x", "y"]


def test_it_shows_its_table():
    pooled = pool([1.0, 1.2, 0.8], [0.25, 0.25, 0.25], names=["slope"])
    assert repr(pooled).split()[:3] == ["estimate", "std_error", "statistic"]
    assert "<th>slope</th>" in pooled._repr_html_()


ONE = {"estimates": [1.0, 2.0], "variances": [1.0, 1.0]}
TWO = {"estimates": [[1.0, 2.0]] * 2, "variances": [[1.0, 1.0]] * 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"estimates": [1.0], "variances": [1.0]}, "at least 2 completed tables, but got 1"),
        ({"estimates": [], "variances": []}, r"shape \(m,\) or \(m, p\), but got \(0,\)"),
        (ONE | {"variances": [0.0, 0.0]}, "variances of parameter 0 are zero in every draw"),
        (ONE | {"variances": [1.0, -1.0]}, "must not be negative, .* parameter 0 .* draw 1"),
        (ONE | {"variances": [1.0] * 3}, r"variances must have shape \(2, 1\) or \(2, 1, 1\)"),
        (TWO | {"variances": [[1.0], [1.0]]}, r"variances must have shape \(2, 2\) or \(2, 2, 2\).* got \(2, 1\)"),
        (ONE | {"estimates": [1.0, np.nan]}, "estimates must be finite, but are not in draw 1"),
        (ONE | {"variances": [np.inf, 1.0]}, "variances must be finite, but are not in draw 0"),
        ({"estimates": [[1.0, 2.0], [1.0]], "variances": [[1.0] * 2] * 2}, r"\(2,\) in draw 0 and \(1,\) in draw 1"),
        (ONE | {"n_obs": 1}, "n_obs must be larger than n_parameters = 1, but got 1"),
        (ONE | {"level": 95}, r"level must be in \(0, 1\), but got 95"),
        (ONE | {"df": "satterthwaite"}, "df must be one of .*'barnard-rubin'.*, but got 'satterthwaite'"),
        (ONE | {"names": ["a", "b"]}, "names must name the 1 parameters"),
        (TWO | {"names": ["a", "a"]}, "once each"),
        (ONE | {"transform": "sqrt"}, "transform must be one of .*'log'.*, but got 'sqrt'"),
        (ONE | {"transform": (np.log,)}, "transform must be one of"),
        (ONE | {"estimates": [1.0, -2.0], "transform": "log"}, "'log' does not take the estimate -2.0 .* draw 1"),
        (ONE | {"transform": "fisher"}, "does not take the estimate 1.0"),
        (
            ONE | {"estimates": [pd.Series({"a": 1.0}), pd.Series({"b": 1.0})]},
            r"estimates of draw 1 are of \['b'\]; want \['a'\]",
        ),
    ],
)
def test_what_cannot_be_pooled_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        pool(**given)


def test_what_cannot_be_tested_is_refused():
    q, cov = correlated()
    with pytest.raises(ValueError, match=r"needs their covariances.*\(m, p, p\)"):
        pool(q, np.ones_like(q)).test()
    with pytest.raises(ValueError, match=re.escape("names must be some of [0, 1], once each, but got [2]")):
        pool(q, cov).test([2])
    with pytest.raises(ValueError, match="singular"):
        pool(q, [np.ones((2, 2))] * 5).test()


# --- fits -------------------------------------------------------------------------------------------------------------


def test_an_analysis_is_run_on_every_draw():
    draws = [np.array([1.0, 2.0, x]) for x in (3.0, 4.0, 6.0)]
    q, u = [x.mean() for x in draws], [x.var(ddof=1) / 3 for x in draws]
    pairs = fit_pooled(lambda x: (x.mean(), x.var(ddof=1) / 3), iter(draws))
    pd.testing.assert_frame_equal(pairs.table, pool(q, u).table)
    triples = fit_pooled(lambda x: (x.mean(), x.var(ddof=1) / 3, 2), draws, level=0.9, df="barnard-rubin")
    pd.testing.assert_frame_equal(triples.table, pool(q, u, n_obs=3, level=0.9).table)


def test_fitted_results_are_read():
    q, cov = correlated()
    results = [result(dict(zip("ab", q[k], strict=True)), cov[k], df=21 - k) for k in range(5)]
    pooled = fit_pooled(lambda each: each, results)
    pd.testing.assert_frame_equal(pooled.table, pool(q, cov, n_obs=18, names=["a", "b"]).table)
    assert pooled.df_complete == 17


def test_a_failing_analysis_names_its_draw():
    with pytest.raises(RuntimeError, match=r"failed on draw 2 .*ZeroDivisionError"):
        fit_pooled(lambda x: (1 / x, 1.0), [1, 2, 0])


def test_a_model_without_standard_errors_is_refused():
    from sklearn.linear_model import LinearRegression

    with pytest.raises(TypeError, match=r"draw 0 gave a LinearRegression.* no standard errors.* statsmodels"):
        fit_pooled(lambda x: LinearRegression().fit(x, x[:, 0]), [np.eye(3)] * 2)
    with pytest.raises(TypeError, match=r"gave a float; want \(estimates, variances\)"):
        fit_pooled(lambda x: 1.0, [1, 2])
    with pytest.raises(TypeError, match="list of completed tables"):
        fit_pooled(lambda x: (1.0, 1.0), pd.DataFrame({"a": [1.0]}))
    with pytest.raises(ValueError, match="at least 2"):
        fit_pooled(lambda x: (1.0, 1.0), [1])


def test_an_analysis_without_degrees_of_freedom_is_refused():
    with pytest.raises(ValueError, match="must be positive, but are 0"):
        fit_pooled(lambda x: (x, 1.0, 0), [1.0, 2.0])


def test_a_dropped_parameter_is_named():
    with pytest.raises(ValueError, match=r"estimates of draw 1 are of \['a'\]; want \['a', 'b'\]"):
        fit_pooled(lambda each: each, [result({"a": 1.0, "b": 2.0}), result({"a": 1.0})])


def test_comparison_by_wald_tests_what_is_left_out():
    q, cov = correlated(p=3)
    full = [result(dict(zip("abc", row, strict=True)), part) for row, part in zip(q, cov, strict=True)]
    test = compare(full, [result({"b": 1.0})] * 5)
    assert test == fit_pooled(lambda each: each, full).test(["a", "c"])
    assert isinstance(test, Comparison)


def test_comparison_by_likelihood_in_exact_fractions():
    """Li, Meng, Raghunathan and Rubin (1991) for the statistics 1, 4, 9, whose roots have variance 1; k = 2."""
    full = [result({"a": 1.0, "b": 1.0, "c": 1.0}, llf=d / 2) for d in (1.0, 4.0, 9.0)]
    test = compare(full, [result({"a": 1.0}, llf=0.0)] * 3, "D2")
    riv, mean = Fraction(4, 3), Fraction(14, 3)
    statistic = (mean / 2 - 2 * riv) / (1 + riv)
    df2 = 2 ** (-3 / 3) * 2 * float(1 + 1 / riv) ** 2
    assert (test.statistic, test.df1, test.df2, test.riv) == pytest.approx((float(statistic), 2, df2, float(riv)))
    assert test.p_value == 1  # below zero: no evidence


def test_comparisons_without_missing_cells_are_those_of_complete_data():
    full = [result({"a": 1.0, "b": 1.0}, llf=2.0)] * 3
    assert compare(full, [result({"a": 1.0}, llf=0.0)] * 3, "D2").p_value == pytest.approx(stats.chi2.sf(4, 1))
    assert compare(full, [result({"a": 1.0})] * 3).p_value == pytest.approx(2 * stats.t.sf(1, 20))


@pytest.mark.parametrize(
    ("sizes", "method", "error", "message"),
    [
        ((2, 2), "D3", ValueError, "'D1' or 'D2', but got 'D3'"),
        ((3, 2), "D1", ValueError, "got 3 and 2"),
        ((1, 1), "D1", ValueError, "got 1 and 1"),
        ((2, 2), "D2", TypeError, "params and llf, but got a Series"),
    ],
)
def test_what_cannot_be_compared_is_refused(sizes, method, error, message):
    full, restricted = ([pd.Series({"a": 1.0})] * size for size in sizes)
    with pytest.raises(error, match=message):
        compare(full, restricted, method)


def test_models_that_are_not_nested_are_refused():
    big, small = result({"a": 1.0, "b": 1.0}, llf=1.0), result({"c": 1.0}, llf=2.0)
    with pytest.raises(ValueError, match="must be some of the full one's"):
        compare([big] * 2, [small] * 2)
    with pytest.raises(ValueError, match="must be some of the full one's"):
        compare([big] * 2, [big] * 2)
    with pytest.raises(ValueError, match="some parameters left out"):
        compare([big] * 2, [small] * 2, "D2")


def test_statsmodels_fits():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    draws = [pd.DataFrame(rng.normal(size=(30, 3)), columns=["y", "x", "z"]) for _ in range(5)]
    fits = [[sm.OLS(t["y"], sm.add_constant(t[names])).fit() for t in draws] for names in (["x", "z"], ["x"])]
    pooled = fit_pooled(lambda fit: fit, fits[0])
    assert list(pooled.table.index) == ["const", "x", "z"]
    assert pooled.df_complete == 27
    assert compare(*fits).p_value == pytest.approx(pooled.table.loc["z", "p_value"])
    assert compare(*fits, "D2").df1 == 1
