"""How far a mean can be trusted, and whether two methods differ.

A method's values on one benchmark set are an array (seeds, images): a row for each training seed,
NaN where there is no value. A bundle or a folder of results is a single row.
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
"""Of all intervals."""

RESAMPLES = 5000


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; the bounds are NaN for fewer than two images."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One method against another, over the images for which both have a value."""

    images: int
    difference: Interval
    wins: int
    ties: int
    losses: int
    p: float
    """Of Wilcoxon's signed-rank test, two-sided; NaN where a method has several seeds, which the
    test knows nothing of, and for fewer than two images."""


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean over the images of the mean over the seeds, (seeds, images) or (images).

    A pigeonhole bootstrap (Owen 2007): seeds and images are crossed, so both are resampled, the
    images alike for every seed. Two corrections make it hold for few of either: of n, n - 1 are
    drawn (Rao and Wu 1988), and the percentile interval is widened from the normal to Student's
    quantile (Hesterberg 2015) with Satterthwaite's degrees of freedom. On Gaussian values it then
    holds the true mean in 93 to 96 of 100 cases from 4 images and 3 seeds on, in 88 for 2 seeds.
    """
    return _interval([_two_dimensional(values)], seed)


def compare(
    values: ArrayLike, others: ArrayLike, *, higher_is_better: bool, seed: int = 0
) -> Comparison:
    """A method's values against another's, (seeds, images) or (images): the same images in order.

    Images are paired, and so are seeds where there are as many: runs of one seed may go on from one
    stage that they share, and what that does to both is no difference. Wins, ties and losses count
    images, by the mean over seeds.
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
    """(seeds, images) to (images): the mean of what has a value, NaN where nothing has."""
    return _means(np.ones((1, len(values))), values)[0]


def mean_of(values: Values) -> float:
    """Over the images, of the mean over the seeds; NaN without any value."""
    return _mean(over_seeds(values))


def _mean(of_images: Values) -> float:
    has_value = ~np.isnan(of_images)
    return float(of_images[has_value].mean()) if has_value.any() else np.nan


def _two_dimensional(values: ArrayLike) -> Values:
    return np.atleast_2d(np.asarray(values, dtype=np.float64))


def _interval(parts: Sequence[Values], seed: int) -> Interval:
    """Of the sum of the parts' means, over the images for which all of them have a value."""
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


@lru_cache(maxsize=4)  # the metrics of one set share them
def bootstrap_counts(count: int, seed: int, stream: int) -> Values:
    """How often each of ``count`` is among ``count - 1`` drawn: (resamples, count)."""
    rng = np.random.default_rng([seed, stream])
    drawn = rng.integers(count, size=(RESAMPLES, count - 1))
    drawn += count * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * count)
    return counts.reshape(RESAMPLES, count).astype(np.float64)


def _means(weights: Values, values: Values) -> Values:
    """Weighted (resamples, n), of what has a value in each column of (n, m): (resamples, m)."""
    return _ratio(weights @ _or_zero(values), weights @ ~np.isnan(values))


def _row_means(weights: Values, values: Values) -> Values:
    """Weighted, of what has a value in each row; both (resamples, n)."""
    total = np.sum(weights * _or_zero(values), axis=1)
    return _ratio(total, np.sum(weights * ~np.isnan(values), axis=1))


def _or_zero(values: Values) -> Values:
    return np.where(np.isnan(values), 0, values)


def _ratio(total: Values, weight: Values) -> Values:
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def student_over_normal(sources: Sequence[Values]) -> float:
    """How much wider Student's quantile is, for a mean that varies with all these samples."""
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
