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
    paired = {key: _pairs(plain, values) for key, values in others.items()}
    tested = {key: p for key, sample in paired.items() if not math.isnan(p := t_test(sample))}
    adjusted = {key: min(1.0, p * looks) for key, p in zip(tested, holm(list(tested.values())), strict=True)}
    plain_failed = sum(value is None for value in plain.values())
    result = []
    for (variant, recipe), sample in paired.items():
        failed = sum(value is None for value in others[variant, recipe].values())
        mean, low, high = t_interval(sample)
        p, sd = adjusted.get((variant, recipe), math.nan), _deviation(sample)
        verdict = _verdict(p, mean, failed, plain_failed)
        family = len(others) * looks
        detectable = detectable_difference(len(sample), sd, family)
        needed = None if resolve is None else seeds_needed(resolve, sd, family)
        result.append(
            Difference(variant, recipe, len(sample), mean, low, high, p, verdict, sd, failed, detectable, needed)
        )
    return tuple(result)


def _pairs(plain: Values, other: Values) -> list[float]:
    """Differences of the seeds that both have a value for."""
    both = ((plain.get(seed), value) for seed, value in sorted(other.items()))
    return [value - base for base, value in both if base is not None and value is not None]


def _verdict(p: float, mean: float, failed: int, plain_failed: int) -> str:
    if math.isnan(p):
        return NOISE_ONLY
    if p >= LEVEL or (mean > 0 and failed) or (mean < 0 and plain_failed):
        return NOT_RESOLVED
    return BETTER if mean > 0 else WORSE


def _deviation(sample: Sequence[float]) -> float:
    """Standard deviation; 0 where only rounding tells the values apart, NaN below two of them."""
    if len(sample) < 2:
        return math.nan
    deviation = float(np.std(sample, ddof=1))
    return 0.0 if deviation <= 1e-12 * max(1.0, abs(float(np.mean(sample)))) else deviation


def t_interval(sample: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % t interval of the mean (NaN below 2 values)."""
    from scipy import stats

    mean = float(np.mean(sample)) if sample else math.nan
    if len(sample) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - LEVEL / 2, len(sample) - 1)) * _deviation(sample) / math.sqrt(len(sample))
    return mean, mean - half, mean + half


def t_test(sample: Sequence[float]) -> float:
    """Two-sided p of a mean of zero; NaN below `FEWEST_SEEDS` values, or where they do not vary at all."""
    from scipy import stats

    deviation = _deviation(sample)
    # Equal differences at every seed are no luck: such runs do not depend on the seed, and are one run.
    if len(sample) < FEWEST_SEEDS or deviation == 0:
        return math.nan
    ratio = abs(float(np.mean(sample))) / deviation * math.sqrt(len(sample))
    return float(2 * stats.t.sf(ratio, len(sample) - 1))


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

    if seeds < 2 or sd <= 0:
        return 0.0
    critical = stats.t.ppf(1 - LEVEL / family / 2, seeds - 1)
    shift = abs(difference) / sd * math.sqrt(seeds)
    return float(stats.nct.sf(critical, seeds - 1, shift))


def seeds_needed(difference: float, sd: float, family: int = 1) -> int | None:
    """The fewest seeds that find a true difference with 80 % power; None if the spread is unknown or none suffice.

    Example:
        >>> seeds_needed(1.0, 0.67)  # one comparison, paired differences that spread by 0.67
        6
    """
    if math.isnan(sd) or sd <= 0 or difference == 0:
        return None
    low, high = FEWEST_SEEDS - 1, FEWEST_SEEDS
    while power(high, difference, sd, family) < POWER:
        low, high = high, high * 2
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, sd, family) >= POWER else (middle, high)
    return high


def detectable_difference(seeds: int, sd: float, family: int = 1) -> float:
    """The smallest true difference that so many seeds find with 80 % power; NaN where the spread is unknown."""
    if seeds < 2 or math.isnan(sd) or sd <= 0:
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
