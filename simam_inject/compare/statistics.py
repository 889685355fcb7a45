"""What a set of paired runs says, and what it cannot say.

For one variant and the plain network, d_s = value(variant, seed s) - value(plain, seed s). Both start from the same
weights and see the same data order, so d_s is a paired difference. From n of them:

    interval  mean(d) +- t(0.975, n - 1) * sd(d) / sqrt(n)      each difference alone
    p         two-sided t test of mean(d) = 0, then Holm over all comparisons of the study

The verdict follows p after Holm, so that a study whose variants are all equal says "better" or "worse" of any of them
in at most 5 % of cases. Holm, S. (1979), A simple sequentially rejective multiple test procedure.
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
"""With fewer pairs the spread itself is hardly known: nothing is tested."""
_MOST_SEEDS = 100_000

Values = Mapping[int, float | None]
"""Value of each seed; None for a run that gave none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One variant and recipe against the plain network, in the unit of the metric."""

    variant: str
    recipe: str
    seeds: int
    """Pairs in which both runs gave a value."""
    mean: float
    low: float
    high: float
    """`low` to `high`: the 95 % t interval of the mean, for this difference alone. NaN below 2 pairs."""
    p: float
    """After Holm over all comparisons of the study; NaN where nothing was tested."""
    verdict: str
    """`better`, `worse`, `not resolved` or `noise estimate only`."""
    sd: float
    """Standard deviation of the paired differences."""
    failed: int
    """Runs of this variant that raised or diverged: not in the mean, and reason enough never to be `better`."""
    detectable: float
    """The smallest true difference that so many seeds find with 80 % power."""
    needed: int | None
    """Seeds that find the named difference with 80 % power; None where none was named or the spread is unknown."""
    test_noise: float | None = None
    """Half of the 95 % interval for drawing another test set of the same size; more seeds do not shrink it."""


def compare_to(
    plain: Values,
    others: Mapping[tuple[str, str], Values],
    *,
    resolve: float | None = None,
    looks: int = 1,
) -> tuple[Difference, ...]:
    """Test every variant against the plain network, with Holm over all of them.

    Args:
        plain: Values of the plain network by seed.
        others: Values by seed of each (variant, recipe).
        resolve: A difference of interest, in the unit of the metric.
        looks: How often the number of seeds was fixed anew after results were seen; every p is multiplied by it.

    Example:
        >>> plain = {seed: value for seed, value in enumerate([60.1, 61.0, 59.2, 60.4, 60.8])}
        >>> better = {seed: value + 2 + seed / 10 for seed, value in plain.items()}
        >>> compare_to(plain, {("simam", "paper"): better})[0].verdict
        'better'
    """
    samples = {key: _pairs(plain, values) for key, values in others.items()}
    summaries = {key: summarize(sample) for key, sample in samples.items()}
    raw = {key: p for key, (*_, p) in summaries.items() if not math.isnan(p)}
    adjusted = {key: min(1.0, p * looks) for key, p in zip(raw, holm(list(raw.values())), strict=True)}
    plain_failed, family = _count_failed(plain), len(others) * looks
    result = []
    for key, (mean, low, high, sd, _) in summaries.items():
        seeds, failed, p = len(samples[key]), _count_failed(others[key]), adjusted.get(key, math.nan)
        verdict = _verdict(p, mean, failed, plain_failed)
        detectable = detectable_difference(seeds, sd, family)
        needed = None if resolve is None else seeds_needed(resolve, sd, family)
        result.append(Difference(*key, seeds, mean, low, high, p, verdict, sd, failed, detectable, needed))
    return tuple(result)


def _pairs(plain: Values, other: Values) -> list[float]:
    """Differences of the seeds that both have a value for."""
    both = ((plain.get(seed), value) for seed, value in sorted(other.items()))
    return [value - base for base, value in both if base is not None and value is not None]


def _count_failed(values: Values) -> int:
    return sum(value is None for value in values.values())


def _verdict(p: float, mean: float, failed: int, plain_failed: int) -> str:
    if math.isnan(p):
        return NOISE_ONLY
    if p >= LEVEL or (mean > 0 and failed) or (mean < 0 and plain_failed):
        return NOT_RESOLVED
    return BETTER if mean > 0 else WORSE


def summarize(sample: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Mean, low and high of its 95 % t interval, standard deviation, and the two-sided p of a mean of zero.

    NaN where there are too few values: two are needed, and `FEWEST_SEEDS` for p. Equal differences at every seed are no
    luck: such runs do not depend on the seed, and are one run. Their standard deviation is 0, and they have no p.
    """
    from scipy import stats

    mean = float(np.mean(sample)) if sample else math.nan
    if len(sample) < 2:
        return mean, math.nan, math.nan, math.nan, math.nan
    sd = float(np.std(sample, ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):  # only rounding tells them apart
        return mean, mean, mean, 0.0, math.nan
    test = stats.ttest_1samp(sample, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return mean, float(low), float(high), sd, float(test.pvalue) if len(sample) >= FEWEST_SEEDS else math.nan


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted by Holm's step-down method, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def power(seeds: int, difference: float, sd: float, family: int = 1) -> float:
    """Chance that so many seeds find a true difference, in the worst step of Holm over `family` comparisons."""
    from scipy import stats

    critical = stats.t.ppf(1 - LEVEL / family / 2, seeds - 1)
    shift = abs(difference) / sd * math.sqrt(seeds)
    return float(stats.nct.sf(critical, seeds - 1, shift))


def seeds_needed(difference: float, sd: float, family: int = 1) -> int | None:
    """The fewest seeds that find a true difference with 80 % power; None if the spread is unknown or none suffice.

    Example:
        >>> seeds_needed(1.0, 0.67)  # one comparison, paired differences that spread by 0.67
        6
    """
    if not sd > 0:
        return None
    enough = range(FEWEST_SEEDS, _MOST_SEEDS)
    index = bisect_left(enough, POWER, key=lambda seeds: power(seeds, difference, sd, family))
    return enough[index] if index < len(enough) else None


def detectable_difference(seeds: int, sd: float, family: int = 1) -> float:
    """The smallest true difference that so many seeds find with 80 % power; NaN where the spread is unknown."""
    if not sd > 0:
        return math.nan
    from scipy import optimize

    def lacking(difference: float) -> float:
        return POWER - power(seeds, difference, sd, family)

    high = 8 * sd / math.sqrt(seeds)
    while lacking(high) > 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high, xtol=1e-4 * sd))


def sample_noise(plain: Sequence[np.ndarray], other: Sequence[np.ndarray], unit: float) -> float | None:
    """Half of the 95 % interval of the difference over test sets of this size, from what each sample got.

    Args:
        plain: Of each seed, one boolean a test sample: was it right?
        other: The same of the variant, seeds in the same order.
        unit: The metric's value of all samples being right (100 for percent).
    """
    lengths = {len(correct) for correct in (*plain, *other)}
    if len(lengths) != 1 or min(lengths) < 2:
        return None
    change = np.mean([b.astype(float) - a for a, b in zip(plain, other, strict=True)], axis=0)
    return float(1.96 * unit * np.std(change, ddof=1) / math.sqrt(len(change)))
