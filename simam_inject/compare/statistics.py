"""What a set of paired runs shows, and what it cannot show.

For one variant and the plain network, d_s = value(variant, seed s) - value(plain, seed s). Both start from the same
weights and see the same data order, so d_s is a paired difference. From n of them:

    interval  mean(d) +- t(0.975, n - 1) * sd(d) / sqrt(n)      each difference alone
    p         two-sided t test of mean(d) = 0, then Holm over all comparisons of the study

The verdict follows p after Holm, so that a study whose variants are all equal reports "better" or "worse" for any of
them in at most 5 % of cases. Holm, S. (1979), A simple sequentially rejective multiple test procedure.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BETTER, WORSE, NOT_RESOLVED, NOISE_ONLY = "better", "worse", "not resolved", "noise estimate only"
LEVEL, POWER = 0.05, 0.8
FEWEST_SEEDS = 5
"""With fewer pairs, the estimate of the noise is too poor for a test."""
_MOST_SEEDS = 100_000

Values = Mapping[int, float | None]
"""Value of each seed; None for a run that gave none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One variant and recipe against the plain network, in the unit of the metric."""

    variant: str
    recipe: str
    pairs: tuple[float, ...]
    """Variant minus plain for each seed at which both runs gave a value."""
    mean: float
    low: float
    high: float
    """`low` to `high`: 95 % t interval of the mean, for this difference alone. NaN if `sd` is."""
    sd: float
    """Standard deviation of the pairs; NaN for fewer than two different values."""
    p: float
    """After Holm over all comparisons of the study; NaN where nothing was tested."""
    verdict: str
    """`better`, `worse`, `not resolved` or `noise estimate only`."""
    failed: int
    """Runs of this variant that raised or diverged. They are not in the mean, and the verdict is never `better`."""
    detectable: float
    """The smallest true difference that so many seeds find with 80 % power."""
    needed: int | None
    """Seeds that find the difference `resolve` with 80 % power; None if none was given or `sd` is NaN."""

    @property
    def seeds(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


def compare_to(
    plain: Values, others: Mapping[tuple[str, str], Values], *, resolve: float | None = None, looks: int = 1
) -> tuple[Difference, ...]:
    """Test every variant against the plain network, with Holm over all of them.

    Args:
        plain: Values of the plain network by seed.
        others: Values by seed of each (variant, recipe).
        resolve: A difference of interest, in the unit of the metric.
        looks: How often the number of seeds was chosen after results were seen; every p is multiplied by it.

    Example:
        >>> plain = {seed: value for seed, value in enumerate([60.1, 61.0, 59.2, 60.4, 60.8])}
        >>> better = {seed: value + 2 + seed / 10 for seed, value in plain.items()}
        >>> compare_to(plain, {("simam", "paper"): better})[0].verdict
        'better'
    """
    samples = [_subtract(values, plain) for values in others.values()]
    moments = [summarize(pairs) for pairs in samples]
    adjusted = holm([p for *_, p in moments], looks)
    plain_failed, family, result = _count_failed(plain), len(others) * looks, []
    for key, pairs, (mean, low, high, sd, _), p in zip(others, samples, moments, adjusted, strict=True):
        failed = _count_failed(others[key])
        verdict = _verdict(p, mean, failed, plain_failed)
        detectable = detectable_difference(len(pairs), sd, family)
        needed = None if resolve is None else seeds_needed(resolve, sd, family)
        result.append(Difference(*key, pairs, mean, low, high, sd, p, verdict, failed, detectable, needed))
    return tuple(result)


def _subtract(values: Values, plain: Values) -> tuple[float, ...]:
    both = ((values[seed], plain[seed]) for seed in sorted(values.keys() & plain.keys()))
    return tuple(value - base for value, base in both if value is not None and base is not None)


def _count_failed(values: Values) -> int:
    return sum(value is None for value in values.values())


def _verdict(p: float, mean: float, failed: int, plain_failed: int) -> str:
    if math.isnan(p):
        return NOISE_ONLY
    if p >= LEVEL or (mean > 0 and failed) or (mean < 0 and plain_failed):
        return NOT_RESOLVED
    return BETTER if mean > 0 else WORSE


def summarize(pairs: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Mean, low and high of its 95 % t interval, standard deviation, and the two-sided p of a mean of zero.

    All but the mean are NaN for fewer than two different values: equal differences at every seed come from runs that
    do not depend on the seed, and count as one run. p is NaN for fewer than `FEWEST_SEEDS` values.
    """
    from scipy import stats

    mean = float(np.mean(pairs)) if pairs else math.nan
    if not pairs or np.ptp(pairs) <= 1e-12 * max(1.0, abs(mean)):  # equal but for rounding
        return mean, math.nan, math.nan, math.nan, math.nan
    test = stats.ttest_1samp(pairs, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    p = float(test.pvalue) if len(pairs) >= FEWEST_SEEDS else math.nan
    return mean, float(low), float(high), float(np.std(pairs, ddof=1)), p


def holm(ps: Sequence[float], looks: int = 1) -> list[float]:
    """The p values adjusted by Holm's step-down method and multiplied by `looks`, in the order given; NaN stays NaN.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    raw = np.asarray(ps, float)
    order, adjusted = np.argsort(raw), np.empty_like(raw)  # NaN comes last
    factors = np.sum(~np.isnan(raw)) - np.arange(len(raw))
    adjusted[order] = np.maximum.accumulate(raw[order] * factors)
    return list(map(float, np.minimum(1.0, adjusted * looks)))


def detectable_difference(seeds: int, sd: float, family: int = 1) -> float:
    """The smallest true difference that so many seeds find with 80 % power; NaN if `sd` is.

    Args:
        seeds: Number of pairs.
        sd: Standard deviation of the paired differences.
        family: Number of comparisons: the power is that in the strictest step of Holm's method.
    """
    from scipy import special, stats

    critical = stats.t.isf(LEVEL / family / 2, seeds - 1)
    return float(sd / math.sqrt(max(seeds, 1)) * special.nctdtrinc(seeds - 1, 1 - POWER, critical))


def seeds_needed(difference: float, sd: float, family: int = 1) -> int | None:
    """The fewest seeds that find a true difference with 80 % power; None if `sd` is NaN or 100,000 do not suffice.

    Example:
        >>> seeds_needed(1.0, 0.67)  # one comparison, paired differences with a standard deviation of 0.67
        6
    """
    if math.isnan(sd):
        return None
    counts = range(FEWEST_SEEDS, _MOST_SEEDS)
    index = bisect_left(counts, True, key=lambda seeds: detectable_difference(seeds, sd, family) <= abs(difference))
    return counts[index] if index < len(counts) else None


def sample_noise(plain: Sequence[np.ndarray], other: Sequence[np.ndarray], unit: float) -> float | None:
    """Half of the 95 % interval of a difference over test sets of this size; None if the lengths differ.

    Args:
        plain: For each seed, which test samples were right: booleans of shape (samples,).
        other: The same for the variant, seeds in the same order.
        unit: The metric's value if all samples are right (100 for percent).
    """
    lengths = {len(correct) for correct in (*plain, *other)}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    change = np.mean([b.astype(float) - a for a, b in zip(plain, other, strict=True)], axis=0)
    return float(1.96 * unit * np.std(change, ddof=1) / math.sqrt(len(change)))
