"""Peers that fit a joint density of the row and predict by its conditional: Gaussian families, Bayesian network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.cluster import KMeans

from benchmarks.datasets import codes, numeric_columns
from benchmarks.design import Design, first_guess, restore_codes

__all__ = ["bayesian_network", "gaussian_copula", "gaussian_em", "gaussian_mixture"]

Transform = Callable[[pd.DataFrame], pd.DataFrame]
Component = tuple[float, np.ndarray, np.ndarray]  # weight, mean (D,), covariance (D, D)


def gaussian_em(X: pd.DataFrame, seed: int) -> Transform:
    """Conditional mean of a multivariate normal fitted to the observed cells by EM, one-hot classes, small ridge."""
    design = Design(X)
    mixture, _ = _mixture_em(design.encode(X), [(1.0, np.zeros(_width(design)), np.eye(_width(design)))])
    return lambda Y: design.restore(Y, _mixture_moments(design.encode(Y), mixture)[0])


def gaussian_mixture(X: pd.DataFrame, seed: int, n_components: tuple[int, ...] = (1, 2, 3, 5, 8)) -> Transform:
    """Conditional mean of a mixture of full-covariance normals fitted by EM to the observed cells.

    The number of components by BIC, from few to many until it rises; components start from k-means on the table that
    the fit before completed. Classes one-hot, the covariances' ridge is `gaussian_em`'s.
    """
    design = Design(X)
    matrix = design.encode(X)
    n, d = matrix.shape
    mixture, filled, best, lowest = [(1.0, np.zeros(d), np.eye(d))], matrix, [], np.inf
    for k in n_components:
        if k > 1:
            labels = KMeans(k, n_init=3, random_state=seed).fit_predict(filled)
            parts = [filled[labels == c] for c in range(k)]
            mixture = [
                (len(p) / n, p.mean(0), (np.cov(p.T, ddof=0) * len(p) + np.eye(d)) / (len(p) + 1)) for p in parts
            ]
        mixture, log_likelihood = _mixture_em(matrix, mixture)
        bic = k * (1 + d + d * (d + 1) / 2) * np.log(n) - 2 * log_likelihood
        if bic > lowest:
            break
        best, lowest, filled = mixture, bic, _mixture_moments(matrix, mixture)[0]
    return lambda Y: design.restore(Y, _mixture_moments(design.encode(Y), best)[0])


def gaussian_copula(X: pd.DataFrame, seed: int) -> Transform:
    """Gaussian EM on normal scores (ranks through the normal quantile); the conditional mean mapped back.

    As gcimpute, but that ties share their mean score (there: a truncated normal) and classes are one-hot.
    """
    scales = {}  # the observed values of each number, in order, and their scores
    for name in numeric_columns(X):
        present = X[name].dropna()
        ranks = present.rank(method="average").to_numpy() / (len(present) + 1)
        values, first = np.unique(present.to_numpy(), return_index=True)
        scales[name] = values, norm.ppf(ranks[first])

    def scored(Y: pd.DataFrame) -> pd.DataFrame:
        return Y.assign(**{name: np.interp(Y[name], *scales[name]) for name in scales})

    complete = gaussian_em(scored(X), seed)

    def transform(Y: pd.DataFrame) -> pd.DataFrame:
        filled = complete(scored(Y))
        back = {name: np.interp(filled[name], scores, values) for name, (values, scores) in scales.items()}
        return restore_codes(Y, codes(filled.assign(**back)))

    return transform


def bayesian_network(X: pd.DataFrame, seed: int, n_bins: int = 5) -> pd.DataFrame:
    """Discrete Bayesian network (pgmpy): numbers in 5 quantile bins, hill climbing by AIC, exact inference per row.

    Structure (at most 2 parents) and tables (BDeu) are learnt twice, from the table completed by mean and mode and then
    by the first network: learning from incomplete rows costs far more. A number is the mean of its bins' means.
    """
    missing, filled, bins = X.isna().to_numpy(), first_guess(X), np.empty(X.shape, dtype=int)
    numbers, values = set(numeric_columns(X)), []  # values: what each state of a column stands for
    for j, name in enumerate(X):
        if name in numbers:
            edges = np.unique(X[name].quantile(np.linspace(0, 1, n_bins + 1)[1:-1]))
        else:
            edges = np.arange(len(X[name].cat.categories) - 1)
        bins[:, j] = np.searchsorted(edges, filled[:, j])
        values.append(pd.Series(filled[:, j]).groupby(bins[:, j]).mean())
    for _ in range(2):
        posteriors = _network_posteriors(bins, missing)
        for cell, (states, probability) in posteriors.items():
            bins[cell] = states[probability.argmax()]
    for (i, j), (states, probability) in posteriors.items():
        is_number = X.columns[j] in numbers
        filled[i, j] = probability @ values[j][states] if is_number else states[probability.argmax()]
    return restore_codes(X, filled)


def _network_posteriors(bins: np.ndarray, missing: np.ndarray) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Learn a network from whole rows of states; of each missing cell the states and their probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # pgmpy 1.1 warns of its own imports
        from pgmpy.causal_discovery import HillClimbSearch
        from pgmpy.inference import VariableElimination
        from pgmpy.models import DiscreteBayesianNetwork
        from pgmpy.parameter_estimator import DiscreteBayesianEstimator

    states = pd.DataFrame(bins, columns=[f"c{j}" for j in range(bins.shape[1])]).astype("category")
    search = HillClimbSearch("aic-d", max_indegree=2, return_type="dag", show_progress=False).fit(states)
    network = DiscreteBayesianNetwork(search.causal_graph_.edges())
    network.add_nodes_from(states.columns)
    inference = VariableElimination(network.fit(states, estimator=DiscreteBayesianEstimator()))
    posteriors: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for i in np.flatnonzero(missing.any(axis=1)):
        known = {f"c{j}": bins[i, j] for j in np.flatnonzero(~missing[i])}
        for j in np.flatnonzero(missing[i]):  # one by one: for several at once pgmpy builds their joint table
            factor = inference.query([f"c{j}"], known, show_progress=False)
            posteriors[int(i), int(j)] = np.array(factor.state_names[f"c{j}"]), factor.values
    return posteriors


def _width(design: Design) -> int:
    return max(block.stop for block in design.where.values())


def _mixture_em(matrix: np.ndarray, mixture: list[Component], n_rounds: int = 100) -> tuple[list[Component], float]:
    """Fit a mixture to the observed cells by EM; the components and their log-likelihood one round before the last."""
    n, d = matrix.shape
    for _ in range(n_rounds):
        _, log_likelihood, sizes, sums, squares = _mixture_moments(matrix, mixture)
        old, mixture = mixture, []
        for size, total, square in zip(sizes, sums, squares, strict=True):
            mu = total / max(size, 1e-9)
            mixture.append(
                (size / n, mu, (square - size * np.outer(mu, mu) + np.eye(d)) / (size + 1))
            )  # one pseudo-row
        if max(np.abs(new[2] - was[2]).max() for new, was in zip(mixture, old, strict=True)) < 1e-4:
            break
    return mixture, log_likelihood


def _mixture_moments(
    matrix: np.ndarray, mixture: list[Component]
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]:
    """Conditional means (n, D), log-likelihood; expected size, sum and sum of squares of each component's rows."""
    n, d = matrix.shape
    k, filled, log_likelihood = len(mixture), np.empty((n, d)), 0.0
    sizes, sums, squares = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for start in range(0, n, 256):
        x = matrix[start : start + 256]
        parts = [_conditional(x, mu, cov) for _, mu, cov in mixture]
        joint = np.stack([np.log(max(w, 1e-300)) + p[2] for (w, _, _), p in zip(mixture, parts, strict=True)])  # (k, b)
        marginal = np.logaddexp.reduce(joint, axis=0)
        weights, means = np.exp(joint - marginal), np.stack([p[0] for p in parts])
        filled[start : start + 256] = np.einsum("kb,kbd->bd", weights, means)
        log_likelihood += marginal.sum()
        sizes += weights.sum(axis=1)
        sums += np.einsum("kb,kbd->kd", weights, means)
        for c, weight in enumerate(weights):
            squares[c] += (means[c] * weight[:, None]).T @ means[c] + np.tensordot(weight, parts[c][1], 1)
    return filled, log_likelihood, sizes, sums, squares


def _conditional(x: np.ndarray, mu: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (b, D), covariance (b, D, D) of N(mu, cov) given the observed cells, and their log-density (b,)."""
    o, eye = ~np.isnan(x), np.eye(len(mu))
    residual = np.where(o, x - mu, 0.0)
    # Identity in place of the missing block: one batched solve for rows with different missing cells.
    inside = np.where(o[:, :, None] & o[:, None, :], cov, eye)
    across = np.where(o[:, :, None] & ~o[:, None, :], cov, 0.0)
    solved = np.linalg.solve(inside, np.concatenate([across, residual[:, :, None]], axis=2))
    gain, whitened = solved[:, :, :-1], solved[:, :, -1]
    mean = np.where(o, x, mu) + np.einsum("bi,bij->bj", residual, gain)
    covariance = np.where(~o[:, :, None] & ~o[:, None, :], cov - across.transpose(0, 2, 1) @ gain, 0.0)
    quadratic = (residual * whitened).sum(axis=1)
    return mean, covariance, -0.5 * (quadratic + np.linalg.slogdet(inside)[1] + o.sum(axis=1) * np.log(2 * np.pi))
