"""The report of a plan and of its verification, for a terminal and as JSON types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal as format_bytes

from simam_inject.dataflow.anatomy import Anatomy
from simam_inject.errors import plural
from simam_inject.planning.insertions import PRESENT, Insertion
from simam_inject.planning.plan import Plan
from simam_inject.planning.tables import Table, format_map, format_span, gather, notes_on, sites_table
from simam_inject.reporting.sites import owner_of
from simam_inject.verification.checks import Verification

_LONG = 24
"""Sites from which a table has one row for each kind of site."""


def render_plan(plan: Plan, *, applied: bool, verbose: bool = False, why: bool = False) -> Iterator[Table | str]:
    """The sites, notes on them, skips, and the totals.

    Args:
        plan: the plan.
        applied: it was applied; otherwise it is only planned.
        verbose: one row or line for each site, however many there are.
        why: also the near misses.
    """
    placed = plan.placed
    table = sites_table(placed)
    if len(placed) >= _LONG and not verbose:
        table = min(_by_kind(placed, plan.anatomy), table, key=lambda each: len(each.rows))
    lambdas = {one.e_lambda for one in placed}
    yield table.without("e_lambda" if len(lambdas) == 1 else "")
    if len(table.rows) < len(placed):
        yield f"{len(placed)} sites by kind; --verbose shows each"
    yield from notes_on(placed, each=verbose)
    hits = [(skip.path, skip.reason) for skip in plan.skips if skip.hit and skip.reason != PRESENT]
    misses = [(skip.path, skip.reason) for skip in plan.skips if not skip.hit]
    yield from gather("skipped", hits, each=verbose)
    if why:
        yield from gather("near miss", misses, each=True)
    done = f"{plural(len(plan.insertions), 'site')} {'inserted' if applied else 'planned'}"
    counts = [f"{done} with e_lambda {min(lambdas):g}" if len(lambdas) == 1 else done]
    counts += [f"{len(plan.present)} already there"] if plan.present else []
    counts += [f"{len(hits)} skipped"]
    if misses:
        counts += [plural(len(misses), "near miss", "near misses") + " (see --why)" * (not why)]
    yield f"{', '.join(counts)}; parameters +0; {format_bytes(bytes_per_image(plan))} memory traffic per image"


def plan_to_dict(plan: Plan, verification: Verification | None = None) -> dict[str, Any]:
    """The plan, its totals and the checks as JSON types."""
    totals = {"sites": len(plan.placed), "parameters": 0, "bytes_per_image": bytes_per_image(plan)}
    found = None
    if verification is not None:
        found = {"ok": verification.ok, "checks": [asdict(check) for check in verification.checks]}
    return {**plan.to_dict(), "totals": totals, "verification": found}


def bytes_per_image(plan: Plan) -> int:
    """Bytes that all SimAMs read and write at the least, for one image of the example."""
    images = min((one.shape[0] for one in plan.placed), default=1)
    return sum(one.bytes_moved for one in plan.placed) // images


def _by_kind(insertions: Iterable[Insertion], anatomy: Anatomy) -> Table:
    """One row for each kind of site: the class of its block and its name there, with `*` for numbers."""
    kinds: dict[tuple[str, ...], list[Insertion]] = {}
    for one in insertions:
        (_, position, _, _, e_lambda, edit) = sites_table([one]).rows[0]
        kinds.setdefault((_block_and_name(one.path, anatomy), position, e_lambda, edit), []).append(one)
    rows = []
    for (name, position, e_lambda, edit), found in kinds.items():
        maps = format_span(map(format_map, found))
        reductions = format_span(sorted({one.reduction for one in found if one.reduction})).replace(" .. ", "..")
        rows.append([name, position, str(len(found)), maps, reductions, e_lambda, edit])
    return Table(["kind of site", "position", "count", "CxHxW", "reduction", "e_lambda", "edit"], rows)


def _block_and_name(path: str, anatomy: Anatomy) -> str:
    site = anatomy.site_by_path.get(path)
    if site is None:
        return path
    if site.kind == "block" and site.class_name:
        return site.class_name
    owner, name = owner_of(site, anatomy)
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", f"{owner}.{name}".lstrip("."))
