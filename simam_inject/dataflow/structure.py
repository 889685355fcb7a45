"""The structure of a network, from its dataflow alone: residual joins, skips, channel gates, main and decoder blocks.

* A **residual join** is an `add` whose two operands come from a common value, one of them (the branch) through more
  convolutions and matrix products than the other (the skip), which goes through two at the most.
* A **gate** scales another feature map: the operand of a `mul` that ends in a sigmoid or a softmax, or is broadcast.
* A **main block** is what a network repeats between stem and head. Walking down from the root: a module is a block if
  it returns one feature map, is not a plain container, holds at least two convolutions (or one and two matrix
  products), and its maps span at most two reductions; a block that returns the very tensor of a block inside it is a
  stage, and its parts are looked at instead.
* A **decoder block** is the smallest module that joins (`cat`, `add`) an upsampled map with an earlier one, and the
  main block that reads the join; so is a block of the same class beside it that upsamples without such a join.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import commonprefix

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.dataflow.kinds import UPSAMPLING
from simam_inject.dataflow.records import Site
from simam_inject.dataflow.values import Frame, Recording

_WEIGHTED = (_ConvNd, nn.Linear)
_MOST_ON_SKIP = 2
"""A projection is one convolution; GhostNet's is a depthwise and a pointwise one."""
_SQUASHING = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh", "hard_sigmoid", "clamp", "relu6"})
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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
    for path, frame in recording.graphs.items():
        assert frame.graph is not None
        for node in frame.graph.nodes:
            kind = node.meta.get("kind")
            if kind == "add":
                _enter_join(found, recording, path, node)
            elif kind == "mul":
                _enter_gate(found, node)
    blocks = _Blocks(recording, sites)
    found.main = blocks.find(found.residual)
    found.decoder = _decoders(recording, found.main)
    return found


def covers(paths: Iterable[str], path: str) -> bool:
    """One of the paths is this one, or holds it."""
    return any(path == one or path.startswith((f"{one}.", f"{one}:")) for one in paths)


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
    frame = recording.graphs.get(node.meta["frame"].path)
    return frame is not None and frame.graph is not None and any(_upsamples(recording, n) for n in frame.graph.nodes)


def _keeps_size(node: fx.Node) -> bool:
    """A module that returns a map of the size that it is given: attention over a smaller map, enlarged again."""
    given = [source.meta["value"].shape[2:] for source in node.all_input_nodes if "value" in source.meta]
    return node.meta.get("kind") == "block" and "value" in node.meta and node.meta["value"].shape[2:] in given


class _Blocks:
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
        frame = self.recording.graphs.get(path)
        found: list[str] = []
        if frame is None or frame.graph is None:
            return found
        for node in frame.graph.nodes:
            if node.meta.get("kind") == "block":
                child: Frame = node.meta["frame"]
                if self._is_block(child.path) and not self._is_stage(child.path):
                    found.append(child.path)
                else:
                    found += self._inside(child.path)
        return list(dict.fromkeys(found))

    def _is_stage(self, path: str) -> bool:
        """It returns the very tensor of a block inside it."""
        frame = self.recording.graphs.get(path)
        if frame is None or len(frame.outputs) != 1:
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


def _decoders(recording: Recording, main: set[str]) -> set[str]:
    """Blocks that join an upsampled map with an earlier one, or the main blocks that read such a join."""
    found = set()
    for path, frame in recording.graphs.items():
        assert frame.graph is not None
        for node in frame.graph.nodes:
            if node.meta.get("kind") not in ("cat", "add"):
                continue
            sources = [source for source in node.all_input_nodes if "value" in source.meta]
            is_add = node.meta.get("kind") == "add"
            fresh = [_comes_from_upsampling(recording, source, 0, is_add) for source in sources]
            if len(sources) < 2 or not any(fresh) or all(fresh):
                continue
            block = _returning_block(recording, frame) if path else None
            if block is not None:
                found.add(block)
            found |= _readers_among(node, main, 0)
    found = {path for path in found if not covers(found - {path}, path)}
    alike = {(path.rpartition(".")[0], type(recording.modules[path])) for path in found}
    for path, frame in recording.graphs.items():  # the last one often has no skip to join
        assert frame.graph is not None
        is_alike = path and (path.rpartition(".")[0], type(recording.modules[path])) in alike
        if is_alike and any(map(_enlarges, frame.graph.nodes)):
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


def _returning_block(recording: Recording, frame: Frame) -> str | None:
    """The module that makes the join, if it returns one map and works on it with a convolution behind the join."""
    return frame.path if len(frame.outputs) == 1 and frame.path and _weight_of(recording, frame.path) else None


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
