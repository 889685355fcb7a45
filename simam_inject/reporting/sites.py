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


def render_sites(anatomy: Anatomy, *, heading: str = "") -> RenderableType:
    """The block classes of a model with what a rule can name inside them, and selectors that fit this model.

    Args:
        anatomy: All sites of the model.
        heading: What the report is about.
    """
    classes = summarize(anatomy)
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    parts += [_table(classes), *_opaque_lines(anatomy)]
    parts.append(Text("name a place with:", style="bold"))
    parts.extend(Text(f"  {selector}") for selector in suggest(classes))
    return Group(*parts)


def _table(classes: Sequence[BlockClass]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("block class, what is inside", overflow="fold", min_width=24)
    table.add_column("kind", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("CxHxW", overflow="fold")
    table.add_column("reduction", no_wrap=True)
    for found in classes:
        table.add_row(
            Text(found.name, style="bold cyan"),
            "block",
            str(found.count),
            _place(found.maps, found.obstacle),
            format_reductions(found.reductions),
            style="bold",
        )
        for child in () if found.is_container else found.children:
            table.add_row(
                Text(f"  {child.name}"),
                Text(child.kind),
                str(child.count),
                _place(child.maps, child.obstacle),
                format_reductions(child.reductions),
                style="dim" if child.obstacle else "",
            )
    return table


def _place(maps: Sequence[str], obstacle: str | None) -> Text:
    return Text(f"no: {obstacle}", style="yellow") if obstacle else Text(format_span(maps) or UNKNOWN)


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
