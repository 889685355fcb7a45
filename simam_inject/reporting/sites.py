"""What a rule can name in a model: block classes, and inside them the operations and child modules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.errors import shortened
from simam_inject.kinds import FAMILIES
from simam_inject.matching.match import why_not_attendable
from simam_inject.planning.tables import Table, format_map, format_span
from simam_inject.recipe.names import write_child
from simam_inject.reporting.drawing import CONTAINER_NAMES


@dataclass(frozen=True, slots=True)
class Group:
    """All sites of one name: the blocks of a class, or what has the same name inside of them."""

    name: str
    sites: list[Site] = field(default_factory=list)
    children: list[Group] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """`block`, or of something inside a block the operation with its kernel, or the class."""
        if all(site.kind == "block" and site.class_name in (None, self.name) for site in self.sites):
            return "block"
        is_module = ("block", "module")
        kinds = [site.class_name or "block" if site.kind in is_module else _operation(site) for site in self.sites]
        return " / ".join(dict.fromkeys(kinds))

    @property
    def maps(self) -> list[str]:
        """Distinct sizes, from the largest to the smallest."""
        ordered = sorted(self.sites, key=lambda site: -math.prod(site.spatial or ()))
        return list(dict.fromkeys(map(format_map, ordered)))

    @property
    def reductions(self) -> list[int]:
        """Distinct reductions, ascending."""
        return sorted({site.reduction for site in self.sites if site.reduction is not None})

    @property
    def obstacle(self) -> str | None:
        """Why SimAM can be applied to none of them; None if it can to some."""
        reasons = [why_not_attendable(site) for site in self.sites]
        return None if None in reasons else reasons[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
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


def _operation(site: Site) -> str:
    return f"{site.kind} {'x'.join(map(str, site.kernel))}" if site.kernel else site.kind


def owner_of(site: Site, anatomy: Anatomy) -> tuple[str, str]:
    """The class of the nearest block around a site, plain containers aside, and the name of the site inside it."""
    scope = site.scope
    while (block := anatomy.site_by_path.get(scope)) is not None and block.class_name in CONTAINER_NAMES and scope:
        scope = block.scope
    name = site.path.removeprefix(f"{scope}.") if scope else site.path
    return (block and block.class_name) or "", name


def _is_named_by_class(site: Site, anatomy: Anatomy) -> bool:
    """A block in a plain container, such as `layer1.0`, or a map that it returns: the row of its class is enough."""
    around = anatomy.site_by_path.get(site.scope)
    in_container = around is not None and around.class_name in CONTAINER_NAMES
    return in_container and site.kind == "block" and site.class_name not in CONTAINER_NAMES


def summarize(anatomy: Anatomy) -> list[Group]:
    """The block classes of a model: those of main blocks first, plain containers last.

    Of a block that returns a list, tuple or dict, the sites are the feature maps in it.
    """
    groups: dict[str, Group] = {}
    for site in anatomy.blocks():
        if site.class_name is not None:
            maps = [anatomy.site_by_path[path] for path in site.maps]
            groups.setdefault(site.class_name, Group(site.class_name)).sites.extend(maps or [site])
    inside = defaultdict[str, dict[str, list[Site]]](dict)
    for site in anatomy.sites:
        owner, name = owner_of(site, anatomy)
        if owner in groups and site.path.partition(":")[0] and site.kind != "input":
            inside[owner].setdefault(name, []).append(site)
    for owner, named in inside.items():
        for name, sites in named.items():
            if not all(_is_named_by_class(site, anatomy) for site in sites):
                written = write_child(f"{name}[1]" if f"{name}[2]" in named else name)
                groups[owner].children.append(Group(written, sites))

    def rank(group: Group) -> int:
        is_main = any("main" in site.structure for site in group.sites)
        return 2 if group.name in CONTAINER_NAMES else 0 if is_main else 1

    return sorted(groups.values(), key=rank)


def sites_to_dict(anatomy: Anatomy) -> dict[str, Any]:
    """The summary as JSON types."""
    return {
        "input_shapes": [list(shape) for shape in anatomy.input_shapes],
        "classes": [group.to_dict() for group in summarize(anatomy)],
    }


def render_sites(anatomy: Anatomy) -> Iterator[Table | str]:
    """The summary as a table, notes on what cannot be attended, and selectors to begin with."""
    groups = summarize(anatomy)
    rows, notes = [], dict[str, list[str]]()
    for group in groups:
        rows.append(_row(group, group.name))
        rows += [_row(child, f"  {child.name}") for child in group.children if child.obstacle is None]
        for each, name in [(group, group.name), *((child, f"{group.name}.{child.name}") for child in group.children)]:
            if each.obstacle is not None:
                notes.setdefault(each.obstacle.partition(": its shape is")[0], []).append(name)
    yield Table(["block class, children", "kind", "count", "CxHxW", "reduction"], rows)
    for reason, names in notes.items():
        yield f"* {shortened(names)}: {reason}"
    yield "select sites with:"
    yield from (f"  {selector}" for selector in _suggest(groups))


def _row(group: Group, name: str) -> list[str]:
    maps = format_span(group.maps) + " *" * (group.obstacle is not None)
    reductions = format_span(group.reductions).replace(" .. ", "..")
    return [name, group.kind, str(len(group.sites)), maps, reductions]


def _suggest(groups: list[Group]) -> Iterator[str]:
    """Selectors for the first class of blocks: its output, its last spatial convolution, its residual branch."""
    blocks = [group for group in groups if group.obstacle is None and group.name not in CONTAINER_NAMES]
    inner = [group for group in blocks if all(site.path.partition(":")[0] for site in group.sites)]  # not the model
    if not inner:
        yield "--recipe every-conv"
        return
    word, children = inner[0].name.lower(), inner[0].children
    yield f"--after {word}"
    convs = [each.name for each in children if each.obstacle is None and any(map(_is_on_main_path, each.sites))]
    yield from (f"--after {word}.{name}" for name in convs[-1:])
    if any(site.joins for child in children for site in child.sites):
        yield f"--before {word}.residual"


def _is_on_main_path(site: Site) -> bool:
    """A convolution with a kernel above 1, neither on a skip connection nor in channel attention."""
    is_spatial = site.kind in FAMILIES["conv"] and max(site.kernel or (1,)) > 1
    return is_spatial and not site.on_skip and not site.in_gate
