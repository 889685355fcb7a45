"""One self-contained HTML page about an injection: the network drawn, sites, skips, cost, verification, recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import yaml
from rich.filesize import decimal

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Insertion, Verification
from simam_inject.reporting.drawing import draw
from simam_inject.reporting.formats import MODEL, Table, format_map
from simam_inject.reporting.plans import bytes_per_image, notes, sites_table
from simam_inject.reporting.sites import CONTAINERS, blocks_around

HEIGHT, LEAST = 150.0, 5.0
"""Height in pixels of the largest map, and of any map at least."""
_GAP, _STAGE_GAP, _MARGIN, _LABEL = 3.0, 14.0, 10.0, 52.0
_LEAVES = ("conv", "pool", "interpolate", "pixel_shuffle")
"""Parts of the kinds that are drawn on their own, outside of blocks."""
_RESULTS = {True: "ok", False: "failed", None: "not run"}


def render_page(plan: Plan, verification: Verification | None = None, *, heading: str, note: str = "") -> str:
    """The page as text.

    Args:
        plan: What was planned, and what was in the model already.
        verification: What was checked after it was applied; None if nothing was.
        heading: Title of the page, such as the names of model and recipe.
        note: What a reader should know about the model, such as its weights.
    """
    checks = verification.checks if verification else ()
    hits, near_misses = (
        Table(("site", "reason"), [(one.path or MODEL, one.reason) for one in plan.skips if one.hit is hit])
        for hit in (True, False)
    )
    results = [(_RESULTS[one.ok], one.name, one.detail) for one in checks]
    return _render(
        "page.html.j2",
        heading=heading,
        note=note,
        inputs=", ".join("x".join(map(str, shape)) for shape in plan.anatomy.input_shapes),
        moved=decimal(bytes_per_image(plan)),
        passed=sum(check.ok is True for check in checks),
        failed=any(check.ok is False for check in checks),
        network=draw_network(plan.anatomy, plan.placed),
        sites=sites_table(plan.placed, complete=True),
        notes=[*notes(plan.placed)],
        blocks="\n\n".join(map(str, draw(plan.anatomy, plan.placed))),
        skips=hits,
        near_misses=near_misses,
        checks=Table(("result", "check", "detail"), results),
        recipe=yaml.safe_dump(plan.recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100).rstrip("\n"),
    )


def _render(template: str, **values: Any) -> str:
    """A template of this folder with these values, which are escaped."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(text).render(**values)


def draw_network(anatomy: Anatomy, insertions: Sequence[Insertion]) -> str:
    """The network as an `<svg>`: what is drawn of it as high as its maps, with SimAM marked; empty without maps."""
    boxes = boxes_of(anatomy, insertions)
    # The longer side of a map may be a list: YOLO's distribution of distances is 4 x 8400.
    scale = HEIGHT / max((min(site.spatial or ()) for site, _ in boxes), default=1)
    x = _MARGIN
    stages = []
    for length, group in groupby(boxes, key=lambda box: min(box[0].spatial or ())):
        start, drawn = x, []
        for site, attended in group:
            width = 5 + 1.5 * math.log2(max(2, site.channels or 2))
            drawn.append((site, format_map(site), attended, x, width, max(LEAST, length * scale)))
            x += width + _GAP
        x = max(x, start + _LABEL)
        stages.append((drawn, length, (start + x - _GAP) / 2))
        x += _STAGE_GAP
    return _render("network.svg.j2", stages=stages, width=x, middle=_MARGIN + HEIGHT / 2) if boxes else ""


def boxes_of(anatomy: Anatomy, insertions: Sequence[Insertion]) -> list[tuple[Site, list[Insertion]]]:
    """What is drawn, each with the SimAMs inside: blocks, and convolutions and poolings between them.

    Containers, and blocks that contain main or decoder blocks, are not drawn themselves, but what is inside them.
    """
    mapped = [site for site in anatomy.sites if site.runs and site.spatial and site.path and ":" not in site.path]
    dims = Counter(len(site.spatial or ()) for site in mapped).most_common(1)
    mapped = [site for site in mapped if len(site.spatial or ()) == dims[0][0] and max(site.spatial or ()) > 1]
    opened = {site.path for site in anatomy.sites if site.kind == "block" and site.class_name in CONTAINERS}
    for site in mapped:
        if {"main", "decoder"} & set(site.structure):
            opened.update(block.path for block in blocks_around(anatomy, site))
    attended = {one.path for one in insertions}
    drawn: dict[str, list[Insertion]] = {}
    for site in mapped:
        is_leaf = site.class_name is not None and any(word in site.kind for word in _LEAVES)
        is_drawn = site.path not in opened and (site.kind == "block" or is_leaf or site.path in attended)
        if is_drawn and all(block.path in opened for block in blocks_around(anatomy, site)):
            drawn[site.path] = []
    for one in insertions:
        path = one.path.partition(":")[0]
        around = (path, *(block.path for block in blocks_around(anatomy, anatomy.site_by_path[one.path])))
        drawn.setdefault(next((home for home in around if home in drawn), path), []).append(one)
    return [(site, drawn[site.path]) for site in mapped if site.path in drawn]
