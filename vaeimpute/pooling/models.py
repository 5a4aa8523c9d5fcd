"""A model fitted to every completed table: its pooled estimates, and the comparison with a smaller one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vaeimpute.pooling.answers import stack
from vaeimpute.pooling.rules import Comparison, Pooled, pool_answers, tail_of_f
from vaeimpute.pooling.scales import Transform


def fit_pooled(
    analysis: Callable[[Any], Any],
    draws: Iterable[Any],
    *,
    level: float = 0.95,
    transform: Transform = None,
    df: str = "barnard-rubin",
) -> Pooled:
    """Analyse every completed table, and `pool` the answers.

    Parameters
    ----------
    analysis : callable
        Takes a table and returns ``(estimates, variances)`` or ``(estimates, variances, df)``, with the degrees of
        freedom of complete data; or any fitted result that has ``params`` and ``cov_params()``, and perhaps
        ``df_resid``, as those of statsmodels.
    draws : iterable of tables
        As ``impute(X, n_imputations)`` gives them.
    level : float, default=0.95
        Of the confidence intervals.
    transform : {"log", "fisher", "logit"} or sequence of callables, default=None
        The scale on which to pool; see `pool`.
    df : {"barnard-rubin", "rubin"}, default="barnard-rubin"
        Degrees of freedom; see `pool`.

    Returns
    -------
    Pooled
        With the smallest degrees of freedom of the analyses as those of complete data.

    Raises
    ------
    RuntimeError
        If the analysis fails on a table; says on which.
    TypeError
        If it returns something else, such as a scikit-learn model, which has no standard errors.
    ValueError
        As `pool`.

    Examples
    --------
    >>> draws = [pd.Series([1.0, 2.0, 3.0, x]) for x in (3.0, 4.0, 5.0)]
    >>> fit_pooled(lambda x: (x.mean(), x.var() / 4, 3), draws).table["estimate"]
    0    2.5
    Name: estimate, dtype: float64
    """
    if isinstance(draws, pd.DataFrame):
        raise TypeError("draws must be a list of completed tables, but got one. Pass impute(X, n_imputations=20).")
    answers = [_answer(analysis, table, number) for number, table in enumerate(draws)]
    q, names = stack([answer.estimates for answer in answers], "estimates")
    v, _ = stack([answer.variances for answer in answers], "variances", names)
    return pool_answers(q, v, names, min((answer.df for answer in answers), default=np.inf), level, transform, df)


def compare(full: Sequence[Any], restricted: Sequence[Any], method: str = "D1") -> Comparison:
    r"""Compare two nested models that were both fitted to each of m completed tables.

    "D1" is the Wald test of the parameters that the restricted model lacks, see `Pooled.test`. "D2" pools the
    likelihood-ratio statistics :math:`d_k` of the tables (Li, Meng, Raghunathan and Rubin, 1991):

    .. math:: D_2 = \frac{\bar d / k - r (m + 1) / (m - 1)}{1 + r}, \quad
              r = (1 + 1/m)\, \mathrm{var}(\sqrt{d_k})

    D1 is more powerful; D2 needs the log-likelihoods only.

    Parameters
    ----------
    full, restricted : sequence of m fitted results
        In the order of the tables; with ``params`` and ``cov_params()``, for "D2" with ``params`` and ``llf``.
        Parameters without names are taken in their order: the restricted model then lacks the last ones.
    method : {"D1", "D2"}, default="D1"
        Which test.

    Returns
    -------
    Comparison
        A small `p_value` speaks against the restricted model.

    Raises
    ------
    ValueError
        If there are not as many results of one model as of the other, or the models are not nested.
    TypeError
        If a result lacks what the method needs.

    Examples
    --------
    >>> from types import SimpleNamespace as Result
    >>> full = [Result(params=[0.0, x, 1.0], llf=-10.0 - x) for x in (0.1, 0.4)]
    >>> compare(full, [Result(params=[0.0], llf=-15.0)] * 2, "D2").df1
    2
    """
    full, restricted = list(full), list(restricted)
    if method not in ("D1", "D2"):
        raise ValueError(f"method must be 'D1' or 'D2', but got {method!r}.")
    if len(full) != len(restricted) or len(full) < 2:
        raise ValueError(f"want two or more results of each model, but got {len(full)} and {len(restricted)}.")
    return _likelihood_ratio(full, restricted) if method == "D2" else _wald(full, restricted)


def _wald(full: list[Any], restricted: list[Any]) -> Comparison:
    pooled, smaller = (fit_pooled(lambda result: result, results) for results in (full, restricted))
    extra = [name for name in pooled.table.index if name not in smaller.table.index]
    if set(smaller.table.index) - set(pooled.table.index) or not extra:
        raise ValueError(
            "the restricted model's parameters must be some of the full one's, but they are "
            f"{list(smaller.table.index)}, and the full one's {list(pooled.table.index)}."
        )
    return pooled.test(extra)


def _likelihood_ratio(full: list[Any], restricted: list[Any]) -> Comparison:
    for result in (*full, *restricted):
        if not (hasattr(result, "llf") and hasattr(result, "params")):
            raise TypeError(f"method 'D2' needs results with params and llf, but got a {type(result).__name__}.")
    m, k = len(full), len(full[0].params) - len(restricted[0].params)
    ratios = np.array([2 * (big.llf - small.llf) for big, small in zip(full, restricted, strict=True)])
    if k <= 0 or ratios.min() < -1e-6 * (1 + abs(full[0].llf)):
        raise ValueError(
            "the restricted model must be the full one with some parameters left out, but it has "
            f"{len(restricted[0].params)} for {len(full[0].params)}, and 2 (llf - llf) goes down to {ratios.min():.3g}."
        )
    ratios = np.maximum(ratios, 0)
    riv = (1 + 1 / m) * float(np.sqrt(ratios).var(ddof=1))
    statistic = (float(ratios.mean()) / k - (m + 1) / (m - 1) * riv) / (1 + riv)
    df2 = k ** (-3 / m) * (m - 1) * (1 + 1 / riv) ** 2 if riv > 0 else math.inf
    return Comparison(statistic, k, df2, float(tail_of_f(statistic, k, df2)), riv, "D2")


class _Answer(NamedTuple):
    estimates: Any
    variances: Any
    df: float = np.inf


def _answer(analysis: Callable[[Any], Any], table: Any, number: int) -> _Answer:
    """What the analysis says of one table; a result's own ``params`` and ``cov_params()`` where it is one."""
    try:
        result = analysis(table)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"The analysis failed on draw {number} (they count from 0): {reason}") from error
    if isinstance(result, tuple) and len(result) in (2, 3):
        return _Answer(*result)
    if hasattr(result, "params") and hasattr(result, "cov_params"):
        return _Answer(result.params, result.cov_params(), float(getattr(result, "df_resid", np.inf)))
    want = "want (estimates, variances), or a fitted result with params and cov_params()"
    if hasattr(result, "predict"):
        want += (
            ". Such a model has no standard errors to pool: fit one of statsmodels, or average the models' predictions"
        )
    raise TypeError(f"The analysis of draw {number} gave a {type(result).__name__}; {want}.")
