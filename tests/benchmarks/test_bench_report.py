"""benchmarks.report: the page says what the lines say, and nothing outside its markers changes."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from bench_toys import invoke, lines_of

from benchmarks import pictures, report, run
from benchmarks.datasets import TABLES, Table, numeric_columns
from benchmarks.markdown import markdown
from benchmarks.peers import PEERS, Peer
from benchmarks.scores import METRICS


@pytest.fixture
def dicts():
    """The dicts that a newcomer adds a row to, put back at the end."""
    rows = {"PEERS": PEERS, "TABLES": TABLES, "METRICS": METRICS}
    before = {name: dict(row) for name, row in rows.items()}
    yield rows
    for name, row in rows.items():
        row.clear()
        row.update(before[name])


def test_the_newcomers_peer_table_and_score_reach_the_report(tmp_path, dicts):
    """What benchmarks/README.md shows: one function and one row each, then run and report."""
    shown = re.search(r"^```python\n(.*?)^```", (run.RESULTS.parent / "README.md").read_text(), re.M | re.S)[1]
    exec(shown, dicts | {"Peer": Peer, "Table": Table, "numeric_columns": numeric_columns, "pd": pd})
    out, readme = tmp_path / "lines.jsonl", tmp_path / "README.md"
    invoke(run.main, "--tables", "ladder", "--methods", "zeros,mean", "--mechanisms", "mcar", "--out", out)
    zeros, mean = lines_of(out)
    assert (zeros["method"], zeros["rows"]) == ("zeros", 100)
    assert zeros["bias"] < -100 < mean["bias"]
    invoke(report.main, "--results", out, "--readme", readme)
    header = next(row for row in readme.read_text().splitlines() if row.startswith("| method | mean rank | nrmse"))
    assert "| bias |" in header
    assert "| zeros |" in readme.read_text()


def test_report_writes_between_the_markers_only(toy, tmp_path):
    out, readme = tmp_path / "lines.jsonl", tmp_path / "page" / "README.md"
    invoke(run.main, "--tables", f"{toy},iris", "--methods", "mean,knn", "--out", out)
    invoke(report.main, "--results", out, "--readme", readme)
    page = readme.read_text()
    assert "## What was tried" in page
    assert "| toy 59×5 |" in page
    for picture in ("accuracy_time", "heatmap"):
        assert (readme.parent / "results" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"results/{picture}.png" in page

    readme.write_text(page + "| an idea by hand |\n")
    invoke(report.main, "--results", str(tmp_path / "*.jsonl"), "--readme", readme)
    assert readme.read_text() == page + "| an idea by hand |\n"

    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must hold the markers"):
        invoke(report.main, "--results", out, "--readme", readme)


def test_the_report_passes_over_lines_of_other_benchmarks(tmp_path):
    (tmp_path / "anomaly.jsonl").write_text('{"set": "breast_cancer", "auroc": 0.9}\n{"task": "speed", "rows": 10}\n')
    results, failures = report.read_results([tmp_path / "anomaly.jsonl"])
    assert results.empty
    assert failures.empty


def test_report_without_results(tmp_path):
    assert "No results yet." in invoke(report.main, "--results", tmp_path / "*.jsonl", "--readme", tmp_path / "R.md")


def test_methods_without_a_common_case_do_not_empty_the_tables():
    errors = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, np.nan, 2.0], "c": [np.nan, 1.0, np.nan]})
    assert list(pictures.most_finished(errors)) == ["a", "b"]
    assert list(pictures.most_finished(errors, 0.2)) == ["a", "b"]  # c has none in common with b
    assert pictures.most_finished(errors, 0.9).shape == (3, 1)


def test_columns_won_counts_columns():
    lines = [
        {"nrmse_columns": {"x": 1.0, "y": 2.0}, "class_error_columns": {"c": 0.5}, "method": "a"},
        {"nrmse_columns": {"x": 2.0, "y": 1.0}, "class_error_columns": {"c": 0.5}, "method": "b"},
        {"nrmse_columns": {"x": 3.0, "y": 3.0}, "class_error_columns": {"c": 1.0}, "method": "d"},
    ]
    case = {"table": "t", "mechanism": "mcar", "rate": 0.3, "seed": 0}
    won = report.columns_won(pd.DataFrame([case | line for line in lines]), ["a", "b", "d"])
    assert won.loc["a", "b"] == won.loc["b", "a"] == 0.5
    assert won.loc["a", "d"] == 1.0


def test_lines_on_other_masks_are_listed_as_failures(toy, tmp_path):
    out, readme = tmp_path / "lines.jsonl", tmp_path / "README.md"
    invoke(run.main, "--tables", toy, "--methods", "mean,median,knn", "--mechanisms", "mcar", "--out", out)
    lines = lines_of(out)
    lines[1]["mask"] = "another"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke(report.main, "--results", out, "--readme", readme)
    assert "toy mcar 0.3 0 median: saw other missing cells than the rest of its case" in readme.read_text()
    assert "| median |" not in readme.read_text()


def test_critical_difference_joins_methods_that_do_not_differ():
    pytest.importorskip("scikit_posthocs")
    rng = np.random.default_rng(0)
    rows = [
        {
            "table": f"t{t}",
            "mechanism": "mcar",
            "rate": 0.3,
            "seed": 0,
            "method": m,
            "nrmse": level + 0.01 * rng.random(),
        }
        for t in range(20)
        for m, level in (("good", 0.1), ("twin", 0.1), ("bad", 0.9))
    ]
    figure = pictures.critical_difference(pd.DataFrame(rows))
    assert "20 tables" in figure.axes[0].get_title()


def test_ratios_are_geometric_means_over_common_cases():
    errors = pd.DataFrame({"a": [1.0, 4.0, np.nan], "b": [2.0, 2.0, 5.0]})
    table = report.ratios(errors)
    assert table.loc["a", "b"] == pytest.approx(math.sqrt(0.5 * 2.0))
    assert table.loc["a", "b"] * table.loc["b", "a"] == pytest.approx(1.0)


def test_markdown_marks_the_smallest():
    frame = pd.DataFrame({"a": [0.5, 2.0], "b": [1.0, np.nan]}, index=pd.Index(["t", "u"], name="table"))
    assert markdown(frame, bold_smallest=True).splitlines() == [
        "| table | a | b |",
        "| --- | --- | --- |",
        "| t | **0.50** | 1.00 |",
        "| u | **2.00** |  |",
    ]
