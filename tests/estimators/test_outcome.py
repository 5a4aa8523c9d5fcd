"""impute(outcome=): draws agree with the regression that they are for, in closed forms and in published laws."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import expit

from vaeimpute import Outcome, VAEImputer, fit_pooled

SQUARE = Outcome("y", lambda t: np.column_stack([t["z"], t["x"], t["x"] ** 2]))
LINE = Outcome("y", lambda t: t[["z", "x"]])


def quadratic(seed, n=300):
    """The law of smcfcs' ``ex_linquad``: y of x and its square, x missing by y; complete and incomplete."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x = z + rng.normal(size=n)
    y = z + x + x**2 + rng.normal(size=n)
    table = pd.DataFrame({"y": y, "z": z, "x": x})
    return table, table.assign(x=table["x"].mask(rng.random(n) < expit((y - y.mean()) / y.std())))


def linear(seed=0, n=120):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    x = 0.6 * z + 0.8 * rng.normal(size=n)
    table = pd.DataFrame({"y": 1 + z + x + rng.normal(size=n), "z": z, "x": x})
    return table.mask(rng.random(table.shape) < 0.2)


def regression(outcome):
    """Least squares of the outcome on its terms, to be pooled."""

    def analysis(table):
        terms = np.asarray(outcome.terms(table))
        X = np.column_stack([np.ones(len(table)), terms])
        inverse = np.linalg.inv(X.T @ X)
        coef, df = inverse @ X.T @ table[outcome.column].to_numpy(), len(X) - X.shape[1]
        return coef, ((table[outcome.column] - X @ coef) ** 2).sum() / df * inverse, df

    return analysis


def drawn(X, outcome, m=5, seed=0):
    return VAEImputer(random_state=seed, max_iter=20).fit(X).impute(X, m, outcome=outcome, random_state=seed)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_linear_outcome_gives_what_plain_draws_give():
    """Both are posteriors of the same normal model: pooled slopes and errors agree within Monte Carlo error."""
    told, plain = [], []
    for seed in range(8):
        X = linear(seed, 80)
        imputer = VAEImputer(random_state=seed).fit(X)
        analysis = regression(LINE)
        told.append(fit_pooled(analysis, imputer.impute(X, 10, outcome=LINE, random_state=seed)).table)
        plain.append(fit_pooled(analysis, imputer.impute(X, 10, random_state=seed)).table)
    slopes = np.array([a["estimate"] - b["estimate"] for a, b in zip(told, plain, strict=True)])
    errors = np.array([a["std_error"] / b["std_error"] for a, b in zip(told, plain, strict=True)])
    size = np.mean([b["std_error"] for b in plain], axis=0)
    assert (np.abs(slopes.mean(0)) < 0.25 * size).all()
    np.testing.assert_allclose(np.exp(np.log(errors).mean(0)), 1, atol=0.2)


@pytest.mark.slow
def test_a_quadratic_outcome_is_unbiased():
    bias, naive = [], []
    for seed in range(8):
        complete, X = quadratic(seed)
        best = regression(SQUARE)(complete)[0]
        imputer = VAEImputer(random_state=seed).fit(X)
        tables = imputer.impute(X, 8, outcome=SQUARE, random_state=seed)
        bias.append(fit_pooled(regression(SQUARE), tables).table["estimate"] - best)
        naive.append(fit_pooled(regression(SQUARE), imputer.impute(X, 8, random_state=seed)).table["estimate"] - best)
    bias = np.array(bias)
    assert (np.abs(bias.mean(0)) < 3 * bias.std(0) / np.sqrt(len(bias)) + 0.02).all()
    assert np.mean(naive, axis=0)[3] < -0.1  # what the outcome is for


@pytest.mark.slow
@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_products_in_generalised_models_survive(family):
    """A large table: the slope of a product, fitted by the family's own Newton steps, is that of complete data."""
    from vaeimpute.outcomes.families import FAMILIES, Parameters

    rng = np.random.default_rng(0)
    n = 1500
    x = rng.normal(size=(n, 2)) @ [[1.0, 0.5], [0.0, 0.8]]
    predictor = 0.3 * x[:, 0] + 0.3 * x[:, 1] + (0.8 if family == "binomial" else 0.3) * x[:, 0] * x[:, 1]
    y = FAMILIES[family].sample(predictor, Parameters(np.zeros(1)), rng)
    complete = pd.DataFrame(
        {"a": x[:, 0], "b": x[:, 1], "y": y.astype(bool) if family == "binomial" else y.astype(int)}
    )
    X = complete.astype({"y": "boolean" if family == "binomial" else "Int64"})
    X = X.mask(rng.random(X.shape) < [0.0, 0.3, 0.1])
    outcome = Outcome("y", lambda t: np.column_stack([t["a"], t["b"], t["a"] * t["b"]]), family)

    def slope(table):
        terms = np.column_stack([np.ones(n), outcome.terms(table)]).astype(float)
        fits = [FAMILIES[family].draw(terms, table["y"].to_numpy(float), np.random.default_rng(k)) for k in range(60)]
        return np.mean([fit.coef[3] for fit in fits]), np.std([fit.coef[3] for fit in fits])

    best, error = slope(complete)
    imputer = VAEImputer(random_state=0, max_iter=20).fit(X)
    told = np.mean([slope(table)[0] for table in imputer.impute(X, 4, outcome=outcome, random_state=0)])
    assert abs(told - best) < 1.5 * error


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda X: X, pl.from_pandas, lambda X: X.to_numpy()], ids=["pandas", "polars", "array"]
)
def test_observed_cells_come_back_and_seeds_reproduce(make):
    X = make(linear())
    if isinstance(X, np.ndarray):
        outcome = Outcome("x0", lambda t: t[:, [1, 2]])
    else:
        outcome = Outcome("y", lambda t: np.column_stack([t["z"], t["x"]]))
    tables, again = drawn(X, outcome, 2), drawn(X, outcome, 3)
    holed = linear().to_numpy()
    for table, same in zip(tables, again, strict=False):
        assert type(table) is type(X)
        cells = np.asarray(table)
        assert np.isfinite(cells).all()
        np.testing.assert_array_equal(cells[~np.isnan(holed)], holed[~np.isnan(holed)])
        np.testing.assert_array_equal(cells, np.asarray(same))
    assert (np.asarray(tables[0]) != np.asarray(tables[1])).any(0).all()


def test_kinds_and_index_are_kept():
    X = linear().assign(
        g=lambda t: pd.Categorical(np.where(t["x"].fillna(0) > 0, "yes", "no")),
        c=lambda t: pd.array(np.abs(t["z"].fillna(0) * 3).round(), dtype="Int64"),
    )
    X.loc[3:9, "g"], X.loc[7:15, "c"] = np.nan, pd.NA
    X.index = X.index + 100
    for outcome in (
        Outcome("g", lambda t: t[["x", "z", "c"]].astype(float), "binomial"),
        Outcome("c", lambda t: np.column_stack([t["z"] ** 2, t["g"] == "yes"]), "poisson"),
    ):
        for table in drawn(X, outcome, 2):
            assert table.notna().all(axis=None)
            assert (table.dtypes == X.dtypes).all()
            pd.testing.assert_frame_equal(table.where(X.notna()), X)


def test_complete_rows_only_get_outcomes():
    X = linear()
    X[["z", "x"]] = X[["z", "x"]].fillna(0.0)
    tables = drawn(X, LINE, 2)
    assert all(table.notna().all(axis=None) for table in tables)
    whole = X.fillna(1.0)
    pd.testing.assert_frame_equal(drawn(whole, LINE, 1)[0], whole)


def test_formulas_are_functions():
    pytest.importorskip("formulaic")
    X = linear()
    by_formula, by_function = (drawn(X, Outcome("y", terms), 1)[0] for terms in ("z + x", LINE.terms))
    pd.testing.assert_frame_equal(by_formula, by_function)


def test_outcomes_that_few_proposals_go_with_are_reported():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    X = pd.DataFrame({"x": x, "y": x + 1e-7 * rng.normal(size=60), "z": rng.normal(size=60)})
    X.loc[:20, "x"] = np.nan
    with pytest.warns(UserWarning, match="fewer than 5 of 480 proposals go with their outcome"):
        drawn(X, Outcome("y", lambda t: t["x"]), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(linear(), LINE, 1)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "error", "message"),
    [
        ("y", TypeError, "outcome must be an Outcome, but got a str"),
        (Outcome("w", LINE.terms), ValueError, r"the column 'w', which X does not have. Columns: \['y', 'z', 'x'\]"),
        (Outcome("y", LINE.terms, "binomial"), ValueError, "'binomial' needs two classes, .* has kind 'numeric'"),
        (Outcome("y", LINE.terms, "poisson"), ValueError, "'poisson' needs non-negative integers"),
        (Outcome("y", lambda t: t[["y"]]), KeyError, "y"),
        (Outcome("y", lambda t: t["x"][:5]), ValueError, r"shape \(n, p\) with n = 120 rows, but got \(5, 1\)"),
        (Outcome("y", lambda t: t["x"] - t["x"].mean()), ValueError, "must take each row by itself"),
        (Outcome("y", lambda t: np.vander(t["x"], 110)), ValueError, "110 terms need more rows with an outcome"),
    ],
)
def test_outcomes_that_do_not_fit_the_table_are_refused(outcome, error, message):
    X = linear()
    imputer = VAEImputer(random_state=0, max_iter=5).fit(X)
    with pytest.raises(error, match=message):
        imputer.impute(X, 2, outcome=outcome, random_state=0)


def test_an_outcome_needs_draws_values_and_a_table():
    X = linear()
    imputer = VAEImputer(random_state=0, max_iter=5).fit(X)
    with pytest.raises(ValueError, match="n_imputations is None"):
        imputer.impute(X, outcome=LINE)
    with pytest.raises(ValueError, match="needs observed values, but X has none"):
        imputer.impute(X.assign(y=np.nan), 2, outcome=LINE)
    pixels = np.random.default_rng(0).random((20, 4))
    pixels[0, 0] = np.nan
    imputer = VAEImputer(image_shape=(2, 2), networks="mlp", random_state=0, max_iter=2).fit(pixels)
    with pytest.raises(ValueError, match="outcome is for tables, but X is taken for pixels as columns"):
        imputer.impute(pixels, 2, outcome=Outcome("x0", lambda t: t))
