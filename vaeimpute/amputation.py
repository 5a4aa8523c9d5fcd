"""Make data missing on purpose: MCAR, MAR, MNAR and blocks, as a Boolean array of what stays observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Mechanism = Callable[..., np.ndarray]

__all__ = ["MECHANISMS", "ampute"]


def ampute(
    X: ArrayLike,
    rate: float = 0.3,
    mechanism: str = "mcar",
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    **options: Any,
) -> np.ndarray:
    r"""Choose cells of a complete (or incomplete) table to hide.

    ================  ==============================================================================================
    mechanism         P(cell (i, j) is hidden)
    ================  ==============================================================================================
    ``mcar``          ``rate``
    ``mar``           :math:`\sigma(w_j^\top x_{i, \mathrm{drivers}} + b_j)`; driver columns stay as they are
    ``mnar``          :math:`\sigma(\mathrm{strength} \cdot x_{ij} + b_j)`: large values hide themselves
    ``mnar_quantile`` ``rate / tail`` for the largest ``tail`` of each column, 0 elsewhere
    ``block``         rectangles (a run of rows, neighbouring columns) until ``rate`` of the table is covered
    ================  ==============================================================================================

    Columns are standardised first, and each :math:`b_j` is solved so that the mean probability is ``rate`` in every
    column that can lose cells (for ``mar``: all but the drivers, so the rate of the whole table is lower).

    Parameters
    ----------
    X : array-like of shape (n_rows, n_columns)
        Numbers; class columns come as codes. NaN marks cells that are missing already: they stay missing, and the
        mechanism reads them as the column's mean.
    rate : float, default=0.3
        Share of cells to hide, in [0, 1).
    mechanism : {"mcar", "mar", "mnar", "mnar_quantile", "block"}, default="mcar"
        A key of ``MECHANISMS``.
    random_state : int, Generator, RandomState or None, default=None
        Source of randomness; the global generators are never touched.
    **options
        ``strength=1.0`` (``mar``, ``mnar``): standard deviation of the logits. ``drivers`` (``mar``): indices of the
        columns left alone; by default a random third of them. ``tail=0.5`` (``mnar_quantile``). ``block_rows=0.1,
        block_columns=0.34`` (``block``): size of a rectangle as shares of the table.

    Returns
    -------
    observed : bool ndarray of shape (n_rows, n_columns)
        True where a cell stays.

    Notes
    -----
    A row or a column that would lose its last cell keeps one of its own, at random (rows only if there are at least
    two columns), so the realised rate falls a little short of ``rate`` for few columns and high rates. What had no
    observed cell before cannot be helped.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(600.0).reshape(200, 3)
    >>> observed = ampute(X, rate=0.3, mechanism="mnar", random_state=0)
    >>> observed.shape, bool(X[~observed].mean() > X[observed].mean())
    ((200, 3), True)
    """
    X = _as_numbers(X)
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), but got {rate!r}.")
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism must be one of {sorted(MECHANISMS)}, but got {mechanism!r}.")
    rng = _generator(random_state)
    present = ~np.isnan(X)
    observed = present & MECHANISMS[mechanism](X, rate, rng, **options)
    return _keep_something(observed, present, rng)


def _mcar(X: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    return rng.random(X.shape) >= rate


def _mar(
    X: np.ndarray,
    rate: float,
    rng: np.random.Generator,
    strength: float = 1.0,
    drivers: ArrayLike | None = None,
) -> np.ndarray:
    n_columns = X.shape[1]
    if n_columns < 2:
        raise ValueError(
            f"mechanism 'mar' needs at least 2 columns (one to drive what is missing), but got {n_columns}."
        )
    if drivers is None:
        drivers = rng.choice(n_columns, size=max(1, round(n_columns / 3)), replace=False)
    maskable = np.setdiff1d(np.arange(n_columns), np.asarray(drivers))
    if len(maskable) == n_columns or np.asarray(drivers).max() >= n_columns:
        raise ValueError(f"drivers must name at least one of the columns 0..{n_columns - 1}, but got {drivers!r}.")
    Z = _standardise(X)
    causes = Z[:, np.asarray(drivers)]
    logits = _standardise(causes @ rng.standard_normal((causes.shape[1], len(maskable)))) * strength
    observed = np.ones(X.shape, dtype=bool)
    observed[:, maskable] = rng.random(logits.shape) >= _probabilities(logits, rate)
    return observed


def _mnar(X: np.ndarray, rate: float, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    return rng.random(X.shape) >= _probabilities(strength * _standardise(X), rate)


def _mnar_quantile(X: np.ndarray, rate: float, rng: np.random.Generator, tail: float = 0.5) -> np.ndarray:
    if not rate <= tail <= 1:
        raise ValueError(f"tail must be in [rate, 1] = [{rate}, 1], but got {tail!r}: a tail holds all hidden cells.")
    # Ranks with random order among ties, so that a column of few values still has a tail of exactly that size.
    shuffled = rng.permuted(np.tile(np.arange(len(X)), (X.shape[1], 1)), axis=1).T
    ranks = np.lexsort((shuffled, _standardise(X)), axis=0).argsort(axis=0)
    in_tail = ranks >= (1 - tail) * len(X)
    return ~(in_tail & (rng.random(X.shape) < rate / tail))


def _block(
    X: np.ndarray, rate: float, rng: np.random.Generator, block_rows: float = 0.1, block_columns: float = 0.34
) -> np.ndarray:
    n_rows, n_columns = X.shape
    height, width = max(1, round(block_rows * n_rows)), max(1, round(block_columns * n_columns))
    observed = np.ones(X.shape, dtype=bool)
    target = round(rate * X.size)
    while (missing := target - int((~observed).sum())) > 0:
        # Rectangles may hang over the edges: every cell is then equally likely to be covered.
        height = min(height, -(-missing // width))
        top, left = rng.integers(1 - height, n_rows), rng.integers(1 - width, n_columns)
        observed[max(top, 0) : top + height, max(left, 0) : left + width] = False
    return observed


MECHANISMS: dict[str, Mechanism] = {
    "mcar": _mcar,
    "mar": _mar,
    "mnar": _mnar,
    "mnar_quantile": _mnar_quantile,
    "block": _block,
}


def _as_numbers(X: ArrayLike) -> np.ndarray:
    try:
        numbers = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"X must hold numbers only (classes as integer codes): {error}.") from error
    if numbers.ndim != 2:
        raise ValueError(f"X must have 2 dimensions (rows, columns), but got shape {numbers.shape}.")
    return numbers


def _generator(random_state: int | np.random.Generator | np.random.RandomState | None) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        random_state = int(random_state.randint(2**32, dtype=np.uint32))
    return np.random.default_rng(random_state)


def _standardise(X: np.ndarray) -> np.ndarray:
    """Mean 0 and sd 1 per column; missing cells and constant columns become 0."""
    present = ~np.isnan(X)
    count = np.maximum(present.sum(axis=0), 1)
    centred = np.where(present, X - np.where(present, X, 0.0).sum(axis=0) / count, 0.0)
    sd = np.sqrt((centred**2).sum(axis=0) / count)
    # A constant column leaves rounding noise behind: judge its sd against the size of its values.
    size = np.where(present, np.abs(X), 0.0).max(axis=0, initial=0.0)
    constant = sd <= 1e-12 * size
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, sd))


def _probabilities(logits: np.ndarray, rate: float) -> np.ndarray:
    """``sigmoid(logits + b)`` with one b per column, found by bisection, so that every column's mean is ``rate``."""
    if rate == 0:
        return np.zeros_like(logits)
    reach = np.abs(logits).max(initial=0.0) + abs(np.log(rate / (1 - rate))) + 1.0
    low, high = np.full(logits.shape[1], -reach), np.full(logits.shape[1], reach)
    for _ in range(60):
        middle = (low + high) / 2
        too_high = _sigmoid(logits + middle).mean(axis=0) > rate
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    return _sigmoid(logits + (low + high) / 2)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # the form that cannot overflow


def _keep_something(observed: np.ndarray, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give one hidden cell back to every row and column that lost its last one."""
    observed = observed.copy()
    if observed.shape[1] > 1:
        _give_back(observed, present, rng)
    _give_back(observed.T, present.T, rng)
    return observed


def _give_back(observed: np.ndarray, present: np.ndarray, rng: np.random.Generator) -> None:
    """For each row without observed cells, mark one of its present cells as observed (in place)."""
    rows = np.flatnonzero(~observed.any(axis=1) & present.any(axis=1))
    lottery = np.where(present[rows], rng.random((len(rows), observed.shape[1])), -1.0)
    if len(rows):
        observed[rows, lottery.argmax(axis=1)] = True
