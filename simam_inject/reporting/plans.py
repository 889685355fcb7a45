"""One table for one plan: where SimAM goes, what is skipped and why, what it costs, whether it was verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simam_inject.dataflow.records import Anatomy
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Check, Insertion, Skip, Verification
from simam_inject.reporting.anatomy import kind_of_place, local_name
from simam_inject.reporting.dicts import bytes_per_image
from simam_inject.reporting.formats import (
    format_bytes,
    format_count,
    format_map,
    format_reductions,
    format_span,
)

MAP = "CxHxW"
WHOLE = 34
"""Names up to this length stay whole at 80 columns."""
LONG = 24
"""Sites from which on a table groups them by kind of block."""
EDITS = {"Output": "output", "Input": "input", "Rewritten": "expression"}
"""How an edit is called in reports: at a module's output, at its input, around an expression in its forward."""


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
    placed = [*plan.present, *plan.insertions]
    already = {there.path for there in plan.present}
    skips = [skip for skip in plan.skips if skip.path not in already]  # these have a row of their own
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    if placed:
        is_long = len(placed) >= LONG and not verbose
        parts.append(_grouped_table(placed, plan.anatomy) if is_long else sites_table(placed))
        if is_long:
            parts.append(Text(f"{len(placed)} sites by kind; --verbose shows each", style="dim"))
    parts += _notes(placed, verbose)
    parts += _skip_lines([skip for skip in skips if skip.hit], "skipped", "yellow", verbose)
    if why:
        parts += _skip_lines([skip for skip in skips if not skip.hit], "near miss", "dim", verbose=True)
    parts.append(_summary(plan, placed, skips, applied=applied, why=why))
    if verification is not None:
        parts.extend(verification_lines(verification, verbose))
    if calibration is not None:
        parts.extend(_calibration_lines(calibration))
    if next_steps:
        parts.append(Text("next:", style="bold"))
        parts.extend(Text(f"  {step}", no_wrap=True, overflow="ignore") for step in next_steps)  # whole, to be copied
    return Group(*parts)


def _new_table(names: Sequence[str], *columns: str) -> Table:
    """A table whose first column keeps its names whole where there is room; the map column breaks between maps."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(columns[0], overflow="fold", no_wrap=max(map(len, names)) <= WHOLE)
    table.add_column(columns[1], overflow="fold")
    for column in columns[2:-1]:
        table.add_column(column, justify="right", no_wrap=column != MAP, overflow="fold")
    table.add_column(columns[-1], no_wrap=True)
    return table


def sites_table(placed: Sequence[Insertion]) -> Table:
    """A row for each site."""
    lambdas = _lambda_column(placed)
    names = [insertion.path or "(the model)" for insertion in placed]
    table = _new_table(names, "site", "position", MAP, "reduction", *lambdas, "edit")
    for name, insertion in zip(names, placed, strict=True):
        table.add_row(
            Text(name),
            Text(where(insertion)),
            format_map(insertion.shape, insertion.channel_dim),
            format_reductions([insertion.reduction]),
            *[f"{insertion.e_lambda:g}" for _ in lambdas],
            EDITS[type(insertion.edit).__name__],
        )
    return table


def _grouped_table(placed: Sequence[Insertion], anatomy: Anatomy) -> Table:
    groups: dict[tuple[str, ...], list[Insertion]] = {}
    for insertion in placed:
        kind = kind_of_place(anatomy, insertion.path)
        reader = "" if insertion.reader is None else f" {kind_of_place(anatomy, insertion.reader)}"
        edit = EDITS[type(insertion.edit).__name__]
        groups.setdefault((kind, f"{insertion.position}{reader}", f"{insertion.e_lambda:g}", edit), []).append(
            insertion
        )
    lambdas = _lambda_column(placed)
    table = _new_table(
        [key[0] for key in groups], "kind of site", "position", "count", MAP, "reduction", *lambdas, "edit"
    )
    for (kind, position, e_lambda, edit), members in groups.items():
        maps = format_span(format_map(member.shape, member.channel_dim) for member in members)
        reductions = format_reductions(member.reduction for member in members)
        e_lambdas = [e_lambda for _ in lambdas]
        table.add_row(Text(kind), Text(position), str(len(members)), maps, reductions, *e_lambdas, edit)
    return table


def _lambda_column(placed: Sequence[Insertion]) -> list[str]:
    """A column for lambdas that differ; one lambda for all is said in the summary."""
    return ["e_lambda"] if len({insertion.e_lambda for insertion in placed}) > 1 else []


def where(insertion: Insertion) -> str:
    """`after`, or `before` the one that reads the attended value."""
    if insertion.reader is None:
        return insertion.position
    scope = insertion.path.rpartition(".")[0]
    return f"before {local_name(insertion.reader, scope)}"


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
            sites.setdefault(fact, []).append(insertion.path or "(the model)")
    for fact, paths in sites.items():
        yield Text(f"note: {_named(paths, verbose)}: {fact}")


def _named(paths: Sequence[str], verbose: bool) -> str:
    if len(paths) == 1 or (verbose and len(paths) < LONG):
        return ", ".join(paths)
    return f"{len(paths)} sites ({paths[0]} .. {paths[-1]})"


def _skip_lines(skips: Sequence[Skip], label: str, style: str, verbose: bool) -> Iterator[Text]:
    """A line for each skip; without `verbose`, one for each reason."""
    if verbose:
        yield from (Text(f"{label}: {skip.path or '(the model)'}: {skip.reason}", style=style) for skip in skips)
        return
    by_reason: dict[str, list[str]] = {}
    for skip in skips:
        by_reason.setdefault(skip.reason, []).append(skip.path or "(the model)")
    for reason, paths in by_reason.items():
        yield Text(f"{label}: {_named(paths, verbose)}: {reason}", style=style)


def _summary(plan: Plan, placed: Sequence[Insertion], skips: Sequence[Skip], *, applied: bool, why: bool) -> Text:
    counts = [f"{format_count(len(plan.insertions), 'site')} {'inserted' if applied else 'planned'}"]
    if placed and not _lambda_column(placed):
        counts[0] += f" with e_lambda {placed[0].e_lambda:g}"
    if plan.present:
        counts.append(f"{len(plan.present)} already there")
    skipped = sum(skip.hit for skip in skips)
    counts.append(f"{skipped} skipped")
    if near := len(skips) - skipped:
        shows = "" if why else f" (--why shows {'it' if near == 1 else 'them'})"
        counts.append(format_count(near, "near miss", "near misses") + shows)
    moved = (
        f"{format_bytes(bytes_per_image(placed, plan.anatomy))} moved per image (one read and one write of each map)"
    )
    return Text(", ".join(counts), style="bold").append(f"; parameters +0; {moved}", style="not bold")


def verification_lines(verification: Verification, verbose: bool) -> Iterator[Text]:
    """One line, and one for each check that failed or was not run; with `verbose` for each check."""
    failed = [check for check in verification.checks if check.ok is False]
    passed = [check for check in verification.checks if check.ok]
    not_run = [check for check in verification.checks if check.ok is None]
    if failed:
        count = format_count(len(verification.checks), "check")
        yield Text(f"verification failed: {len(failed)} of {count}", style="red")
    elif passed:
        more = f", {len(not_run)} not run" if not_run else ""
        yield Text("verified: ", style="bold green").append(
            format_count(len(passed), "check") + more, "not bold default"
        )
    else:
        yield Text("not verified: no check could be run", style="yellow")
    yield from (_check_line(check, "failed", "red") for check in failed)
    yield from (_check_line(check, "not run", "yellow") for check in not_run)
    if verbose:
        yield from (_check_line(check, "ok", "") for check in passed)


def _check_line(check: Check, outcome: str, style: str) -> Text:
    return Text(f"  {outcome}: {check.name}" + (f": {check.detail}" if check.detail else ""), style=style)


def _calibration_lines(calibration: Any) -> Iterator[Text]:
    lines = str(calibration).splitlines()
    kept = ["     kept", *(f"{site.kept:9.1%}" for site in calibration.sites)] if calibration.sites else []
    yield from (Text(line + share) for line, share in zip_longest(lines, kept, fillvalue=""))
