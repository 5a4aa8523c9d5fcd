"""Input on its way into an estimator: checked as scikit-learn checks it, before any work is done."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from vaeimpute.frames.containers import check_order, is_frame
from vaeimpute.images.encoder import as_rows, pixel_shape


def check_table(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """scikit-learn's own checks: names and number of columns of frames; shape, size and dtype of arrays.

    What the cells hold is the encoder's to check, which can name the column.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets ``n_features_in_`` and ``feature_names_in_`` if `reset`, and compares with them otherwise.
    X : table of shape (n, D)
    reset : bool

    Returns
    -------
    DataFrame or ndarray
    """
    _refuse_masked(X)
    if is_frame(X):
        schema = None if reset else estimator.encoder_.schema
        if schema is not None and schema.container != "numpy":
            check_order(X, schema.names)
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return X
    if nw.dependencies.is_polars_lazyframe(X):
        raise TypeError("X is a polars LazyFrame; want a DataFrame. Call X.collect() first.")
    if isinstance(X, list | tuple) and np.asarray(X).dtype.kind in "US":
        X = np.array(X, dtype=object)  # NumPy alone would turn the numbers beside a word into words
    return validate_data(estimator, X, reset=reset, dtype=None, ensure_all_finite=False)


def check_images(estimator: BaseEstimator, X: Any, *, reset: bool) -> NDArray:
    """The same for images, whose number of features is that of their pixels."""
    _refuse_masked(X)
    if is_frame(X):
        raise TypeError("X is a DataFrame, but with image_shape it must be an array. Pass X.to_numpy().")
    X = X if isinstance(X, np.ndarray) else np.asarray(X)
    rows = as_rows(X, pixel_shape(estimator.image_shape))
    validate_data(estimator, rows, reset=reset, dtype=None, ensure_all_finite=False)
    return X


def check_positive(name: str, value: Any) -> int:
    """The value, if it is a positive integer."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _refuse_masked(X: Any) -> None:
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X is a masked array, whose mask would get lost. Pass X.filled(np.nan) instead.")
