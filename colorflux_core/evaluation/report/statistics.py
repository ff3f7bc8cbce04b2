"""Confidence intervals of means and paired comparisons of methods.

A method's values on one benchmark set are an array (seeds, images): one row per training seed, NaN
for missing values. A bundle or a folder of results has a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Values = NDArray[np.float64]

LEVEL = 0.95
"""Confidence level of all intervals."""

RESAMPLES = 5000


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; the bounds are NaN for fewer than two images."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A method against another, over the images for which both have a value."""

    images: int
    difference: Interval
    wins: int
    ties: int
    losses: int
    p: float
    """Two-sided p-value of Wilcoxon's signed-rank test; NaN for fewer than two images, or if a
    method has several seeds, which the test does not model."""


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean over images of the mean over seeds, with a bootstrap confidence interval.

    Uses the pigeonhole bootstrap (Owen 2007): seeds and images are crossed factors, so both are
    resampled, with the same images for every seed. Two corrections improve coverage for small
    samples: each resample draws n - 1 of n (Rao and Wu 1988), and the percentile interval is
    widened from the normal to Student's t quantile (Hesterberg 2015) with Satterthwaite's degrees
    of freedom. On Gaussian values the coverage is 93 to 96 % from 4 images and 3 seeds on, and
    88 % for 2 seeds.

    Args:
        values: (seeds, images) or (images).
        seed: Seed of the bootstrap.
    """
    return _interval([_two_dimensional(values)], seed)


def compare(
    values: ArrayLike, others: ArrayLike, *, higher_is_better: bool, seed: int = 0
) -> Comparison:
    """Compare two methods' values, (seeds, images) or (images), for the same images in order.

    Images are paired. Seeds are paired too if both methods have the same number, because runs of
    the same seed may share earlier training stages, whose effect then cancels out. Wins, ties and
    losses count images by their mean over the seeds.
    """
    first, second = _two_dimensional(values), _two_dimensional(others)
    parts = [first - second] if len(first) == len(second) else [first, -second]
    differences = np.sum([over_seeds(part) for part in parts], axis=0)
    differences = differences[~np.isnan(differences)]
    better = differences if higher_is_better else -differences
    return Comparison(
        images=len(differences),
        difference=_interval(parts, seed),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        p=_p_value(differences) if len(first) == len(second) == 1 else np.nan,
    )


def over_seeds(values: Values) -> Values:
    """Mean over seeds, ignoring NaN: (seeds, images) to (images); NaN if all values are missing."""
    return _means(np.ones((1, len(values))), values)[0]


def mean_of(values: Values) -> float:
    """Mean over images of the mean over seeds; NaN if all values are missing."""
    return _mean(over_seeds(values))


def _mean(of_images: Values) -> float:
    has_value = ~np.isnan(of_images)
    return float(of_images[has_value].mean()) if has_value.any() else np.nan


def _two_dimensional(values: ArrayLike) -> Values:
    return np.atleast_2d(np.asarray(values, dtype=np.float64))


def _interval(parts: Sequence[Values], seed: int) -> Interval:
    """Interval of the sum of the parts' means, over the images for which all parts have a value."""
    of_images = np.sum([over_seeds(part) for part in parts], axis=0)
    mean = _mean(of_images)
    has_value = ~np.isnan(of_images)
    of_images = of_images[has_value]
    if len(of_images) < 2 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan)
    parts = [part[:, has_value] for part in parts]
    total = np.zeros((1, len(of_images)))
    for index, part in enumerate(parts, start=1):
        drawn = bootstrap_counts(len(part), seed, index) if len(part) > 1 else np.ones((1, 1))
        total = total + _means(drawn, part)
    images = bootstrap_counts(len(of_images), seed, 0)
    resampled = _means(images, total.T)[:, 0] if len(total) == 1 else _row_means(images, total)
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    widening = student_over_normal([of_images, *(over_seeds(part.T) for part in parts)])
    return Interval(mean, mean + widening * (low - mean), mean + widening * (high - mean))


@lru_cache(maxsize=4)  # shared by the metrics of one set
def bootstrap_counts(count: int, seed: int, stream: int) -> Values:
    """How often each of ``count`` items is in a resample of ``count - 1``: (resamples, count)."""
    rng = np.random.default_rng([seed, stream])
    drawn = rng.integers(count, size=(RESAMPLES, count - 1))
    drawn += count * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * count)
    return counts.reshape(RESAMPLES, count).astype(np.float64)


def _means(weights: Values, values: Values) -> Values:
    """Weighted column means, ignoring NaN: (resamples, n) and (n, m) to (resamples, m)."""
    return _ratio(weights @ _or_zero(values), weights @ ~np.isnan(values))


def _row_means(weights: Values, values: Values) -> Values:
    """Weighted row means, ignoring NaN: both (resamples, n) to (resamples)."""
    total = np.sum(weights * _or_zero(values), axis=1)
    return _ratio(total, np.sum(weights * ~np.isnan(values), axis=1))


def _or_zero(values: Values) -> Values:
    return np.where(np.isnan(values), 0, values)


def _ratio(total: Values, weight: Values) -> Values:
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def student_over_normal(sources: Sequence[Values]) -> float:
    """Ratio of Student's t to the normal quantile, for a mean with these sources of variance."""
    sources = [source[~np.isnan(source)] for source in sources]
    sources = [source for source in sources if len(source) > 1]
    variances = np.array([source.var(ddof=1) / len(source) for source in sources])
    if not variances.any():
        return 1.0
    freedom = variances.sum() ** 2 / sum(
        variance**2 / (len(source) - 1) for variance, source in zip(variances, sources, strict=True)
    )
    upper = (1 + LEVEL) / 2
    return float(stats.t.ppf(upper, freedom) / stats.norm.ppf(upper))


def _p_value(differences: Values) -> float:
    if len(differences) < 2:
        return np.nan
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
