"""One self-contained HTML page about an injection: the network drawn, sites, skips, cost, verification, recipe."""

from __future__ import annotations

import yaml

from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Input, Insertion, Output, Rewritten, Verification
from simam_inject.reporting.drawing import draw
from simam_inject.reporting.formats import MODEL, UNKNOWN, format_bytes, format_map, read_template
from simam_inject.reporting.network import draw_network
from simam_inject.reporting.plans import OUTCOMES, bytes_per_image, facts, where

COLUMNS = {"site": "p", "position": "p", "CxHxW": "n", "axes": "p", "reduction": "n", "e_lambda": "n"}
COLUMNS |= {"edit": "p", "module": "p", "note": ""}
"""Columns of the table of sites, and how each is set: a number, or words that stay on one line."""


def render_page(plan: Plan, verification: Verification | None = None, *, heading: str, note: str = "") -> str:
    """The page as text.

    Args:
        plan: What was planned, and what was in the model already.
        verification: What was checked after it was applied; None if nothing was.
        heading: Title of the page, such as the names of model and recipe.
        note: What a reader should know about the model, such as its weights.
    """
    checks = verification.checks if verification else ()
    inputs = ", ".join("x".join(map(str, shape)) for shape in plan.anatomy.input_shapes)
    rows = [_site_row(insertion) for insertion in plan.placed]
    shown = len(COLUMNS) - (not any(row[-1] for row in rows))  # no empty column of notes
    return read_template("page.html.j2").render(
        heading=heading,
        facts=[fact for fact in (note, f"Example input: {inputs}" if inputs else "") if fact],
        moved=format_bytes(bytes_per_image(plan)),
        passed=sum(check.ok is True for check in checks),
        failed=any(check.ok is False for check in checks),
        network=draw_network(plan.anatomy, plan.placed),
        columns=list(COLUMNS.items())[:shown],
        sites=[row[:shown] for row in rows],
        blocks="\n\n".join(map(str, draw(plan.anatomy, plan.placed))),
        skips=[(skip.path or MODEL, skip.reason) for skip in plan.skips if skip.hit],
        near_misses=[(skip.path or MODEL, skip.reason) for skip in plan.skips if not skip.hit],
        checks=[(OUTCOMES[check.ok][0], check.name, check.detail) for check in checks],
        recipe=yaml.safe_dump(plan.recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100).rstrip("\n"),
    )


def _site_row(insertion: Insertion) -> tuple[str, ...]:
    return (
        insertion.path or MODEL,
        where(insertion),
        format_map(insertion.shape, insertion.channel_dim),
        f"{insertion.axes}, {'measured' if insertion.axes_measured else 'inferred'}",
        UNKNOWN if insertion.reduction is None else str(insertion.reduction),
        f"{insertion.e_lambda:g}",
        _edit(insertion.edit),
        insertion.module,
        "; ".join(fact for fact in facts(insertion) if not fact.startswith("the axes")),
    )


def _edit(edit: Output | Input | Rewritten) -> str:
    if isinstance(edit, Rewritten):
        return f"expression {edit.value} in {edit.owner or 'the model'}"
    key = "" if edit.key is None else f"[{edit.key}]"
    what = "output" if isinstance(edit, Output) else f"input {edit.argument}"
    return f"{what}{key} of {edit.module or 'the model'}"
