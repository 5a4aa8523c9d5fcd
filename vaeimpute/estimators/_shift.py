"""Shifts as users name them, by column and class, on their way to the models: checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeimpute.frames.encoder import TableEncoder

Amount = float | Callable[[Any], Any]  # of all rows; or from the completed table, one of each row


class _Part(NamedTuple):
    """The shift of one column of numbers, or towards one class."""

    column: int
    category: int | None
    amount: Amount
    name: str


class ShiftRequest:
    """What `impute` is asked to shift.

    Parameters
    ----------
    shift : mapping of column to float or callable, or to a mapping of class to float or callable
    encoder : TableEncoder
    modelled : bool ndarray of shape (D,)

    Raises
    ------
    ValueError, TypeError
        If a column, a class or an amount cannot be used; names it.
    """

    def __init__(self, shift: Any, encoder: Any, modelled: NDArray[np.bool_]) -> None:
        if not isinstance(shift, Mapping):
            raise TypeError(f"shift must be a dict of column to amount, got a {type(shift).__name__}.")
        self._parts = [part for name, amount in shift.items() for part in _parts(name, amount, encoder, modelled)]

    @property
    def needs_tables(self) -> bool:
        """Whether a shift depends on the other columns."""
        return any(callable(part.amount) for part in self._parts)

    @property
    def columns(self) -> list[int]:
        """Numbers of the shifted columns."""
        return sorted({part.column for part in self._parts})

    def amounts(self, n_rows: int, table: Any = None) -> Iterator[tuple[int, int | None, NDArray]]:
        """Column, class (None: a number) and amounts (n,) of each part, for a completed table of so many rows."""
        for part in self._parts:
            given = part.amount(table) if callable(part.amount) else part.amount
            try:
                amounts = np.broadcast_to(np.asarray(given, dtype=float), (n_rows,))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{part.name} must give {n_rows} numbers, one of each row ({error}).") from error
            if not (finite := np.isfinite(amounts)).all():
                row = int((~finite).argmax())
                raise ValueError(f"{part.name} must give finite numbers, but gave {amounts[row]} in row {row}.")
            yield part.column, part.category, amounts


def _parts(name: Any, amount: Any, encoder: TableEncoder, modelled: NDArray[np.bool_]) -> Iterator[_Part]:
    """Those of one column."""
    names = encoder.names
    if name not in names:
        raise ValueError(f"shift names {name!r}, which is no column of the training table; its columns are {names}.")
    j = names.index(name)
    if not modelled[j]:
        raise ValueError(f"shift names {name!r}, which had no observed value in fit: there is nothing to shift.")
    categories = encoder.schema.columns[j].categories
    if not categories:
        yield _Part(
            j, None, _checked(amount, f"shift[{name!r}]", "a number of standard deviations"), f"shift[{name!r}]"
        )
        return
    if not isinstance(amount, Mapping):
        example = f"{{{name!r}: {{{categories[-1]!r}: 0.7}}}}"
        raise ValueError(f"shift[{name!r}] is of classes: pass log-odds towards one of them, as in {example}.")
    for category, log_odds in amount.items():
        if category not in categories:
            raise ValueError(f"shift[{name!r}] names {category!r}, but the classes are {list(categories)}.")
        where = f"shift[{name!r}][{category!r}]"
        yield _Part(j, categories.index(category), _checked(log_odds, where, "log-odds"), where)


def _checked(amount: Any, where: str, what: str) -> Amount:
    is_number = isinstance(amount, Real) and not isinstance(amount, bool | np.bool_)
    if callable(amount) or (is_number and np.isfinite(amount)):
        return amount
    raise ValueError(f"{where} must be {what}, finite, or a callable that takes the table, got {amount!r}.")
