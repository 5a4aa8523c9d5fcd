"""VAEImputer: impute the missing cells of a table, or of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from narwhals.typing import IntoDataFrame, IntoDataFrameT
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from vaeimpute.anomaly.density import FittedModels
from vaeimpute.estimators._base import BaseVAE
from vaeimpute.estimators._domains import Covariates
from vaeimpute.estimators._missingness import self_masked_columns
from vaeimpute.estimators._outcome import CompatibleDraws
from vaeimpute.estimators._shift import ShiftRequest
from vaeimpute.estimators._sklearn_compat import Interval, StrOptions, check_feature_names_in, get_output_config
from vaeimpute.estimators._uncertainty import UncertainVAE
from vaeimpute.estimators._validation import check_positive
from vaeimpute.frames.containers import selected
from vaeimpute.frames.encoded import Encoded
from vaeimpute.outcomes.outcome import Outcome
from vaeimpute.training.runtime import draw_seed, progress
from vaeimpute.vae.shift import Shift


class VAEImputer(TransformerMixin, UncertainVAE):
    """Impute the missing cells of a mixed-type table with a masked variational autoencoder.

    Linear VAEs, solved exactly on the observed cells, are the start. Kernel smoothers over the training rows and
    regressions on random features learn what is not linear, each judged on cells hidden from rows that it has not seen;
    with ``effort="full"`` the networks of a joint model too, which sends every row through a latent. Each column's
    imputation is their average, weighted by how well each did there.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        ``(height, width)`` or ``(height, width, channels)`` if X holds images: an array ``(n, H * W * C)``,
        ``(n, H, W)`` or ``(n, H, W, C)``, of integers or floats. What comes back has the same layout and dtype. Of
        more than 400 million pixels, memory-mapped or not, a random part is learnt from. None for tables.
    networks : {"auto", "mlp"}, default="auto"
        With `image_shape`: "auto" convolves, "mlp" takes every pixel as a column of a table.
    kinds : dict of column name to str, or str, default=None
        Overrules the kind that the dtype suggests: "numeric", "positive", "count", "ordinal", "categorical",
        "boolean" or "datetime". Columns of arrays are named ``x0``, ``x1``, ... For images one kind for all pixels:
        "boolean" (Bernoulli), "count" (8-bit levels: a mixture of discretised logistics) or "numeric" (Gaussian).
    missing_values : int, float, str, np.nan, None or pandas.NA, default=np.nan
        A value that means "missing" besides NaN, NaT, None and null, which always do.
    missingness : {"random", "self"} or dict of column to these, default="random"
        What is assumed of missing cells. "random": what is observed in a row tells all about why the others are
        missing. "self": a number or date is also missing because of what it is, ``P(missing) = Phi(a + c x + ...)``,
        by a slope per column that is learnt. That slope rests on the assumption alone, on what predicts the column and
        on its normal scores being normal: no data can tell whether it holds, and no fit chooses it. See `missingness_`.
        Columns of classes stay at random.
    point : {"mean", "median"}, default="mean"
        What a missing number is imputed with. Missing classes get their mode.
    add_indicator : bool, default=False
        Append one column per column that had missing cells in `fit`: 1 where a value is missing.
    keep_empty_features : bool, default=False
        Keep columns without any observed value, numbers filled with 0 and others as they are; otherwise `transform`
        drops them.
    effort : {"auto", "full"}, default="auto"
        "auto" solves a table in closed form and trains no network: a second or two, and nearly all of the accuracy.
        "full" averages four such fits, and adds the networks of the joint model, which then gives scores, samples and
        log-likelihoods (else the linear VAE does): some ten times as long. Images always have networks; "full" trains
        them twice as long.
    time_budget : float, default=None
        Seconds after which a fit ends with the best so far; stages that do not fit in are left out, with a warning.
    max_iter : int, default=None
        Largest number of training steps of each stage. A fit that it ends does not depend on how fast the machine is,
        as one that `time_budget` ends does. None takes as many as the size of the table asks for.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the networks.
    device : str, default="auto"
        Where to compute, as PyTorch calls it; "auto" takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Same seed, same result. None takes fresh entropy; the global generators of NumPy and PyTorch stay as they are.
    verbose : int or bool, default=0
        1 shows progress: a bar where rich is installed, lines on stderr otherwise.

    Attributes
    ----------
    history_ : list of dict
        One record per stage, or evaluation of its training: model ("linear", "smoother", "random features", "joint"),
        step, held-out error, seconds.
    n_iter_ : int
        Steps of the longest training; 1 where the linear start is all that so few rows get.
    has_missing_ : bool ndarray of shape (D,)
        Which columns had missing cells in `fit`.
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

    _parameter_constraints: ClassVar[dict] = {
        **BaseVAE._parameter_constraints,
        "missingness": [StrOptions({"random", "self"}), dict],
        "point": [StrOptions({"mean", "median"})],
        "add_indicator": ["boolean"],
        "keep_empty_features": ["boolean"],
        "effort": [StrOptions({"auto", "full"})],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...] | None = None,
        networks: str = "auto",
        kinds: dict | str | None = None,
        missing_values: Any = np.nan,
        missingness: str | dict = "random",
        point: str = "mean",
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        effort: str = "auto",
        time_budget: float | None = None,
        max_iter: int | None = None,
        dtype: str = "float32",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.image_shape = image_shape
        self.networks = networks
        self.kinds = kinds
        self.missing_values = missing_values
        self.missingness = missingness
        self.point = point
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.effort = effort
        self.time_budget = time_budget
        self.max_iter = max_iter
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: IntoDataFrame | ArrayLike, y: Any = None) -> Self:
        """Learn the table.

        Ctrl-C ends the training early: the best weights so far are kept, with a warning.

        Parameters
        ----------
        X : table of shape (n, D)
            As pandas, polars or pyarrow has it, or an array; cells may be missing everywhere. Never changed.
        y : ignored
            Not used; scikit-learn's interface asks for it.

        Returns
        -------
        VAEImputer
            The estimator itself. When `fit` raises, it is what it was before.

        Raises
        ------
        ValueError, TypeError
            If a parameter or X cannot be used; the message names the parameter, or the column and the row.

        Examples
        --------
        >>> VAEImputer(random_state=0).fit([[1, "a"], [2, None], [3, "c"]])
        VAEImputer(random_state=0)
        """
        self._fit(X)
        return self

    def impute(
        self,
        X: IntoDataFrameT | ArrayLike,
        n_imputations: int | None = None,
        random_state: Any = None,
        *,
        shift: Mapping[Any, Any] | None = None,
        outcome: Outcome | None = None,
    ) -> IntoDataFrameT | NDArray | list[IntoDataFrameT] | list[NDArray]:
        """Complete a table: container, index, column order and every dtype as they came.

        Parameters
        ----------
        X : table of shape (n, D)
            Observed cells come back bit for bit; categories not seen in `fit` stay, with a warning. A column without
            any value in `fit` stays as it is, unless ``keep_empty_features=True``.
        n_imputations : int, default=None
            None gives the best point for each cell. A number gives a list of so many completed tables whose missing
            cells are random draws from ``p(missing | observed)``, which differ as the truth might.
        random_state : int, RandomState or None, default=None
            Seeds the draws; the points need none.
        shift : dict, default=None
            What if cells are not missing at random? ``{"income": 0.5}`` takes the hidden incomes to be higher by half a
            standard deviation of the observed ones (of their logarithms, if the kind is "positive") than "at random"
            says; ``{"smoker": {"yes": 0.7}}`` adds 0.7 to the log-odds of a class. Instead of a number a callable may
            take the completed table, and give a shift for each row (NARFCS). The other missing cells of a row are drawn
            given the shifted ones; points move by the average by which 50 draws do. Cells end where their column does:
            whole numbers at the last that was seen, real ones half the range beyond. Same seed, same random numbers,
            whatever the shift.
        outcome : Outcome, default=None
            The regression that the draws are for, if it has products, powers or curves, or is not linear: they are
            then compatible with it. X is the table to be analysed: its rows alone tell how the other columns go
            together. For tables, and with `n_imputations`.

        Returns
        -------
        table, or list of tables
            Like X, without missing cells (but of columns without any value in `fit`).

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold; if `shift` names what
            is not there, or `outcome` does not fit the table, or both are given.
        ImportError
            If the terms of `outcome` are a formula, and formulaic is not installed.

        Examples
        --------
        >>> import pandas as pd
        >>> X = pd.DataFrame({"n": pd.array(range(20), dtype="Int64"), "even": [True, False] * 10})
        >>> X.loc[3, "n"] = pd.NA
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> imputer.impute(X).dtypes.tolist()
        [Int64Dtype(), dtype('bool')]
        >>> [len(table) for table in imputer.impute(X, n_imputations=3, random_state=0)]
        [20, 20, 20]
        """
        n_draws = 0 if n_imputations is None else check_positive("n_imputations", n_imputations)
        if outcome is not None:
            if shift:
                raise ValueError("outcome and shift do not go together: draws are for an outcome, or shifted.")
            covariates = self._covariates_for(outcome, n_imputations)
        X, encoded = self._encoded(X)
        if shift:
            self._refuse_images("shift")
        request = ShiftRequest(shift, self.encoder_, self.modelled_) if shift else None
        if n_imputations is None:
            points = self._filled(X, self._point_estimates(encoded), encoded.missing)
            if request is None:
                return points
            points = self._point_estimates(encoded, self._shift(request, len(encoded.values), points))
            return self._filled(X, points, encoded.missing)
        if outcome is not None:
            return self._compatible(X, encoded, outcome, covariates, n_draws, random_state)
        seed = draw_seed(random_state)
        tables = [None] if request is None or not request.needs_tables else self._drawn(X, encoded, n_draws, seed)
        shifts = [] if request is None else [self._shift(request, len(encoded.values), table) for table in tables]
        return self._drawn(X, encoded, n_draws, seed, shifts)

    def transform(self, X: IntoDataFrame | ArrayLike) -> Any:
        """Complete a table for the next step of a pipeline.

        Deterministic, and the same for a row in any batch. The output follows `set_output`; it is an array by default,
        of numbers where all columns are numbers or booleans, of objects otherwise.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray or DataFrame of shape (n, n_columns_out)
            Without the columns that had no value in `fit` (unless ``keep_empty_features=True``), with the missing
            indicators behind them if ``add_indicator=True``.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> X[3, 1] = np.nan
        >>> VAEImputer(random_state=0, add_indicator=True).fit(X).transform(X)[2:4].round()
        array([[2., 4., 0.],
               [3., 6., 1.]])
        """
        checked, encoded = self._encoded(X)
        container = get_output_config("transform", self)["dense"]
        if getattr(checked, "ndim", 2) > 2 and (self.add_indicator or container != "default"):
            what = "add_indicator=True" if self.add_indicator else f"set_output(transform={container!r})"
            raise ValueError(f"{what} wants X of shape (n, {len(self.modelled_)}), got {checked.shape}.")
        filled = self._filled(checked, self._point_estimates(encoded), encoded.missing)
        if isinstance(filled, np.ndarray) and filled.ndim > 2:
            return filled
        missing = ~encoded.observed[:, self.has_missing_ & self.add_indicator]
        flags = dict(zip(self._indicator_names(), missing.T, strict=True))
        return selected(filled, self._kept(), flags, container)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """Names of the columns that `transform` gives.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of X; those seen in `fit` if None, or ``x0``, ``x1``, ... if there were none.

        Returns
        -------
        ndarray of str
            One name for each column of the output.

        Raises
        ------
        NotFittedError, ValueError
            If there is no fit yet; if `input_features` are not the names seen in `fit`, or not as many.

        Examples
        --------
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> X[3, 1] = np.nan
        >>> VAEImputer(random_state=0, add_indicator=True).fit(X).get_feature_names_out()
        array(['x0', 'x1', 'missingindicator_x1'], dtype=object)
        """
        check_is_fitted(self)
        names = check_feature_names_in(self, input_features)
        return np.asarray([*names[self._kept()], *self._indicator_names()], dtype=object)

    def _covariates_for(self, outcome: Any, n_imputations: int | None) -> Callable[..., Covariates]:
        """What models the other columns, if there can be an outcome."""
        if not isinstance(outcome, Outcome):
            raise TypeError(f"outcome must be an Outcome, but got a {type(outcome).__name__}.")
        if n_imputations is None:
            raise ValueError("outcome is for draws, but n_imputations is None. Pass n_imputations=20.")
        self._refuse_images("outcome")
        assert self._domain.covariates is not None  # tables have them
        return self._domain.covariates

    def _compatible(
        self,
        X: Any,
        encoded: Encoded,
        outcome: Outcome,
        covariates: Callable[..., Covariates],
        n_draws: int,
        random_state: Any,
    ) -> list:
        """Draws that are compatible with the model of an outcome."""
        seed = draw_seed(random_state)

        def covariates_of(rows: NDArray, column: int, number: int) -> Covariates:
            return covariates(self.ensemble_, *self._tensors(encoded, rows), column, number, seed)

        def fill(table: Any, values: NDArray, missing: NDArray) -> Any:
            return self._filled(table, values, missing, rounded=True)

        drawn = CompatibleDraws(outcome, self.encoder_, X, encoded, self.modelled_, covariates_of, fill)
        tables = [fill(X, drawn.draw(number, seed), encoded.missing) for number in range(n_draws)]
        drawn.warn()
        return tables

    def _learn(self, data: Any, seed: int) -> FittedModels:
        options: dict[str, Any] = {"seed": seed, "dtype": getattr(torch, self.dtype)}
        options |= {"effort": self.effort, "time_budget": self.time_budget, "max_iter": self.max_iter}
        if self.missingness != "random":
            self._refuse_images(f"missingness={self.missingness!r}")
            columns = self_masked_columns(self.missingness, self.encoder_, self.has_missing_)
            options["self_masked"] = torch.as_tensor(columns[self.modelled_])
        with progress(self.verbose) as on_evaluation:
            return self._domain.fit_imputer(data, on_evaluation=on_evaluation, **options)

    def _set_learned(self, models: FittedModels, encoded: Encoded) -> None:
        if models.ensemble is None:
            raise TypeError(f"The {self._domain.name} fit of an imputer left no ensemble.")
        self.ensemble_, self.history_ = models.ensemble, list(models.history)
        self.n_iter_ = max(1, *(record["step"] for record in self.history_))

    def _kept(self) -> NDArray:
        """Positions of the columns that `transform` gives."""
        return np.arange(len(self.modelled_)) if self.keep_empty_features else np.flatnonzero(self.modelled_)

    def _indicator_names(self) -> list[str]:
        if not self.add_indicator:
            return []
        return [f"missingindicator_{name}" for name in check_feature_names_in(self)[self.has_missing_]]

    def _point_estimates(self, encoded: Encoded, shift: Shift | None = None) -> NDArray:
        """What each cell is imputed with, (n, D); only incomplete rows are worked on."""
        points = encoded.values.copy()
        rows = np.flatnonzero(~encoded.observed[:, self.modelled_].all(1))
        if len(rows) == 0:
            return points
        x, o = self._tensors(encoded, rows)
        if shift is not None:
            here = shift.at(torch.as_tensor(rows, device=x.device))
            points[rows] = self._all_columns(self.ensemble_.impute_shifted(x, o, here, median=self.point == "median"))
            return points
        points[rows] = self._all_columns(self.ensemble_.impute(x, o))
        if self.point == "mean":
            return points
        medians = self._all_columns(self.ensemble_.medians(x, o))
        points[rows] = np.where(self.encoder_.is_numeric, medians, points[rows])
        return points

    def _drawn(self, X: Any, encoded: Encoded, n_draws: int, seed: int, shifts: Sequence[Shift] = ()) -> list:
        """Completed tables."""
        incomplete = torch.as_tensor(~encoded.observed[:, self.modelled_].all(1))
        options = {"shifts": [shift.at(incomplete.to(shift.added.device)) for shift in shifts]} if shifts else {}
        draws = self._draws(encoded, n_draws, seed, **options)
        return [self._filled(X, self._all_columns(drawn), encoded.missing, rounded=True) for drawn in draws]

    def _shift(self, request: ShiftRequest, n_rows: int, table: Any) -> Shift:
        """The shifts of all rows as the models take them, given a completed table."""
        columns = self.ensemble_.joint.likelihoods.expectation_columns
        place = np.cumsum(self.modelled_) - 1  # of a column among those that are modelled
        shift = Shift.none(n_rows, columns, int(self.modelled_.sum()))
        for column, category, amounts in request.amounts(n_rows, table):
            shift.add(int(place[column]), category, torch.as_tensor(amounts.copy()).to(shift.added))
        return shift

    def _filled(self, X: Any, values: NDArray, missing: NDArray, *, rounded: bool = False) -> Any:
        return self.encoder_.fill(X, values, missing & (self.modelled_ | self.keep_empty_features), rounded=rounded)
