"""One self-contained HTML page about an injection: the network drawn, sites, skips, cost, verification, recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

import yaml

from simam_inject.matching import Skip
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Input, Insertion, Output, Rewritten, Verification
from simam_inject.reporting.dicts import bytes_per_image
from simam_inject.reporting.drawing import MARK, draw
from simam_inject.reporting.formats import UNKNOWN, format_bytes, format_count, format_map
from simam_inject.reporting.network import draw_network
from simam_inject.reporting.plans import facts, where

OPEN = 40
"""Rows up to which a table is shown without a click."""
_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --quiet: #5d6b7a; --line: #d9e0e7; --simam: #0b8457; --plain: #b9c6d4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 3rem; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .6rem 0 0; line-height: 1.25; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
.quiet { color: var(--quiet); margin: .2rem 0 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; }
.cards div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; font-size: .85rem;
  color: var(--quiet); }
.cards b { display: block; font-size: 1.25rem; color: var(--ink); }
.cards .good b { color: var(--simam); } .cards .bad b { color: #b3261e; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
svg { display: block; margin: 0 auto; }
svg text { font: 11px system-ui, sans-serif; text-anchor: middle; fill: var(--quiet); }
svg .marked { fill: var(--simam); font-weight: 600; }
.block { fill: var(--plain); } .operation { fill: #e4eaf0; stroke: var(--plain); }
.attended { fill: #cfe8dc; stroke: var(--simam); }
.simam { fill: var(--simam); }
.legend span { display: inline-block; margin-right: 1.2rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem;
  vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .32rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; } tr:last-child td { border-bottom: 0; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; } th.n { text-align: right; }
td.p { white-space: nowrap; }
code, pre { font: .86rem/1.55 ui-monospace, monospace; } pre { margin: 0; padding: .8rem 1rem; }
pre b { color: var(--simam); } summary { cursor: pointer; margin: .6rem 0; }
"""


def render_page(plan: Plan, verification: Verification | None = None, *, heading: str, note: str = "") -> str:
    """The page as text.

    Args:
        plan: What was planned, and what was in the model already.
        verification: What was checked after it was applied; None if nothing was.
        heading: Title of the page, such as the names of model and recipe.
        note: What a reader should know about the model, such as its weights.
    """
    placed = [*plan.present, *plan.insertions]
    drawing = draw_network(plan.anatomy, placed)
    inputs = ", ".join("x".join(map(str, shape)) for shape in plan.anatomy.input_shapes)
    sections = [
        _cards(plan, placed, verification),
        _section("Network", f'<div class="wide">{drawing}</div>{_LEGEND}') if drawing else "",
        _section("Sites", _sites(placed)),
        _section("Inside the blocks", _blocks(plan, placed)),
        _section("Skipped", _skips(plan.skips)),
        _section("Verification", _checks(verification)),
        _section("Recipe", f'<div class="wide"><pre>{escape(_recipe(plan))}</pre></div>'),
    ]
    facts_line = ". ".join(part for part in (note, f"Example input: {inputs}" if inputs else "") if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(heading)}</h1>\n<p class="quiet">{escape(facts_line)}.</p>\n'
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _key(style: str, label: str) -> str:
    return f'<span><i style="{style}"></i>{label}</span>'


_LEGEND = (
    '<p class="quiet legend">'
    + _key("background:#cfe8dc;border:1px solid #0b8457", "block with SimAM")
    + _key("background:#0b8457;width:3px", "SimAM")
    + _key("background:#b9c6d4", "block without")
    + _key("background:#e4eaf0;border:1px solid #b9c6d4", "convolution or pooling outside of blocks")
    + "<br>Height: side of the feature map. Width: channels, on a logarithmic scale. Point at a block for its name.</p>"
)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _cards(plan: Plan, placed: Sequence[Insertion], verification: Verification | None) -> str:
    skipped = sum(skip.hit for skip in plan.skips)
    moved = format_bytes(bytes_per_image(placed, plan.anatomy))
    cards = [
        ("", str(len(placed)), "sites with SimAM" if len(placed) != 1 else "site with SimAM"),
        ("", str(skipped), "skipped"),
        ("", "+0", "parameters"),
        ("", moved, "moved per image: one read and one write of each map"),
    ]
    if verification is not None:
        passed = sum(check.ok is True for check in verification.checks)
        good = ("good", "verified", format_count(passed, "check"))
        cards.append(good if verification.ok else ("bad", "failed", "verification: see below"))
    items = "".join(f'<div class="{kind}"><b>{escape(value)}</b>{escape(label)}</div>' for kind, value, label in cards)
    return f'<div class="cards">{items}</div>'


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), names: Sequence[int] = ()
) -> str:
    def kind(index: int) -> str:
        return ' class="n"' if index in numbers else ' class="p"' if index in names else ""

    head = "".join(
        f"<th{kind(index) if index in numbers else ''}>{escape(name)}</th>" for index, name in enumerate(columns)
    )
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind(index)}>{escape(cell)}</td>" for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _folded(title: str, content: str, rows: int) -> str:
    """Behind a click where it is long."""
    return content if rows <= OPEN else f"<details>\n<summary>{escape(title)}</summary>\n{content}\n</details>"


def _sites(placed: Sequence[Insertion]) -> str:
    if not placed:
        return ""
    rows: list[tuple[str, ...]] = [
        (
            insertion.path or "(the model)",
            where(insertion),
            format_map(insertion.shape, insertion.channel_dim),
            f"{insertion.axes}, {'measured' if insertion.axes_measured else 'inferred'}",
            UNKNOWN if insertion.reduction is None else str(insertion.reduction),
            f"{insertion.e_lambda:g}",
            _edit(insertion),
            insertion.module,
            "; ".join(fact for fact in facts(insertion) if not fact.startswith("the axes")),
        )
        for insertion in placed
    ]
    columns = ["site", "position", "CxHxW", "axes", "reduction", "e_lambda", "edit", "module", "note"]
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    table = _table(columns, rows, numbers=(2, 4, 5), names=(0, 1, 3, 6, 7))
    return _folded(f"all {len(rows)} sites", table, len(rows))


def _edit(insertion: Insertion) -> str:
    edit = insertion.edit
    key = "" if isinstance(edit, Rewritten) or edit.key is None else f"[{edit.key}]"
    if isinstance(edit, Output):
        return f"output{key} of {edit.module or 'the model'}"
    if isinstance(edit, Input):
        return f"input {edit.argument}{key} of {edit.module or 'the model'}"
    return f"expression {edit.value} in {edit.owner or 'the model'}"


def _blocks(plan: Plan, placed: Sequence[Insertion]) -> str:
    drawings = draw(plan.anatomy, placed)
    text = escape("\n\n".join(map(str, drawings))).replace(MARK, f"<b>{MARK}</b>")
    return _folded(f"{len(drawings)} kinds of block", f'<div class="wide"><pre>{text}</pre></div>', text.count("\n"))


def _skips(skips: Sequence[Skip]) -> str:
    parts = []
    hits, near = [skip for skip in skips if skip.hit], [skip for skip in skips if not skip.hit]
    if hits:
        rows = [(skip.path or "(the model)", skip.reason) for skip in hits]
        parts.append(_folded(f"all {len(rows)}", _table(("site", "reason"), rows, names=(0,)), len(rows)))
    if near:
        table = _table(
            ("near miss", "reason"), [(skip.path or "(the model)", skip.reason) for skip in near], names=(0,)
        )
        parts.append(
            f"<details>\n<summary>{format_count(len(near), 'near miss', 'near misses')}</summary>\n{table}\n</details>"
        )
    return "\n".join(parts)


def _checks(verification: Verification | None) -> str:
    if verification is None:
        return ""
    words = {True: "ok", False: "failed", None: "not run"}
    rows = [(words[check.ok], check.name, check.detail) for check in verification.checks]
    return _table(("result", "check", "detail"), rows, names=(0,))


def _recipe(plan: Plan) -> str:
    text: str = yaml.safe_dump(plan.recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100)
    return re.sub(r"\n+$", "", text)
