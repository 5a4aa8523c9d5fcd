"""VAEOutlierDetector: find anomalous rows and cells of a table or of images, and say what they should be."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from narwhals.typing import IntoDataFrame, IntoDataFrameT
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control
from sklearn.base import OutlierMixin

from vaeimpute.anomaly.density import FittedModels
from vaeimpute.estimators._base import BaseVAE
from vaeimpute.estimators._sklearn_compat import Interval, StrOptions
from vaeimpute.estimators._validation import check_positive
from vaeimpute.frames.containers import as_columns
from vaeimpute.frames.encoded import Encoded

_FALSE_ALARMS = 0.05  # of inliers, with contamination="auto"


class VAEOutlierDetector(OutlierMixin, BaseVAE):
    """Find anomalous rows, and the anomalous cells in them, in a mixed-type table with missing cells.

    Rows are scored by their likelihood under a mixture of linear VAEs, solved exactly on the observed cells, and by the
    distance to their nearest neighbours. Four members, each blind to a quarter of the rows, tell what reference rows
    score; a row's score is its surprisal among them. Cells are scored by how much less likely the rest of
    their row makes them than a wrong cell would be; cells that are likely wrong have as little say in that.

    Images are scored by a few numbers that stand for them, under such a mixture, and by what these leave over; their
    pixels by what a convolutional network expects of each, given those around it.

    Parameters
    ----------
    contamination : "auto" or float in (0, 0.5], default="auto"
        Share of outliers in the training table: so many of its rows are flagged. "auto" takes the training rows as
        inliers, and flags what is more anomalous than 95% of such rows.
    robust : "auto" or bool, default="auto"
        Whether to fit to the bulk of the training rows only, because some of them are outliers themselves. "auto" does
        so when `contamination` is a number.
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
    dtype : {"float32", "float64"}, default="float32"
        Precision of scores, and of the network that reads images; mixtures are fitted in double precision.
    device : str, default="auto"
        Where to compute, as PyTorch calls it; "auto" takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Same seed, same result. None takes fresh entropy; the global generators of NumPy and PyTorch stay as they are.

    Attributes
    ----------
    offset_ : float
        ``decision_function = score_samples - offset_``.
    n_components_ : int
        Components of the mixture.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (D,)
        Only when the training table had names.

    References
    ----------
    Ghahramani and Hinton, "The EM algorithm for mixtures of factor analyzers", 1996.
    Bates, Candes, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from vaeimpute import VAEOutlierDetector
    >>> x = np.random.default_rng(0).normal(size=200)
    >>> detector = VAEOutlierDetector(random_state=0).fit(np.column_stack([x, 2 * x]))
    >>> detector.predict([[1.0, 2.0], [1.0, -2.0], [1.0, np.nan]])
    array([ 1, -1,  1])
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseVAE._parameter_constraints,
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "robust": [StrOptions({"auto"}), "boolean"],
    }

    def __init__(
        self,
        *,
        contamination: float | str = "auto",
        robust: bool | str = "auto",
        image_shape: tuple[int, ...] | None = None,
        networks: str = "auto",
        kinds: dict | str | None = None,
        missing_values: Any = np.nan,
        dtype: str = "float32",
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.contamination = contamination
        self.robust = robust
        self.image_shape = image_shape
        self.networks = networks
        self.kinds = kinds
        self.missing_values = missing_values
        self.dtype = dtype
        self.device = device
        self.random_state = random_state

    def fit(self, X: IntoDataFrame | ArrayLike, y: Any = None) -> Self:
        """Learn what normal rows look like.

        Parameters
        ----------
        X : table of shape (n, D)
            As pandas, polars or pyarrow has it, or an array; cells may be missing everywhere. Never changed.
        y : ignored
            Not used; scikit-learn's interface asks for it.

        Returns
        -------
        VAEOutlierDetector
            The estimator itself. When `fit` raises, it is what it was before.

        Raises
        ------
        ValueError, TypeError
            If a parameter or X cannot be used; the message names the parameter, or the column and the row.

        Examples
        --------
        >>> VAEOutlierDetector(random_state=0).fit([[1, "a"], [2, None], [3, "c"]])
        VAEOutlierDetector(random_state=0)
        """
        self._fit(X)
        return self

    def score_samples(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """The opposite of `anomaly_score`: higher is more normal, as scikit-learn's detectors have it.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            Higher is more normal.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> detector = VAEOutlierDetector(random_state=0).fit(X)
        >>> bool((detector.score_samples(X) == -detector.anomaly_score(X)).all())
        True
        """
        return -self.anomaly_score(X)

    def decision_function(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """``score_samples(X) - offset_``: negative for outliers.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            Negative for outliers.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEOutlierDetector(random_state=0).fit(X).decision_function([[5, 10], [5, 40]]) < 0
        array([False,  True])
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """1 for inliers, -1 for outliers.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        int ndarray of shape (n,)
            1 or -1 for each row.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEOutlierDetector(random_state=0).fit(X).predict([[5, 10], [5, 40]])
        array([ 1, -1])
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """Conformal p-values: how likely a new inlier is to be at least as anomalous.

        Each row is compared with training rows that the scoring member has not seen, and that have about as many cells
        observed. For new rows like the training rows they are uniform; rows of the training table itself were seen by
        some members, and look a little too normal.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            In (0, 1], at least ``1 / (n_training + 1)``.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> detector = VAEOutlierDetector(random_state=0).fit(rng.normal(size=(500, 3)))
        >>> p = detector.p_values(rng.normal(size=(1000, 3)))
        >>> bool(0.03 < (p <= 0.05).mean() < 0.07)
        True
        """
        _, encoded = self._encoded(X)
        return self.density_.p_values(*self._tensors(encoded))

    def select(self, X: IntoDataFrame | ArrayLike, fdr: float = 0.1) -> NDArray:
        """Outliers of a batch, of which a share of at most `fdr` is expected to be inliers after all.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        fdr : float in (0, 1), default=0.1
            False discovery rate, by the procedure of Benjamini and Hochberg on the p-values. It has no power where
            ``fdr`` times the number of outliers is below ``n / n_training``.

        Returns
        -------
        bool ndarray of shape (n,)
            True for the outliers.

        Raises
        ------
        ValueError, TypeError
            If `fdr` is not between 0 and 1; if X does not have the columns of the training table, or cells that they
            cannot hold.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> detector = VAEOutlierDetector(random_state=0).fit(rng.normal(size=(500, 3)))
        >>> X = rng.normal(size=(50, 3))
        >>> X[:5] += 9
        >>> detector.select(X).nonzero()[0]
        array([0, 1, 2, 3, 4])
        """
        if not isinstance(fdr, Real) or not 0 < fdr < 1:
            raise ValueError(f"fdr must be a number between 0 and 1, got {fdr!r}.")
        return false_discovery_control(self.p_values(X)) <= fdr

    def repair(self, X: IntoDataFrameT | ArrayLike, threshold: float = 0.0) -> IntoDataFrameT | NDArray:
        """X with its wrong cells replaced by what the rest of their row lets expect.

        Cells that are likely wrong have as little say in what is expected of the others.

        Parameters
        ----------
        X : table of shape (n, D)
            As in `fit`.
        threshold : float, default=0.0
            Cells are replaced whose log-odds of being wrong are above it, in nats: 0 where they are likelier wrong than
            not, -inf for all cells. Wrong cells are taken to be one in twenty, and to hold another row's value, or
            anything. Pixels of images have no such odds: 0 is where they are five nats less likely than normal ones.

        Returns
        -------
        table of shape (n, D)
            Container, index, column order and dtypes as X has them; all other cells, and missing ones, as they are.

        Raises
        ------
        ValueError, TypeError
            If `threshold` is no number; if X does not have the columns of the training table, or cells that they cannot
            hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(50.0), 2 * np.arange(50.0), 3 * np.arange(50.0)])
        >>> VAEOutlierDetector(random_state=0).fit(X).repair([[5, 10, 15], [5, 80, 15]])
        array([[ 5, 10, 15],
               [ 5, 11, 15]])
        """
        if not isinstance(threshold, Real) or np.isnan(threshold):
            raise ValueError(f"threshold must be a number, got {threshold!r}.")
        X, encoded = self._encoded(X)
        pred = self.density_.predict_cells(*self._tensors(encoded))
        wrong = self._all_columns(pred.log_odds) > threshold
        return self.encoder_.fill(X, self._all_columns(pred.expected), encoded.observed & self.modelled_ & wrong)

    def explain(self, X: IntoDataFrame | ArrayLike, n_cells: int = 3) -> pd.DataFrame:
        """The cells that make each row anomalous, as a tidy table.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        n_cells : int, default=3
            Cells per row, the most anomalous first.

        Returns
        -------
        DataFrame
            The most anomalous rows first: position of the row, its score, and per cell the column, the value, what the
            rest of the row lets expect, and the cell's score.

        Raises
        ------
        ValueError, TypeError
            If `n_cells` is no positive integer; if X does not have the columns of the training table, or cells that
            they cannot hold.

        Examples
        --------
        >>> X = np.column_stack([np.arange(50.0), 2 * np.arange(50.0), 3 * np.arange(50.0)])
        >>> table = VAEOutlierDetector(random_state=0).fit(X).explain([[5, 10, 15], [5, 80, 15]], n_cells=1)
        >>> table[["row", "column", "value", "expected"]].head(1)
           row column  value  expected
        0    1     x1     80        11
        """
        n_cells = check_positive("n_cells", n_cells)
        X, encoded = self._encoded(X)
        rows = self.density_.anomaly_score(*self._tensors(encoded))
        expected, scores = self._cells(encoded)
        observed, names = encoded.observed & self.modelled_, self.encoder_.names
        value, filled = as_columns(X), as_columns(self.encoder_.fill(X, expected, observed))
        records = []
        for i in np.argsort(-rows, kind="stable"):
            order = np.argsort(-np.where(observed[i], scores[i], -np.inf), kind="stable")[:n_cells]
            records += [
                (int(i), rows[i], names[j], value[j][i], filled[j][i], scores[i, j]) for j in order if observed[i, j]
            ]
        return pd.DataFrame(records, columns=["row", "row_score", "column", "value", "expected", "cell_score"])

    def plot(self, X: IntoDataFrame | ArrayLike, n_rows: int = 10, ax: Any = None) -> Any:
        """Draw the most anomalous rows: the colour of a cell is its score, and anomalous cells show what was expected.

        Of images, the most anomalous ones above the scores of their pixels.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        n_rows : int, default=10
            How many of the most anomalous rows.
        ax : matplotlib Axes, default=None
            A new one if None.

        Returns
        -------
        matplotlib Axes
            With one cell for each cell of the rows.

        Raises
        ------
        ImportError, ValueError
            If matplotlib is not installed; if `n_rows` is no positive integer.

        Examples
        --------
        >>> import matplotlib
        >>> matplotlib.use("agg")  # no window
        >>> X = np.column_stack([np.arange(50.0), 2 * np.arange(50.0), 3 * np.arange(50.0)])
        >>> axes = VAEOutlierDetector(random_state=0).fit(X).plot([[5, 10, 15], [5, 80, 15]])
        >>> axes.get_ylabel()
        'row'
        """
        n_rows = check_positive("n_rows", n_rows)
        X, encoded = self._encoded(X)
        rows = np.argsort(-self.density_.anomaly_score(*self._tensors(encoded)), kind="stable")[:n_rows]
        expected, scores = self._cells(encoded)
        observed = encoded.observed & self.modelled_
        scores = np.where(observed, scores, np.nan)
        return self._domain.plot(self.encoder_, X, encoded._replace(observed=observed), expected, scores, rows, ax)

    @property
    def _is_robust(self) -> bool:
        return self.contamination != "auto" if self.robust == "auto" else bool(self.robust)

    def _learn(self, data: Any, seed: int) -> FittedModels:
        if len(data.values) < 2:
            raise ValueError("VAEOutlierDetector needs at least two rows to compare, but got n_samples = 1.")
        options = {"seed": seed, "dtype": getattr(torch, self.dtype), "robust": self._is_robust}
        return self._domain.fit_detector(data, **options)

    def _set_learned(self, models: FittedModels, encoded: Encoded) -> None:
        self.n_components_ = self.density_.n_components
        if isinstance(self.contamination, str):
            self.offset_ = -self.density_.row_calibration.quantile(1 - _FALSE_ALARMS)
        else:
            scores = self.density_.anomaly_score(*self._tensors(encoded))
            self.offset_ = float(np.percentile(-scores, 100 * self.contamination))

    def _log_likelihood(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return self.density_.log_likelihood(values, observed)

    def _cells(self, encoded: Encoded) -> tuple[NDArray, NDArray]:
        """Of all cells (n, D) the expected value and the surprisal; zero in columns that are not modelled."""
        pred = self.density_.predict_cells(*self._tensors(encoded))
        surprisal = self.density_.cell_calibration.surprisal(pred.scores)
        return self._all_columns(pred.expected), self._all_columns(surprisal)
