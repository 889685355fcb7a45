"""The same reports as JSON types, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Any

from simam_inject.dataflow.records import Anatomy
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Insertion, Verification
from simam_inject.reporting.anatomy import summarize


def plan_to_dict(plan: Plan, verification: Verification | None = None) -> dict[str, Any]:
    """Insertions, what was there before, skips with near misses (`hit` tells them apart), totals and verification."""
    insertions = [*plan.present, *plan.insertions]
    return {
        "insertions": [_costed(insertion) for insertion in plan.insertions],
        "present": [_costed(insertion) for insertion in plan.present],
        "skips": [_plain(skip) for skip in plan.skips],
        "totals": {
            "sites": len(insertions),
            "parameters": 0,
            "bytes_per_image": bytes_per_image(insertions, plan.anatomy),
        },
        "verification": None if verification is None else {"ok": verification.ok, **_plain(verification)},
    }


def bytes_per_image(insertions: Iterable[Insertion], anatomy: Anatomy) -> int:
    """Bytes that the attention moves for one image at the least: each attended map is read once and written once.

    Counters of floating point operations do not know SimAM; memory traffic is what it costs.
    """
    batch = next((shape[0] for shape in anatomy.input_shapes if len(shape) > 3), 1)
    return round(sum(insertion.bytes_moved for insertion in insertions) / max(1, batch))


def sites_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """What `render_sites` shows, with the path of every block."""
    return {
        "input_shapes": [list(shape) for shape in anatomy.input_shapes],
        "classes": [{**_plain(found), "count": found.count} for found in summarize(anatomy)],
        "opaque": dict(anatomy.opaque),
    }


def calibration_to_dict(calibration: Any) -> dict[str, Any] | None:
    """A `Calibration` as JSON types; None for none."""
    return _plain(calibration) if is_dataclass(calibration) else None


def _costed(insertion: Insertion) -> dict[str, Any]:
    edit = {"kind": type(insertion.edit).__name__.lower(), **asdict(insertion.edit)}
    return {**_plain(insertion), "edit": edit, "bytes_moved": insertion.bytes_moved}


def _plain(record: Any) -> dict[str, Any]:
    """A record with tuples as lists, as JSON reads them back."""
    return {key: _listed(value) for key, value in asdict(record).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
