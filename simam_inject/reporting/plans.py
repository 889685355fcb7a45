"""One table for one plan: what is inserted where, what is skipped and why, what it costs, whether it was verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simam_inject.planning.records import Check, Insertion, Skip, Verification
from simam_inject.reporting.formats import UNKNOWN, format_bytes, format_count, format_map
from simam_inject.reporting.totals import total


def render_plan(
    insertions: Sequence[Insertion],
    skips: Sequence[Skip],
    verification: Verification | None = None,
    *,
    heading: str = "",
    present: Sequence[Insertion] = (),
    applied: bool = True,
    why: bool = False,
    images: int = 1,
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The report of one plan.

    Args:
        insertions: Where SimAM goes, one row each.
        skips: Sites that a rule took and that get none, one row each with the reason.
        verification: What was checked; None if nothing was.
        heading: What the report is about.
        present: What was in the model already.
        applied: False for a dry run: the sites are `planned`, not `inserted`.
        why: Show near misses too.
        images: How many images the example forward had.
        next_steps: What the reader may want to do now, one line each.
    """
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    already = {there.path for there in present}
    skips = [skip for skip in skips if skip.path not in already]  # said by a row of its own
    shown = [skip for skip in skips if skip.hit or why]
    verb = "inserted" if applied else "planned"
    placed = [*((there, "already there") for there in present), *((insertion, verb) for insertion in insertions)]
    if placed or shown:
        parts.append(_table(placed, shown))
    counts = [f"{format_count(len(insertions), 'site')} {verb}", *_counts(present, skips, why)]
    parts.append(_totals_line(counts, [insertion for insertion, _ in placed], images))
    if verification is not None:
        parts.extend(_verification_lines(verification))
    if next_steps:
        parts.append(Text("next:", style="bold"))
        parts.extend(Text(f"  {step}") for step in next_steps)
    return Group(*parts)


def _table(placed: Sequence[tuple[Insertion, str]], skips: Sequence[Skip]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("path", overflow="fold", min_width=12)
    table.add_column("position", overflow="fold")
    table.add_column("CxHxW", justify="right", no_wrap=True)
    table.add_column("reduction", justify="right")
    table.add_column("e_lambda", justify="right")
    table.add_column("result", overflow="fold", ratio=1)
    for insertion, verb in placed:
        table.add_row(
            Text(insertion.path or "(the model)"),
            Text(insertion.position if insertion.reader is None else f"before {insertion.reader}"),
            format_map(insertion.shape, insertion.channel_dim),
            UNKNOWN if insertion.reduction is None else str(insertion.reduction),
            f"{insertion.e_lambda:g}",
            Text("; ".join(_facts(insertion, verb)), style="green"),
        )
    for skip in skips:
        result = f"skipped: {skip.reason}" if skip.hit else f"near miss: {skip.reason}"
        style = "yellow" if skip.hit else "dim"
        table.add_row(Text(skip.path or "(the model)"), UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, Text(result, style=style))
    return table


def _facts(insertion: Insertion, verb: str) -> Iterator[str]:
    yield verb
    if insertion.channel_dim == -1:
        yield "channels last"
    if insertion.runs != 1:
        yield f"runs {insertion.runs} times per forward"
    if insertion.note:
        yield insertion.note


def _counts(present: Sequence[Insertion], skips: Sequence[Skip], why: bool) -> Iterator[str]:
    if present:
        yield f"{len(present)} already there"
    skipped = sum(skip.hit for skip in skips)
    yield f"{skipped} skipped"
    if near := len(skips) - skipped:
        yield format_count(near, "near miss", "near misses") + (
            "" if why else f" (--why shows {'it' if near == 1 else 'them'})"
        )


def _totals_line(counts: Sequence[str], insertions: Sequence[Insertion], images: int) -> Text:
    totals = total(insertions, images)
    moved = f"{format_bytes(totals.bytes_per_image)} moved per image (one read and one write of each map)"
    return Text(", ".join(counts), style="bold").append(f"; parameters +{totals.parameters}; {moved}", style="not bold")


def _verification_lines(verification: Verification) -> Iterator[Text]:
    failed = [check for check in verification.checks if check.ok is False]
    passed = [check for check in verification.checks if check.ok]
    unknown = [check for check in verification.checks if check.ok is None]
    names = "; ".join(check.name for check in passed)
    if failed:
        yield Text(
            f"verification failed: {len(failed)} of {format_count(len(verification.checks), 'check')}", style="red"
        )
        yield from (_check_line(check, "failed", "red") for check in failed)
    elif passed:
        yield Text("verified: ", style="bold green").append(names, style="not bold default")
    else:
        yield Text("not verified: no check could be run", style="yellow")
    yield from (_check_line(check, "not run", "yellow") for check in unknown)


def _check_line(check: Check, outcome: str, style: str) -> Text:
    return Text(f"  {outcome}: {check.name}" + (f": {check.detail}" if check.detail else ""), style=style)
