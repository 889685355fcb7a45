"""One report for one plan: where SimAM goes, what is skipped and why, what it costs, whether it was verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from simam_inject.dataflow.records import Anatomy
from simam_inject.matching import Skip
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Insertion, Verification
from simam_inject.reporting.anatomy import kind_of_place, local_name
from simam_inject.reporting.formats import (
    MODEL,
    as_json,
    format_bytes,
    format_count,
    format_map,
    format_reductions,
    format_span,
    new_table,
)

WHOLE = 34
"""Names up to this length stay whole at 80 columns."""
LONG = 24
"""Sites from which on a table groups them by kind of block."""
EDITS = {"Output": "output", "Input": "input", "Rewritten": "expression"}
"""How an edit is called in reports: at a module's output, at its input, around an expression in its forward."""
OUTCOMES = {False: ("failed", "red"), None: ("not run", "yellow"), True: ("ok", "")}
"""How the result of a check is called, and the colour of its line."""


def plan_to_dict(plan: Plan, verification: Verification | None = None) -> dict[str, Any]:
    """JSON types: what the plan says of itself, totals, and the verification."""
    totals = {
        "sites": len(plan.placed),
        "parameters": 0,
        "bytes_per_image": bytes_per_image(plan),
    }
    checked = None if verification is None else {"ok": verification.ok, **asdict(verification)}
    found: dict[str, Any] = as_json({**plan.to_dict(), "totals": totals, "verification": checked})
    return found


def bytes_per_image(plan: Plan) -> int:
    """Bytes that the attention moves for one image at the least: each attended map is read once and written once.

    Counters of floating point operations do not know SimAM; memory traffic is what it costs.
    """
    batch = next((shape[0] for shape in plan.anatomy.input_shapes if len(shape) > 3), 1)
    return round(sum(insertion.bytes_moved for insertion in plan.placed) / max(1, batch))


def render_plan(
    plan: Plan,
    verification: Verification | None = None,
    *,
    heading: str = "",
    applied: bool = True,
    why: bool = False,
    verbose: bool = False,
    calibration: Any = None,
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The report of one plan.

    Args:
        plan: Insertions, what was in the model already, and skips.
        verification: What was checked; None if nothing was.
        heading: What the report is about.
        applied: False for a dry run: the sites are `planned`, not `inserted`.
        why: Show near misses too.
        verbose: Every site has a row, and every check a line.
        calibration: The `Calibration` that was made, if any.
        next_steps: What the reader may want to do now, one line each.
    """
    already = {there.path for there in plan.present}
    skips = [skip for skip in plan.skips if skip.path not in already]  # these have a row of their own
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    parts += [*_tables(plan, verbose), *_notes(plan.placed, verbose)]
    parts += _skip_lines([skip for skip in skips if skip.hit], "skipped", "yellow", verbose)
    parts += _skip_lines([skip for skip in skips if why and not skip.hit], "near miss", "dim", verbose=True)
    parts.append(_summary(plan, skips, applied=applied, why=why))
    parts += [] if verification is None else verification_lines(verification, verbose)
    if calibration is not None:
        lines = str(calibration).splitlines()
        kept = ["     kept", *(f"{site.kept:9.1%}" for site in calibration.sites)] if calibration.sites else []
        parts += [Text(line + share) for line, share in zip_longest(lines, kept, fillvalue="")]
    if next_steps:
        parts.append(Text("next:", style="bold"))
        parts += [Text(f"  {step}", no_wrap=True, overflow="ignore") for step in next_steps]  # whole, to be copied
    return Group(*parts)


def _tables(plan: Plan, verbose: bool) -> Iterator[RenderableType]:
    if len(plan.placed) >= LONG and not verbose:
        yield sites_table(plan.placed, plan.anatomy)
        yield Text(f"{len(plan.placed)} sites by kind; --verbose shows each", style="dim")
    elif plan.placed:
        yield sites_table(plan.placed)


def sites_table(placed: Sequence[Insertion], anatomy: Anatomy | None = None) -> Table:
    """A row for each site; with the anatomy of the model, one for each kind of site, with its count."""
    rows: dict[tuple[str, str, str, str], list[Insertion]] = {}
    for one in placed:
        name = kind_of_place(anatomy, one.path) if anatomy else one.path or MODEL
        key = (name, where(one, anatomy), f"{one.e_lambda:g}", EDITS[type(one.edit).__name__])
        rows.setdefault(key, []).append(one)
    counted, several = bool(anatomy), _has_several_lambdas(placed)
    is_short = max(len(name) for name, *_ in rows) <= WHOLE
    table = new_table(
        Column("kind of site" if counted else "site", overflow="fold", no_wrap=is_short),
        "position",
        *[_number("count")] * counted,
        Column("CxHxW", justify="right", overflow="fold"),  # breaks between maps
        _number("reduction"),
        *[_number("e_lambda")] * several,
        Column("edit", no_wrap=True),
    )
    for (name, position, e_lambda, edit), members in rows.items():
        table.add_row(
            Text(name),
            Text(position),
            *[str(len(members))] * counted,
            format_span(format_map(member.shape, member.channel_dim) for member in members),
            format_reductions(member.reduction for member in members),
            *[e_lambda] * several,
            edit,
        )
    return table


def _number(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)


def _has_several_lambdas(placed: Sequence[Insertion]) -> bool:
    """Lambdas that differ have a column; one lambda for all is said in the summary."""
    return len({insertion.e_lambda for insertion in placed}) > 1


def where(insertion: Insertion, anatomy: Anatomy | None = None) -> str:
    """`after`, or `before` the one that reads the attended value; with the anatomy of the model, before its kind."""
    if insertion.reader is None:
        return insertion.position
    scope = insertion.path.rpartition(".")[0]
    reader = kind_of_place(anatomy, insertion.reader) if anatomy else local_name(insertion.reader, scope)
    return f"before {reader}"


def facts(insertion: Insertion) -> Iterator[str]:
    """What is out of the ordinary about a site."""
    if insertion.axes not in ("NCHW", ""):
        yield f"the axes are {insertion.axes}"
    if not insertion.axes_measured:
        yield "the axes are inferred, since the model takes one input size"
    if insertion.runs != 1:
        yield f"runs {insertion.runs} times per forward"
    if insertion.strength != 1.0:
        yield f"strength {insertion.strength:g}"
    if insertion.note:
        yield insertion.note


def _notes(placed: Sequence[Insertion], verbose: bool) -> Iterator[Text]:
    """Each fact once, with the sites that it is about."""
    sites: dict[str, list[str]] = {}
    for insertion in placed:
        for fact in facts(insertion):
            sites.setdefault(fact, []).append(insertion.path or MODEL)
    for fact, paths in sites.items():
        yield Text(f"note: {_named(paths, verbose)}: {fact}")


def _named(paths: Sequence[str], verbose: bool) -> str:
    if len(paths) == 1 or (verbose and len(paths) < LONG):
        return ", ".join(paths)
    return f"{len(paths)} sites ({paths[0]} .. {paths[-1]})"


def _skip_lines(skips: Sequence[Skip], label: str, style: str, verbose: bool) -> Iterator[Text]:
    """A line for each skip; without `verbose`, one for each reason."""
    groups: dict[tuple[str, int], list[str]] = {}
    for number, skip in enumerate(skips):
        groups.setdefault((skip.reason, number if verbose else 0), []).append(skip.path or MODEL)
    for (reason, _), paths in groups.items():
        yield Text(f"{label}: {_named(paths, verbose)}: {reason}", style=style)


def _summary(plan: Plan, skips: Sequence[Skip], *, applied: bool, why: bool) -> Text:
    counts = [f"{format_count(len(plan.insertions), 'site')} {'inserted' if applied else 'planned'}"]
    if plan.placed and not _has_several_lambdas(plan.placed):
        counts[0] += f" with e_lambda {plan.placed[0].e_lambda:g}"
    if plan.present:
        counts.append(f"{len(plan.present)} already there")
    skipped = sum(skip.hit for skip in skips)
    counts.append(f"{skipped} skipped")
    if near := len(skips) - skipped:
        shows = "" if why else f" (--why shows {'it' if near == 1 else 'them'})"
        counts.append(format_count(near, "near miss", "near misses") + shows)
    moved = f"{format_bytes(bytes_per_image(plan))} memory traffic per image"
    return Text(", ".join(counts), style="bold").append(f"; parameters +0; {moved}", style="not bold")


def verification_lines(verification: Verification, verbose: bool = False) -> Iterator[Text]:
    """One line, and one for each check that failed or was not run; with `verbose` for each check."""
    results = [check.ok for check in verification.checks]
    passed, not_run = results.count(True), results.count(None)
    if not verification.ok:
        count = format_count(len(results), "check")
        yield Text(f"verification failed: {results.count(False)} of {count}", style="red")
    elif passed:
        counts = format_count(passed, "check") + (f", {not_run} not run" if not_run else "")
        yield Text("verified: ", style="bold green").append(counts, "not bold default")
    else:
        yield Text("not verified: no check could be run", style="yellow")
    for ok, (outcome, style) in OUTCOMES.items():
        for check in verification.checks:
            if check.ok is ok and (verbose or ok is not True):
                detail = f": {check.detail}" if check.detail else ""
                yield Text(f"  {outcome}: {check.name}{detail}", style=style)
