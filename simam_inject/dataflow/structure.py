"""The structure of a network, from its dataflow alone: residual joins, skips, channel gates, main and decoder blocks.

* A **residual join** is an `add` whose two operands come from a common value, one of them (the branch) through more
  convolutions and matrix products than the other (the skip), which goes through two at the most.
* A **gate** scales another feature map: the operand of a `mul` that ends in a sigmoid or a softmax, or is broadcast.
* A **main block** is what a network repeats between stem and head; see `main_blocks`.
* A **decoder block** is the smallest module that joins (`cat`, `add`) an upsampled map with an earlier one, and the
  main block that reads the join; so is a block of the same class beside it that upsamples without such a join.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.dataflow.kinds import UPSAMPLING
from simam_inject.dataflow.main_blocks import MainBlocks
from simam_inject.dataflow.records import Site
from simam_inject.dataflow.values import Recording

_WEIGHTED = (_ConvNd, nn.Linear)
_MOST_ON_SKIP = 2
"""A projection is one convolution; GhostNet's is a depthwise and a pointwise one."""
_SQUASHING = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh", "hard_sigmoid", "clamp", "relu6"})


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
    for path, graph in recording.graphs.items():
        for node in graph.nodes:
            kind = node.meta.get("kind")
            if kind == "add":
                _enter_join(found, recording, path, node)
            elif kind == "mul":
                _enter_gate(found, node)
    found.main = MainBlocks(recording, sites).find(found.residual)
    found.decoder = _decoders(recording, found.main)
    return found


def covers(paths: Set[str], path: str) -> bool:
    """One of the paths is this one, or holds it."""
    return path in paths or any(path[:at] in paths for at, letter in enumerate(path) if letter in ".:")


def _operands(node: fx.Node) -> list[fx.Node]:
    """The two nodes that a binary operation reads, parameters and buffers aside."""
    return [source for source in node.args[:2] if isinstance(source, fx.Node) and source.op != "get_attr"]


def _enter_join(found: Structure, recording: Recording, scope: str, node: fx.Node) -> None:
    operands = _operands(node)
    if len(operands) != 2 or any("value" not in operand.meta for operand in operands):
        return
    if operands[0].meta["value"].shape != operands[1].meta["value"].shape:
        return
    above = [_ancestors(operand) for operand in operands]
    if not above[0] & above[1]:
        return
    own = [above[index] - above[1 - index] for index in (0, 1)]
    weights = [sum(_weight(recording, step) for step in steps) for steps in own]
    upsampled = [any(_upsamples(recording, step) and not _keeps_size(step) for step in steps) for steps in own]
    if weights[0] == weights[1] or upsampled[0] != upsampled[1] or min(weights) > _MOST_ON_SKIP:
        return
    branch = 0 if weights[0] > weights[1] else 1
    if any(_is_no_step_of_a_skip(step) for step in own[1 - branch]):
        return
    if "path" not in operands[branch].meta:
        return
    found.joins[operands[branch].meta["path"]] = node.meta["path"]
    found.residual.add(scope)
    found.on_skip.update(step.meta["path"] for step in own[1 - branch] if step.meta.get("path"))


def _is_no_step_of_a_skip(node: fx.Node) -> bool:
    """A product or difference of two maps, or numbers made on the way (the grid of a detector's anchors)."""
    is_made = node.op in ("call_function", "call_method") and not node.all_input_nodes
    return is_made or node.meta.get("kind") in ("mul", "sub")


def _enter_gate(found: Structure, node: fx.Node) -> None:
    operands = _operands(node)
    if len(operands) != 2 or any("value" not in operand.meta for operand in operands):
        return
    shapes = [operand.meta["value"].shape for operand in operands]
    above = [_ancestors(operand) for operand in operands]
    for index in (0, 1):
        smaller = (
            len(shapes[index]) == len(shapes[1 - index])
            and shapes[index] != shapes[1 - index]
            and all(a <= b for a, b in zip(shapes[index], shapes[1 - index], strict=True))
        )
        squashed = _ends_squashed(operands[index])
        if smaller or squashed:
            own = above[index] - above[1 - index] - {operands[1 - index]}
            if len(own) < len(above[index]) or smaller:
                found.in_gate.update(step.meta["path"] for step in own if step.meta.get("path"))


def _ends_squashed(node: fx.Node) -> bool:
    """The last operation that is more than a reshape is a sigmoid or its like."""
    for _ in range(4):
        if node.meta.get("kind") in _SQUASHING:
            return True
        if node.meta.get("kind") not in ("view", "reshape", "expand", "expand_as", "unsqueeze", "interpolate"):
            return False
        node = next(iter(node.all_input_nodes), node)
    return False


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if step.op == "placeholder" and "value" not in step.meta:  # a list of maps is no common value of theirs
            continue
        if step not in found and step.op != "get_attr":
            found.add(step)
            waiting.extend(step.all_input_nodes)
    return found


def _weight(recording: Recording, node: fx.Node) -> int:
    """Convolutions and matrix products that a node stands for."""
    if node.op == "call_module":
        module = recording.modules[node.meta["frame"].path]
        return sum(isinstance(part, _WEIGHTED) for part in module.modules())
    kind = node.meta.get("kind", "")
    return int(kind.startswith("conv") or kind == "linear")


def _enlarges(node: fx.Node) -> bool:
    """An upsampling of a map: a single pixel that is spread out, as in ASPP, is a mean."""
    given = [source.meta["value"].shape[2:] for source in node.all_input_nodes if "value" in source.meta]
    return node.meta.get("kind") in UPSAMPLING and (not given or max(given[0], default=1) > 1)


def _upsamples(recording: Recording, node: fx.Node) -> bool:
    kind = node.meta.get("kind", "")
    if kind != "block":
        return _enlarges(node)
    graph = recording.graphs.get(node.meta["frame"].path)
    return graph is not None and any(_upsamples(recording, inner) for inner in graph.nodes)


def _keeps_size(node: fx.Node) -> bool:
    """A module that returns a map of the size that it is given: attention over a smaller map, enlarged again."""
    given = [source.meta["value"].shape[2:] for source in node.all_input_nodes if "value" in source.meta]
    return node.meta.get("kind") == "block" and "value" in node.meta and node.meta["value"].shape[2:] in given


def _decoders(recording: Recording, main: set[str]) -> set[str]:
    """Blocks that join an upsampled map with an earlier one, or the main blocks that read such a join."""
    found = set()
    for path, graph in recording.graphs.items():
        for node in graph.nodes:
            if node.meta.get("kind") not in ("cat", "add"):
                continue
            sources = [source for source in node.all_input_nodes if "value" in source.meta]
            is_add = node.meta.get("kind") == "add"
            fresh = [_comes_from_upsampling(recording, source, 0, is_add) for source in sources]
            if len(sources) < 2 or not any(fresh) or all(fresh):
                continue
            if path and len(recording.first_calls[path].outputs) == 1 and _weight_of(recording, path):
                found.add(path)
            found |= _readers_among(node, main, 0)
    found = {path for path in found if not covers(found - {path}, path)}
    alike = {(path.rpartition(".")[0], type(recording.modules[path])) for path in found}
    for path, graph in recording.graphs.items():  # the last one often has no skip to join
        is_alike = path and (path.rpartition(".")[0], type(recording.modules[path])) in alike
        if is_alike and any(map(_enlarges, graph.nodes)):
            found.add(path)
    return found


def _comes_from_upsampling(recording: Recording, node: fx.Node, depth: int, is_add: bool) -> bool:
    """The value was upsampled in this very forward, perhaps with a convolution, norm or activation after it.

    In a sum, a module that returns a map of the size that it is given is a branch, and no decoder.
    """
    kind = node.meta.get("kind", "")
    if _enlarges(node):
        return True
    if kind == "block" and _upsamples(recording, node) and not (is_add and _keeps_size(node)):
        return True
    passing = kind.startswith("conv") or kind in (
        "batch_norm",
        "relu",
        "pad",
        "identity",
        "dropout",
        "getitem",
        "group_norm",
    )
    inputs = node.all_input_nodes
    return depth < 4 and passing and bool(inputs) and _comes_from_upsampling(recording, inputs[0], depth + 1, is_add)


def _weight_of(recording: Recording, path: str) -> int:
    return sum(isinstance(part, _WEIGHTED) for part in recording.modules[path].modules())


def _readers_among(node: fx.Node, main: set[str], depth: int) -> set[str]:
    """Main blocks that read the join in the same forward, at once or behind an attention or an activation."""
    found = set()
    for user in node.users:
        path = user.meta.get("path", "")
        if path in main:
            found.add(path)
        elif depth < 2 and user.meta.get("kind") in ("relu", "identity", "getitem", "dropout"):
            found |= _readers_among(user, main, depth + 1)
    return found
