"""How sure an imputer is of a cell: intervals of numbers, probabilities of classes, and what the mask tells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from narwhals.typing import IntoDataFrameT
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vaeimpute.estimators._generation import GenerativeVAE
from vaeimpute.frames.containers import framed
from vaeimpute.vae import inference

_ALMOST = 1 - 1e-9  # an end that stands on a unit stays there


class Intervals(NamedTuple):
    """Lower and upper ends, each a table like X."""

    low: Any
    high: Any


class UncertainVAE(GenerativeVAE):
    """An imputer that says how sure it is."""

    def intervals(self, X: IntoDataFrameT | ArrayLike, level: float = 0.9) -> Intervals:
        """Between which numbers each missing cell lies, with that probability.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        level : float, default=0.9
            Share of missing cells that their intervals hold.

        Returns
        -------
        Intervals
            ``low`` and ``high``, tables like X: of an observed cell both are the cell, of a missing class they stay
            missing. Whole numbers (cents, tenths) end at whole numbers. Deterministic, and the same for a row in any
            company.

        Raises
        ------
        ValueError, TypeError
            If level is not between 0 and 1; if X does not have the columns of the training table; for images.

        Notes
        -----
        Both ends are calibrated on cells that were hidden from the models of their rows: the share holds on average
        over a column's cells if they are missing as the hidden ones were, at random. It is no confidence interval of
        an estimate: for that, pool the draws of `impute` with `vaeimpute.pool`.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> X[3, 1] = np.nan
        >>> low, high = VAEImputer(random_state=0).fit(X).intervals(X, level=0.9)
        >>> bool(low[3, 1] <= 6 <= high[3, 1]), bool(low[2, 1] == high[2, 1] == 4)
        (True, True)
        """
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ValueError(f"level must be a number between 0 and 1, such as 0.9, got {level!r}.")
        self._refuse_images("intervals")
        X, encoded = self._encoded(X)
        ends = self.ensemble_.intervals(*self._tensors(encoded), float(level))
        numbers = encoded.missing & self.encoder_.is_numeric & self.modelled_
        outward = self.encoder_.half_units * _ALMOST
        low, high = (self._all_columns(end) for end in ends)
        return Intervals(
            self.encoder_.fill(X, low - outward, numbers, rounded=True),
            self.encoder_.fill(X, high + outward, numbers, rounded=True),
        )

    def probabilities(self, X: IntoDataFrameT | ArrayLike, column: Any) -> Any:
        """Probability of every class of a column, in each row.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        column : str or int
            Name of a column of classes; ``x0``, ``x1``, ... of an array.

        Returns
        -------
        table of shape (n, n_classes)
            One column a class, in X's kind of frame and with its index, or an array. An observed cell is certain.

        Raises
        ------
        ValueError, TypeError
            If there is no such column, or if it holds numbers.

        Examples
        --------
        >>> import pandas as pd
        >>> from vaeimpute import VAEImputer
        >>> X = pd.DataFrame({"n": np.arange(40.0), "half": ["low"] * 20 + ["high"] * 20})
        >>> X.loc[3, "half"] = None
        >>> VAEImputer(random_state=0).fit(X).probabilities(X, "half").loc[2:3].round(1)
           high  low
        2   0.0  1.0
        3   0.0  1.0
        """
        self._refuse_images("probabilities")
        checked, encoded = self._encoded(X)
        names = self.encoder_.names
        if column not in names:
            raise ValueError(f"There is no column {column!r}; columns: {names}.")
        j = names.index(column)
        if self.encoder_.is_numeric[j]:
            raise ValueError(f"Column {column!r} holds numbers: `intervals` says between which ones a cell lies.")
        if not self.modelled_[j]:
            raise ValueError(f"Column {column!r} had no value in fit: there are no classes.")
        expected = inference.expectations(self.ensemble_, *self._tensors(encoded))
        place = int(self.modelled_[:j].sum())
        own = self.ensemble_.joint.likelihoods.expectation_columns == place
        p = _normalised(expected[:, own])
        known = encoded.observed[:, j]
        p[known] = np.eye(p.shape[1])[encoded.values[known, j].astype(int)]
        return framed(checked, self.encoder_.schema.columns[j].categories, p)

    @property
    def missingness_(self) -> pd.DataFrame:
        """What the fit says of columns that hide themselves; without rows if none does.

        One row a column: `column`, `slope` of the probit per standard deviation of the column's normal scores, its 90%
        interval `low, high`, `p_positive` (the probability that large cells hide), and `shift`: by how many standard
        deviations of the observed cells the points of the hidden ones are higher than at random.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEImputer(random_state=0).fit(X).missingness_.columns.tolist()
        ['column', 'slope', 'low', 'high', 'p_positive', 'shift']
        """
        check_is_fitted(self)
        found = self.ensemble_.self_masking()
        if found is None:
            return pd.DataFrame(columns=["column", "slope", "low", "high", "p_positive", "shift"])
        columns, slopes, shift = (part.cpu().numpy() for part in found)
        names = np.asarray(self.encoder_.names, dtype=object)[np.flatnonzero(self.modelled_)[columns]]
        low, high = np.quantile(slopes, [0.05, 0.95], axis=0)
        told = {"slope": slopes.mean(0), "low": low, "high": high, "p_positive": (slopes > 0).mean(0), "shift": shift}
        return pd.DataFrame({"column": names} | told)

    def _refuse_images(self, what: str) -> None:
        if self._domain.covariates is None:
            raise ValueError(f"{what} is for tables, but X is taken for {self._domain.name}.")


def _normalised(p: torch.Tensor) -> NDArray[np.float64]:
    p = p.double().clamp(min=0)
    return (p / p.sum(1, keepdim=True)).cpu().numpy()
