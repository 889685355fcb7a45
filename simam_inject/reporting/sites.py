"""What can be named in a model: its block classes, what is inside them, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simam_inject.dataflow.records import Anatomy
from simam_inject.reporting.anatomy import BlockClass, Child, summarize
from simam_inject.reporting.formats import UNKNOWN, format_count, format_reductions, format_span

_PLACES = 4
WHOLE = 28
"""Names up to this length stay whole at 80 columns."""


def render_sites(anatomy: Anatomy, *, heading: str = "") -> RenderableType:
    """The block classes of a model with what a rule can name inside them, and selectors that fit this model.

    Args:
        anatomy: All sites of the model.
        heading: What the report is about.
    """
    classes = summarize(anatomy)
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    parts += [_table(classes), *_obstacle_lines(classes), *_opaque_lines(anatomy)]
    parts.append(Text("name a place with:", style="bold"))
    parts.extend(Text(f"  {selector}") for selector in suggest(classes))
    return Group(*parts)


def _table(classes: Sequence[BlockClass]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    names = [found.name for found in classes] + [f"  {child.name}" for found in classes for child in _shown(found)]
    table.add_column("block class, children", overflow="fold", no_wrap=max(map(len, names), default=0) <= WHOLE)
    table.add_column("kind", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("CxHxW", overflow="fold")
    table.add_column("reduction", no_wrap=True)
    for found in classes:
        table.add_row(Text(found.name, style="bold cyan"), "block", *_facts(found), style="bold")
        for child in _shown(found):
            row = (Text(f"  {child.name}"), Text(child.kind), *_facts(child))
            table.add_row(*row, style="dim" if child.obstacle else "")
    return table


def _shown(found: BlockClass) -> tuple[Child, ...]:
    return () if found.is_container else found.children


def _facts(entry: BlockClass | Child) -> tuple[str, str, str]:
    mark = " *" if entry.obstacle else ""
    return str(entry.count), f"{format_span(entry.maps) or UNKNOWN}{mark}", format_reductions(entry.reductions)


def _obstacle_lines(classes: Sequence[BlockClass]) -> Iterator[Text]:
    """What cannot be attended, by reason."""
    names: dict[str, list[str]] = {}
    for found in classes:
        entries = [
            (found.name, found.obstacle),
            *((f"{found.name}.{child.name}", child.obstacle) for child in _shown(found)),
        ]
        for name, obstacle in entries:
            if obstacle is not None:
                names.setdefault(obstacle.partition(": its shape is")[0], []).append(name)
    for obstacle, places in names.items():
        more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
        yield Text(f"* {', '.join(places[:_PLACES])}{more}: {obstacle}", style="yellow")


def _opaque_lines(anatomy: Anatomy) -> Iterator[Text]:
    if anatomy.opaque:
        count = format_count(len(anatomy.opaque), "block")
        yield Text(f"{count} without names inside; SimAM can be applied to the output:", style="yellow")
        yield from (Text(f"  {path or '(the model)'}: {reason}") for path, reason in anatomy.opaque.items())


def suggest(classes: Sequence[BlockClass]) -> Iterator[str]:
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


def _is_wide(child: Child) -> bool:
    """A convolution that looks at more than one position."""
    kernel = child.kind.rpartition(" ")[2]
    return any(length not in ("1", "") for length in kernel.split("x") if length.isdigit())


def _rank(found: BlockClass) -> tuple[bool, bool, bool, int]:
    """Main blocks first, then residual ones, then those that repeat, then those with the most inside."""
    return "main" in found.structure, "residual" in found.structure, found.count > 1, len(found.children) * found.count
