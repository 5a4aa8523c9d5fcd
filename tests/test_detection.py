"""detection: distances are those of a search by hand, and a robust fit loses no rows over their wrong cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaeimpute.tables import density as detection
from vaeimpute.tables.data import Table


def fitted(x, trimmed=0.0):
    x = torch.as_tensor(x)
    table = Table(x.nan_to_num(), ~x.isnan(), ["numeric"] * x.shape[1], [0] * x.shape[1])
    return detection.fit_density(table, seed=0, dtype=torch.float64, trimmed=trimmed)[0]


def rows(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) * [1.0, -1.0, 1.0, 1.0, -1.0] * 0.9 + 0.4 * rng.normal(size=(n, 5))


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_over_the_observed_cells_pass_over_the_row_itself(holes, dtype):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(40, 5, generator=generator).to(dtype)
    observed = torch.rand(40, 5, generator=generator) >= holes
    observed[:, 0] = True
    squares = ((bank.unsqueeze(1) - bank) ** 2 * observed.unsqueeze(1)).sum(-1)
    by_hand = squares.fill_diagonal_(torch.inf).sort(1).values[:, :3].sqrt()
    torch.testing.assert_close(detection._distances(bank, bank, observed, 3), by_hand)
    twice = torch.cat([bank, bank])  # of two copies, one is a neighbour
    assert (detection._distances(twice, bank, observed, 3)[:, 0] == 0).all()


def test_distances_in_a_bank_of_one():
    bank = torch.zeros(1, 2)
    assert detection._distances(bank, bank + 3, torch.tensor([[True, False]]), 3).tolist() == [[3.0]]


def test_new_rows_and_training_rows_score_alike():
    train, new = rows(1000, 0), rows(1000, 1)
    density = fitted(train)
    observed = torch.ones(1000, 5, dtype=torch.bool)
    scores = [detection.row_scores(density, torch.as_tensor(x), observed)[1:, 0].mean(1) for x in (train, new)]
    torch.testing.assert_close(*scores, rtol=0.05, atol=0)


def test_a_robust_fit_hides_wrong_cells_and_keeps_their_rows():
    x = rows(600, 0)
    wrong = np.random.default_rng(1).random(x.shape) < 0.05
    new = torch.as_tensor(rows(300, 2))

    def expected(density):
        return detection.cells(density, new, torch.ones_like(new, dtype=torch.bool))[0]

    dirty, of_clean = np.where(wrong, x + 5, x), expected(fitted(x))
    robust, plain = ((expected(fitted(dirty, share)) - of_clean).square().mean() for share in (0.35, 0.0))
    assert robust < plain / 2


def test_a_cell_that_cannot_be_is_strange_however_likely_its_neighbours_are():
    x = np.round(4 * rows(500, 0))
    new, observed = torch.as_tensor(np.round(4 * rows(100, 1))), torch.ones(100, 5, dtype=torch.bool)
    density = fitted(x)
    right = detection.cells(density, new, observed)[1][:, 0]
    between = torch.cat([new[:, :1] + 0.5, new[:, 1:]], 1)
    assert (detection.cells(density, between, observed)[1][:, 0] > right + 4).all()


def test_a_density_comes_back():
    density = fitted(rows(200, 0), trimmed=0.2)
    copy = detection.from_state(*detection.to_state(density), torch.device("cpu"))
    new, observed = torch.as_tensor(rows(50, 1)), torch.ones(50, 5, dtype=torch.bool)
    assert torch.equal(detection.row_scores(copy, new, observed), detection.row_scores(density, new, observed))
    assert torch.equal(detection.cells(copy, new, observed)[1], detection.cells(density, new, observed)[1])


def test_errors_between_the_steps_do_not_make_rare_values_strange():
    rng = np.random.default_rng(0)
    x = (rng.random((1200, 4)) < 0.03).astype(float)
    wrong = rng.random(x.shape) < 0.05
    holed = torch.as_tensor(np.where(wrong, x + rng.uniform(0.2, 0.8, x.shape), x))
    density = fitted(holed[:600], trimmed=0.35)
    _, scores = detection.cells(density, holed[600:], torch.ones(600, 4, dtype=torch.bool))
    rare = torch.as_tensor(x[600:] == 1) & ~torch.as_tensor(wrong[600:])
    assert scores[rare].max() < scores[torch.as_tensor(wrong[600:])].min()
