"""Main blocks: what a network repeats between its stem and its head, from the dataflow alone.

Walking down from the root: a module is a block if it returns one feature map, is not a plain container, holds at least
two convolutions (or one and two matrix products), and its maps span at most two reductions; a block that returns the
very tensor of a block inside it is a stage, and its parts are looked at instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from os.path import commonprefix

from torch import nn

from simam_inject.dataflow.kinds import UPSAMPLING
from simam_inject.dataflow.records import Site
from simam_inject.dataflow.values import Frame, Recording
from simam_inject.modules import CONTAINERS


class MainBlocks:
    """The walk down that finds the main blocks."""

    def __init__(self, recording: Recording, sites: Mapping[str, Site]) -> None:
        self.recording = recording
        self.sites = sites
        self.products: dict[str, tuple[int, int]] = {}
        self.reductions: dict[str, set[tuple[int, int]]] = {}
        """Of the maps in each module: number of spatial dimensions and reduction."""
        self.given: dict[str, set[tuple[int, int]]] = {}
        """The same of the maps that each module is given."""
        self.classes: set[type[nn.Module]] = set()
        """Classes of blocks that were found: another is a block although it returns what its last part does."""
        self.units: set[str] = set()
        """Residual blocks that count as blocks with one convolution already."""
        for site in sites.values():
            is_map = site.obstacle is None and site.spatial is not None and max(site.spatial) > 1
            for above in _above(site.path if site.kind == "block" else site.scope):
                convs, linears = self.products.get(above, (0, 0))
                if site.kind.startswith("conv") and is_map:
                    convs += 1
                elif site.kind in ("linear", "matmul", "scaled_dot_product_attention", "multi_head_attention_forward"):
                    linears += 1
                self.products[above] = convs, linears
                if is_map and site.spatial and site.reduction is not None and _makes_maps(site.kind):
                    self.reductions.setdefault(above, set()).add((len(site.spatial), site.reduction))
            if site.kind == "input" and is_map and site.spatial and site.reduction is not None:
                self.given.setdefault(site.scope, set()).add((len(site.spatial), site.reduction))

    def find(self, residual: set[str]) -> set[str]:
        """All main blocks; where there are none, the residual blocks of one convolution."""
        if "" not in self.recording.graphs:
            return set()
        blocks = self._inside("")
        if not blocks:
            self.units = residual
            blocks = self._inside("")
        self.classes = {type(self.recording.modules[path]) for path in blocks}
        blocks = self._inside("")
        return self._between_stem_and_head(blocks)

    def _is_block(self, path: str) -> bool:
        site = self.sites.get(path)
        module = self.recording.modules.get(path)
        if site is None or module is None or not path or type(module) in CONTAINERS:
            return False
        if site.kind != "block" or site.obstacle is not None or site.spatial is None or max(site.spatial) <= 1:
            return False
        convs, linears = self.products.get(path, (0, 0))
        if convs < 2 and not (convs >= 1 and (linears >= 2 or path in self.units)):
            return False
        rank, given = len(site.spatial), self.given.get(path, set())
        if given and rank not in {rank for rank, _ in given}:  # turns a map into tokens, or back
            return False
        least = min([site.reduction or 1, *(reduction for _, reduction in given)])
        found = self.reductions.get(path, ())  # a map larger than those outside is a table of attention
        return sum(one == rank and reduction >= least for one, reduction in found) <= 2

    def _inside(self, path: str) -> list[str]:
        """Main blocks among what a module calls, in order of execution."""
        graph = self.recording.graphs.get(path)
        found: list[str] = []
        for node in () if graph is None else graph.nodes:
            if node.meta.get("kind") == "block":
                child: Frame = node.meta["frame"]
                if self._is_block(child.path) and not self._is_stage(child.path):
                    found.append(child.path)
                elif child.path not in _above(path):  # a module may call itself
                    found += self._inside(child.path)
        return list(dict.fromkeys(found))

    def _is_stage(self, path: str) -> bool:
        """It returns the very tensor of a block inside it."""
        frame = self.recording.first_calls[path]
        if path not in self.recording.graphs or len(frame.outputs) != 1:
            return False
        result = frame.outputs[0][1]
        inner = [call for call, keys in result.returns if not keys and call.path.startswith(f"{path}.")]
        inner = [call for call in inner if self._is_block(call.path)]
        own = type(self.recording.modules[path])
        return bool(inner) and (own not in self.classes or any(type(call.module) is own for call in inner))

    def _between_stem_and_head(self, blocks: list[str]) -> set[str]:
        """Leave out what stands before the first class that is repeated, and behind the last.

        Neither stem nor head is what lies in the same container as all blocks of that class, or a last stage of one
        block of its own class, which shrinks the map further.
        """
        kinds = [type(self.recording.modules[path]) for path in blocks]
        repeated = [index for index, kind in enumerate(kinds) if kinds.count(kind) > 1]
        if not repeated:
            return set(blocks)
        first, last = repeated[0], repeated[-1]
        found = set(blocks[first : last + 1])
        for kind, beyond in ((kinds[first], blocks[:first]), (kinds[last], blocks[last + 1 :])):
            alike = [path.split(".")[:-1] for path, other in zip(blocks, kinds, strict=True) if other is kind]
            container = commonprefix(alike)  # noqa: RUF071 - of lists of names, not of characters
            depths = set(map(len, alike))
            for path in beyond:
                above = path.split(".")[:-1]
                if container and above[: len(container)] == container and len(above) in depths:
                    found.add(path)
        for path, previous in zip(blocks[last + 1 :], blocks[last:], strict=False):
            if (self.sites[path].reduction or 0) <= (self.sites[previous].reduction or 0):
                break
            found.add(path)
        return found


def _makes_maps(kind: str) -> bool:
    """A kind of operation whose result has a size in space: what attention computes has numbers of tokens."""
    return kind == "block" or kind.startswith("conv") or "pool" in kind or kind in UPSAMPLING


def _above(path: str) -> list[str]:
    """The path, every module above it, and the root."""
    found = [path]
    while path:
        path = path.rpartition(".")[0]
        found.append(path)
    return found
