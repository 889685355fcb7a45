"""The network as a picture: its blocks in the order of execution, as high as their maps are, with SimAM marked. SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.planning.records import Insertion
from simam_inject.reporting.anatomy import CONTAINERS
from simam_inject.reporting.formats import format_map, read_template

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

    @property
    def kind(self) -> str:
        """How it is coloured."""
        return "attended" if self.attended else "block" if self.site.kind == "block" else "operation"

    @property
    def title(self) -> str:
        """What is shown for the box that is pointed at."""
        first = f"{self.site.path}: {self.site.class_name}, {format_map(self.site.shape, self.site.channel_dim)}"
        return "\n".join([first, *(f"SimAM {one.position} {one.path}" for one in self.attended)])

    @property
    def marks(self) -> list[float]:
        """Where SimAM is drawn, in pixels from the left: at the end, or spread over the box; four at the most."""
        shown = self.attended[:4]
        return [
            self.width - 3
            if one.path == self.site.path and one.reader is None
            else self.width * number / (len(shown) + 1) - 1.5
            for number, one in enumerate(shown, 1)
        ]


def boxes_of(anatomy: Anatomy, insertions: Sequence[Insertion]) -> tuple[Box, ...]:
    """What is drawn: main and decoder blocks, other blocks outside of them, convolutions and poolings between."""
    mapped = [site for site in anatomy.sites if site.runs and site.spatial and site.path and ":" not in site.path]
    dims = Counter(len(site.spatial or ()) for site in mapped).most_common(1)[0][0] if mapped else 0
    mapped = [site for site in mapped if len(site.spatial or ()) == dims and max(site.spatial or (1,)) > 1]
    blocks = {site.path for site in mapped if {"main", "decoder"} & set(site.structure)}
    around = {parent for path in blocks for parent in _parents(path)}
    blocks |= {
        site.path
        for site in mapped
        if site.kind == "block" and site.class_name not in CONTAINERS and site.path not in around
    }
    drawn = {site.path for site in mapped if _is_drawn(site, blocks)}
    drawn |= {insertion.path for insertion in insertions if not _home(insertion, drawn)}
    return tuple(
        Box(site, tuple(one for one in insertions if _home(one, drawn) == site.path))
        for site in mapped
        if site.path in drawn
    )


def _is_drawn(site: Site, blocks: set[str]) -> bool:
    """A block, a convolution or a pooling that is in no other block."""
    is_leaf = site.class_name is not None and any(word in site.kind for word in _LEAVES)
    return (site.path in blocks or is_leaf) and blocks.isdisjoint(_parents(site.path))


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
    scale = HEIGHT / max(box.length for box in boxes)
    x = _MARGIN
    stages = []
    for length, group in groupby(boxes, key=lambda box: box.length):
        start, drawn = x, []
        for box in group:
            drawn.append((box, x, max(LEAST, box.length * scale)))
            x += box.width + _GAP
        x = max(x, start + _LABEL)
        stages.append((drawn, length, (start + x - _GAP) / 2))
        x += _STAGE_GAP
    return read_template("network.svg.j2").render(stages=stages, width=x, middle=_MARGIN + HEIGHT / 2)
