"""Main blocks: what a network repeats between its stem and its head, from the dataflow alone.

docs/recipes.md has the definition. The search goes from the root downwards, several times: what it has found decides
which classes are searched for blocks inside, and which other modules are blocks too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from os.path import commonprefix

from torch import nn

from simam_inject.dataflow.anatomy import Site
from simam_inject.dataflow.module_kinds import UPSAMPLING
from simam_inject.dataflow.steps import is_head
from simam_inject.dataflow.values import Entries, Frame, Recording, keyed
from simam_inject.modules import CONTAINERS

_PRODUCTS = ("linear", "matmul", "scaled_dot_product_attention", "multi_head_attention_forward")


@dataclass(slots=True)
class _Contents:
    """What a module contains, and what it is given."""

    convolutions: int = 0
    products: int = 0
    maps: set[tuple[int, int]] = field(default_factory=set)
    """Number of spatial dimensions and reduction of each map in it."""
    given: set[tuple[int, int]] = field(default_factory=set)
    """The same of the maps that it is given."""
    ranks: set[int] = field(default_factory=set)
    """Spatial dimensions of all tensors that it is given: the image of a network of one size has no known axes."""


class MainBlocks:
    """Finds the main blocks, from the root downwards."""

    def __init__(self, recording: Recording, sites: Mapping[str, Site], residual: Set[str]) -> None:
        self.recording = recording
        self.residual = residual
        self.sites = sites
        self.sites = {path: self._as_one_map(site) for path, site in sites.items()}
        self.contents: defaultdict[str, _Contents] = defaultdict(_Contents)
        self.classes: set[type[nn.Module]] = set()
        """Classes of the blocks found so far: one is a block even if it returns the output of its last part."""
        self.units: set[str] = set()
        """Residual blocks that count as blocks with one convolution already."""
        self.recursive: set[type[nn.Module]] = set()
        """Classes of blocks that contain blocks of their own class, as the levels of an hourglass do."""
        self.beside: set[tuple[str, type[nn.Module]]] = set()
        """Container and class of the blocks found so far: the others of the class in it are blocks too."""
        self.with_containers = False
        """Plain Sequentials count as blocks."""
        self.with_obstacles = False
        """Modules in which no map can be attended count as blocks."""
        self._add_contents(sites.values())
        self.networks = set(filter(self._is_network, recording.first_calls))
        """The network itself, and what wraps it."""

    def _add_contents(self, sites: Iterable[Site]) -> None:
        for site in sites:
            spatial = site.spatial if site.obstacle is None else None
            maps = {(len(spatial), site.reduction)} if spatial and max(spatial) > 1 and site.reduction else set()
            # A deformable convolution counts as one with the convolution that computes its offsets.
            is_spatial = site.kind.startswith("conv") and max((site.shape or ())[2:], default=1) > 1
            # A kind of operation whose result has a size in space: what attention computes has numbers of tokens.
            has_size = site.kind in ("block", *UPSAMPLING) or site.kind.startswith("conv") or "pool" in site.kind
            for above in _above(site.path if site.kind == "block" else site.scope):
                contents = self.contents[above]
                contents.convolutions += is_spatial
                contents.products += site.kind in _PRODUCTS
                if has_size:
                    contents.maps |= maps
            if site.kind == "input":
                self.contents[site.scope].given |= maps
                self.contents[site.scope].ranks |= {len(site.shape) - 2} if site.shape else set()

    def _as_one_map(self, site: Site) -> Site:
        """The site; of a block that returns one feature map in a tuple, perhaps beside a vector, that map."""
        call = self.recording.first_calls.get(site.path)
        maps = self._maps_of(call) if call else []
        path = keyed(site.path, maps[0][0]) if len(maps) == 1 else ""
        return self.sites[path] if path in site.maps else site

    def _maps_of(self, call: Frame) -> Entries:
        """The maps that a call returns, without vectors, 1x1 maps, and integers such as the indices of a pooling.

        What has no known axes counts if nothing that it returns has.
        """
        found = []
        for keys, value in call.outputs:
            site = self.sites.get(keyed(call.path, keys))
            if site is not None and value.dtype.is_floating_point and max(site.spatial or (0,)) > 1:
                found.append((keys, value, site.axes))
        has_axes = any(axes for *_, axes in found)
        return [(keys, value) for keys, value, axes in found if axes or not has_axes]

    def find(self) -> set[str]:
        """All main blocks."""
        blocks = self._inside("")
        self.recursive = self._recursive_among(blocks)
        blocks = self._inside("") or blocks
        if not self._repeated(blocks):
            blocks = self._inside_all(blocks)
        single = {path for path in self.residual if self.contents[path].convolutions == 1}
        classes = self._classes(blocks)
        if classes <= self._classes(single):
            self.units = {path for path in single if not blocks or self._kind(path) in classes}
            blocks = self._inside("")
        if not blocks:
            self.with_containers = True
            blocks = self._inside("")
            inside = sum(self.contents[path].convolutions for path in blocks)
            self.with_containers = len(blocks) > 1 and inside > self.contents[""].convolutions / 2
            self.with_obstacles = not self.with_containers
        self.classes = self._block_classes(blocks)
        named = [path for path in blocks if self._kind(path) not in CONTAINERS]
        self.beside = {(path.rpartition(".")[0], self._kind(path)) for path in named}
        blocks = self._inside("")
        return self._between_stem_and_head(blocks)

    def _is_block(self, path: str, most: float = 2) -> bool:
        """Whether a module is a block, whose maps have `most` reductions at the most."""
        site = self.sites.get(path)
        module = self.recording.modules.get(path)
        if site is None or module is None or not path or type(module) in self.recursive:
            return False
        if type(module) in CONTAINERS and (not self.with_containers or self._is_everything(path)):
            return False
        if site.kind != "block" or site.spatial is None or max(site.spatial) <= 1:
            return False
        inside = self.contents[path]
        if site.obstacle is not None and (not self.with_obstacles or inside.maps):
            return False
        has_products = inside.products >= 2 or path in self.units
        if inside.convolutions < 2 and not (inside.convolutions and has_products):
            return False
        rank = len(site.spatial)
        given = {rank for rank, _ in inside.given} or inside.ranks
        if given and rank not in given:  # turns a map into tokens, or back
            return False
        if path in self.residual and (rank, site.reduction) in inside.given:
            most = math.inf  # a U-Net with a skip connection around it
        # A map larger than the inputs of the block is an attention matrix, which does not count.
        least = min([site.reduction or 1, *(reduction for _, reduction in inside.given)]) if inside.given else 1
        return sum(one == rank and reduction >= least for one, reduction in inside.maps) <= most

    def _kind(self, path: str) -> type[nn.Module]:
        return type(self.recording.modules[path])

    def _is_beside(self, path: str) -> bool:
        """It returns one feature map or several, and a block of its class is in the same container."""
        if (path.rpartition(".")[0], self._kind(path)) not in self.beside:
            return False
        site = self.sites[path]
        return len(site.maps) > 1 or (site.obstacle is None and max(site.spatial or (0,)) > 1)

    def _inside(self, path: str) -> list[str]:
        """Main blocks among what a module calls, in order of execution."""
        found: list[str] = []
        for child in [step.path for step in self.recording.first_calls[path].steps if step.kind == "block"]:
            if child in _above(path):  # a module may call itself
                continue
            inside = self._inside(child)
            is_block = (self._is_block(child) or self._is_beside(child)) and not self._is_stage(child, inside)
            if is_block and not self._is_everything(child):
                found.append(child)
            elif inside:
                found += inside
            elif child not in self.networks:
                is_stem = not self.contents[child].given and self._kind(child) not in CONTAINERS
                found += [child] if is_block or (is_stem and self._is_block(child, most=math.inf)) else []
        return list(dict.fromkeys(found))

    def _is_everything(self, path: str) -> bool:
        """A module contains all convolutions of the network."""
        return self.contents[path].convolutions == self.contents[""].convolutions

    def _is_network(self, path: str) -> bool:
        """A module, no plain container, contains all convolutions and parameters, as the network in a wrapper does."""
        whole, inside = self.recording.modules[""], self.recording.modules[path]
        is_whole = self._is_everything(path) and len([*whole.parameters()]) == len([*inside.parameters()])
        return is_whole and type(inside) not in CONTAINERS

    def _recursive_among(self, blocks: list[str]) -> set[type[nn.Module]]:
        """Classes of blocks of which one contains its own class, or that all are inside one of their own class."""
        modules = self.recording.modules
        found, alone = set(), set()
        for path in blocks:
            kind = type(modules[path])
            if any(type(part) is kind for part in modules[path].modules() if part is not modules[path]):
                found.add(kind)
            if not any(type(modules[above]) is kind for above in _above(path)[1:]):
                alone.add(kind)
        return found | ({type(modules[path]) for path in blocks} - alone)

    def _classes(self, paths: Iterable[str]) -> set[type[nn.Module]]:
        return {self._kind(path) for path in paths}

    def _block_classes(self, blocks: list[str]) -> set[type[nn.Module]]:
        """Classes of the blocks, without those that hold blocks more often: a container of the user's own."""
        modules = self.recording.modules
        above = {holder for path in blocks for holder in _above(path)[1:] if holder}
        surplus = Counter(type(modules[path]) for path in blocks)
        surplus.subtract(type(modules[path]) for path in above if path in modules)
        return {kind for kind in self._classes(blocks) if surplus[kind] >= 0}

    def _inside_all(self, blocks: list[str]) -> list[str]:
        """The outermost blocks inside the blocks of which two have the same class; if there are none, the blocks."""
        classes, inside = self.recursive, blocks
        while inside:
            self.recursive = self.recursive | self._classes(inside)
            inside = self._inside("")
            if self._repeated(inside):
                return inside
        self.recursive = classes
        return blocks

    def _repeated(self, blocks: list[str]) -> list[int]:
        """Indices of the blocks whose class occurs more than once among them."""
        counts = Counter(self._kind(path) for path in blocks)
        return [index for index, path in enumerate(blocks) if counts[self._kind(path)] > 1]

    def _is_stage(self, path: str, blocks: list[str]) -> bool:
        """It returns the tensor of a block inside it, or a smaller map than those of several blocks.

        The blocks have half of its convolutions at least; of a plain Sequential, any number.
        """
        frame, own = self.recording.first_calls[path], self._kind(path)
        share = sum(self.contents[block].convolutions for block in blocks)
        maps = self._maps_of(frame)
        if len(maps) != 1 or (own not in CONTAINERS and 2 * share < self.contents[path].convolutions):
            return False
        whole, parts = self.sites[path], [self.sites[block] for block in blocks]
        are_alike = {len(part.spatial or ()) for part in parts} == {len(whole.spatial or ())}
        is_smaller = all((part.reduction or math.inf) < (whole.reduction or 0) for part in parts)
        if path not in self.residual and self._repeated(blocks) and are_alike and is_smaller:
            return True
        returns = [call for value in maps[0][1].passed_from() for call, _ in value.returns]
        inner = [call for call in returns if call.path.startswith(f"{path}.") and self._is_block(call.path)]
        inner = [call for call in inner if len(self._maps_of(call)) == 1]
        return bool(inner) and (own not in self.classes or any(type(call.module) is own for call in inner))

    def _between_stem_and_head(self, blocks: list[str]) -> set[str]:
        """Leave out the stem, before the first class that is repeated, and the head, after the last one.

        A block in the same container as all blocks of that class is part of neither, unless that is the network, nor is
        a last stage that is one block of another class and makes the map smaller.
        """
        blocks = self._without_heads(blocks)
        kinds = [self._kind(path) for path in blocks]
        repeated = self._repeated(blocks)
        if not repeated:
            return set(blocks)
        first, last = repeated[0], repeated[-1]
        found = set(blocks[first : last + 1])
        depth = max((len(_above(path)) - 1 for path in self.networks), default=0)
        for kind, beyond in ((kinds[first], blocks[:first]), (kinds[last], blocks[last + 1 :])):
            alike = [path.split(".")[:-1] for path, other in zip(blocks, kinds, strict=True) if other is kind]
            container = commonprefix(alike)  # noqa: RUF071 - of lists of names, not of characters
            depths = set(map(len, alike))
            for path in beyond:
                above = path.split(".")[:-1]
                if len(container) > depth and above[: len(container)] == container and len(above) in depths:
                    found.add(path)
        for path, previous in zip(blocks[last + 1 :], blocks[last:], strict=False):
            if (self.sites[path].reduction or 0) <= (self.sites[previous].reduction or 0):
                break
            found.add(path)
        for path in blocks[last + 1 :]:
            found.update(self._parts(path, {kinds[at] for at in repeated}) if path not in found else [])
        return found

    def _without_heads(self, blocks: list[str]) -> list[str]:
        """Without the classes of several blocks that all make a result of the network, as auxiliary heads do.

        Plain Sequentials, which are of one class whatever they hold, stay where they have most convolutions.
        """
        repeated = {blocks[at] for at in self._repeated(blocks)} - self.residual
        heads = {path for path in repeated if is_head(self.recording, path, last=True)}
        kinds = {self._likeness(path) for path in blocks if path not in heads}
        others = [path for path in blocks if self._likeness(path) in kinds]
        inside = sum(self.contents[path].convolutions for path in others)
        is_most = not self.with_containers or inside > self.contents[""].convolutions / 2
        return others if is_most or not others else blocks

    def _likeness(self, path: str) -> tuple[object, ...]:
        """What blocks of one kind have in common: their class; of plain Sequentials, their place and their parts."""
        module = self.recording.modules[path]
        parts = [path.rpartition(".")[0], *map(type, module.modules())] if type(module) in CONTAINERS else ()
        return type(module), *parts

    def _parts(self, path: str, classes: set[type[nn.Module]]) -> list[str]:
        """The outermost blocks of these classes inside a block, if two of them have the same class."""
        above = {one: _above(one)[1:] for one in self.recording.first_calls if one}
        known = [one for one in above if self._kind(one) in classes and path in above[one]]
        inside = [one for one in known if self._is_block(one) and not set(known) & set(above[one])]
        return inside if self._repeated(inside) else []


def _above(path: str) -> list[str]:
    """The path, every module above it, and the root."""
    found = [path]
    while path:
        path = path.rpartition(".")[0]
        found.append(path)
    return found
