"""benchmarks.speed: points, their tables, and the share of the machine that a fit reaches."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from bench_toys import invoke, lines_of

from benchmarks import report, speed
from benchmarks.peers import fitted


def test_speed_points_and_their_tables(tmp_path):
    made = speed.made_table(200, 5)
    assert made.shape == (200, 5)
    assert made.isna().to_numpy().mean() == pytest.approx(0.2, abs=0.05)
    lines = [speed.measure("mean", rows, columns) for rows, columns in ((100, 5), (200, 5), (100, 10))]
    assert all(line["fit_seconds"] > 0 and line["peak_mb"] > 10 for line in lines)
    lines.append(
        {"task": "speed", "method": "mean", "rows": 400, "columns": 5, "device": "cpu", "cores": 1, "error": "over 1 s"}
    )
    tables = speed.speed_tables(lines)
    assert any("against rows, 5 columns" in title for title in tables)
    assert any("against columns, 100 rows" in title for title in tables)
    assert any("over 1 s" in str(table.to_numpy()) for table in tables.values())
    out = tmp_path / "speed.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke(report.main, "--results", out, "--readme", tmp_path / "README.md")
    assert "Speed: growth of time" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_speed_command_resumes_and_stops_at_the_limit(tmp_path):
    out = tmp_path / "speed.jsonl"
    arguments = ("--methods", "mean", "--columns", "5", "--middle-rows", 50, "--cores", 1, "--out", out)
    invoke(speed.main, *arguments, "--rows", "50,100", "--middle-columns", 5)
    first = out.read_text()
    assert [line["rows"] for line in lines_of(out)] == [50, 100]
    invoke(speed.main, *arguments, "--rows", "50,100", "--middle-columns", 5)
    assert out.read_text() == first
    invoke(speed.main, *arguments, "--rows", "150,200", "--middle-columns", 5, "--limit", 0.01)
    assert [line["rows"] for line in lines_of(out)] == [50, 100, 150]
    assert lines_of(out)[-1]["error"] == "over 0.01 s"


def test_share_of_matrix_products_is_a_share():
    torch = pytest.importorskip("torch")

    def fit(X, seed):
        a = torch.ones(300, 300)
        return a @ a

    line = speed._matmul_share(fitted(fit), pd.DataFrame(), {}, "cpu", seconds=1.0)
    assert line["fit_gflop"] == pytest.approx(2 * 300**3 / 1e9)
    assert 0 < line["matmul_share"] < 1
