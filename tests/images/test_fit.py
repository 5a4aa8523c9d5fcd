"""From images to their models: steps, seeds, threads, images that are odd, and patterns that only a model can know."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toy import image_tensors, images

from vaeimpute.images.fit import fit_detector, fit_imputer
from vaeimpute.persistence import to_state
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae.inference import draw, impute, log_likelihood


def fit(X, seed=0, **options):
    return fit_imputer(image_tensors(X), seed=seed, dtype=torch.float32, **options)


def tensors_of(models):
    return to_state({"ensemble_": models.ensemble, "density_": models.density})[0]


def are_equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_the_same_seed_and_steps_give_the_same_fit_bit_for_bit():
    state = torch.get_rng_state()
    one, same, other, longer = (
        tensors_of(fit(images(40), seed, max_iter=max_iter)) for seed, max_iter in ((3, 4), (3, 4), (4, 4), (3, 8))
    )
    assert are_equal(one, same)
    assert not are_equal(one, other)
    assert not are_equal(one, longer)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_threads_that_fit_at_once_give_what_each_gives_alone():
    def learnt(seed):
        models = fit(images(40 + seed), seed, max_iter=3)
        values, observed = image_tensors(images(40 + seed))[:2]
        return tensors_of(models), draw(models.ensemble, values, observed, 2, make_generator(seed))

    alone = [learnt(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(learnt, range(2)))
    for (tensors, draws), (same, again) in zip(alone, together, strict=True):
        assert are_equal(tensors, same)
        assert torch.equal(draws, again)


@pytest.mark.parametrize("max_iter", [1, 12])
def test_no_model_takes_more_steps_than_max_iter(max_iter):
    seen = []
    models = fit(images(40), max_iter=max_iter, on_evaluation=lambda *told: seen.append(told))
    for name in ("joint", "conditional"):
        steps = [record["step"] for record in models.history if record["model"] == name]
        assert steps == [0, max_iter]
    assert [(name, record["step"], n_steps) for name, record, n_steps in seen] == [
        ("joint", max_iter, max_iter),
        ("conditional", max_iter, max_iter),
    ]


def test_a_spent_budget_and_an_interrupt_leave_what_there_is():
    def interrupt(model, record, n_steps):
        raise KeyboardInterrupt

    spent = fit(images(40), time_budget=1e-9)
    assert not spent.interrupted
    assert [record["step"] for record in spent.history] == [0, 0]
    stopped = fit(images(40), max_iter=2, on_evaluation=interrupt)
    assert stopped.interrupted
    values, observed, *_ = image_tensors(images(40))
    for models in (spent, stopped):
        filled = impute(models.ensemble, values, observed)
        assert filled.isfinite().all()
        assert torch.equal(filled[observed], values[observed])


def test_an_interrupt_ends_the_fit_of_a_detector(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupt)
    models = fit_detector(image_tensors(images(30)), seed=0, dtype=torch.float32)
    assert models.interrupted
    assert models.ensemble is None
    values, observed, *_ = image_tensors(images(30))
    assert np.isfinite(models.density.anomaly_score(values, observed)).all()


def test_images_start_smooth_where_they_are():
    """Of gradients the pixels around tell most; of one rough pattern that all images share, the mean image does."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(60, 1, 1)) * np.linspace(0, 1, 8) + np.zeros((60, 8, 8))
    pattern = rng.normal(size=(8, 8)) + 0.1 * rng.normal(size=(60, 8, 8))
    for X, is_smooth in ((gradients, True), (pattern, False)):
        models = fit(X, time_budget=1e-9)
        assert models.ensemble.conditional.sizes.inpaints == is_smooth
        assert not models.ensemble.joint.sizes.inpaints


@pytest.mark.parametrize("n", [1, 2, 12])
def test_few_images(n):
    X = images(n)
    models = fit(X, max_iter=3)
    values, observed, *_ = image_tensors(X)
    filled = impute(models.ensemble, values, observed)
    assert filled.isfinite().all()
    assert filled.min() >= 0
    assert filled.max() <= 1
    assert log_likelihood(models.ensemble, values, observed).isfinite().all()
    assert np.isfinite(models.density.anomaly_score(values, observed)).all()


def test_images_without_any_difference():
    X = np.zeros((30, 6, 5), dtype=np.uint8)
    models = fit(X, max_iter=3)
    values, observed, *_ = image_tensors(X)
    observed[:, ::3] = False
    assert impute(models.ensemble, values, observed).isfinite().all()
    assert models.density.cell_scores(values, observed).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "max_iter"), [("boolean", 60), ("numeric", 150)])
def test_a_pattern_or_its_negative(kind, max_iter):
    """What is left of an image says which of both it is; only the noise cannot be known. The mean says nothing."""
    rng, noise = np.random.default_rng(0), 0.1
    pattern = rng.choice([-1.0, 1.0], (4, 4))
    X = pattern * rng.choice([-1, 1], (200, 1, 1)) + rng.normal(0, noise, (200, 4, 4))
    data = image_tensors(X > 0 if kind == "boolean" else X)
    assert data.kind == kind
    models = fit_imputer(data, seed=0, dtype=torch.float32, max_iter=max_iter)
    visible = torch.ones(4, 4, dtype=torch.bool)
    visible[1:3, 1:3] = False
    visible = visible.flatten().expand_as(data.observed)
    filled = impute(models.ensemble, data.values, visible)
    error = (filled - data.values)[~visible].square().mean().item()  # pixels have a variance of one
    if kind == "boolean":
        assert set(filled.unique().tolist()) <= {0.0, 1.0}
        assert error == 0
    else:
        assert error < 1.5 * noise**2


def test_colour_and_missing_pixels_in_the_training():
    """Each image has its colour: what is left of it tells the rest, and a few steps must not lose that."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (60, 1, 1, 3))
    X = np.clip(base + rng.integers(-9, 10, (60, 5, 7, 3)), 0, 255).astype(float)
    missing = rng.random(X.shape) < 0.3
    incomplete = image_tensors(np.where(missing, np.nan, X))
    models = fit_imputer(incomplete, seed=0, dtype=torch.float32, max_iter=8)
    filled = 255 * impute(models.ensemble, incomplete.values, incomplete.observed).numpy().reshape(X.shape)
    assert np.abs(filled - X)[missing].mean() < 0.5 * np.abs(X.mean(0) - X)[missing].mean()


@pytest.mark.gpu
def test_images_on_a_gpu():
    device = torch.device("cuda")
    data = image_tensors(images(200))
    on_gpu = data._replace(values=data.values.to(device), observed=data.observed.to(device))
    models = fit_imputer(on_gpu, seed=0, dtype=torch.float32, max_iter=60)
    filled = impute(models.ensemble, *on_gpu[:2])
    assert filled.device.type == "cuda"
    assert filled.isfinite().all()
    assert np.isfinite(models.density.anomaly_score(*on_gpu[:2])).all()
