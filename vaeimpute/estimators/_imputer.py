"""VAEImputer: fill the holes of a table."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import narwhals as nw
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from vaeimpute import inference
from vaeimpute.estimators._base import BaseVAE, is_frame, seeded

_MEDIAN_DRAWS = 101


class VAEImputer(TransformerMixin, BaseVAE):
    """Fill the holes of a mixed-type table with a masked variational autoencoder.

    A linear VAE, solved exactly on the observed cells, is the start; two networks then learn what is not linear, one
    that sends every row through a latent (the joint reading), one that also sees the kept cells directly (the
    conditional reading). Each column's answer is their average, weighted by how well each did on held-out cells.

    Parameters
    ----------
    kinds : dict of column name to str, default=None
        Overrules the kind that the dtype suggests: "numeric", "positive", "count", "ordinal", "categorical",
        "boolean" or "datetime". Columns of arrays are named ``x0``, ``x1``, ...
    missing_values : scalar, default=np.nan
        A value that means "missing" besides NaN and null.
    point : {"mean", "median"}, default="mean"
        What stands for a hidden number. Hidden classes get their mode.
    add_indicator : bool, default=False
        Append one column per column that had holes in `fit`: 1 where a value was missing.
    keep_empty_features : bool, default=False
        Keep columns without any observed value in `transform`, filled with 0; otherwise they are dropped.
    time_budget : float, default=None
        Seconds after which training stops at the best so far.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the networks.
    device : str, default="auto"
        Where to compute; "auto" takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Same seed, same result.
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    history_ : list of dict
        One record per check of the training: reading, step, held-out error, seconds.
    n_iter_ : int
        Steps of the longer of both trainings.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (D,)
        Only when the training table had names.

    References
    ----------
    Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", ICML 2019.
    Ivanov, Figurnov and Vetrov, "Variational autoencoder with arbitrary conditioning", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from vaeimpute import VAEImputer
    >>> X = pd.DataFrame({"a": np.arange(12.0), "b": 2 * np.arange(12.0)})
    >>> X.loc[4, "b"] = np.nan
    >>> VAEImputer(random_state=0).fit_transform(X)[4].round()
    array([4., 8.])
    """

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
        "point": [StrOptions({"mean", "median"})],
        "add_indicator": ["boolean"],
        "keep_empty_features": ["boolean"],
    }

    def __init__(
        self,
        *,
        kinds: dict | None = None,
        missing_values: Any = np.nan,
        point: str = "mean",
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        time_budget: float | None = None,
        dtype: str = "float32",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.kinds = kinds
        self.missing_values = missing_values
        self.point = point
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.time_budget = time_budget
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> VAEImputer:
        """Learn the table.

        Parameters
        ----------
        X : table of shape (n, D)
            pandas, polars or pyarrow, or an array; holes are allowed everywhere.
        y : ignored

        Returns
        -------
        VAEImputer
        """
        _, observed = self._fit(X)
        self.indicated_ = np.flatnonzero(~observed.all(0))
        return self

    def impute(self, X: Any, n_imputations: int | None = None, random_state: Any = None) -> Any:
        """Complete a table: container, index, column order and every dtype as they came.

        Parameters
        ----------
        X : table of shape (n, D)
            Observed cells come back bit for bit. A column that had no value in `fit` stays as it is, unless
            ``keep_empty_features=True``.
        n_imputations : int, default=None
            None gives the best point for each cell. A number gives a list of so many completed tables whose holes are
            random draws from ``p(hidden | observed)``, which differ as the truth might.
        random_state : int, RandomState or None, default=None
            Seeds the draws.

        Returns
        -------
        table, or list of tables
        """
        X, values, observed = self._encoded(X)
        if n_imputations is None:
            return self._filled(X, self._points(values, observed), observed)
        if not isinstance(n_imputations, Integral) or n_imputations < 1:
            raise ValueError(f"n_imputations must be a positive integer or None, got {n_imputations!r}.")
        draws = self._draws(values, observed, int(n_imputations), random_state)
        return [self._filled(X, self._all_columns(drawn), observed) for drawn in draws]

    def transform(self, X: Any) -> Any:
        """Complete a table for the next step of a pipeline.

        Deterministic, and the same for a row in any batch. The output follows `set_output`; it is an array by default.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray or DataFrame of shape (n, n_columns_out)
            Without the columns that had no value in `fit` (unless ``keep_empty_features=True``), with the missing
            indicators behind them if ``add_indicator=True``.
        """
        X, values, observed = self._encoded(X)
        filled = self._filled(X, self._points(values, observed), observed)
        missing = ~observed[:, self.indicated_] if self.add_indicator else None
        wanted = _get_output_config("transform", self)["dense"]
        if is_frame(filled):
            frame = nw.from_native(filled, eager_only=True)
            names = frame.columns
            frame = frame.select(*[names[j] for j in self._kept()])
            if missing is not None:
                backend = frame.implementation
                flags = [
                    nw.new_series(f"missingindicator_{names[j]}", flag, nw.Boolean, backend=backend)
                    for j, flag in zip(self.indicated_, missing.T, strict=True)
                ]
                frame = frame.with_columns(*(nw.maybe_align_index(flag, frame) for flag in flags))
            if wanted == frame.implementation.value:
                return frame.to_native()
            return _to_array(frame)
        filled = filled[:, self._kept()]
        return filled if missing is None else np.hstack([filled, missing.astype(filled.dtype)])

    def sample(self, n_samples: int = 1, given: Any = None, random_state: Any = None) -> Any:
        """Synthetic rows, or random completions of given rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; with `given`, the number of completions of each row (then the tables are stacked).
        given : table of shape (n, D), default=None
            Rows with holes to complete by conditional draws.
        random_state : int, RandomState or None, default=None

        Returns
        -------
        table of shape (n_samples, D), or (n_samples * n, D)
            Container and dtypes as in training.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be a positive integer, got {n_samples!r}.")
        if given is None:
            with seeded(random_state, self.ensemble_.share.device):
                rows = inference.sample(self.ensemble_, int(n_samples))
            return self.encoder_.build(self._all_columns(rows))
        _, values, observed = self._encoded(given)
        draws = self._draws(values, observed, int(n_samples), random_state)
        return self.encoder_.build(self._all_columns(draws.flatten(0, 1)))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray:
        """Names of the columns that `transform` gives."""
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        kept = names[self._kept()]
        if not self.add_indicator:
            return kept
        indicators = [f"missingindicator_{name}" for name in names[self.indicated_]]
        return np.concatenate([kept, np.asarray(indicators, dtype=object)])

    def _kept(self) -> NDArray:
        """Positions of the columns that `transform` gives."""
        return np.arange(len(self.modelled_)) if self.keep_empty_features else np.flatnonzero(self.modelled_)

    def _points(self, values: NDArray, observed: NDArray) -> NDArray:
        x, o = self._tensors(values, observed)
        if o.all():
            return values
        points = self._all_columns(inference.impute(self.ensemble_, x, o))
        if self.point == "mean":
            return points
        median = self._draws(values, observed, _MEDIAN_DRAWS, random_state=0).median(0).values
        numbers = np.array([column.n_levels == 0 for column in self.encoder_.schema.columns])
        return np.where(numbers, self._all_columns(median), points)

    def _draws(self, values: NDArray, observed: NDArray, n_draws: int, random_state: Any) -> torch.Tensor:
        with seeded(random_state, self.ensemble_.share.device):
            return inference.draw(self.ensemble_, *self._tensors(values, observed), n_draws)

    def _filled(self, X: Any, values: NDArray, observed: NDArray) -> Any:
        known = observed | (~self.modelled_ & (not self.keep_empty_features))
        return self.encoder_.fill(X, values, known)

    def _to_state(self) -> tuple[dict[str, NDArray], dict]:
        tensors, header = super()._to_state()
        return tensors, header | {"indicated": self.indicated_.tolist()}

    def _from_state(self, tensors: dict[str, NDArray], header: dict) -> None:
        super()._from_state(tensors, header)
        self.indicated_ = np.asarray(header["indicated"], dtype=int)


def _to_array(frame: nw.DataFrame) -> NDArray:
    """An array of numbers where all columns are numbers, of objects otherwise."""
    if all(dtype.is_numeric() or dtype == nw.Boolean for dtype in frame.schema.values()):
        return frame.to_numpy()
    out = np.empty(frame.shape, dtype=object)
    for j, series in enumerate(frame.iter_columns()):
        out[:, j] = series.to_list()
    return out
