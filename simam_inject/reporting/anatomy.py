"""A model's anatomy by block class: what a rule can name in it. Hundreds of sites become a page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching import why_not_attendable
from simam_inject.reporting.formats import format_map

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "Module"})
"""Classes of torch that only hold others: they can be named, but name nothing in particular."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule can name: the blocks of one class, or the values of one name inside them."""

    name: str
    """A class, or a name inside its blocks: `conv2`, `relu[2]`, `add`, `net.0`."""
    kind: str
    """`block`, or what computes the value: `conv2d 3x3`, `add`, a class."""
    count: int
    paths: tuple[str, ...]
    maps: tuple[str, ...]
    """Channels x spatial sizes, distinct, the largest map first."""
    reductions: tuple[int, ...]
    structure: tuple[str, ...]
    """`main`, `residual`, `decoder`: what at least one of the blocks is."""
    joins: bool
    """It enters a residual add as the branch: `residual` names it too."""
    obstacle: str | None
    """Why none of them can be attended; None if one can."""
    children: tuple[Place, ...] = ()

    @property
    def is_container(self) -> bool:
        """A class of torch that only holds others."""
        return self.name in CONTAINERS


def local_name(path: str, scope: str) -> str:
    """`layer1.0.conv2` inside `layer1.0` -> `conv2`."""
    return path[len(scope) + 1 :] if scope and path.startswith(f"{scope}.") else path


def class_of(anatomy: Anatomy, path: str) -> str:
    """Class of a block; `model` where it is not known."""
    site = anatomy.site_by_path.get(path)
    return (site.class_name if site is not None else None) or "model"


def kind_of_place(anatomy: Anatomy, path: str) -> str:
    """A site without its place in the model: `Bottleneck.conv2`, `Bottleneck`, `VGG.features.*`."""
    site = anatomy.site_by_path.get(path)
    if site is None:
        return path
    if site.kind == "block" and site.class_name not in CONTAINERS and ":" not in path:
        return class_of(anatomy, path)
    owner = _owner_of(anatomy, site)
    return f"{class_of(anatomy, owner)}.{re.sub(r'(?<![^.])[0-9]+(?![^.])', '*', local_name(path, owner))}"


def summarize(anatomy: Anatomy) -> tuple[Place, ...]:
    """The block classes of a model: main blocks first, then others that occur several times, plain containers last."""
    blocks: dict[str, list[Site]] = defaultdict(list)
    for block in anatomy.blocks():
        if ":" not in block.path:
            blocks[block.class_name or ""].append(block)
    inside: dict[str, dict[str, list[Site]]] = defaultdict(lambda: defaultdict(list))
    for site in anatomy.sites:
        owner = _owner_of(anatomy, site)
        has_a_row = site.kind == "block" and site.class_name not in CONTAINERS and site.scope != owner
        if owner in anatomy.site_by_path and site.kind != "input" and site.path and not has_a_row:
            inside[anatomy.site_by_path[owner].class_name or ""][local_name(site.path, owner)].append(site)
    classes = []
    for name, sites in blocks.items():
        children = [_place(child, _kind_of(values), values) for child, values in inside[name].items()]
        classes.append(_place(name, "block", sites, children))
    return tuple(
        sorted(classes, key=lambda found: (found.is_container, "main" not in found.structure, found.count == 1))
    )


def _owner_of(anatomy: Anatomy, site: Site) -> str:
    """Path of the nearest block around a value that is not a plain container; "" for the model."""
    path = site.scope
    while path:
        block = anatomy.site_by_path.get(path)
        if block is not None and block.class_name not in CONTAINERS:
            return path
        path = path.rpartition(".")[0] if block is None else block.scope
    return ""


def _place(name: str, kind: str, sites: list[Site], children: Iterable[Place] = ()) -> Place:
    # The largest map first, whatever the order of computation: a neck goes up and down.
    mapped = [site for site in sites if site.shape is not None]
    mapped.sort(key=lambda site: prod(site.spatial or ()), reverse=True)
    obstacles = [why_not_attendable(site) for site in sites]
    return Place(
        name=name,
        kind=kind,
        count=len(sites),
        paths=tuple(site.path for site in sites),
        maps=tuple(dict.fromkeys(format_map(site.shape, site.channel_dim) for site in mapped)),
        reductions=tuple(sorted({site.reduction for site in sites if site.reduction is not None})),
        structure=tuple(dict.fromkeys(word for site in sites for word in site.structure)),
        joins=any(site.joins for site in sites),
        obstacle=obstacles[0] if all(obstacles) else None,
        children=tuple(children),
    )


def _kind_of(sites: Iterable[Site]) -> str:
    """The op kind, with kernel and depth for a convolution; for a block its class."""
    kinds = []
    for site in sites:
        kernel = "x".join(map(str, site.kernel or ()))
        words = ["depthwise" if site.depthwise else "", site.kind, kernel]
        kinds.append((site.kind == "block" and site.class_name) or " ".join(filter(None, words)))
    return " / ".join(dict.fromkeys(kinds))
