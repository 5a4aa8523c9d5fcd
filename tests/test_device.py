"""Nothing assumes the CPU: fits and answers on a device whose tensors do not mix with those of the CPU."""

import numpy as np
import pandas as pd
import pytest
import torch
from far_device import far_device
from numpy.testing import assert_allclose

from vaeimpute import VAEImputer, VAEOutlierDetector
from vaeimpute.training.runtime import make_generator

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


def test_a_generator_draws_on_its_own_device_only(far):
    there, here = (make_generator(0, device) for device in (far, "cpu"))
    assert there.device.type == far
    drawn = torch.rand(3, device=far, generator=there)
    assert drawn.device.type == far
    assert torch.equal(drawn.cpu(), torch.rand(3, generator=here))
    torch.empty(3, device=far).normal_(generator=there)
    for tensor, generator in ((torch.zeros(3), there), (torch.zeros(3, device=far), here)):
        with pytest.raises(RuntimeError, match="expected a generator"):
            tensor.normal_(generator=generator)
    with pytest.raises(RuntimeError, match="expected a generator"):
        torch.randperm(5, generator=there)


@pytest.mark.parametrize(
    ("n", "effort"),
    [(20, "auto"), pytest.param(60, "auto", marks=pytest.mark.slow), pytest.param(60, "full", marks=pytest.mark.slow)],
)
def test_tables(far, tmp_path, n, effort):
    X = mixed(n)[["real", "positive", "few", *(["class"] if n > 40 else ["count", "class", "size", "flag", "day"])]]
    there = VAEImputer(effort=effort, device=far, max_iter=6, random_state=0).fit(X)
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


@pytest.mark.parametrize("robust", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_outliers(far, tmp_path, robust):
    X = mixed(30)[["real", "few", "class"]]
    there = VAEOutlierDetector(device=far, robust=robust, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEOutlierDetector.load(tmp_path / "m", device="cpu")
    for method in ("anomaly_score", "p_values", "cell_anomaly_score"):
        assert_allclose(getattr(there, method)(X), getattr(here, method)(X), rtol=1e-3, atol=1e-3)
    pd.testing.assert_frame_equal(there.repair(X), here.repair(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("count", marks=pytest.mark.slow), "numeric"])
def test_images(far, short, tmp_path, kind):
    X = np.random.default_rng(0).integers(0, 17, (40, 6, 6)).cumsum(1) % 17
    there = VAEImputer(image_shape=(6, 6), kinds=kind, device=far, max_iter=6, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEImputer.load(tmp_path / "m", device="cpu")
    incomplete = X[:5].astype(float)
    incomplete[:, 2:5, 2:5] = np.nan
    assert_allclose(there.impute(incomplete), here.impute(incomplete), atol=0.01)
    assert_allclose(there.anomaly_score(incomplete), here.anomaly_score(incomplete), atol=0.01)
    assert there.sample(2, random_state=0).shape == (2, 6, 6)


@pytest.mark.slow
def test_anomalous_images(far, short, tmp_path):
    X = np.random.default_rng(0).integers(0, 17, (40, 6, 6)).cumsum(1) % 17
    there = VAEOutlierDetector(image_shape=(6, 6), device=far, random_state=0).fit(X)
    there.save(tmp_path / "m")
    here = VAEOutlierDetector.load(tmp_path / "m", device="cpu")
    assert_allclose(there.anomaly_score(X), here.anomaly_score(X), atol=0.01)
    assert_allclose(there.cell_anomaly_score(X), here.cell_anomaly_score(X), atol=0.01)
