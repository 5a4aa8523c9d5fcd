"""benchmarks.images: lines resume and survive failures, tables say what lines say."""

from __future__ import annotations

import numpy as np
import pytest
from bench_toys import blobs, lines_of
from click.testing import CliRunner

pytest.importorskip("skimage")

from benchmarks import images
from benchmarks.image_peers import PEERS, Peer
from benchmarks.image_sets import observed_pixels


def invoke(*arguments) -> str:
    result = CliRunner().invoke(images.main, [*map(str, arguments), "--cores", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_judge():
    """RMSE and PSNR by hand; no error gives SSIM 1; values outside the range count as its ends."""
    truth = blobs(3, max_level=10).astype(float)
    observed = observed_pixels("toy", "scattered-50", 0, truth)
    off = np.where(observed, truth, np.minimum(truth, 9) + 1)
    scores = images.judge(truth, off, observed, 10)
    error = (off - truth)[~observed] / 10
    assert scores["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert scores["psnr"] == pytest.approx(-20 * np.log10(scores["rmse"]))
    perfect = images.judge(truth, truth, observed, 10)
    assert (perfect["rmse"], perfect["ssim"]) == (0, 1)
    assert scores["ssim"] < 1
    low = np.where(observed, truth, -5.0)
    assert images.judge(truth, low, observed, 10) == images.judge(truth, np.maximum(low, 0), observed, 10)


def test_judge_refuses_missing_pixels_and_changes():
    truth = blobs(2).astype(float)
    observed = observed_pixels("toy", "scattered-50", 0, truth)
    with pytest.raises(ValueError, match="left 1 missing pixels"):
        images.judge(truth, np.where(np.arange(128).reshape(2, 8, 8) == 5, np.nan, truth), observed, 16)
    with pytest.raises(ValueError, match="changed"):
        images.judge(truth, truth + 1, observed, 16)


@pytest.mark.usefixtures("toy_sets")
def test_run_resumes_and_reports(tmp_path):
    out = tmp_path / "images.jsonl"
    arguments = ("--methods", "mean,knn", "--test", 15, "--out", out)
    invoke(*arguments, "--cases", "digit 0,mnist-fashion")
    lines = lines_of(out)
    assert len(lines) == 4 * 2 * 4 + 2  # sets, methods, masks; knn finds anomalies, too
    assert not any("error" in line for line in lines)
    assert {line["test"] for line in lines if line["task"] == "images"} == {10, 15}
    assert {line["train"] for line in lines if line["set"] == "digit 0"} == {60}
    assert "34 of 34 lines" in invoke(*arguments, "--cases", "digit 0,mnist-fashion")
    assert lines_of(out) == lines

    text = invoke("--report", "--out", out)
    assert "**Images: digits, centre-block, fitted to at most 5,000 images**" in text
    best = min((line for line in lines if (line["set"], line["mask"]) == ("digits", "centre-block")), key=rmse)
    row = next(line for line in text.splitlines() if line.startswith("| digits, centre-block |"))
    assert f"**{best['rmse']:.4f}**" in row
    anomalies = images.image_tables(lines)["Images: anomalies, AUROC, fitted to at most 5,000 images"]
    assert anomalies.loc["knn", "mean of ten digits"] == ""  # not all ten are there
    assert float(anomalies.loc["knn", "digit 0"]) > 0.9


def rmse(line: dict) -> float:
    return line["rmse"]


@pytest.mark.usefixtures("toy_sets")
def test_one_fit_serves_all_masks_and_failures_end_nothing(tmp_path, monkeypatch):
    fits = []

    def brittle(train, seed):
        fits.append(seed)
        mean = PEERS["mean"].fit(train, seed)

        def inpaint(incomplete):
            if np.isnan(incomplete).mean() > 0.7:
                raise RuntimeError("too many missing pixels")
            return mean(incomplete)

        return inpaint

    monkeypatch.setitem(PEERS, "mean", Peer(PEERS["mean"].fit, bits=lambda inpaint, X, observed: 1.5))
    monkeypatch.setitem(PEERS, "knn", Peer(brittle))
    out = tmp_path / "images.jsonl"
    arguments = ("--tasks", "images", "--sets", "digits", "--methods", "knn,mean", "--out", out)
    assert "1 lines failed" in invoke(*arguments)
    lines = lines_of(out)
    assert fits == [0]
    assert [line["error"] for line in lines if "error" in line] == ["RuntimeError: too many missing pixels"]
    assert {line["bits"] for line in lines if line["method"] == "mean"} == {1.5}
    assert sum(line["method"] == "knn" and "rmse" in line for line in lines) == 3
    monkeypatch.setitem(PEERS, "knn", Peer(PEERS["mean"].fit))
    assert "7 of 8 lines" in invoke(*arguments)  # only the failed one again
    assert "error" not in lines_of(out)[-1]
    assert (
        images.image_tables(lines_of(out))["Images: digits, scattered-80, fitted to at most 5,000 images"].shape[0] == 2
    )


@pytest.mark.usefixtures("toy_sets")
def test_params_are_one_methods_and_name_its_lines(tmp_path):
    out = tmp_path / "images.jsonl"
    common = ("--tasks", "images", "--sets", "digits", "--masks", "centre-block", "--out", out)
    invoke(*common, "--methods", "knn", "--params", '{"k": 3}')
    assert [line["method"] for line in lines_of(out)] == ["knn[k=3]"]
    assert "1 of 1 lines" in invoke(*common, "--methods", "knn", "--params", '{"k": 3}')
    refused = CliRunner().invoke(images.main, ["--methods", "mean,knn", "--params", '{"k": 3}'])
    assert "one method's" in refused.output
    assert "unknown lasso" in CliRunner().invoke(images.main, ["--methods", "lasso"]).output
