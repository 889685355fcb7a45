"""One HTML page about an injection, which needs no other file: network, sites, skips, cost, checks, recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import mode
from typing import Any

import jinja2
import yaml
from rich.filesize import decimal as format_bytes

from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.kinds import FAMILIES
from simam_inject.planning.insertions import PRESENT, Insertion
from simam_inject.planning.plan import Plan
from simam_inject.planning.tables import Table, format_map, notes_on, sites_table
from simam_inject.reporting.drawing import CONTAINER_NAMES, draw
from simam_inject.reporting.plans import bytes_per_image
from simam_inject.verification.checks import Verification

HEIGHT = 150
"""Of the largest map, in pixels of the drawing."""
_MARGIN, _GAP, _STAGE_GAP, _LABEL = 10.0, 3.0, 14.0, 50.0
_DRAWN = FAMILIES["conv"] | FAMILIES["pool"]

Boxes = list[tuple[Site, list[Insertion]]]


def render_page(plan: Plan, verification: Verification, *, heading: str) -> str:
    """The page, as text, of a plan whose verification passed."""
    skips = [(skip.path or "(model)", skip.reason) for skip in plan.skips if skip.hit and skip.reason != PRESENT]
    misses = [(skip.path or "(model)", skip.reason) for skip in plan.skips if not skip.hit]
    checks = verification.checks
    drawn = sum(len(inside) for _, inside in boxes_of(plan.anatomy, plan.placed))
    return _render(
        "page.html.j2",
        heading=heading,
        inputs=", ".join("x".join(map(str, shape)) for shape in plan.anatomy.input_shapes),
        sites=sites_table(plan.placed, complete=True),
        notes=list(notes_on(plan.placed)),
        blocks="\n\n".join(map(str, draw(plan.anatomy, plan.placed))),
        skips=Table(["site", "reason"], skips),
        near_misses=Table(["site", "reason"], misses),
        moved=format_bytes(bytes_per_image(plan)),
        network=draw_network(plan.anatomy, plan.placed),
        not_drawn=len(plan.placed) - drawn,
        checks=Table(["result", "check", "detail"], [(each.result, each.name, each.detail) for each in checks]),
        passed=sum(check.ok is True for check in checks),
        recipe=yaml.safe_dump(plan.recipe.to_dict(), sort_keys=False, allow_unicode=True).strip(),
    )


def draw_network(anatomy: Anatomy, insertions: Sequence[Insertion]) -> str:
    """The network as an SVG, stage by stage; "" for a network without feature maps."""
    boxes = boxes_of(anatomy, insertions)
    if not boxes:
        return ""
    scale = HEIGHT / max(_length(site) for site, _ in boxes)
    x, stages = _MARGIN, []
    for length, stage in groupby(boxes, key=lambda box: _length(box[0])):
        start, drawn = x, []
        for site, attended in stage:
            width = 5 + 1.5 * math.log2(site.channels or 1)
            drawn.append((site, format_map(site), attended, x, width, max(2.0, length * scale)))
            x += width + _GAP
        x = max(x - _GAP, start + _LABEL)
        stages.append((drawn, length, (start + x) / 2))
        x += _STAGE_GAP
    width = x - _STAGE_GAP + _MARGIN
    return _render("network.svg.j2", stages=stages, width=width, middle=HEIGHT // 2 + _MARGIN)


def boxes_of(anatomy: Anatomy, insertions: Sequence[Insertion]) -> Boxes:
    """What is drawn, in the order of execution, and the SimAMs in each.

    These are main blocks, convolutions and pooling outside of them, and sites outside of both. Images, sequences and
    volumes have no common scale: drawn are maps with as many dimensions as those of most sites.
    """
    maps = [site for site in anatomy.sites if site.spatial and min(site.spatial) > 1 and site.runs]
    if not maps:
        return []
    attended = {one.path for one in insertions}
    dimensions = mode(len(site.spatial or ()) for site in [site for site in maps if site.path in attended] or maps)
    maps = [site for site in maps if len(site.spatial or ()) == dimensions]
    chosen = [site for site in maps if "main" in site.structure or site.path in attended]
    blocks = [site for site in chosen if site.kind == "block" and site.class_name not in CONTAINER_NAMES]
    inside = tuple(f"{block.path}." for block in blocks)
    shown = [site for site in maps if (site in chosen or site.kind in _DRAWN) and not site.path.startswith(inside)]
    drawn: Boxes = [(site, []) for site in shown]
    for one in insertions:
        around = [box for box in drawn if f"{one.path}.".startswith(f"{box[0].path}.")]
        if around:  # a site may be a container of others, which have boxes of their own
            max(around, key=lambda box: len(box[0].path))[1].append(one)
    return drawn


def _length(site: Site) -> int:
    """The shorter side of the map."""
    return min(site.spatial or (1,))


def _render(template: str, **values: Any) -> str:
    loader = jinja2.PackageLoader("simam_inject.reporting", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)
