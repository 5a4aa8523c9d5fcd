"""The net under every move of code: model files of an earlier version give the answers that they gave then.

The files and `answers.npz` were written by version 0.1.0 from the tables of `golden_data`, with small networks.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden_data import frame, images, numbers

from vaeimpute import VAEImputer, VAEOutlierDetector

FOLDER = Path(__file__).parent / "golden"
ANSWERS = np.load(FOLDER / "answers.npz")
TABLES = {"numbers": numbers, "mixed": frame, "images": images}
LABELS = {label: i for i, label in enumerate(["blue", "green", "red", "low", "mid", "high", "False", "True"])}


def as_numbers(table):
    """A completed table as floats: labels by their place in `LABELS`, dates in seconds."""
    if isinstance(table, np.ndarray):
        return table.astype(float)
    columns = []
    for name, cells in table.items():
        if name == "when":
            columns.append(cells.astype("datetime64[s]").astype("int64").to_numpy(float))
        elif name in ("colour", "grade", "new"):
            columns.append(cells.astype(str).map(LABELS).to_numpy(float))
        else:
            columns.append(cells.to_numpy(float))
    return np.column_stack(columns)


def assert_golden(name, **answers):
    for what, answer in answers.items():
        expected = ANSWERS[f"{name}/{what}"]
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6, err_msg=f"{name}: {what}")


@pytest.mark.parametrize("table", TABLES)
def test_imputer(table):
    name, X = f"imputer_{table}", TABLES[table]()[:40]
    imputer = VAEImputer.load(FOLDER / f"{name}.safetensors")
    latents = imputer.encode(X)
    assert_golden(
        name,
        impute=as_numbers(imputer.impute(X)),
        log_likelihood=imputer.score_samples(X),
        encode=latents,
        decode=as_numbers(imputer.decode(latents[:5])),
        cells=np.asarray(imputer.cell_anomaly_score(X), dtype=float),
        median=as_numbers(imputer.set_params(point="median").impute(X)),
    )
    if table == "images":
        assert_golden(name, anomaly=imputer.anomaly_score(X))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("fit", ["detector", "robust"])
def test_detector(table, fit):
    name, X = f"{fit}_{table}", TABLES[table]()[:40]
    detector = VAEOutlierDetector.load(FOLDER / f"{name}.safetensors")
    assert_golden(
        name,
        anomaly=detector.anomaly_score(X),
        p_values=detector.p_values(X),
        decision=detector.decision_function(X),
        cells=np.asarray(detector.cell_anomaly_score(X), dtype=float),
        repair=as_numbers(detector.repair(X, threshold=-np.inf)),
    )
    assert detector.score(X) == pytest.approx(ANSWERS[f"{name}/log_likelihood"].mean(), abs=1e-6)


def test_every_answer_is_asked_for():
    assert {key.partition("/")[0] for key in ANSWERS} == {path.stem for path in FOLDER.glob("*.safetensors")}
    assert all(isinstance(make(), pd.DataFrame | np.ndarray) for make in TABLES.values())
