"""A model's sites by block class: what a rule can name in it, as a table with selectors, and as JSON types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from simam_inject import modules
from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.errors import shortened
from simam_inject.matching import why_not_attendable
from simam_inject.reporting.formats import MODEL, Table, format_count, format_map, format_span

CONTAINERS = frozenset({"Module", *(kind.__name__ for kind in modules.CONTAINERS)})
"""Classes of torch that only contain other modules: a rule that names one selects nothing in particular."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule can name: the blocks of one class, or the values of one name inside them."""

    name: str
    """A class, or a name inside its blocks: `conv2`, `relu[2]`, `add`, `net.0`."""
    sites: tuple[Site, ...]
    children: tuple[Place, ...] = ()

    @property
    def kind(self) -> str:
        """What computes the value, with kernel and depth for a convolution; for a block its class."""
        return " / ".join(dict.fromkeys(map(_kind, self.sites)))

    @property
    def maps(self) -> list[str]:
        """Distinct feature maps (channels x spatial sizes), the largest first, since a neck goes up and down."""
        mapped = [site for site in self.sites if site.shape is not None]
        mapped.sort(key=lambda site: prod(site.spatial or ()), reverse=True)
        return list(dict.fromkeys(map(format_map, mapped)))

    @property
    def reductions(self) -> list[int]:
        """Distinct reductions, in ascending order."""
        return sorted({site.reduction for site in self.sites if site.reduction is not None})

    @property
    def obstacle(self) -> str | None:
        """Why SimAM cannot be applied to any of them; None if it can be applied to one."""
        obstacles = [why_not_attendable(site) for site in self.sites]
        return obstacles[0] if all(obstacles) else None

    def has(self, structure: str) -> bool:
        """Whether one of the blocks is `main`, `residual` or `decoder`."""
        return any(structure in site.structure for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "count": len(self.sites),
            "paths": [site.path for site in self.sites],
            "maps": self.maps,
            "reductions": self.reductions,
            "obstacle": self.obstacle,
            "children": [child.to_dict() for child in self.children],
        }


def _kind(site: Site) -> str:
    if site.kind == "block" and site.class_name:
        return site.class_name
    kernel = "x".join(map(str, site.kernel or ()))
    return " ".join(filter(None, ("depthwise" if site.depthwise else "", site.kind, kernel)))


def local_name(path: str, scope: str) -> str:
    """`layer1.0.conv2` inside `layer1.0` -> `conv2`."""
    return path.removeprefix(f"{scope}.") if scope else path


def class_of(anatomy: Anatomy, path: str) -> str:
    """Class of a block; `model` where it is not known."""
    site = anatomy.site_by_path.get(path)
    return (site.class_name if site is not None else None) or "model"


def blocks_around(anatomy: Anatomy, site: Site) -> Iterator[Site]:
    """The blocks around a value from the inside to the outside, without the model itself."""
    path = site.scope
    while path:
        block = anatomy.site_by_path.get(path)
        if block is not None:
            yield block
        path = path.rpartition(".")[0] if block is None else block.scope


def _owner_of(anatomy: Anatomy, site: Site) -> str:
    """Path of the nearest block around a value that is not a plain container; "" for the model."""
    return next((block.path for block in blocks_around(anatomy, site) if block.class_name not in CONTAINERS), "")


def _has_own_class(site: Site) -> bool:
    """Whether it is a block that a rule can name by its class: not a container, nor a map in a list (`fpn:0`)."""
    return site.kind == "block" and site.class_name not in CONTAINERS and ":" not in site.path


def kind_of_place(anatomy: Anatomy, path: str) -> str:
    """A site without its place in the model: `Bottleneck.conv2`, `Bottleneck`, `VGG.features.*`."""
    site = anatomy.site_by_path.get(path)
    if site is None or _has_own_class(site):
        return path if site is None else class_of(anatomy, path)
    owner = _owner_of(anatomy, site)
    return f"{class_of(anatomy, owner)}.{re.sub(r'(?<![^.])[0-9]+(?![^.])', '*', local_name(path, owner))}"


def summarize(anatomy: Anatomy) -> list[Place]:
    """The block classes of a model: main blocks first, then others that occur several times, plain containers last."""
    blocks: dict[str, list[Site]] = {}
    inside: dict[str, dict[str, list[Site]]] = {}
    for site in anatomy.sites:
        if site.kind == "block" and ":" not in site.path:
            blocks.setdefault(site.class_name or "", []).append(site)
        owner = _owner_of(anatomy, site)
        has_own_row = _has_own_class(site) and site.scope != owner
        if owner in anatomy.site_by_path and site.kind != "input" and site.path and not has_own_row:
            names = inside.setdefault(anatomy.site_by_path[owner].class_name or "", {})
            names.setdefault(local_name(site.path, owner), []).append(site)
    classes = [
        Place(name, tuple(sites), tuple(Place(child, tuple(values)) for child, values in inside.get(name, {}).items()))
        for name, sites in blocks.items()
    ]
    return sorted(classes, key=lambda one: (one.name in CONTAINERS, not one.has("main"), len(one.sites) == 1))


def sites_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """What `render_sites` shows, with the path of every block."""
    classes = [{**one.to_dict(), "kind": "block"} for one in summarize(anatomy)]
    return {"input_shapes": anatomy.input_shapes, "classes": classes, "opaque": anatomy.opaque}


def render_sites(anatomy: Anatomy) -> Iterator[RenderableType]:
    """The block classes of a model with what a rule can name inside them, and selectors that fit this model.

    Every class has a row; what is inside has one if SimAM can be applied to it.
    """
    rows: list[tuple[str, ...]] = []
    bold: list[int] = []
    obstacles: dict[str, list[str]] = {}
    classes = summarize(anatomy)
    for found in classes:
        bold.append(len(rows))
        for place in (found, *(found.children if found.name not in CONTAINERS else ())):
            if place.obstacle is not None:
                name = found.name if place is found else f"{found.name}.{place.name}"
                obstacles.setdefault(place.obstacle.partition(": its shape is")[0], []).append(name)
            if place is found or place.obstacle is None:
                name, kind = (found.name, "block") if place is found else (f"  {place.name}", place.kind)
                maps = format_span(place.maps) + (" *" if place.obstacle else "")
                rows.append((name, kind, str(len(place.sites)), maps, format_span(place.reductions, "..")))
    yield Table(("block class, children", "kind", "count", "CxHxW", "reduction"), rows, bold)
    yield from (Text(f"* {shortened(names)}: {obstacle}", "yellow") for obstacle, names in obstacles.items())
    if anatomy.opaque:
        count = format_count(len(anatomy.opaque), "block")
        yield Text(f"{count} without names inside; SimAM can be applied to the output:", "yellow")
        yield from (Text(f"  {path or MODEL}: {reason}") for path, reason in anatomy.opaque.items())
    yield Text("select sites with:", "bold")
    yield from (Text(f"  {selector}") for selector in suggest(classes))


def suggest(classes: Sequence[Place]) -> Iterator[str]:
    """Selectors for the class that the model repeats: its output, its convolution, its residual branch.

    The model itself is never suggested, since its last value is the result and not a feature map.
    """
    named = [one for one in classes if one.name not in CONTAINERS and one.children and one.sites[0].path]
    main = max(
        (one for one in named if one.obstacle is None),
        key=lambda one: (one.has("main"), one.has("residual"), len(one.sites) > 1, len(one.children) * len(one.sites)),
        default=None,
    )
    if main is None:
        yield "--recipe every-conv"
        return
    name = main.name.lower()
    yield f"--after {name}"
    convs = [child for child in main.children if "conv" in child.kind and child.obstacle is None]
    wide = [child for child in convs if max(child.sites[0].kernel or (1,)) > 1]
    yield from (f"--after {name}.{child.name}" for child in (wide or convs)[-1:])
    if any(site.joins for child in main.children for site in child.sites):
        yield f"--before {name}.residual"
