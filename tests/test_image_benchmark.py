"""benchmarks.images: every peer fills what it should, lines resume and survive failures, tables say what lines say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("skimage")

from benchmarks import image_sets, images
from benchmarks.image_peers import DETECTORS, PEERS, Peer
from benchmarks.image_sets import HOLES, SETS, Images, hide_pixels, pixels_kept

OTHERS = [name for name in PEERS if name != "vaeimpute"]
SHORT = {"conv-ae": {"steps": 20}, "unet": {"steps": 20}}


def blobs(n: int, size: int = 8, channels: int | None = None, peak: int = 16, seed: int = 0) -> np.ndarray:
    """Smooth images of one blob each."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(2, size - 3, (n, 2, 1, 1))
    y, x = np.mgrid[:size, :size]
    image = peak * np.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / 6)
    if channels:
        image = image[..., None] * np.linspace(1, 0.5, channels)
    return image.astype(np.uint8)


def stripes(n: int, seed: int = 0) -> np.ndarray:
    """Images of random columns: nothing like a blob."""
    return np.broadcast_to(np.random.default_rng(seed).integers(0, 17, (n, 1, 8)), (n, 8, 8)).astype(np.uint8)


@pytest.fixture
def toy(monkeypatch) -> None:
    """Small stand-ins for all sets; the classes of MNIST's are the shapes (0: blobs, 1: stripes)."""
    images.load.cache_clear()
    classes = np.repeat([0, 1], 60)
    both = np.concatenate([blobs(60), stripes(60)])
    grey = Images(blobs(120), classes, blobs(20, seed=1), classes[50:70], peak=16)
    sets = {
        "mnist": Images(both, classes, both[40:80], classes[40:80], peak=16),
        "fashion": Images(stripes(120), classes, stripes(20, seed=1), classes[50:70], peak=16),
        "digits": grey,
        "cifar": Images(blobs(60, channels=3), classes[:60], blobs(10, channels=3, seed=1), classes[:10], peak=16),
    }
    for name, made in sets.items():
        monkeypatch.setitem(SETS, name, lambda made=made: made)
    yield
    images.load.cache_clear()


def invoke(*arguments) -> str:
    result = CliRunner().invoke(images.main, [*map(str, arguments), "--cores", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def lines_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("shape", [(8, 8), (12, 8), (9, 7), (8, 8, 3)])
@pytest.mark.parametrize("holes", HOLES)
def test_holes(holes, shape):
    """The rate is as named, all channels of a pixel go together, and nothing but set, kind and seed matters."""
    pixels = np.zeros((200, *shape))
    observed = pixels_kept("toy", holes, 0, pixels)
    assert observed.shape == pixels.shape
    one = observed.reshape(*observed.shape[:3], -1)
    assert (one == one[..., :1]).all()
    height, width = shape[:2]
    if holes.endswith("block"):
        assert ((~one[..., 0]).sum((1, 2)) == (height // 2) * (width // 2)).all()
        moved = (one != one[:1]).any()
        assert moved == (holes == "random-block")
    else:
        assert (~observed).mean() == pytest.approx(int(holes.rpartition("-")[2]) / 100, abs=0.02)
    np.testing.assert_array_equal(observed, pixels_kept("toy", holes, 0, pixels))
    if holes != "centre-block":
        assert (observed != pixels_kept("toy", holes, 1, pixels)).any()


def test_random_block_reaches_every_corner():
    observed = pixels_kept("toy", "random-block", 0, np.zeros((500, 8, 8)))
    assert not observed[:, [0, 0, -1, -1], [0, -1, 0, -1]].all(0).any()


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_peers_fill_holes_and_nothing_else(name, channels):
    train, test = blobs(80, channels=channels), blobs(6, channels=channels, seed=1)
    if test[0].size > PEERS[name].max_pixels:
        pytest.skip("not for images of this size")
    fill = PEERS[name].fit(train, 0, **SHORT.get(name, {}))
    for holes in HOLES:
        observed = pixels_kept("toy", holes, 0, test)
        filled = fill(hide_pixels(test, observed))
        assert filled.shape == test.shape
        np.testing.assert_allclose(filled[observed], test[observed], atol=1e-3)
        assert np.isfinite(filled).all()


def test_knn_finds_the_same_image():
    train = blobs(40)
    observed = pixels_kept("toy", "scattered-50", 0, train)
    filled = PEERS["knn"].fit(train, 0, k=1)(hide_pixels(train, observed))
    assert np.abs(filled - train).mean() < 0.1  # two blobs may agree in all that is observed


def test_ppca_is_the_gaussian_conditional_mean():
    """Against the textbook formula on the model's own covariance."""
    rng = np.random.default_rng(0)
    train = (rng.standard_normal((500, 3)) @ rng.standard_normal((3, 16)) + rng.standard_normal((500, 16))).reshape(
        500, 4, 4
    )
    row = train[:1].copy()
    hidden = np.arange(16) < 5
    row.reshape(-1)[hidden] = np.nan
    said = PEERS["ppca"].fit(train, 0, n_factors=3)(row).reshape(-1)[hidden]
    values, vectors = np.linalg.eigh(np.cov(train.reshape(500, 16).T))
    noise = values[:-3].mean()
    covariance = vectors[:, -3:] @ np.diag(values[-3:] - noise) @ vectors[:, -3:].T + noise * np.eye(16)
    mean, kept = train.reshape(500, 16).mean(0), ~hidden
    gain = covariance[np.ix_(hidden, kept)] @ np.linalg.inv(covariance[np.ix_(kept, kept)])
    np.testing.assert_allclose(said, mean[hidden] + gain @ (row.reshape(-1) - mean)[kept], atol=1e-4)


@pytest.mark.parametrize("name", ["conv-ae", "unet"])
def test_networks_learn_and_repeat(name):
    train, test = blobs(200), blobs(50, seed=1)
    observed = pixels_kept("toy", "centre-block", 0, test)
    holed = hide_pixels(test, observed)
    short = [PEERS[name].fit(train, 0, steps=10)(holed) for _ in range(2)]
    np.testing.assert_array_equal(*short)
    filled = PEERS[name].fit(train, 0, steps=300)(holed)
    error = images.judge(test, filled, observed, 16)["rmse"]
    assert error < 0.8 * images.judge(test, PEERS["mean"].fit(train, 0)(holed), observed, 16)["rmse"]


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "vaeimpute"])
def test_detectors_tell_stripes_from_blobs(name):
    scores = DETECTORS[name](blobs(200), 0)(np.concatenate([blobs(20, seed=1), stripes(20)]))
    assert scores.shape == (40,)
    assert scores[20:].min() > np.median(scores[:20])


def test_judge():
    """RMSE and PSNR by hand; no error gives SSIM 1; values outside the range count as its ends."""
    truth = blobs(3, peak=10).astype(float)
    observed = pixels_kept("toy", "scattered-50", 0, truth)
    off = np.where(observed, truth, np.minimum(truth, 9) + 1)
    scores = images.judge(truth, off, observed, 10)
    error = (off - truth)[~observed] / 10
    assert scores["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert scores["psnr"] == pytest.approx(-20 * np.log10(scores["rmse"]))
    assert scores["hidden"] == (~observed).sum()
    perfect = images.judge(truth, truth, observed, 10)
    assert (perfect["rmse"], perfect["ssim"]) == (0, 1)
    assert scores["ssim"] < 1
    low = np.where(observed, truth, -5.0)
    assert images.judge(truth, low, observed, 10) == images.judge(truth, np.maximum(low, 0), observed, 10)


def test_judge_refuses_holes_and_changes():
    truth = blobs(2).astype(float)
    observed = pixels_kept("toy", "scattered-50", 0, truth)
    with pytest.raises(ValueError, match="left 1 holes"):
        images.judge(truth, np.where(np.arange(128).reshape(2, 8, 8) == 5, np.nan, truth), observed, 16)
    with pytest.raises(ValueError, match="changed"):
        images.judge(truth, truth + 1, observed, 16)


@pytest.mark.usefixtures("toy")
def test_run_resumes_and_reports(tmp_path):
    out = tmp_path / "images.jsonl"
    arguments = ("--methods", "mean,knn", "--test", 15, "--out", out)
    invoke(*arguments, "--cases", "digit 0,mnist-fashion")
    lines = lines_of(out)
    assert len(lines) == 4 * 2 * 4 + 2  # sets, methods, holes; knn finds anomalies, too
    assert not any("error" in line for line in lines)
    assert {line["test"] for line in lines if line["task"] == "images"} == {10, 15}
    assert {line["train"] for line in lines if line["set"] == "digit 0"} == {60}
    assert "34 of 34 lines" in invoke(*arguments, "--cases", "digit 0,mnist-fashion")
    assert lines_of(out) == lines

    text = invoke("--report", "--out", out)
    assert "**Images: digits, centre-block, fitted to at most 5,000 images**" in text
    best = min((line for line in lines if (line["set"], line["holes"]) == ("digits", "centre-block")), key=rmse)
    row = next(line for line in text.splitlines() if line.startswith("| digits, centre-block |"))
    assert f"**{best['rmse']:.4f}**" in row
    anomalies = images.image_tables(lines)["Images: anomalies, AUROC, fitted to at most 5,000 images"]
    assert anomalies.loc["knn", "mean of ten digits"] == ""  # not all ten are there
    assert float(anomalies.loc["knn", "digit 0"]) > 0.9


def rmse(line: dict) -> float:
    return line["rmse"]


@pytest.mark.usefixtures("toy")
def test_one_fit_serves_all_holes_and_failures_end_nothing(tmp_path, monkeypatch):
    fits = []

    def brittle(train, seed):
        fits.append(seed)
        mean = PEERS["mean"].fit(train, seed)

        def fill(holed):
            if np.isnan(holed).mean() > 0.7:
                raise RuntimeError("too many holes")
            return mean(holed)

        return fill

    monkeypatch.setitem(PEERS, "mean", Peer(PEERS["mean"].fit, bits=lambda fill, X, observed: 1.5))
    monkeypatch.setitem(PEERS, "knn", Peer(brittle))
    out = tmp_path / "images.jsonl"
    arguments = ("--tasks", "images", "--sets", "digits", "--methods", "knn,mean", "--out", out)
    assert "1 lines failed" in invoke(*arguments)
    lines = lines_of(out)
    assert fits == [0]
    assert [line["error"] for line in lines if "error" in line] == ["RuntimeError: too many holes"]
    assert {line["bits"] for line in lines if line["method"] == "mean"} == {1.5}
    assert sum(line["method"] == "knn" and "rmse" in line for line in lines) == 3
    monkeypatch.setitem(PEERS, "knn", Peer(PEERS["mean"].fit))
    assert "7 of 8 lines" in invoke(*arguments)  # only the failed one again
    assert "error" not in lines_of(out)[-1]
    assert (
        images.image_tables(lines_of(out))["Images: digits, scattered-80, fitted to at most 5,000 images"].shape[0] == 2
    )


@pytest.mark.usefixtures("toy")
def test_params_are_one_methods_and_name_its_lines(tmp_path):
    out = tmp_path / "images.jsonl"
    common = ("--tasks", "images", "--sets", "digits", "--holes", "centre-block", "--out", out)
    invoke(*common, "--methods", "knn", "--params", '{"k": 3}')
    assert [line["method"] for line in lines_of(out)] == ["knn[k=3]"]
    assert "1 of 1 lines" in invoke(*common, "--methods", "knn", "--params", '{"k": 3}')
    refused = CliRunner().invoke(images.main, ["--methods", "mean,knn", "--params", '{"k": 3}'])
    assert "one method's" in refused.output
    assert "unknown lasso" in CliRunner().invoke(images.main, ["--methods", "lasso"]).output


def test_missing_files_say_where_they_belong(monkeypatch, tmp_path):
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"images/mnist\.npz"):
        image_sets.stored("mnist")
    digits = image_sets.bundled_digits()
    assert (len(digits.train), len(digits.test), digits.train.max()) == (1297, 500, digits.peak)
