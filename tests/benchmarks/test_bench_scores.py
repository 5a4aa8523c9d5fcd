"""benchmarks.scores: what a line says of a completed table agrees with a hand count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import run


def test_judge_agrees_with_a_hand_count():
    truth = pd.DataFrame({"x": [0.0, 2.0, 0.0, 2.0], "c": pd.Categorical(["a", "b", "a", "b"])})
    observed = np.array([[False, False], [True, False], [True, True], [True, True]])
    completed = pd.DataFrame({"x": [3.0, 2.0, 0.0, 2.0], "c": pd.Categorical(["a", "a", "a", "b"])})
    line = run.judge(truth, completed, observed)
    assert line["nrmse"] == line["nmae"] == 3.0  # the standard deviation is 1
    assert line["class_error"] == line["class_error_columns"]["c"] == 0.5
    assert run.judge(truth, truth, observed)["energy_distance"] == pytest.approx(0.0, abs=1e-9)
