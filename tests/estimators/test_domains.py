"""Modalities: a third one is ten lines, and none but the table of modalities asks which one it is."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import factor_analysis

from vaeimpute import VAEImputer, VAEOutlierDetector, estimators
from vaeimpute.estimators import _domains
from vaeimpute.estimators._validation import check_table
from vaeimpute.images.encoder import ImageEncoder

T = 6


def add_signals(domains):
    """Signals (n, T) by image_shape=(T,): one scale for all times, and models of tables."""

    def fit_encoder(estimator, X, seed, *, robust):
        encoder = ImageEncoder.fit(X, (*estimator.image_shape, 1, 1), kind="numeric")
        return encoder, encoder.encode(X)

    def claims(estimator):
        return estimator.image_shape is not None and len(estimator.image_shape) == 1

    changes = {"claims": claims, "check": check_table, "fit_encoder": fit_encoder}
    domains.insert(0, replace(_domains.PIXELS_AS_COLUMNS, name="signals", **changes))


@pytest.fixture
def signals(monkeypatch):
    """Signals are known for a while: rows, a tenth of their values missing, in a unit of their own."""
    domains = list(_domains.DOMAINS)
    add_signals(domains)
    monkeypatch.setattr(_domains, "DOMAINS", domains)
    rng = np.random.default_rng(0)
    truth = factor_analysis(T)
    X = rng.normal(size=(200, truth.rank)) @ truth.W.numpy().T + np.sqrt(truth.psi.numpy()) * rng.normal(size=(200, T))
    X = 20 + 3 * np.arange(T) + 4 * X
    return X, np.where(rng.random(X.shape) < 0.1, np.nan, X)


def test_a_modality_is_added_in_ten_lines():
    lines = inspect.getsource(add_signals).splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 10


def answers(estimator, X):
    methods = ["log_likelihood", "anomaly_score", "cell_anomaly_score"]
    methods += ["impute", "encode"] if isinstance(estimator, VAEImputer) else ["p_values", "repair", "predict"]
    return {method: getattr(estimator, method)(X) for method in methods}


@pytest.mark.parametrize("make", [VAEImputer, VAEOutlierDetector])
def test_both_estimators_work_on_signals(make, signals, tmp_path):
    complete, X = signals
    params = {"max_iter": 5} if make is VAEImputer else {}
    fitted = make(image_shape=(T,), random_state=0, **params).fit(X)
    assert fitted._domain.name == "signals"
    assert isinstance(fitted.encoder_, ImageEncoder)
    before = answers(fitted, X)
    assert before["anomaly_score"].shape == (len(X),)
    np.testing.assert_array_equal(np.isnan(before["cell_anomaly_score"]), np.isnan(X))
    if make is VAEImputer:
        error = (before["impute"] - complete)[np.isnan(X)]
        assert 0 < np.sqrt(np.mean(error**2)) < 0.8 * complete[np.isnan(X)].std()
        assert fitted.impute(X, n_imputations=2, random_state=0)[1].shape == fitted.sample(len(X)).shape == X.shape
    wrong = X[:1] + 40 * (np.arange(T) == 2)
    assert fitted.anomaly_score(wrong) > before["anomaly_score"].max()
    assert np.nanargmax(fitted.cell_anomaly_score(wrong)) == 2
    fitted.save(tmp_path / "m")
    loaded = make.load(tmp_path / "m")
    assert loaded.image_shape == (T,)
    for method, answer in answers(loaded, X).items():
        np.testing.assert_array_equal(answer, before[method], err_msg=method)


def test_signals_are_drawn(signals):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    VAEOutlierDetector(image_shape=(T,), random_state=0).fit(signals[1]).plot(signals[1][:12])
    pyplot.close("all")


def test_who_claims_an_estimator():
    claimed = {
        "tables": VAEImputer(),
        "pixels as columns": VAEImputer(image_shape=(8, 8), networks="mlp"),
        "images": VAEOutlierDetector(image_shape=(8, 8)),
    }
    assert {name: _domains.domain_of(estimator).name for name, estimator in claimed.items()} == {
        name: name for name in claimed
    }
    with pytest.raises(ValueError, match=r"image_shape must be \(height, width\)"):  # no signals without their lines
        VAEImputer(image_shape=(T,)).fit(np.zeros((5, T)))


MODALITY = {"image_shape", "networks"}  # the parameters that decide
TYPES = ("Encoder", "VAE", "Density", "Mixture", "Images", "Table")  # and ends of the names of what follows from them


def attributes(node):
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def questions(source):
    """Where a module asks which modality it is: by a parameter, by a type, by a name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                asks = attributes(node) & {*MODALITY, "name", "fills_empty"}
            case ast.If() | ast.IfExp():
                asks = attributes(node.test) & MODALITY
            case ast.Call(func=ast.Name("isinstance" | "issubclass")):
                asks = ast.unparse(node.args[1]).endswith(TYPES)
            case _:
                continue
        if asks:
            yield ast.unparse(node)


def imported_from_wings(source):
    for node in ast.walk(ast.parse(source)):
        module = getattr(node, "module", None) or ""
        if module.startswith(("vaeimpute.tables", "vaeimpute.images")):
            yield module


SOURCES = sorted(Path(estimators.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "_domains.py"], ids=lambda path: path.stem)
def test_no_other_module_asks_which_modality_it_is(path):
    source = path.read_text()
    assert not list(questions(source))
    if path.name != "_validation.py":  # its checks are those that the table of modalities names
        assert not list(imported_from_wings(source))


def test_questions_would_be_found():
    source = Path(_domains.__file__).read_text()
    assert any("image_shape" in question for question in questions(source))
    assert list(questions("if self.image_shape: pass"))
    assert list(questions("x = 1 if isinstance(self.encoder_, ImageEncoder) else 2"))
    assert list(questions("self._domain.name == 'images'"))
    assert list(imported_from_wings(source))
