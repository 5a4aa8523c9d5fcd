"""How good were the imputations and the intervals: errors on hidden cells, scores of draws, distances of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vaeimpute.batching import row_slices

__all__ = [
    "balanced_accuracy",
    "category_error",
    "column_category_error",
    "column_nmae",
    "column_nrmse",
    "crps_from_draws",
    "energy_distance",
    "interval_coverage",
    "interval_width",
    "nmae",
    "nrmse",
    "sliced_wasserstein",
]


def nrmse(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> float:
    r"""Root mean squared error over all hidden cells, each in units of its column's standard deviation.

    .. math:: \sqrt{\tfrac{1}{|H|} \sum_{(i,j) \in H} \big((\hat x_{ij} - x_{ij}) / s_j\big)^2}

    Filling with the column's mean scores about 1.

    Parameters
    ----------
    truth : array-like of shape (n_rows, n_columns)
        The true table; :math:`s_j` is its standard deviation per column, NaN left out. Columns with :math:`s_j = 0`
        are not counted.
    imputed : array-like of shape (n_rows, n_columns)
        The completed table.
    hidden : bool array-like of shape (n_rows, n_columns)
        True where a cell was hidden and is to be judged; a cell with no true value (NaN) is not counted.

    Returns
    -------
    float
        NaN if nothing is counted.

    Examples
    --------
    >>> truth, hidden = [[0.0, 10.0], [2.0, 30.0]], [[True, False], [True, True]]
    >>> round(nrmse(truth, [[1.0, 10.0], [2.0, 40.0]], hidden), 4)  # errors of 1 sd, 0 sd and 1 sd
    0.8165
    """
    errors, counted = _standardised_errors(truth, imputed, hidden)
    return float(np.sqrt(_mean(errors**2, counted)))


def column_nrmse(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> np.ndarray:
    """`nrmse` of each column alone.

    Parameters
    ----------
    truth, imputed : array-like of shape (n_rows, n_columns)
        The true and the completed table.
    hidden : bool array-like of shape (n_rows, n_columns)
        True where a cell is to be judged.

    Returns
    -------
    ndarray of shape (n_columns,)
        NaN where a column has nothing to judge.

    Examples
    --------
    >>> truth, hidden = [[0.0, 10.0], [2.0, 30.0]], [[True, False], [True, True]]
    >>> column_nrmse(truth, [[1.0, 10.0], [2.0, 40.0]], hidden).round(4)
    array([0.7071, 1.    ])
    """
    errors, counted = _standardised_errors(truth, imputed, hidden)
    return np.sqrt(_mean(errors**2, counted, axis=0))


def nmae(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> float:
    r"""Mean absolute error over all hidden cells, each in units of its column's standard deviation.

    .. math:: \tfrac{1}{|H|} \sum_{(i,j) \in H} |\hat x_{ij} - x_{ij}| / s_j

    Parameters
    ----------
    truth, imputed : array-like of shape (n_rows, n_columns)
        The true and the completed table; units and what is counted are those of `nrmse`.
    hidden : bool array-like of shape (n_rows, n_columns)
        True where a cell is to be judged.

    Returns
    -------
    float
        NaN if nothing is counted.

    Examples
    --------
    >>> truth, hidden = [[0.0, 10.0], [2.0, 30.0]], [[True, False], [True, True]]
    >>> round(nmae(truth, [[1.0, 10.0], [2.0, 40.0]], hidden), 4)
    0.6667
    """
    errors, counted = _standardised_errors(truth, imputed, hidden)
    return float(_mean(np.abs(errors), counted))


def column_nmae(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> np.ndarray:
    """`nmae` of each column alone.

    Parameters
    ----------
    truth, imputed : array-like of shape (n_rows, n_columns)
        The true and the completed table.
    hidden : bool array-like of shape (n_rows, n_columns)
        True where a cell is to be judged.

    Returns
    -------
    ndarray of shape (n_columns,)
        NaN where a column has nothing to judge.

    Examples
    --------
    >>> truth, hidden = [[0.0, 10.0], [2.0, 30.0]], [[True, False], [True, True]]
    >>> column_nmae(truth, [[1.0, 10.0], [2.0, 40.0]], hidden)
    array([0.5, 1. ])
    """
    errors, counted = _standardised_errors(truth, imputed, hidden)
    return _mean(np.abs(errors), counted, axis=0)


def category_error(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> float:
    r"""Share of the hidden cells whose class is wrong, :math:`\tfrac{1}{|H|} \sum_H [\hat x_{ij} \ne x_{ij}]`.

    Parameters
    ----------
    truth, imputed : array-like of one shape
        Classes, of any type that compares.
    hidden : bool array-like of that shape
        True where a cell is to be judged.

    Returns
    -------
    float
        NaN if no cell is hidden.

    Examples
    --------
    >>> category_error(["a", "b", "b"], ["a", "a", "b"], [True, True, False])
    0.5
    """
    return float(_mean(*_class_errors(truth, imputed, hidden)))


def column_category_error(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> np.ndarray:
    """`category_error` of each column alone.

    Parameters
    ----------
    truth, imputed : array-like of shape (n_rows, n_columns)
        The true and the completed table.
    hidden : bool array-like of shape (n_rows, n_columns)
        True where a cell is to be judged.

    Returns
    -------
    ndarray of shape (n_columns,)
        NaN where a column has nothing to judge.

    Examples
    --------
    >>> column_category_error([["a", 0], ["b", 1]], [["a", 0], ["a", 1]], [[True, False], [True, True]])
    array([0.5, 0. ])
    """
    return _mean(*_class_errors(truth, imputed, hidden), axis=0)


def balanced_accuracy(truth: ArrayLike, imputed: ArrayLike) -> float:
    r"""Mean, over the true classes c, of the share of class c that was found.

    .. math:: \tfrac{1}{C} \sum_c P(\hat x = c \mid x = c)

    Guessing the most common class scores 1 / C.

    Parameters
    ----------
    truth, imputed : array-like of shape (n_cells,)
        True and imputed classes of one column's hidden cells.

    Returns
    -------
    float
        NaN if there are no cells.

    Examples
    --------
    >>> balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "a", "a"])
    0.5
    """
    truth, right = np.asarray(truth), np.asarray(truth) == np.asarray(imputed)
    if not len(truth):
        return float("nan")
    _, codes = np.unique(truth, return_inverse=True)
    return float((np.bincount(codes, weights=right) / np.bincount(codes)).mean())


def crps_from_draws(truth: ArrayLike, draws: ArrayLike) -> np.ndarray:
    r"""Continuous ranked probability score of each cell, estimated without bias from draws.

    .. math:: \tfrac1m \sum_k |x_k - y| - \tfrac{1}{2 m (m - 1)} \sum_{k, l} |x_k - x_l|

    Zero is perfect; one draw alone scores its absolute error. In the units of the cells: divide by the column's
    standard deviation before pooling columns.

    Parameters
    ----------
    truth : array-like of shape (n_cells,)
        True values y.
    draws : array-like of shape (m, n_cells)
        Draws of every cell, m of each.

    Returns
    -------
    ndarray of shape (n_cells,)
        Not negative in expectation; smaller is better.

    Examples
    --------
    >>> crps_from_draws([0.0, 1.0], [[-1.0, 1.0], [1.0, 1.0]])
    array([0., 0.])
    >>> crps_from_draws([3.0], [[1.0], [2.0]])
    array([1.])
    """
    truth, draws = _check_draws(truth, draws)
    m = len(draws)
    miss = np.abs(draws - truth).mean(axis=0)
    if m == 1:
        return miss
    # sum_{k,l} |x_k - x_l| = 2 sum_k (2k - m - 1) x_(k) over the sorted draws: m log m, not m^2.
    ranks = 2.0 * np.arange(1, m + 1) - m - 1
    return miss - ranks @ np.sort(draws, axis=0) / (m * (m - 1))


def interval_coverage(truth: ArrayLike, draws: ArrayLike, level: float = 0.9) -> float:
    r"""Share of cells whose truth lies in the central interval of its draws.

    The ends are the quantiles :math:`(1 \mp \mathrm{level}) / 2` at order-statistic position :math:`p (m + 1)`: if
    truth and draws come from one distribution the expected coverage is ``level`` for any m (at least 19 for 0.9),
    where NumPy's default quantile would give :math:`\mathrm{level} (m - 1) / (m + 1)`.

    Parameters
    ----------
    truth : array-like of shape (n_cells,)
        True values.
    draws : array-like of shape (m, n_cells)
        Draws of every cell, m of each.
    level : float, default=0.9
        Nominal coverage.

    Returns
    -------
    float
        NaN if there are no cells.

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.arange(1.0, 20.0)[:, None] + np.zeros(4)  # 1..19: the 90% interval is [1, 19]
    >>> interval_coverage([0.0, 1.0, 10.0, 19.0], draws)
    0.75
    """
    truth, draws = _check_draws(truth, draws)
    low, high = _interval(draws, level)
    inside = (low <= truth) & (truth <= high)
    return float(_mean(inside.astype(float), np.ones_like(inside)))


def interval_width(draws: ArrayLike, level: float = 0.9) -> float:
    """Mean width of the central intervals of `interval_coverage`, in the units of the cells.

    Parameters
    ----------
    draws : array-like of shape (m, n_cells)
        Draws of every cell, m of each.
    level : float, default=0.9
        Nominal coverage.

    Returns
    -------
    float
        NaN if there are no cells.

    Examples
    --------
    >>> import numpy as np
    >>> interval_width(np.arange(1.0, 20.0)[:, None])
    18.0
    """
    low, high = _interval(np.asarray(draws, dtype=float), level)
    return float(_mean(high - low, np.ones(low.shape, dtype=bool)))


def energy_distance(A: ArrayLike, B: ArrayLike) -> float:
    r"""Energy distance between two samples of rows, :math:`2 E|a - b| - E|a - a'| - E|b - b'|`.

    Zero if and only if the distributions agree; Euclidean, so standardise the columns first. The means run over all
    pairs (a row with itself included): the same sample twice scores 0, and two finite samples of one distribution
    score a little above it.

    Parameters
    ----------
    A : array-like of shape (n_a, n_columns)
        Rows of one sample.
    B : array-like of shape (n_b, n_columns)
        Rows of the other.

    Returns
    -------
    float
        Not negative; smaller is more alike.

    Examples
    --------
    >>> energy_distance([[0.0], [0.0]], [[3.0]])
    6.0
    """
    A, B = _check_rows(A, B)
    return 2 * _mean_distance(A, B) - _mean_distance(A, A) - _mean_distance(B, B)


def sliced_wasserstein(
    A: ArrayLike, B: ArrayLike, n_projections: int = 100, random_state: int | np.random.Generator | None = 0
) -> float:
    r"""Sliced 2-Wasserstein distance: samples compared by their quantiles along random directions.

    .. math:: \sqrt{ E_{\theta} \int_0^1 \big(F^{-1}_{\theta^\top A}(u) - F^{-1}_{\theta^\top B}(u)\big)^2 du },
              \qquad \theta \text{ uniform on the unit sphere}

    Exact along each direction for samples of equal size; otherwise the integral is a midpoint sum over as many points
    as the larger sample has rows.

    Parameters
    ----------
    A : array-like of shape (n_a, n_columns)
        Rows of one sample.
    B : array-like of shape (n_b, n_columns)
        Rows of the other.
    n_projections : int, default=100
        Number of directions.
    random_state : int, Generator or None, default=0
        Source of the directions.

    Returns
    -------
    float
        Not negative; smaller is more alike.

    Examples
    --------
    >>> sliced_wasserstein([[0.0], [1.0]], [[3.0], [4.0]])  # one column: the two samples are 3 apart
    3.0
    """
    A, B = _check_rows(A, B)
    directions = np.random.default_rng(random_state).standard_normal((A.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    A, B = np.sort(A @ directions, axis=0), np.sort(B @ directions, axis=0)
    n = max(len(A), len(B))
    points = (np.arange(n) + 0.5) / n
    gap = A[(points * len(A)).astype(int)] - B[(points * len(B)).astype(int)]
    return float(np.sqrt((gap**2).mean()))


def _standardised_errors(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(imputed - truth) / sd per cell, 0 where not counted; and which cells count, both (n, D)."""
    truth, imputed = np.asarray(truth, dtype=float), np.asarray(imputed, dtype=float)
    hidden = _check_cells(truth, imputed, hidden)
    present = ~np.isnan(truth)
    # NumPy's two-pass formula on the present cells only; a column without any has sd 0 and is not counted.
    sd = np.array(
        [column[there].std() if there.any() else 0.0 for column, there in zip(truth.T, present.T, strict=True)]
    )
    constant = sd <= 1e-12 * np.abs(np.where(present, truth, 0.0)).max(axis=0, initial=0.0)
    counted = hidden & present & ~constant
    errors = (np.where(counted, imputed, 0.0) - np.where(counted, truth, 0.0)) / np.where(constant, 1.0, sd)
    return errors, counted


def _class_errors(truth: ArrayLike, imputed: ArrayLike, hidden: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, imputed = np.asarray(truth), np.asarray(imputed)
    hidden = _check_cells(truth, imputed, hidden)
    return np.where(hidden, truth != imputed, False).astype(float), hidden


def _mean(x: np.ndarray, counted: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean over the counted cells; NaN, in silence, where there are none."""
    total, count = np.where(counted, x, 0.0).sum(axis=axis), counted.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(draws: np.ndarray, level: float) -> np.ndarray:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), but got {level!r}.")
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")


def _check_cells(truth: np.ndarray, imputed: np.ndarray, hidden: ArrayLike) -> np.ndarray:
    hidden = np.asarray(hidden)
    if not truth.shape == imputed.shape == hidden.shape:
        raise ValueError(
            f"truth, imputed and hidden must have one shape, but got {truth.shape}, {imputed.shape} and {hidden.shape}."
        )
    if hidden.dtype != bool:
        raise ValueError(f"hidden must be Boolean (True = judge this cell), but got dtype {hidden.dtype}.")
    return hidden


def _check_draws(truth: ArrayLike, draws: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, draws = np.asarray(truth, dtype=float), np.asarray(draws, dtype=float)
    if draws.ndim != 2 or draws.shape[1:] != truth.shape:
        raise ValueError(
            f"draws must be (m, n_cells) for truth of shape (n_cells,), but got shapes {draws.shape} and {truth.shape}."
        )
    return truth, draws


def _check_rows(A: ArrayLike, B: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    A, B = np.asarray(A, dtype=float), np.asarray(B, dtype=float)
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1] or not len(A) or not len(B):
        raise ValueError(f"A and B must be non-empty (rows, columns) of equal width, but got {A.shape} and {B.shape}.")
    return A, B


def _mean_distance(A: np.ndarray, B: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs, in blocks of rows to bound the memory."""
    squared_b, total = (B**2).sum(axis=1), 0.0
    for rows in row_slices(len(A), len(B)):
        squared = (A[rows] ** 2).sum(axis=1)[:, None] + squared_b - 2 * A[rows] @ B.T
        total += float(np.sqrt(np.maximum(squared, 0.0)).sum())
    return total / (len(A) * len(B))
