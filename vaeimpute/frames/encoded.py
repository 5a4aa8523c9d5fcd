"""What an encoder gives: the two arrays that everything else is built on, and which cells it could not read."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Encoded(NamedTuple):
    """Rows as numbers.

    Attributes
    ----------
    values : ndarray of shape (n, D)
        0 where not observed, never NaN.
    observed : bool ndarray of shape (n, D)
    unseen : bool ndarray of shape (n, D)
        Cells of the user's that are there, but hold a category that was not seen in fit: they count as missing, and
        stay as they are.
    """

    values: NDArray
    observed: NDArray[np.bool_]
    unseen: NDArray[np.bool_]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Cells to be imputed, (n, D)."""
        return ~(self.observed | self.unseen)
