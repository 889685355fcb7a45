"""The network as a picture: its blocks in the order of execution, as high as their maps are, with SimAM marked. SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.planning.records import Insertion
from simam_inject.reporting.anatomy import CONTAINERS
from simam_inject.reporting.formats import format_count, format_map

HEIGHT, LEAST = 150.0, 5.0
"""Height in pixels of the largest map, and of any map at least."""
_GAP, _STAGE_GAP, _MARGIN, _LABEL = 3.0, 14.0, 10.0, 52.0
_LEAVES = ("conv", "pool", "interpolate", "pixel_shuffle")
"""Parts of the kinds that are drawn on their own, outside of blocks."""


@dataclass(frozen=True, slots=True)
class Box:
    """One block, or one operation outside of blocks."""

    site: Site
    attended: tuple[Insertion, ...]
    """The SimAMs inside it or at its output."""

    @property
    def length(self) -> int:
        """Shorter side of its map. The longer one may be a list: YOLO's distribution of distances is 4 x 8400."""
        return min(self.site.spatial or (1,))

    @property
    def width(self) -> float:
        """Pixels: one and a half for each doubling of the channels, and a few more."""
        return 5 + 1.5 * math.log2(max(2, self.site.channels or 2))


def boxes_of(anatomy: Anatomy, insertions: Sequence[Insertion]) -> tuple[Box, ...]:
    """What is drawn: main and decoder blocks, other blocks outside of them, convolutions and poolings between."""
    mapped = [
        site
        for site in anatomy.sites
        if site.runs and max(site.spatial or (1,)) > 1 and site.path and ":" not in site.path
    ]
    dims = Counter(len(site.spatial or ()) for site in mapped).most_common(1)[0][0] if mapped else 0
    mapped = [site for site in mapped if len(site.spatial or ()) == dims]  # no lists of boxes beside images
    main = {site.path for site in mapped if {"main", "decoder"} & set(site.structure)}
    parents_of_main = {parent for path in main for parent in _parents(path)}
    others = {
        site.path
        for site in mapped
        if site.kind == "block" and site.class_name not in CONTAINERS and site.path not in parents_of_main
    }
    drawn: list[Site] = []
    for site in mapped:
        is_block = site.path in main or (site.path in others and site.path not in parents_of_main)
        is_leaf = site.class_name is not None and any(word in site.kind for word in _LEAVES)
        if (is_block or is_leaf) and not any(parent in main or parent in others for parent in _parents(site.path)):
            drawn.append(site)
    paths = {site.path for site in drawn}
    alone = {insertion.path for insertion in insertions if not _home(insertion, paths)}
    drawn = [site for site in mapped if site.path in paths | alone]
    paths |= alone
    return tuple(Box(site, tuple(one for one in insertions if _home(one, paths) == site.path)) for site in drawn)


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _home(insertion: Insertion, paths: set[str]) -> str | None:
    """The drawn block that an insertion is in."""
    path = insertion.path.partition(":")[0].partition("[")[0]
    return next((place for place in (path, *_parents(path)) if place in paths), None)


def draw_network(anatomy: Anatomy, insertions: Sequence[Insertion]) -> str:
    """An `<svg>` of the network; empty where it has no feature map."""
    boxes = boxes_of(anatomy, insertions)
    if not boxes:
        return ""
    largest = max(box.length for box in boxes)
    parts: list[str] = []
    x = _MARGIN
    for length, group in groupby(boxes, key=lambda box: box.length):
        start = x
        members = list(group)
        for box in members:
            parts.append(_draw_box(box, x, max(LEAST, HEIGHT * box.length / largest)))
            x += box.width + _GAP
        x = max(x, start + _LABEL)
        parts.append(_draw_label(members, length, (start + x - _GAP) / 2))
        x += _STAGE_GAP
    height = HEIGHT + 62
    style = f"min-width:{x:.0f}px;max-width:{1.5 * x:.0f}px;width:100%"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="The network" style="{style}"'
    return f'{head} viewBox="0 0 {x:.0f} {height:.0f}">\n' + "\n".join(parts) + "\n</svg>"


def _draw_box(box: Box, x: float, height: float) -> str:
    y = _MARGIN + (HEIGHT - height) / 2
    site = box.site
    title = f"{site.path}: {site.class_name}, {format_map(site.shape, site.channel_dim)}"
    for insertion in box.attended:
        title += f"\nSimAM {insertion.position} {insertion.path}"
    kind = "attended" if box.attended else "block" if site.kind == "block" else "operation"
    parts = [f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{height:.1f}" rx="1.5"/>']
    for index, insertion in enumerate(box.attended[:4]):
        at_output = insertion.path == site.path and insertion.reader is None
        place = x + box.width - 3 if at_output else x + box.width * (index + 1) / (min(4, len(box.attended)) + 1) - 1.5
        parts.append(f'<rect class="simam" x="{place:.1f}" y="{y - 4:.1f}" width="3" height="{height + 8:.1f}"/>')
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def _draw_label(boxes: Sequence[Box], length: int, x: float) -> str:
    attended = sum(len(box.attended) for box in boxes)
    reduction = boxes[0].site.reduction
    lines = [f"{length} px", f"1/{reduction}" if reduction else "", f"{attended} SimAM" if attended else ""]
    title = escape(format_count(len(boxes), "block or operation", "blocks and operations"))
    texts = "".join(
        f'<text class="{"marked" if row == 2 else "label"}" x="{x:.1f}" y="{HEIGHT + 28 + 13 * row:.1f}">{line}</text>'
        for row, line in enumerate(lines)
        if line
    )
    return f"<g><title>{title}</title>{texts}</g>"
