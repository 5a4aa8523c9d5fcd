"""The net under every move of code: model files of an earlier version give the answers that they gave then.

The detectors' and the imputer of images are those of version 0.1.0, whose tensors carry today's names; the imputers of
tables were written when their draws became a copula.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy import frame, images, numbers

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


def raw_cell_scores(estimator, X):
    """Scores of cells before they become surprisals, which they were not in that version."""
    _, encoded = estimator._encoded(X)
    scores = estimator._all_columns(estimator.density_.cell_scores(*estimator._tensors(encoded)))
    return np.where(encoded.observed & estimator.modelled_, scores, np.nan).reshape(np.shape(X))


def assert_golden(name, tolerance=1e-6, **answers):
    for what, answer in answers.items():
        expected = ANSWERS[f"{name}/{what}"]
        np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance, err_msg=f"{name}: {what}")


def answers_of_imputer(imputer, X):
    latents = imputer.encode(X)
    answers = {
        "impute": as_numbers(imputer.impute(X)),
        "log_likelihood": imputer.log_likelihood(X),
        "encode": latents,
        "decode": as_numbers(imputer.decode(latents[:5])),
        "cells": raw_cell_scores(imputer, X),
        "anomaly": imputer.anomaly_score(X),
    }
    return answers | {"median": as_numbers(imputer.set_params(point="median").impute(X))}


@pytest.mark.parametrize("table", TABLES)
def test_imputer(table):
    name = f"imputer_{table}"
    imputer = VAEImputer.load(FOLDER / f"{name}.safetensors")
    assert_golden(name, **answers_of_imputer(imputer, TABLES[table]()[:40]))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("fit", ["detector", "robust"])
def test_detector(table, fit):
    name, X = f"{fit}_{table}", TABLES[table]()[:40]
    detector = VAEOutlierDetector.load(FOLDER / f"{name}.safetensors")
    assert_golden(
        name,
        anomaly=detector.anomaly_score(X),
        decision=detector.decision_function(X),
        log_likelihood=detector.log_likelihood(X),
        cells=raw_cell_scores(detector, X),
        repair=as_numbers(detector.repair(X, threshold=-np.inf)),
    )
    # Ranks among some hundred rows: the rounding of another machine may turn one of them.
    assert_golden(name, tolerance=0.02, p_values=detector.p_values(X))


def test_every_answer_is_asked_for():
    assert {key.partition("/")[0] for key in ANSWERS} == {path.stem for path in FOLDER.glob("*.safetensors")}
    assert all(isinstance(make(), pd.DataFrame | np.ndarray) for make in TABLES.values())
