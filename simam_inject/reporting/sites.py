"""The sites of a model by block class, with what a rule can name inside, and suggested selectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from simam_inject.dataflow.records import Anatomy
from simam_inject.reporting.anatomy import Place, summarize
from simam_inject.reporting.formats import (
    MODEL,
    UNKNOWN,
    as_json,
    format_count,
    format_reductions,
    format_span,
    new_table,
)

_SHOWN = 4
"""Places that are listed of those with the same obstacle."""
WHOLE = 28
"""Names up to this length stay whole at 80 columns."""


def sites_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """What `render_sites` shows, with the path of every block."""
    return {
        "input_shapes": [list(shape) for shape in anatomy.input_shapes],
        "classes": [as_json(found) for found in summarize(anatomy)],
        "opaque": dict(anatomy.opaque),
    }


def render_sites(anatomy: Anatomy, *, heading: str = "") -> RenderableType:
    """The block classes of a model with what a rule can name inside them, and selectors that fit this model.

    Args:
        anatomy: All sites of the model.
        heading: What the report is about.
    """
    classes = summarize(anatomy)
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    parts += [_table(classes), *_obstacle_lines(classes), *_opaque_lines(anatomy)]
    parts.append(Text("select sites with:", style="bold"))
    parts.extend(Text(f"  {selector}") for selector in suggest(classes))
    return Group(*parts)


def _rows(classes: Sequence[Place]) -> Iterator[tuple[str, str, Place]]:
    """What has a row: its name in the table, its name in the model, and the place."""
    for found in classes:
        yield found.name, found.name, found
        if not found.is_container:
            yield from ((f"  {child.name}", f"{found.name}.{child.name}", child) for child in found.children)


def _table(classes: Sequence[Place]) -> Table:
    rows = [row for row in _rows(classes) if row[2].obstacle is None or row[2].kind == "block"]
    is_short = max((len(name) for name, _, _ in rows), default=0) <= WHOLE
    table = new_table(
        Column("block class, children", overflow="fold", no_wrap=is_short),
        "kind",
        Column("count", justify="right", no_wrap=True),
        "CxHxW",
        Column("reduction", no_wrap=True),
    )
    for name, _, place in rows:
        is_class = place.kind == "block"
        maps = (format_span(place.maps) or UNKNOWN) + " *" * bool(place.obstacle)
        table.add_row(
            Text(name, style="bold cyan" if is_class else ""),
            Text(place.kind),
            str(place.count),
            maps,
            format_reductions(place.reductions),
            style="bold" if is_class else "dim" if place.obstacle else "",
        )
    return table


def _obstacle_lines(classes: Sequence[Place]) -> Iterator[Text]:
    """What SimAM cannot be applied to, by reason; of these, only block classes have a row."""
    names: dict[str, list[str]] = {}
    for _, name, place in _rows(classes):
        if place.obstacle is not None:
            names.setdefault(place.obstacle.partition(": its shape is")[0], []).append(name)
    for obstacle, places in names.items():
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        yield Text(f"* {', '.join(places[:_SHOWN])}{more}: {obstacle}", style="yellow")


def _opaque_lines(anatomy: Anatomy) -> Iterator[Text]:
    if anatomy.opaque:
        count = format_count(len(anatomy.opaque), "block")
        yield Text(f"{count} without names inside; SimAM can be applied to the output:", style="yellow")
        yield from (Text(f"  {path or MODEL}: {reason}") for path, reason in anatomy.opaque.items())


def suggest(classes: Sequence[Place]) -> Iterator[str]:
    """Selectors for the class that the model repeats: its output, its convolution, its residual branch.

    The model itself is never suggested, since its last value is the result and not a feature map.
    """
    named = [
        found
        for found in classes
        if not found.is_container and found.obstacle is None and found.children and found.paths != ("",)
    ]
    main = max(named, key=_rank, default=None)
    if main is None:
        yield "--recipe every-conv"
        return
    name = main.name.lower()
    yield f"--after {name}"
    convs = [child for child in main.children if "conv" in child.kind and child.obstacle is None]
    wide = [child for child in convs if _is_wide(child)]
    yield from (f"--after {name}.{child.name}" for child in (wide or convs)[-1:])
    if any(child.joins for child in main.children):
        yield f"--before {name}.residual"


def _is_wide(child: Place) -> bool:
    """A convolution that looks at more than one position."""
    kernel = child.kind.rpartition(" ")[2]
    return any(length.isdigit() and length != "1" for length in kernel.split("x"))


def _rank(found: Place) -> tuple[bool, bool, bool, int]:
    """Main blocks first, then residual ones, then those that repeat, then those with the most inside."""
    return "main" in found.structure, "residual" in found.structure, found.count > 1, len(found.children) * found.count
