"""The structure of a network, from its dataflow alone: residual joins, skips, channel gates, main and decoder blocks.

* A **residual join** is an `add` whose two operands come from a common value, one of them (the branch) through more
  convolutions and matrix products than the other (the skip), which goes through two at the most.
* A **gate** scales another feature map: the operand of a `mul` that ends in a sigmoid or a softmax, or is broadcast.
* A **main block** is what a network repeats between stem and head; see `main_blocks`.
* A **decoder block** is the smallest module that joins (`cat`, `add`) an upsampled map with an earlier one, and the
  main block that reads the join; so is a block of the same class beside it that upsamples without such a join.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.dataflow.kinds import UPSAMPLING
from simam_inject.dataflow.main_blocks import MainBlocks
from simam_inject.dataflow.records import Site
from simam_inject.dataflow.values import Recording
from simam_inject.kinds import words

_WEIGHTED = (_ConvNd, nn.Linear)
_MOST_ON_SKIP = 2
"""A projection is one convolution; GhostNet's is a depthwise and a pointwise one."""
_SQUASHING = words("sigmoid hardsigmoid softmax tanh hard_sigmoid clamp relu6")
_RESHAPING = words("view reshape expand expand_as unsqueeze interpolate")
_PASSING = words("batch_norm relu pad identity dropout getitem group_norm")
"""Kinds that may stand between an upsampling and the join that it is for."""


@dataclass(slots=True)
class Structure:
    """What was found, by path."""

    joins: dict[str, str] = field(default_factory=dict)
    """Path of a branch -> path of the add that it enters."""
    residual: set[str] = field(default_factory=set)
    main: set[str] = field(default_factory=set)
    decoder: set[str] = field(default_factory=set)
    on_skip: set[str] = field(default_factory=set)
    """Paths of nodes on a skip; whatever lies inside them is on it too."""
    in_gate: set[str] = field(default_factory=set)


def find_structure(recording: Recording, sites: Mapping[str, Site]) -> Structure:
    """Read the structure off the recorded graphs."""
    found = Structure()
    upsampling = _Upsampling(recording)
    for path, graph in recording.graphs.items():
        for node in graph.nodes:
            kind = node.meta.get("kind")
            operands = [source for source in node.all_input_nodes[:2] if "value" in source.meta]
            if kind in ("add", "mul") and len(operands) == 2 and all(node.op != "get_attr" for node in operands):
                if kind == "mul":
                    _enter_gate(found, operands)
                elif _enter_join(found, upsampling, node.meta["path"], operands):
                    found.residual.add(path)
    found.main = MainBlocks(recording, sites).find(found.residual)
    found.decoder = _decoders(recording, upsampling, found.main)
    return found


def covers(paths: Set[str], path: str) -> bool:
    """One of the paths is this one, or holds it."""
    return path in paths or any(path[:at] in paths for at, letter in enumerate(path) if letter in ".:")


def _paths(nodes: Iterable[fx.Node]) -> Iterator[str]:
    return (node.meta["path"] for node in nodes if "path" in node.meta)


def _enter_join(found: Structure, upsampling: _Upsampling, path: str, operands: list[fx.Node]) -> bool:
    """Enter the add at a path if it joins a branch with a skip."""
    above = [_ancestors(operand) for operand in operands]
    own = [above[0] - above[1], above[1] - above[0]]
    if len({_shape(operand) for operand in operands}) > 1 or not above[0] & above[1]:
        return False
    weights = [sum(map(_weight, steps)) for steps in own]
    upsampled = [any(upsampling.at(step) and not _keeps_size(step) for step in steps) for steps in own]
    branch, skip = (0, 1) if weights[0] > weights[1] else (1, 0)
    if weights[0] == weights[1] or upsampled[0] != upsampled[1] or weights[skip] > _MOST_ON_SKIP:
        return False
    if any(map(_is_no_step_of_a_skip, own[skip])) or "path" not in operands[branch].meta:
        return False
    found.joins[operands[branch].meta["path"]] = path
    found.on_skip.update(_paths(own[skip]))
    return True


def _is_no_step_of_a_skip(node: fx.Node) -> bool:
    """A product or difference of two maps, or numbers made on the way (the grid of a detector's anchors)."""
    is_made = node.op in ("call_function", "call_method") and not node.all_input_nodes
    return is_made or node.meta.get("kind") in ("mul", "sub")


def _enter_gate(found: Structure, operands: list[fx.Node]) -> None:
    """Enter what leads to an operand of a product that is squashed, or smaller than the other."""
    above = [_ancestors(operand) for operand in operands]
    for index, other in ((0, 1), (1, 0)):
        shape, larger = _shape(operands[index]), _shape(operands[other])
        is_smaller = (
            len(shape) == len(larger)
            and shape != larger
            and all(mine <= its for mine, its in zip(shape, larger, strict=True))
        )
        own = above[index] - above[other] - {operands[other]}
        if is_smaller or (_ends_squashed(operands[index]) and len(own) < len(above[index])):
            found.in_gate.update(_paths(own))


def _ends_squashed(node: fx.Node) -> bool:
    """The last operation that is more than a reshape is a sigmoid or its like."""
    for _ in range(4):
        if node.meta.get("kind") in _SQUASHING:
            return True
        if node.meta.get("kind") not in _RESHAPING:
            return False
        node = next(iter(node.all_input_nodes), node)
    return False


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step.op == "placeholder" and "value" not in step.meta:  # a list of maps is not a common value
            continue
        if step not in found and step.op != "get_attr":
            found.add(step)
            waiting.extend(step.all_input_nodes)
    return found


def _weight(node: fx.Node) -> int:
    """Convolutions and matrix products that a node stands for."""
    if node.op == "call_module":
        return _weight_of(node.meta["frame"].module)
    kind = node.meta.get("kind", "")
    return int(kind.startswith("conv") or kind == "linear")


def _weight_of(module: nn.Module) -> int:
    """Convolutions and matrix products in a module."""
    return sum(isinstance(part, _WEIGHTED) for part in module.modules())


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["value"].shape
    return shape


def _sizes_given(node: fx.Node) -> list[tuple[int, ...]]:
    return [_shape(source)[2:] for source in node.all_input_nodes if "value" in source.meta]


def _enlarges(node: fx.Node) -> bool:
    """An upsampling of a map: a single pixel that is spread out, as in ASPP, is a mean."""
    given = _sizes_given(node)
    return node.meta.get("kind") in UPSAMPLING and (not given or max(given[0], default=1) > 1)


def _keeps_size(node: fx.Node) -> bool:
    """A module that returns a map of the size that it is given: attention over a smaller map, enlarged again."""
    return node.meta.get("kind") == "block" and "value" in node.meta and _shape(node)[2:] in _sizes_given(node)


class _Upsampling:
    """Where maps are upsampled."""

    def __init__(self, recording: Recording) -> None:
        self.graphs = recording.graphs
        self.blocks: dict[str, bool] = {}
        """Whether each block enlarges a map; False while it is found out, since a block may call itself."""

    def at(self, node: fx.Node) -> bool:
        """The node enlarges a map, or is a block that does somewhere inside."""
        if node.meta.get("kind") != "block":
            return _enlarges(node)
        path = node.meta["frame"].path
        if path not in self.blocks:
            self.blocks[path] = False
            self.blocks[path] = path in self.graphs and any(map(self.at, self.graphs[path].nodes))
        return self.blocks[path]

    def before(self, node: fx.Node, is_add: bool, depth: int = 0) -> bool:
        """The value was upsampled in this very forward, perhaps with a convolution, norm or activation after it.

        In a sum, a module that returns a map of the size that it is given is a branch, and no decoder.
        """
        kind = node.meta.get("kind", "")
        if _enlarges(node) or (kind == "block" and self.at(node) and not (is_add and _keeps_size(node))):
            return True
        inputs = node.all_input_nodes if kind.startswith("conv") or kind in _PASSING else []
        return depth < 4 and bool(inputs) and self.before(inputs[0], is_add, depth + 1)


def _decoders(recording: Recording, upsampling: _Upsampling, main: set[str]) -> set[str]:
    """Blocks that join an upsampled map with an earlier one, or the main blocks that read such a join."""
    found = set()
    for path, graph in recording.graphs.items():
        frame = recording.first_calls[path]
        for node in graph.nodes:
            kind = node.meta.get("kind")
            sources = [source for source in node.all_input_nodes if "value" in source.meta]
            if kind not in ("cat", "add") or len(sources) < 2:
                continue
            if len({upsampling.before(source, kind == "add") for source in sources}) < 2:
                continue
            if path and len(frame.outputs) == 1 and _weight_of(frame.module):
                found.add(path)
            found |= _readers_among(node, main)
    found = {path for path in found if not covers(found - {path}, path)}
    alike = {(path.rpartition(".")[0], type(recording.modules[path])) for path in found}
    for path, graph in recording.graphs.items():  # the last one often has no skip to join
        is_alike = path and (path.rpartition(".")[0], type(recording.modules[path])) in alike
        if is_alike and any(map(_enlarges, graph.nodes)):
            found.add(path)
    return found


def _readers_among(node: fx.Node, main: set[str], depth: int = 0) -> set[str]:
    """Main blocks that read the join in the same forward, at once or behind an attention or an activation."""
    found = set()
    for user in node.users:
        path = user.meta.get("path", "")
        if path in main:
            found.add(path)
        elif depth < 2 and user.meta.get("kind") in ("relu", "identity", "getitem", "dropout"):
            found |= _readers_among(user, main, depth + 1)
    return found
