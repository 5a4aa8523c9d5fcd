"""Rows in slices, so that memory stays bounded: the one budget that all parts of the package keep to."""

from __future__ import annotations

from collections.abc import Iterator

BUDGET = 2**21  # numbers held at once by one step: what stays near the processor is twice as fast


def row_slices(n_rows: int, numbers_per_row: float) -> Iterator[slice]:
    """Slices of the rows, of which each holds at most `BUDGET` numbers at once, and at least one row.

    Parameters
    ----------
    n_rows : int
        Rows to go through.
    numbers_per_row : float
        Numbers that the work on one row needs at the same time.

    Yields
    ------
    slice
        Together they cover all rows once, in order.

    Examples
    --------
    >>> list(row_slices(5, BUDGET / 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, int(BUDGET / max(numbers_per_row, 1)))
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))
