"""What can be named in a model: its block classes, what is inside them, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simam_inject.discovery.records import Anatomy
from simam_inject.reporting.anatomy import BlockClass, summarize
from simam_inject.reporting.formats import UNKNOWN, format_count, format_span


def render_sites(anatomy: Anatomy, *, heading: str = "", next_steps: Sequence[str] = ()) -> RenderableType:
    """The block classes of a model with what a rule can name inside them.

    Args:
        anatomy: All sites of the model.
        heading: What the report is about.
        next_steps: What the reader may want to do now, one line each; by default selectors that fit this model.
    """
    classes = summarize(anatomy)
    parts: list[RenderableType] = [Text(heading, style="bold")] if heading else []
    parts += [_table(classes), *_opaque_lines(anatomy)]
    if steps := next_steps or tuple(_selectors(classes)):
        parts.append(Text("name a place with:", style="bold"))
        parts.extend(Text(f"  {step}") for step in steps)
    return Group(*parts)


def _table(classes: Sequence[BlockClass]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("block class, what is inside", overflow="fold", min_width=24)
    table.add_column("kind", overflow="fold")
    table.add_column("count", justify="right")
    table.add_column("CxHxW, or why it cannot be attended", overflow="fold")
    table.add_column("reduction", overflow="fold")
    for found in classes:
        table.add_row(
            Text(found.name, style="bold cyan"),
            "block",
            str(found.count),
            _place(found.maps, found.obstacle),
            _join(found.reductions),
            style="bold",
        )
        for child in () if found.is_container else found.children:
            table.add_row(
                Text(f"  {child.name}"),
                Text(child.kind),
                str(child.count),
                _place(child.maps, child.obstacle),
                _join(child.reductions),
                style="dim" if child.obstacle else "",
            )
    return table


def _place(maps: Sequence[str], obstacle: str | None) -> Text:
    return Text(f"no: {obstacle}", style="yellow") if obstacle else Text(format_span(maps) or UNKNOWN)


def _join(reductions: Sequence[int]) -> str:
    return ", ".join(map(str, reductions)) or UNKNOWN


def _opaque_lines(anatomy: Anatomy) -> Iterator[Text]:
    if anatomy.opaque:
        count = format_count(len(anatomy.opaque), "block")
        yield Text(f"{count} cannot be edited inside; what they return can be attended:", style="yellow")
        yield from (Text(f"  {path or '(the model)'}: {reason}") for path, reason in anatomy.opaque.items())


def _selectors(classes: Sequence[BlockClass]) -> Iterator[str]:
    """Selectors for the first class that repeats: its output, its last conv, its residual branch."""
    named = [found for found in classes if not found.is_container and found.obstacle is None and found.children]
    main = max(named, key=_rank, default=None)
    if main is None:
        return
    name = main.name.lower()
    yield f"--after {name}"
    convs = [child for child in main.children if "conv" in child.kind and child.obstacle is None]
    yield from (f"--after {name}.{child.name}" for child in convs[1:2] or convs[:1])
    if any(child.joins for child in main.children):
        yield f"--before {name}.residual"


def _rank(found: BlockClass) -> tuple[bool, int]:
    """Repeated residual blocks first, then those with the most inside."""
    return found.count > 1 and any(child.joins for child in found.children), len(found.children) * found.count
