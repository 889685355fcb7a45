"""A plan and what was done with it: sites, skips with their reasons, cost, verification; and a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.filesize import decimal
from rich.text import Text

from simam_inject.dataflow.records import Anatomy
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Insertion, Verification
from simam_inject.reporting.formats import MODEL, Table, format_count, format_map, format_span
from simam_inject.reporting.sites import kind_of_place, local_name

if TYPE_CHECKING:
    from simam_inject.bench.measuring import Quartiles
    from simam_inject.bench.run import Bench, Row

LONG = 24
"""Sites from which on a table groups them by kind of block."""
_EDITS = {"output": "output", "input": "input", "rewritten": "expression"}
_HEADINGS = ("position", "count", "CxHxW", "reduction", "e_lambda", "edit", "axes", "module")


def plan_to_dict(plan: Plan, verification: Verification | None = None) -> dict[str, Any]:
    """The plan, totals and the verification as JSON types."""
    totals = {"sites": len(plan.placed), "parameters": 0, "bytes_per_image": bytes_per_image(plan)}
    checks = [asdict(check) for check in verification.checks] if verification else []
    checked = {"ok": verification.ok, "checks": checks} if verification else None
    return {**plan.to_dict(), "totals": totals, "verification": checked}


def bytes_per_image(plan: Plan) -> int:
    """Bytes that SimAM reads and writes for one image at least: each attended map once.

    Its cost is memory traffic; tools that count floating point operations do not count it.
    """
    batch = next((shape[0] for shape in plan.anatomy.input_shapes if len(shape) > 3), 1)
    return round(sum(insertion.bytes_moved for insertion in plan.placed) / max(1, batch))


def render_plan(plan: Plan, *, applied: bool, why: bool = False, verbose: bool = False) -> Iterator[RenderableType]:
    """The report of one plan, part by part.

    Args:
        plan: Insertions, what was in the model already, and skips.
        applied: False for a dry run: the sites are `planned`, not `inserted`.
        why: Show near misses too.
        verbose: Every site has a row, and every note and skip a line.
    """
    placed = plan.placed
    is_long = len(placed) >= LONG and not verbose
    yield sites_table(placed, plan.anatomy if is_long else None)
    if is_long:
        yield Text(f"{len(placed)} sites by kind; --verbose shows each", "dim")
    yield from (Text(f"note: {note}") for note in notes(placed, verbose=verbose))
    already = {there.path for there in plan.present}  # these have a row of their own
    skipped, near = (
        [(skip.path, skip.reason) for skip in plan.skips if skip.hit is hit and skip.path not in already]
        for hit in (True, False)
    )
    yield from (Text(f"skipped: {line}", "yellow") for line in _grouped(skipped, verbose))
    yield from (Text(f"near miss: {line}", "dim") for line in _grouped(near if why else (), verbose=True))
    lambdas = {one.e_lambda for one in placed}
    counts = [f"{format_count(len(plan.insertions), 'site')} {'inserted' if applied else 'planned'}"]
    counts[0] += f" with e_lambda {lambdas.pop():g}" if len(lambdas) == 1 else ""
    counts += [f"{len(plan.present)} already there"] if plan.present else []
    counts += [f"{len(skipped)} skipped"]
    if near:
        shows = "" if why else f" (--why shows {'it' if len(near) == 1 else 'them'})"
        counts.append(f"{len(near)} near miss{'es' * (len(near) > 1)}{shows}")
    moved = f"{decimal(bytes_per_image(plan))} memory traffic per image"
    yield Text(", ".join(counts), "bold").append(f"; parameters +0; {moved}", "not bold")


def sites_table(placed: Sequence[Insertion], anatomy: Anatomy | None = None, *, complete: bool = False) -> Table:
    """A row for each site.

    Args:
        placed: The sites.
        anatomy: Where given, a row for each kind of site instead, with its count.
        complete: Also columns of the axes and of the dotted name of each SimAM.
    """
    groups: dict[tuple[str, str, float, str], list[Insertion]] = {}
    for one in placed:
        name = kind_of_place(anatomy, one.path) if anatomy else one.path or MODEL
        reader = local_name(one.reader or "", one.path.rpartition(".")[0])
        position = f"before {reader}" if one.reader else one.position
        groups.setdefault((name, position, one.e_lambda, _EDITS[one.edit.kind]), []).append(one)
    rows = [
        (
            name,
            position,
            str(len(members)),
            format_span(map(format_map, members)),
            format_span(sorted({one.reduction for one in members if one.reduction}), ".."),
            f"{e_lambda:g}",
            edit,
            f"{members[0].axes}, {'measured' if members[0].axes_measured else 'inferred'}",
            members[0].module,
        )
        for (name, position, e_lambda, edit), members in groups.items()
    ]
    hidden = [] if anatomy else ["count"]
    if not complete:  # one lambda for all is said in the summary
        hidden += ["axes", "module", *([] if len({one.e_lambda for one in placed}) > 1 else ["e_lambda"])]
    return Table(("kind of site" if anatomy else "site", *_HEADINGS), rows).without(*hidden)


def notes(placed: Sequence[Insertion], *, verbose: bool = False) -> Iterator[str]:
    """What is unusual about sites, one line for each fact."""
    return _grouped(((one.path, fact) for one in placed for fact in _facts(one)), verbose)


def _facts(insertion: Insertion) -> Iterator[str]:
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


def _grouped(facts: Iterable[tuple[str, str]], verbose: bool) -> Iterator[str]:
    """`2 sites (se.fc1 .. se.fc2): 1x1 map`: each fact once, with its sites; with `verbose` site by site."""
    by_fact: dict[tuple[str, str], list[str]] = {}
    for path, fact in facts:
        by_fact.setdefault((fact, path if verbose else ""), []).append(path or MODEL)
    for (fact, _), paths in by_fact.items():
        yield f"{paths[0] if len(paths) == 1 else f'{len(paths)} sites ({paths[0]} .. {paths[-1]})'}: {fact}"


def render_verification(verification: Verification, *, verbose: bool = False) -> Iterator[Text]:
    """One line, and one for each check that failed or was not run; with `verbose` for each check."""
    yield Text(str(verification), "green" if verification.ok else "red")
    if verbose:
        yield from (Text(f"  ok: {check.name}") for check in verification.checks if check.ok)


def render_bench(measured: Bench) -> Iterator[RenderableType]:
    """One line per variant and mode, with `too noisy` for a ratio whose quartiles are too far apart."""
    conditions = measured.conditions
    words = [f"batch {conditions.batch}", conditions.dtype, "channels last" if conditions.channels_last else "NCHW"]
    words += ["compiled" if conditions.compile else "eager", f"{conditions.rounds} rounds"]
    yield Text(", ".join(words))
    headings = ("mode", "variant", "ms", "x plain (quartiles)", "images/s", "kept", "peak")
    table = Table(headings, [_cells(row) for row in measured.rows])
    yield table if any(row.peak_bytes for row in measured.rows) else table.without("peak")
    floor = decimal(measured.floor_bytes)
    yield Text(f"{format_count(measured.sites, 'site')}; per batch, the attention reads and writes at least {floor}")
    machine = ", ".join(f"{key} {value}" for key, value in measured.machine.items())
    yield Text(f"measured on: {machine}; ratios are taken round by round, all variants interleaved in one process")
    yield Text("kept: bytes that the forward keeps for the backward pass")
    yield from (Text(f"{mode} not run: {reason}", "yellow") for mode, reason in measured.not_run)


def _cells(row: Row) -> tuple[str, ...]:
    memory = ("-" if count is None else decimal(count) for count in (row.kept_bytes, row.peak_bytes))
    speed = f"{row.images_per_second:.1f}"
    return row.mode, row.variant, f"{row.seconds.median * 1e3:.2f}", _ratio(row.ratio), speed, *memory


def _ratio(ratio: Quartiles) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.median:.3f}"
    return "too noisy" if ratio.is_noisy else f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
