"""VAEOutlierDetector: find strange rows and strange cells of a table or of images, and say what they should be."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.base import OutlierMixin
from sklearn.utils._param_validation import Interval, StrOptions

from vaeimpute.estimators._base import BaseVAE
from vaeimpute.estimators._plots import as_columns, draw_images, draw_rows
from vaeimpute.estimators._state import LEARNED
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.gaussian.trimmed import trimmed_share
from vaeimpute.images import density as images
from vaeimpute.images.encoder import ImageEncoder
from vaeimpute.images.fit import Images
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.pixels import Pixels
from vaeimpute.tables import density as detection
from vaeimpute.tables.data import Table
from vaeimpute.training.runtime import positive

_FALSE_ALARMS = 0.05  # of ordinary rows, with contamination="auto"


class VAEOutlierDetector(OutlierMixin, BaseVAE):
    """Find strange rows, and the strange cells in them, in a mixed-type table with holes.

    Rows are scored by their likelihood under a mixture of linear VAEs, solved exactly on the observed cells, and by the
    distance to their nearest neighbours. Four members, each blind to a quarter of the rows, tell what ordinary rows
    score; a row's score says how rare it would be among them. Cells are scored by how much less likely the rest of
    their row makes them than a wrong cell would be; cells that are likely wrong have as little say in that.

    Images are scored by a few numbers that stand for them, under such a mixture, and by what these leave over; their
    pixels by what a convolutional network expects of each, given those around it.

    Parameters
    ----------
    contamination : "auto" or float in (0, 0.5], default="auto"
        Share of outliers in the training table: so many of its rows are flagged. "auto" takes the training rows as
        ordinary, and flags what is stranger than 95% of such rows.
    robust : "auto" or bool, default="auto"
        Whether to fit to the bulk of the training rows only, because some of them are strange themselves. "auto" does
        so when `contamination` is a number.
    image_shape : tuple of int, default=None
        ``(height, width)`` or ``(height, width, channels)`` if X holds images: an array ``(n, H * W * C)``,
        ``(n, H, W)`` or ``(n, H, W, C)``, of integers or floats. Answers come in the same layout and dtype. Of
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
    _learned: ClassVar[tuple[str, ...]] = (*LEARNED, "density_", "row_calibration_", "offset_", "n_components_")

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

    def fit(self, X: Any, y: Any = None) -> VAEOutlierDetector:
        """Learn what ordinary rows look like.

        Parameters
        ----------
        X : table of shape (n, D)
            pandas, polars or pyarrow, or an array; holes are allowed everywhere. Never changed.
        y : ignored

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

    def score_samples(self, X: Any) -> NDArray:
        """The opposite of `anomaly_score`: higher is more ordinary, as scikit-learn's detectors have it.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n,)

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

    def decision_function(self, X: Any) -> NDArray:
        """``score_samples(X) - offset_``: negative for outliers.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n,)

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

    def predict(self, X: Any) -> NDArray:
        """1 for ordinary rows, -1 for outliers.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        int ndarray of shape (n,)

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

    def p_values(self, X: Any) -> NDArray:
        """Conformal p-values: how likely a new ordinary row is to be at least as strange.

        Each row is compared with training rows that the scoring member has not seen, and that have about as many cells
        observed. For new rows like the training rows they are uniform; rows of the training table itself were seen by
        some members, and look a little too ordinary.

        Parameters
        ----------
        X : table of shape (n, D)

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
        _, values, observed = self._encoded(X)
        combined, observed = self._combined(*self._tensors(values, observed))
        return self.row_calibration_.p_values(combined, observed)

    def select(self, X: Any, fdr: float = 0.1) -> NDArray:
        """Outliers of a batch, of which a share of at most `fdr` is expected to be ordinary after all.

        Parameters
        ----------
        X : table of shape (n, D)
        fdr : float in (0, 1), default=0.1
            False discovery rate, by the procedure of Benjamini and Hochberg on the p-values. It has no power where
            ``fdr`` times the number of outliers is below ``n / n_training``.

        Returns
        -------
        bool ndarray of shape (n,)

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

    def repair(self, X: Any, threshold: float = 5.0) -> Any:
        """X with its strange cells replaced by what the rest of their row says.

        Cells that are likely wrong have as little say in what is expected of the others.

        Parameters
        ----------
        X : table of shape (n, D)
        threshold : float, default=5.0
            Cells whose `cell_anomaly_score` is above it are replaced, in nats.

        Returns
        -------
        table of shape (n, D)
            Container, index, column order and dtypes as X has them; all other cells, and holes, as they are.

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
        X, expected, scores, observed = self._cells(X)
        return self.encoder_.fill(X, expected, ~(observed & (scores > threshold)) | ~self.modelled_)

    def explain(self, X: Any, n_cells: int = 3) -> pd.DataFrame:
        """The cells that make each row strange, as a tidy table.

        Parameters
        ----------
        X : table of shape (n, D)
        n_cells : int, default=3
            Cells per row, the strangest first.

        Returns
        -------
        DataFrame
            The strangest rows first: position of the row, its score, and per cell the column, the value, what the rest
            of the row would have said, and the cell's score.

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
        n_cells = positive("n_cells", n_cells)
        rows = self.anomaly_score(X)
        X, expected, scores, observed = self._cells(X)
        names = self.encoder_.names
        value, said = as_columns(X), as_columns(self.encoder_.fill(X, expected, ~observed))
        records = []
        for i in np.argsort(-rows, kind="stable"):
            order = np.argsort(-np.where(observed[i], scores[i], -np.inf), kind="stable")[:n_cells]
            records += [
                (int(i), rows[i], names[j], value[j][i], said[j][i], scores[i, j]) for j in order if observed[i, j]
            ]
        return pd.DataFrame(records, columns=["row", "row_score", "column", "value", "expected", "cell_score"])

    def plot(self, X: Any, n_rows: int = 10, ax: Any = None) -> Any:
        """Draw the strangest rows: the colour of a cell is its score, and strange cells show what was expected.

        Of images, the strangest ones above the scores of their pixels.

        Parameters
        ----------
        X : table of shape (n, D)
        n_rows : int, default=10
        ax : matplotlib Axes, default=None
            A new one if None.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError, ValueError
            If matplotlib is not installed; if `n_rows` is no positive integer.
        """
        n_rows = positive("n_rows", n_rows)
        shown = np.argsort(-self.anomaly_score(X), kind="stable")[:n_rows]
        X, expected, scores, observed = self._cells(X)
        cells = np.where(observed, scores, np.nan)
        if isinstance(self.encoder_, ImageEncoder):
            values = np.where(observed, self.encoder_.encode(X)[0], np.nan)
            return draw_images(values, cells, shown, self.encoder_.shape, ax)
        said = self.encoder_.fill(X, expected, ~observed)
        return draw_rows(as_columns(X), as_columns(said), cells, shown, self.encoder_.names, ax)

    @property
    def _is_robust(self) -> bool:
        return self.contamination != "auto" if self.robust == "auto" else bool(self.robust)

    def _new_encoder(self, X: Any) -> TableEncoder | ImageEncoder:
        encoder = super()._new_encoder(X)
        return encoder.robust(X) if self._is_robust and isinstance(encoder, TableEncoder) else encoder

    def _learn(self, data: Table | Images, seed: int) -> bool:
        n = len(data.values)
        if n < 2:
            raise ValueError("VAEOutlierDetector needs at least two rows to compare, but got n_samples = 1.")
        options = {
            "seed": seed,
            "dtype": getattr(torch, self.dtype),
            "trimmed": trimmed_share(n) if self._is_robust else 0.0,
        }
        core: Any = images if isinstance(data, Images) else detection
        self.density_, self.row_calibration_, interrupted = core.fit_density(data, **options)
        self.n_components_ = self.density_.n_components
        if isinstance(self.contamination, str):
            self.offset_ = -self.row_calibration_.quantile(1 - _FALSE_ALARMS)
        else:
            score = -self._strangeness(data.values.to(self._weights), data.observed)
            self.offset_ = float(np.percentile(score, 100 * self.contamination))
        return interrupted

    @property
    def _likelihoods(self) -> ColumnLikelihoods | Pixels:
        return self.density_.likelihoods

    @property
    def _weights(self) -> torch.Tensor:
        return self.density_.weights

    def _log_likelihood(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return self.density_.log_likelihood(values, observed)

    def _combined(self, values: torch.Tensor, observed: torch.Tensor) -> tuple[NDArray, NDArray]:
        """Combined score of each row under each member (M, n), and what stands for the mask."""
        scores, mask = self.density_.row_scores(values, observed).cpu().numpy(), self.density_.mask(observed)
        return self.row_calibration_.combined(scores, mask), mask

    def _strangeness(self, values: torch.Tensor, observed: torch.Tensor) -> NDArray:
        return self.row_calibration_.rarity(*self._combined(values, observed))

    def _cell_scores(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return self.density_.cells(values, observed)[1]

    def _cells(self, X: Any) -> tuple[Any, NDArray, NDArray, NDArray]:
        """Checked X, and of all its cells (n, D) the expected value, the score, and whether it is observed."""
        X, values, observed = self._encoded(X)
        x, o = self._tensors(values, observed)
        expected, scores = self.density_.cells(x, o)
        return X, self._all_columns(expected), self._all_columns(scores), observed & self.modelled_
