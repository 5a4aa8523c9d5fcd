"""Rubin's rules: one answer from those of many completed tables, tests of several parameters, how many it takes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats

from vaeimpute.pooling.answers import check_answers, stack
from vaeimpute.pooling.scales import Transform, scale_of, scaled

REFERENCES = ("barnard-rubin", "rubin")


@dataclass(frozen=True)
class Comparison:
    """A test of several parameters at once: `statistic` is compared with the F distribution of `df1` and `df2`.

    Parameters
    ----------
    statistic : float
        May be negative for "D2", which is then no evidence at all.
    df1, df2 : float
        Degrees of freedom; `df1` is the number of parameters under test.
    p_value : float
        Upper tail of F.
    riv : float
        Average relative increase of the variance by the missing cells.
    method : str
        "D1" or "D2".

    Examples
    --------
    >>> test = pool([1.0, 1.2, 0.8], [0.25, 0.25, 0.25]).test()
    >>> test.method, round(test.p_value, 3)
    ('D1', 0.074)
    """

    statistic: float
    df1: float
    df2: float
    p_value: float
    riv: float
    method: str


@dataclass(frozen=True, eq=False, repr=False)
class Pooled:
    """What `pool` and `fit_pooled` give: a table with a row for each of p parameters, and its covariances.

    With a `transform`, `covariance`, `within`, `between` and `scaled` are on its scale, on which it was pooled.

    Parameters
    ----------
    table : DataFrame of shape (p, 10)
        Columns ``estimate, std_error, statistic, df, p_value, low, high, riv, lambda_, fmi``: the last three are the
        relative increase of the variance by the missing cells, their share of the variance, and the fraction of
        missing information.
    covariance, within, between : DataFrame of shape (p, p)
        Of the estimates: all of it (T), the mean over tables (U), and from table to table (B). NaN off the diagonal
        of the first two if `pool` was given variances alone.
    m : int
        Number of completed tables.
    df_complete : float
        Degrees of freedom that the analysis would have without missing cells.
    scaled : ndarray of shape (p,)
        Mean estimates on the scale on which they were pooled.
    reference : {"barnard-rubin", "rubin"}
        Whose degrees of freedom.

    Examples
    --------
    >>> pooled = pool([1.0, 1.2, 0.8], [0.25, 0.25, 0.25])
    >>> pooled.m, pooled.table["fmi"].round(3).tolist()
    (3, [0.2])
    """

    table: pd.DataFrame
    covariance: pd.DataFrame
    within: pd.DataFrame
    between: pd.DataFrame
    m: int
    df_complete: float
    scaled: np.ndarray
    reference: str

    def __repr__(self) -> str:
        """Show the table."""
        return self.table.to_string(float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.4g}".format)

    def test(self, names: Sequence[Hashable] | None = None, null: ArrayLike = 0.0) -> Comparison:
        r"""Test several parameters at once: :math:`D_1` of Li, Raghunathan and Rubin (1991).

        .. math:: D_1 = (\bar q - q_0)^\top U^{-1} (\bar q - q_0) / (k (1 + r)), \quad
                  r = (1 + 1/m)\, \mathrm{tr}(B U^{-1}) / k

        The degrees of freedom are theirs (equation 1.18), or those of Reiter (2007) where the complete data have
        finite ones; of one parameter, for which :math:`D_1 = t^2`, those of the table.

        Parameters
        ----------
        names : str or sequence, default=None
            The k parameters under test; None tests all.
        null : float or array-like of shape (k,), default=0
            Their values under the null hypothesis, on the scale on which they were pooled.

        Returns
        -------
        Comparison
            With k and the degrees of freedom of the denominator.

        Raises
        ------
        ValueError
            If a name is unknown, covariances are missing or are singular.

        Examples
        --------
        >>> estimates = [[1.0, 2.0], [1.2, 2.1], [0.8, 2.3]]
        >>> pooled = pool(estimates, [[[0.25, 0.1], [0.1, 0.25]]] * 3, names=["a", "b"])
        >>> round(pooled.test().statistic, 3)
        7.312
        """
        names = list(self.table.index if names is None else [names] if isinstance(names, str) else names)
        if not names or len(set(names)) < len(names) or (set(names) - set(self.table.index)):
            raise ValueError(f"names must be some of {list(self.table.index)}, once each, but got {names}.")
        within, between = (part.loc[names, names].to_numpy() for part in (self.within, self.between))
        distance = self.scaled[self.table.index.get_indexer(names)] - np.broadcast_to(null, len(names))
        if np.isnan(within).any():
            raise ValueError(
                f"A test of several parameters ({names}) needs their covariances, but pool() was given variances "
                "alone. Pass variances of shape (m, p, p)."
            )
        if np.linalg.matrix_rank(within) < len(names):
            raise ValueError(f"The covariances of {names} are singular: some of these parameters determine the others.")
        k = len(names)
        riv = (1 + 1 / self.m) * float(np.trace(np.linalg.solve(within, between))) / k
        statistic = float(distance @ np.linalg.solve(within, distance)) / (k * (1 + riv))
        df2 = float(self.table["df"][names[0]]) if k == 1 else self._df_of_several(k, riv)
        return Comparison(statistic, k, df2, float(tail_of_f(statistic, k, df2)), riv, "D1")

    def n_needed(self, cv: float = 0.05, confidence: float = 0.95) -> int:
        r"""How many draws make the standard errors replicable: the two stages of von Hippel (2020, equation 2).

        .. math:: 1 + \tfrac12 (\gamma / \mathrm{cv})^2

        with the upper bound :math:`\gamma` of the fraction of missing information, whose logit has the standard error
        :math:`\sqrt{2 / m}`. The largest over the parameters.

        Parameters
        ----------
        cv : float, default=0.05
            By which share of itself a standard error may vary from one set of draws to another.
        confidence : float, default=0.95
            Of the interval for the fraction of missing information.

        Returns
        -------
        int
            Number of draws, those that there are included; at least 2.

        Raises
        ------
        ValueError
            If `cv` is not positive, or `confidence` not in (0, 1).

        Examples
        --------
        >>> pool([1.0, 1.2, 0.8], [0.25, 0.25, 0.25]).n_needed()
        63
        """
        if not cv > 0:
            raise ValueError(f"cv must be positive, but got {cv!r}.")
        _check_level("confidence", confidence)
        reach = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(2 / self.m)
        upper = special.expit(special.logit(self.table["fmi"].to_numpy()) + reach).max()
        return max(2, math.ceil(1 + 0.5 * (upper / cv) ** 2))

    def _df_of_several(self, k: int, riv: float) -> float:
        if riv == 0:
            return self.df_complete
        t = k * (self.m - 1)
        large = 4 + (t - 4) * (1 + (1 - 2 / t) / riv) ** 2 if t > 4 else t * (1 + 1 / k) * (1 + 1 / riv) ** 2 / 2
        if self.reference == "rubin" or np.isinf(self.df_complete):
            return large
        observed = _observed_df(self.df_complete)
        small = _reiter_df(t, riv, observed)
        # Where Reiter's expansion does not exist, what Barnard and Rubin do for one parameter.
        return small if small is not None else 1 / (1 / large + (1 + riv) / observed)


def pool(
    estimates: ArrayLike | pd.DataFrame | Sequence[pd.Series],
    variances: ArrayLike | pd.DataFrame | Sequence[pd.Series] | Sequence[pd.DataFrame],
    *,
    n_obs: float | None = None,
    n_parameters: int = 1,
    level: float = 0.95,
    names: Sequence[Hashable] | None = None,
    transform: Transform = None,
    df: str = "barnard-rubin",
) -> Pooled:
    r"""Pool the answers of one analysis of m completed tables by Rubin's rules (Rubin, 1987, chapter 3).

    .. math:: \bar q = \tfrac1m \sum_k q_k, \quad T = U + (1 + 1/m) B, \quad
              \mathrm{riv} = (1 + 1/m) B / U, \quad \lambda = (1 + 1/m) B / T, \quad
              \mathrm{fmi} = \frac{\mathrm{riv} + 2 / (\mathrm{df} + 3)}{\mathrm{riv} + 1}

    where U is the mean of the variances and B the variance of the estimates. If the estimates do not differ at all,
    the answer is the one of complete data.

    Parameters
    ----------
    estimates : array-like of shape (m,) or (m, p), DataFrame, or list of Series
        Of p parameters in each of at least two tables; pandas objects give the parameters' names.
    variances : array-like of that shape or (m, p, p), DataFrame, or list of Series or of DataFrames
        Squared standard errors, or covariance matrices.
    n_obs : float, default=None
        Rows of a table; ``n_obs - n_parameters`` are the degrees of freedom of complete data. None: infinite.
    n_parameters : int, default=1
        Parameters of the analysis.
    level : float, default=0.95
        Of the confidence intervals.
    names : sequence of length p, default=None
        Names of the parameters.
    transform : {"log", "fisher", "logit"} or sequence of callables, default=None
        Pool on this scale (of ratios, correlations, shares), and report on the original one: estimates and variances
        are given on the original scale, standard errors go over by the delta method, tests are of 0 on the new scale.
        Otherwise a function and its inverse, both on arrays, and perhaps the derivative of the former as a third.
    df : {"barnard-rubin", "rubin"}, default="barnard-rubin"
        Degrees of freedom of Barnard and Rubin (1999, equation 3), never more than those of complete data, or of
        Rubin (1987), which are.

    Returns
    -------
    Pooled
        Its ``table`` has a row for each parameter.

    Raises
    ------
    ValueError
        If there are fewer than two tables, shapes or names do not match, a number is not finite, a variance is
        negative or always zero, or an estimate lies outside what `transform` takes.

    Examples
    --------
    >>> pool([1.0, 1.2, 0.8], [0.25, 0.25, 0.25], n_obs=30, names=["slope"])
           estimate  std_error  statistic    df  p_value     low  high    riv  lambda_    fmi
    slope         1     0.5508      1.816 16.64  0.08748 -0.1639 2.164 0.2133   0.1758 0.2597
    """
    q, found = stack(estimates, "estimates")
    v, _ = stack(variances, "variances", found)
    df_complete = np.inf if n_obs is None else float(n_obs - n_parameters)
    if not df_complete > 0:
        raise ValueError(f"n_obs must be larger than n_parameters = {n_parameters}, but got {n_obs!r}.")
    return pool_answers(q, v, found if names is None else list(names), df_complete, level, transform, df)


def pool_answers(
    q: np.ndarray,
    v: np.ndarray,
    names: Sequence[Hashable] | None,
    df_complete: float,
    level: float,
    transform: Transform,
    reference: str,
) -> Pooled:
    """`pool` of estimates (m,) or (m, p) and variances of that shape or (m, p, p)."""
    q, v = check_answers(q, v)
    m, p = q.shape
    _check_level("level", level)
    if not df_complete > 0:
        raise ValueError(f"the degrees of freedom of complete data must be positive, but are {df_complete}.")
    if reference not in REFERENCES:
        raise ValueError(f"df must be one of {REFERENCES}, but got {reference!r}.")
    labels = pd.Index(range(p) if names is None else names)
    if len(labels) != p or labels.has_duplicates:
        raise ValueError(f"names must name the {p} parameters, once each, but got {list(labels)}.")
    scale = scale_of(transform)
    z = scaled(q, scale, transform)
    slopes = scale.slope(q)
    within = (v * slopes[:, :, None] * slopes[:, None, :]).mean(axis=0)
    if not (u := np.diagonal(within)).all():
        raise ValueError(f"variances of parameter {labels[int(u.argmin())]!r} are zero in every draw; want positive.")
    # Relative to the first draw, so that estimates that are all the same have no spread by rounding.
    around = z - z[0]
    between = np.atleast_2d(np.cov(around, rowvar=False))
    total, centre = within + (1 + 1 / m) * between, z[0] + around.mean(axis=0)
    extra = (1 + 1 / m) * np.diagonal(between)
    df = _degrees_of_freedom(extra / u, m, df_complete, reference)
    estimate, error = scale.back(centre), np.sqrt(np.diagonal(total))
    reach = stats.t.ppf((1 + level) / 2, df) * error
    ends = np.sort([scale.back(centre - reach), scale.back(centre + reach)], axis=0)  # a transform may fall
    table = pd.DataFrame(
        {
            "estimate": estimate,
            "std_error": error / np.abs(scale.slope(estimate)),
            "statistic": centre / error,
            "df": df,
            "p_value": 2 * stats.t.sf(np.abs(centre / error), df),
            "low": ends[0],
            "high": ends[1],
            "riv": extra / u,
            "lambda_": extra / (u + extra),
            "fmi": np.where(extra > 0, (extra / u + 2 / (df + 3)) / (extra / u + 1), 0.0),
        },
        index=labels,
    )
    covariance, within, between = (pd.DataFrame(part, labels, labels) for part in (total, within, between))
    return Pooled(table, covariance, within, between, m, df_complete, centre, reference)


def _degrees_of_freedom(riv: np.ndarray, m: int, df_complete: float, reference: str) -> np.ndarray:
    """Barnard and Rubin (1999, equation 3) or Rubin (1987, equation 3.1.6); those of complete data where riv = 0."""
    with np.errstate(divide="ignore"):
        inverse = (riv / (1 + riv)) ** 2 / (m - 1)
        if reference == "barnard-rubin":
            inverse = inverse + (1 + riv) / _observed_df(df_complete)
        return np.where(riv > 0, 1 / inverse, df_complete)


def _observed_df(df_complete: float) -> float:
    """Barnard and Rubin's ``(df + 1) / (df + 3) df``, for infinite ones too."""
    return (1 - 2 / (df_complete + 3)) * df_complete


def _reiter_df(t: int, riv: float, observed: float) -> float | None:
    """Reiter (2007, equations 1 and 2) for ``t = k (m - 1) > 4``; None where its expansion does not exist."""
    a = riv * t / (t - 2) if t > 4 else math.inf
    c1, c2 = observed - 2 * (1 + a), observed - 4 * (1 + a)
    if not c2 > 0:
        return None
    several = (
        a**2 * c1 / ((1 + a) ** 2 * c2)
        + 8 * a**2 * c1 / ((1 + a) * c2**2)
        + 4 * a**2 / ((1 + a) * c2)
        + 4 * a**2 / (c2 * c1)
        + 16 * a**2 * c1 / c2**3
        + 8 * a**2 / c2**2
    )
    return 4 + 1 / (1 / c2 + several / (t - 4))


def tail_of_f(statistic: float, df1: float, df2: float) -> float:
    """Upper tail of F, whose limit for infinite `df2` SciPy does not know."""
    return stats.chi2.sf(df1 * statistic, df1) if np.isinf(df2) else stats.f.sf(statistic, df1, df2)


def _check_level(name: str, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"{name} must be in (0, 1), but got {level!r}.")
