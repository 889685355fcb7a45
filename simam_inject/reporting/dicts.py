"""The same reports as JSON types, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simam_inject.discovery.records import Anatomy
from simam_inject.planning.records import Insertion, Skip, Verification
from simam_inject.reporting.anatomy import summarize
from simam_inject.reporting.totals import total


def plan_to_dict(
    insertions: Sequence[Insertion],
    skips: Sequence[Skip],
    verification: Verification | None = None,
    *,
    present: Sequence[Insertion] = (),
    images: int = 1,
) -> dict[str, Any]:
    """Insertions, what was there before, skips with near misses (`hit` tells them apart), totals and verification."""
    return {
        "insertions": [_costed(insertion) for insertion in insertions],
        "present": [_costed(insertion) for insertion in present],
        "skips": [_plain(skip) for skip in skips],
        "totals": _plain(total([*present, *insertions], images)),
        "verification": None if verification is None else {"ok": verification.ok, **_plain(verification)},
    }


def sites_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """What `render_sites` shows, with the path of every block."""
    return {
        "input_shapes": [list(shape) for shape in anatomy.input_shapes],
        "classes": [{**_plain(found), "count": found.count} for found in summarize(anatomy)],
        "opaque": dict(anatomy.opaque),
    }


def _costed(insertion: Insertion) -> dict[str, Any]:
    return {**_plain(insertion), "bytes_moved": insertion.bytes_moved}


def _plain(record: Any) -> dict[str, Any]:
    """A record with tuples as lists, as JSON reads them back."""
    return {key: _listed(value) for key, value in asdict(record).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
