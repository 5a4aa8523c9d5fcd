"""Distances to reference rows: those of scikit-learn over the cells that are there, and never to the row itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import nan_euclidean_distances
from sklearn.neighbors import NearestNeighbors

from vaeimpute.anomaly.neighbours import knn_distances
from vaeimpute.batching import row_slices

F64 = torch.float64


def rows(n, n_features, missing, seed):
    g = torch.Generator().manual_seed(seed)
    observed = torch.rand(n, n_features, generator=g) >= missing
    observed[:, 0] = True
    return torch.randn(n, n_features, dtype=F64, generator=g), observed


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_new_rows_have_the_neighbours_of_scikit_learn(missing, dtype):
    reference, (x, observed) = rows(60, 5, 0.0, 0)[0], rows(40, 5, missing, 1)
    with_nan = torch.where(observed, x, torch.nan).numpy()
    # which counts a missing feature as if it were as far as the others
    peer = nan_euclidean_distances(with_nan, reference.numpy()) * np.sqrt(observed.numpy().mean(1, keepdims=True))
    expected = NearestNeighbors(n_neighbors=7, metric="precomputed").fit(np.zeros((60, 60))).kneighbors(peer)[0]
    got = knn_distances(reference.to(dtype), x.to(dtype), observed, 7)
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_row_itself_is_passed_over(missing, dtype):
    reference, observed = rows(40, 5, missing, 0)
    reference = reference.to(dtype)
    squares = ((reference.unsqueeze(1) - reference) ** 2 * observed.unsqueeze(1)).sum(-1)
    by_hand = squares.fill_diagonal_(torch.inf).sort(1).values[:, :3].sqrt()
    torch.testing.assert_close(knn_distances(reference, reference, observed, 3), by_hand)
    twice = torch.cat([reference, reference])  # of two copies, one is a neighbour
    assert (knn_distances(twice, reference, observed, 3)[:, 0] == 0).all()


def test_what_is_missing_has_no_say():
    reference, (x, observed) = rows(60, 5, 0.0, 0)[0], rows(40, 5, 0.4, 1)
    spoiled = torch.where(observed, x, 1e6)
    torch.testing.assert_close(knn_distances(reference, spoiled, observed, 3), knn_distances(reference, x, observed, 3))
    nothing = torch.zeros_like(observed)
    assert (knn_distances(reference, x, nothing, 3) == 0).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_of_few_reference_rows_all_are_neighbours(n):
    reference = torch.zeros(n, 2)
    distances = knn_distances(reference, reference[:1] + 3, torch.tensor([[True, False]]), 3)
    assert distances.tolist() == [[3.0] * min(3, max(1, n - 1))]


def test_batches_of_rows_do_not_matter():
    reference, (x, observed) = rows(4000, 3, 0.0, 0)[0], rows(300, 3, 0.3, 1)
    assert len(list(row_slices(300, 3 * 4000))) > 1
    one_by_one = [knn_distances(reference, x[[i]], observed[[i]], 2) for i in range(300)]
    torch.testing.assert_close(knn_distances(reference, x, observed, 2), torch.cat(one_by_one))
