"""Normal scores: where the quantile function has a cell, and the middle of the step of a value that repeats."""

import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.likelihoods.margins import Margins


def columns(n=400):
    draw = RandomTensors()
    smooth = torch.stack([draw.normal(n), draw.normal(n).exp()], 1)
    steps = torch.stack([draw.normal(n).mul(2).round(), draw.normal(n).clamp(min=0)], 1)
    return torch.cat([smooth, steps], 1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_quantiles_of_scores_are_the_cells_and_scores_look_normal(dtype):
    x = columns()
    margins = Margins.fit(x, torch.ones_like(x, dtype=torch.bool))
    scores = margins.scores(x.to(dtype))
    torch.testing.assert_close(margins.quantile(scores), x, atol=1e-4, rtol=1e-4)
    assert scores[:, :3].mean(0).abs().max() < 0.05
    assert (scores[:, :3].std(0) - 1).abs().max() < 0.1
    zeros = x[:, 3] == 0
    middle = torch.special.ndtri(zeros.double().mean() / 2)
    torch.testing.assert_close(scores[zeros, 3], middle.expand(int(zeros.sum())), atol=1e-6, rtol=0)


def test_scores_rise_with_cells_and_go_on_beyond_the_last():
    x = columns()
    margins = Margins.fit(x, torch.ones_like(x, dtype=torch.bool))
    far = torch.linspace(-9, 9, 200, dtype=F64).unsqueeze(1).expand(-1, 4)
    scores = margins.scores(far)
    assert (scores.diff(dim=0) >= -1e-9).all()
    assert scores.isfinite().all()
    assert (scores[-1, :2] > scores[-20, :2]).all()


def test_the_mean_of_a_margin_is_that_of_its_draws():
    x = columns()
    margins = Margins.fit(x, torch.ones_like(x, dtype=torch.bool))
    mu, sigma = torch.full((1, 4), 0.3, dtype=F64), torch.full((1, 4), 0.7, dtype=F64)
    t = RandomTensors(1).normal(40_000, 1)
    torch.testing.assert_close(
        margins.mean(mu, sigma)[0], margins.quantile(mu + sigma * t).mean(0), atol=0.03, rtol=0.03
    )
