"""What a plan costs, in sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simam_inject.planning.records import Insertion


@dataclass(frozen=True, slots=True)
class Totals:
    """The cost of all insertions together."""

    sites: int
    parameters: int
    """Always 0: SimAM owns none. Said, because it is what people ask first."""
    bytes_per_image: int
    """Bytes the attention moves for one image at the least: each attended map is read once and written once. FLOP
    counters know no SimAM and say 0; memory traffic is what it costs."""


def total(insertions: Sequence[Insertion], images: int = 1) -> Totals:
    """Add up the insertions.

    Args:
        insertions: Those of one plan.
        images: How many images the example forward had.
    """
    moved = sum(insertion.bytes_moved for insertion in insertions)
    return Totals(sites=len(insertions), parameters=0, bytes_per_image=round(moved / images))
