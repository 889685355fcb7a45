"""Paired t tests of variants against plain, with Holm's correction over the whole study.

Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BETTER, WORSE, NOT_RESOLVED, NOISE_ONLY = "better", "worse", "not resolved", "noise estimate only"
"""The four verdicts."""
LEVEL, POWER = 0.05, 0.8
FEWEST, MOST = 5, 100_000
"""Seeds of a test: with fewer nothing is tested; a difference that needs more counts as out of reach."""

Values = Mapping[int, float | None]
"""Result of each seed; None if the run failed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant minus plain, seed by seed, in units of the metric."""

    variant: str
    recipe: str
    pairs: tuple[float, ...]
    """The difference at each seed that both finished."""
    mean: float
    low: float
    """Lower end of the 95 % t interval, for this difference alone."""
    high: float
    sd: float
    """Standard deviation of `pairs`."""
    p: float
    """Of a paired t test, with Holm's correction over all differences of the study; NaN if not tested."""
    verdict: str
    """`better`, `worse`, `not resolved`, or `noise estimate only`."""
    failed: int
    """Runs of the variant without a result."""
    detectable: float
    """The true difference that these seeds find with 80 % power after correction."""
    needed: int | None
    """Seeds that find the difference of interest with 80 % power; None if none was named or no number suffices."""

    @property
    def seeds(self) -> int:
        """Seeds that both the variant and plain finished."""
        return len(self.pairs)


def compare_to(
    plain: Values, others: Mapping[tuple[str, str], Values], *, resolve: float | None = None, looks: int = 1
) -> tuple[Difference, ...]:
    """Test each variant and recipe against plain; the comparisons together are one family of tests.

    Args:
        resolve: the difference of interest, for `Difference.needed`.
        looks: how often the study was evaluated, each time with more seeds; every p is multiplied by it.
    """
    samples, summaries = {}, []
    for key, values in others.items():
        both = [(values[seed], plain[seed]) for seed in sorted(values.keys() & plain.keys())]
        finished = [(value, base) for value, base in both if value is not None and base is not None]
        samples[key] = tuple(value - base for value, base in finished)
        bases = np.array([base for _, base in finished])
        varies = bases.size > 0 and float(np.ptp(bases)) > 1e-9 * max(1.0, np.abs(bases).max())
        summaries.append(summarize(samples[key], varies=varies))
    corrected = holm([p for *_, p in summaries], looks)
    family, plain_failed, differences = len(others) * looks, _count_failed(plain), []
    for (key, pairs), (mean, low, high, sd, _), p in zip(samples.items(), summaries, corrected, strict=True):
        failed = _count_failed(others[key])
        verdict = _verdict(p, mean, failed if mean > 0 else plain_failed)
        verdict = NOISE_ONLY if verdict == NOT_RESOLVED and math.isnan(sd) else verdict
        detectable = detectable_difference(len(pairs), sd, family)
        needed = None if resolve is None else seeds_needed(resolve, sd, family)
        differences.append(Difference(*key, pairs, mean, low, high, sd, p, verdict, failed, detectable, needed))
    return tuple(differences)


def _count_failed(values: Values) -> int:
    return sum(value is None for value in values.values())


def _verdict(p: float, mean: float, failed: int) -> str:
    """`failed`: runs without a result of the variant that looks better; they might have been the bad ones."""
    if math.isnan(p):
        return NOISE_ONLY
    if p >= LEVEL or failed:
        return NOT_RESOLVED
    return BETTER if mean > 0 else WORSE


def summarize(pairs: Sequence[float], *, varies: bool = True) -> tuple[float, float, float, float, float]:
    """Mean, both ends of its 95 % t interval, standard deviation, and p of a t test against 0; p is NaN for fewer than
    five. Differences that are the same at every seed have no interval, and p of a sign test if they can be significant.

    Args:
        varies: plain depends on the seed; otherwise equal differences come from runs that ignore it, and p is NaN.
    """
    from scipy import stats

    mean = float(np.mean(pairs)) if pairs else math.nan
    if not pairs or np.ptp(pairs) <= 1e-12 * max(1.0, abs(mean)):  # equal but for rounding
        is_tested = varies and len(pairs) > FEWEST and abs(mean) > 1e-12
        return mean, math.nan, math.nan, math.nan, 2.0 ** (1 - len(pairs)) if is_tested else math.nan
    test = stats.ttest_1samp(pairs, 0)
    low, high = map(float, test.confidence_interval(1 - LEVEL))
    return mean, low, high, float(np.std(pairs, ddof=1)), float(test.pvalue) if len(pairs) >= FEWEST else math.nan


def holm(ps: Sequence[float], looks: int = 1) -> list[float]:
    """The p values after Holm's step-down correction, times `looks`, in the order given; NaN for one that is.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [math.nan] * len(ps), 0.0
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank) * looks))
        corrected[place] = largest
    return corrected


def detectable_difference(seeds: int, sd: float, family: int = 1) -> float:
    """The true difference that so many pairs find with 80 % power, in the strictest step of Holm's correction."""
    from scipy import special, stats

    if seeds < 2:
        return math.nan
    critical = stats.t.isf(LEVEL / family / 2, seeds - 1)
    return float(sd / math.sqrt(seeds) * special.nctdtrinc(seeds - 1, 1 - POWER, critical))


def seeds_needed(difference: float, sd: float, family: int = 1) -> int | None:
    """The fewest seeds that find a true difference with 80 % power; None if `sd` is NaN or 100,000 do not suffice.

    Example:
        >>> seeds_needed(1.0, 0.67)  # one comparison; 0.67 was measured when fine-tuning
        6
    """
    counts = range(FEWEST, MOST)
    place = bisect_left(counts, True, key=lambda seeds: detectable_difference(seeds, sd, family) <= abs(difference))
    return counts[place] if place < len(counts) else None


def sample_noise(plain: Sequence[np.ndarray], other: Sequence[np.ndarray], unit: float) -> float | None:
    """Half of the 95 % interval of a difference over other test sets of the same size; None if the lengths differ.

    Args:
        plain, other: for each seed, which samples were right.
        unit: the metric if all samples are right, e.g. 100.
    """
    if len({len(right) for right in (*plain, *other)}) != 1 or len(plain[0]) < 2:
        return None
    gains = np.mean(other, axis=0) - np.mean(plain, axis=0)
    return float(1.96 * unit * np.std(gains, ddof=1) / math.sqrt(len(gains)))
