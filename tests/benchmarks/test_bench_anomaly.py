"""benchmarks.anomaly: honest splits, runs that resume and survive failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import anomaly, run


def invoke(out: Path, *arguments: str) -> list[dict]:
    result = CliRunner().invoke(anomaly.main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_to_fit_and_rows_to_score_are_different_rows(folder):
    X, y = anomaly.load("one", 2000)
    assert X.shape == (120, 3)  # the constant column is gone
    train, test, is_outlier = anomaly.split(X, y, 0)
    assert len(train) == 54
    assert is_outlier.sum() == 12
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])[:, 0]), np.sort(X[:, 0]))
    np.testing.assert_array_equal(np.sort(test[is_outlier][:, 0]), np.sort(X[y][:, 0]))


def test_large_sets_keep_their_share_of_outliers(folder):
    X, y = anomaly.load("one", 100)
    assert len(X) == 100
    assert y.sum() == 12  # there are no thirty


@pytest.mark.parametrize("method", anomaly.DEFAULT_METHODS)
def test_every_method_finds_the_outliers(folder, method):
    for protocol in ("semi", "unsupervised", "missing"):
        line = anomaly.run_one(dict(zip(anomaly.KEY, ("one", protocol, 0.0, 2000, 0, method), strict=True)))
        if method in ("ecod", "iforest", "norm", "ocsvm") or protocol == "unsupervised":
            assert line["auroc"] > 0.5
        else:  # who knows the line knows every outlier: they are 90 standard deviations of its noise away
            assert line["auroc"] == 1
        assert 0 <= line["ap"] <= 1
        assert protocol != "missing" or line["flagged"] == pytest.approx(0.05, abs=0.02)  # of complete rows


def test_a_run_resumes_and_survives_a_failing_method(folder, tmp_path, monkeypatch):
    def broken(X, seed, *, contaminated):
        raise RuntimeError("no luck")

    monkeypatch.setitem(anomaly.METHODS, "flaky", broken)
    out = tmp_path / "lines.jsonl"
    arguments = ("--sets", "one,two", "--methods", "flaky,knn", "--protocols", "semi")
    lines = invoke(out, *arguments)
    assert [line.get("error") for line in lines] == ["RuntimeError: no luck", None] * 2
    out.write_text(out.read_text() + '{"set": "on')  # killed in the middle of a line
    monkeypatch.setitem(anomaly.METHODS, "flaky", anomaly.METHODS["norm"])
    again = invoke(out, *arguments)
    assert again[:4] == lines
    assert [line["method"] for line in again[4:]] == ["flaky", "flaky"]
    assert len(anomaly.read(out)) == 4
    assert "| flaky |" in anomaly.report(anomaly.read(out))


def test_the_command_of_all_benchmarks_leads_here(folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    arguments = f"--task anomaly --sets one --methods norm --protocols semi --out {out}".split()
    assert CliRunner().invoke(run.main, arguments, catch_exceptions=False).exit_code == 0
    assert [line["protocol"] for line in anomaly.read(out)] == ["semi"]


def test_p_values_protocol(folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    lines = invoke(out, "--sets", "one", "--protocols", "p-values", "--seeds", "0,1")
    for line in lines:
        assert line["ks_p"] > 0.001
        assert 0 <= line["false_discoveries"] <= 1
        assert line["power"] == 1  # no training row is as far out: all have the least p-value there is
    report = anomaly.report(lines)
    assert "(1 sets, 2 seeds)" in report
    assert "auroc" not in report
