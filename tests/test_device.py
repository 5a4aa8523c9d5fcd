"""Nothing assumes the CPU: fits and answers on a device whose tensors do not mix with those of the CPU."""

import numpy as np
import pandas as pd
import pytest
import torch
from far_device import far_device
from numpy.testing import assert_allclose

from vaeimpute import VAEImputer, VAEOutlierDetector

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of poor columns


@pytest.fixture
def far():
    with far_device() as name:
        yield name


def mixed(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, n))
    frame = pd.DataFrame(
        {
            "real": x + 0.3 * rng.normal(size=n),
            "positive": np.exp(2 * y),
            "count": pd.array(rng.poisson(np.exp(x / 2)), dtype="Int64"),
            "few": np.round(2 * y) / 2,
            "class": rng.choice(list("abc"), n),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], n), ["S", "M", "L"], ordered=True),
            "flag": pd.array(x > 0, dtype="boolean"),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**7, n), unit="s"),
        }
    )
    return frame.mask(rng.random(frame.shape) < 0.25)


def test_the_device_is_one_of_its_own(far):
    there, here = torch.arange(6.0, device=far), torch.arange(6.0)
    assert there.device.type == far
    assert (there * 2).sum().item() == 30
    assert torch.equal(there.cpu(), here)
    assert torch.equal(there[torch.tensor([1, 2])].cpu(), here[1:3])  # indices may come from the CPU
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        here[there.long()]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize("n", [30, 120])
def test_tables(far, tmp_path, n):
    X = mixed(n)
    there = VAEImputer(device=far, time_budget=4, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEImputer.load(tmp_path / "m", device="cpu")
    numbers = ["real", "positive", "few"]
    for point in ("mean", "median"):
        one, two = (model.set_params(point=point).impute(X)[numbers] for model in (there, here))
        pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-3)
    assert_allclose(there.score_samples(X), here.score_samples(X), rtol=1e-3, atol=1e-3)
    assert_allclose(there.anomaly_score(X), here.anomaly_score(X), rtol=1e-3, atol=1e-3)
    assert_allclose(there.cell_anomaly_score(X), here.cell_anomaly_score(X), rtol=1e-3, atol=1e-2)
    assert_allclose(there.decode(there.encode(X))[numbers], here.decode(here.encode(X))[numbers], rtol=1e-3, atol=1e-3)
    assert len(there.impute(X, n_imputations=2, random_state=0)) == 2
    assert there.sample(3, random_state=0).shape == (3, X.shape[1])


@pytest.mark.parametrize("robust", [False, True])
def test_outliers(far, tmp_path, robust):
    X = mixed(150)
    there = VAEOutlierDetector(device=far, robust=robust, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEOutlierDetector.load(tmp_path / "m", device="cpu")
    for method in ("anomaly_score", "p_values", "cell_anomaly_score"):
        assert_allclose(getattr(there, method)(X), getattr(here, method)(X), rtol=1e-3, atol=1e-3)
    pd.testing.assert_frame_equal(there.repair(X), here.repair(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["count", "numeric"])
def test_images(far, short, tmp_path, kind):
    X = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).cumsum(1) % 17
    there = VAEImputer(image_shape=(8, 8), kinds=kind, device=far, time_budget=4, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEImputer.load(tmp_path / "m", device="cpu")
    holed = X[:5].astype(float)
    holed[:, 2:5, 2:5] = np.nan
    assert_allclose(there.impute(holed), here.impute(holed), atol=0.01)
    assert_allclose(there.anomaly_score(holed), here.anomaly_score(holed), atol=0.01)
    assert there.sample(2, random_state=0).shape == (2, 8, 8)


def test_strange_images(far, short, tmp_path):
    X = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).cumsum(1) % 17
    there = VAEOutlierDetector(image_shape=(8, 8), device=far, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEOutlierDetector.load(tmp_path / "m", device="cpu")
    assert_allclose(there.anomaly_score(X), here.anomaly_score(X), atol=0.01)
    assert_allclose(there.cell_anomaly_score(X), here.cell_anomaly_score(X), atol=0.01)
