"""A model's anatomy by block class: what a rule can name in it. Hundreds of sites become a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching import why_not_attendable
from simam_inject.reporting.formats import format_map

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "Module"})
"""Classes of torch that only hold others: they can be named, but name nothing in particular."""


@dataclass(frozen=True, slots=True)
class Child:
    """A value that blocks of one class compute inside."""

    name: str
    """As a rule names it inside the block: `conv2`, `relu[2]`, `add`, `net.0`."""
    kind: str
    count: int
    """In how many blocks of the class it is."""
    maps: tuple[str, ...]
    """Channels x spatial sizes, distinct, the largest map first."""
    reductions: tuple[int, ...]
    joins: bool
    """It enters a residual add as the branch: `residual` names it too."""
    obstacle: str | None = None
    """Why none of them can be attended; None if one can."""


@dataclass(frozen=True, slots=True)
class BlockClass:
    """All blocks of one class."""

    name: str
    paths: tuple[str, ...]
    maps: tuple[str, ...]
    reductions: tuple[int, ...]
    children: tuple[Child, ...]
    structure: tuple[str, ...] = ()
    """`main`, `residual`, `decoder`: what at least one of them is."""
    obstacle: str | None = None

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.paths)

    @property
    def is_container(self) -> bool:
        """A class of torch that only holds others."""
        return self.name in CONTAINERS


def owner_of(anatomy: Anatomy, site: Site) -> str:
    """Path of the nearest block around a value that is not a plain container; "" for the model."""
    path = site.scope
    while path:
        block = anatomy.site_by_path.get(path)
        if block is not None and block.class_name not in CONTAINERS:
            return path
        path = path.rpartition(".")[0] if block is None else block.scope
    return ""


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
    owner = owner_of(anatomy, site)
    return f"{class_of(anatomy, owner)}.{re.sub(r'(?<![^.])[0-9]+(?![^.])', '*', local_name(path, owner))}"


def summarize(anatomy: Anatomy) -> tuple[BlockClass, ...]:
    """The block classes of a model: main blocks first, then others that occur several times, plain containers last."""
    blocks: dict[str, list[Site]] = {}
    for block in anatomy.blocks():
        if ":" not in block.path:
            blocks.setdefault(block.class_name or "", []).append(block)
    inside: dict[str, list[Site]] = {}
    for site in anatomy.sites:
        owner = owner_of(anatomy, site)
        is_listed = site.kind == "block" and site.class_name not in CONTAINERS and site.scope != owner  # by its class
        if site.kind != "input" and site.path and not is_listed:
            inside.setdefault(owner, []).append(site)
    classes = [_block_class(name, sites, inside) for name, sites in blocks.items()]
    return tuple(
        sorted(classes, key=lambda found: (found.is_container, "main" not in found.structure, found.count == 1))
    )


def _block_class(name: str, blocks: list[Site], inside: dict[str, list[Site]]) -> BlockClass:
    by_name: dict[str, list[Site]] = {}
    for block in blocks:
        for site in inside.get(block.path, ()):
            by_name.setdefault(local_name(site.path, block.path), []).append(site)
    return BlockClass(
        name=name,
        paths=tuple(block.path for block in blocks),
        maps=_maps(blocks),
        reductions=_reductions(blocks),
        children=tuple(_child(child, sites) for child, sites in by_name.items()),
        structure=tuple(dict.fromkeys(word for block in blocks for word in block.structure)),
        obstacle=_obstacle(blocks),
    )


def _child(name: str, sites: list[Site]) -> Child:
    return Child(
        name=name,
        kind=" / ".join(dict.fromkeys(_describe_kind(site) for site in sites)),
        count=len(sites),
        maps=_maps(sites),
        reductions=_reductions(sites),
        joins=any(site.joins for site in sites),
        obstacle=_obstacle(sites),
    )


def _describe_kind(site: Site) -> str:
    """The op kind, with kernel and depth for a convolution; for a block its class."""
    if site.kind == "block":
        return site.class_name or site.kind
    kernel = "x".join(map(str, site.kernel)) if site.kernel else ""
    return " ".join(part for part in ("depthwise" if site.depthwise else "", site.kind, kernel) if part)


def _maps(sites: Iterable[Site]) -> tuple[str, ...]:
    """The largest map first, whatever the order of computation: a neck goes up and down."""
    mapped = sorted(
        (site for site in sites if site.shape is not None), key=lambda site: prod(site.spatial or ()), reverse=True
    )
    return tuple(dict.fromkeys(format_map(site.shape, site.channel_dim) for site in mapped))


def _reductions(sites: Iterable[Site]) -> tuple[int, ...]:
    return tuple(sorted({site.reduction for site in sites if site.reduction is not None}))


def _obstacle(sites: list[Site]) -> str | None:
    """The first reason, if every one of them has one."""
    reasons = [why_not_attendable(site) for site in sites]
    return reasons[0] if all(reasons) else None
