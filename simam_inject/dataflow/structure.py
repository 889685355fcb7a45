"""The structure of a network, from its dataflow alone: residual joins, skips, gates, main and decoder blocks.

* A **residual join** is an `add` whose two operands come from a common value, one of them (the branch) through more
  convolutions and matrix products than the other (the skip), which goes through two at the most.
* A **gate** scales another feature map: the operand of a `mul` that ends in a sigmoid or a softmax, or is broadcast.
* A **main block** is what a network repeats between stem and head; see `main_blocks`.
* A **decoder block** joins (`cat`, `add`) an upsampled map with an earlier one that it is given, or it is the block
  that reads such a join, or made the upsampled map; so is one of its class beside it that upsamples without a join.
  Heads do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from simam_inject.dataflow.anatomy import Site
from simam_inject.dataflow.heads import SQUASHING, is_head, weight
from simam_inject.dataflow.main_blocks import MainBlocks
from simam_inject.dataflow.module_kinds import UPSAMPLING, conv_facts
from simam_inject.dataflow.values import NEVER, Frame, Recording, Step, covers
from simam_inject.kinds import FAMILIES, words
from simam_inject.modules import CONTAINERS

_MOST_ON_SKIP = 2  # a projection is one convolution; GhostNet's is a depthwise and a pointwise one
_SIGMOIDS = words("sigmoid hardsigmoid softmax hard_sigmoid")
_ARITHMETIC = words("add sub mul div")
_SUMS = words("add sub cat stack")  # after which a map is more than a gate
_PRODUCTS = words("mul matmul bmm einsum scaled_dot_product_attention")
_RESHAPING = words(
    "view view_as reshape flatten unflatten expand expand_as repeat squeeze unsqueeze permute transpose interpolate"
)
_PASSING = FAMILIES["norm"] | FAMILIES["act"] | {"pad"}  # between an upsampling and its join


@dataclass(slots=True)
class Structure:
    """What was found, by path."""

    joins: dict[str, str] = field(default_factory=dict)
    """Path of a branch -> path of the add that it enters."""
    residual: set[str] = field(default_factory=set)
    main: set[str] = field(default_factory=set)
    decoder: set[str] = field(default_factory=set)
    on_skip: set[str] = field(default_factory=set)
    """Paths of steps on a skip; whatever is inside them is on it too."""
    in_gate: set[str] = field(default_factory=set)


def find_structure(recording: Recording, sites: Mapping[str, Site]) -> Structure:
    """Read the structure off the recorded steps."""
    found = Structure()
    steps = [(path, one) for path, call in recording.first_calls.items() for one in call.steps]
    adds = [(path, one) for path, one in steps if one.kind == "add" and _has_two_maps(one)]
    found.residual.update(path for path, add in adds if _enter_join(found, add))
    _enter_ties(recording, found, adds)
    times = [one.value.made for one in recording.steps.values() if one.value and one.is_leaf and weight(one)]
    for call in recording.first_calls.values():
        found.in_gate.update(step.path for step in _inside_gates(call, times))
    blocks = MainBlocks(recording, sites).find(found.residual)
    found.main = {path for path in blocks if not covers(found.in_gate, path)}
    found.decoder = _decoders(recording, found)
    return found


def _enter_ties(recording: Recording, found: Structure, adds: Sequence[tuple[str, Step]]) -> None:
    """Enter adds of two alike operands, one of which is the branch where another block of the class adds its input."""

    def in_class(*paths: str) -> tuple[object, ...]:
        scope = paths[0].rpartition(".")[0]
        return (type(recording.modules[scope]), *(path.removeprefix(scope) for path in paths))

    plain = {add.path for _, add in adds if any(one.kind == "input" or one.passed for one in add.inputs)}
    alike = {in_class(add, branch) for branch, add in found.joins.items() if add in plain}
    for path, add in adds:
        branches = [one for one in add.inputs[:2] if in_class(add.path, one.path) in alike]
        if add.path not in found.joins.values() and len(branches) == 1 and _enter_join(found, add, *branches):
            found.residual.add(path)


def _has_two_maps(step: Step) -> bool:
    return sum(bool(one.shape) and one.kind != "outside" for one in step.inputs[:2]) == 2


def _passed(step: Step) -> Step | None:
    """The step whose result it passes on, perhaps interpolated to its own size, or scaled or shifted by a number."""
    is_same = step.kind == "interpolate" and any(one.shape == step.shape for one in step.inputs)
    if is_same or (step.kind in _ARITHMETIC and not _has_two_maps(step)):
        return max(step.inputs, key=lambda one: len(one.shape), default=None)
    return step.passed


def _enter_join(found: Structure, add: Step, wanted: Step | None = None) -> bool:
    """Enter an add if it joins a branch with a skip; of equal operands, the wanted one is the branch."""
    operands = add.inputs[:2]
    above = [_ancestors(operand) for operand in operands]
    own = [above[0] - above[1], above[1] - above[0]]
    if len({one.shape for one in operands}) > 1 or not above[0] & above[1]:
        return False
    weights = [sum(map(weight, steps)) for steps in own]
    upsampled = [any(_upsamples(step) and not _keeps_size(step) for step in steps) for steps in own]
    is_tie = weights[0] == weights[1]
    branch = operands.index(wanted) if is_tie and wanted else int(weights[1] > weights[0])
    skip = 1 - branch
    if (is_tie and not wanted) or weights[skip] > _MOST_ON_SKIP:
        return False
    if upsampled[0] != upsampled[1] and (own[skip] or _was_upsampled(operands[branch], is_add=True)):
        return False  # joins another scale, as a pyramid does
    if any(_is_no_step_of_a_skip(step, operands[branch]) for step in own[skip]):
        return False
    found.joins[operands[branch].path] = add.path
    found.on_skip.update(step.path for step in own[skip])
    return True


def _is_no_step_of_a_skip(step: Step, branch: Step) -> bool:
    """A product of two maps or matrices, a subtraction, one pixel or a map fitted to another, numbers but zeros that
    an operation makes (anchors), or one of several results of a block with convolutions, where the branch is one, too.
    """
    is_made = step.call is None and step.kind not in ("input", "zeros") and not step.inputs
    is_one_of_several = step.kind == branch.kind == "entry" and any(map(weight, step.inputs))
    is_product = step.kind in _PRODUCTS and _has_two_maps(step)
    sizes = _sizes_given(step) if step.kind == "interpolate" else []
    is_fitted = any(size == step.shape[2:] or set(size) == {1} for size in sizes)
    is_fitted |= step.kind.startswith("expand") and any(one.shape[2:] != step.shape[2:] for one in step.inputs)
    return is_made or is_one_of_several or is_product or is_fitted or step.kind == "sub"


def _inside_gates(call: Frame, times: Sequence[int]) -> set[Step]:
    """Steps that only gates are computed from, though the network may return them: not the branches of SKNet, which are
    also multiplied by gates, nor a mask that is added to a later one.
    """
    products = [step for step in call.steps if step.kind == "mul" and _has_two_maps(step)]
    gates = [(product, *gate) for product in products for gate in _gates(product, times)]
    inside, ends = set().union(*(own for *_, own in gates)), {(gate, product) for product, gate, _ in gates}
    while others := {step for step in inside if _has_other_use(step, inside, ends)}:
        inside -= others
    return inside


def _has_other_use(step: Step, inside: Set[Step], ends: Set[tuple[Step, Step]]) -> bool:
    """It is scaled itself, or a convolution or a sum with another map is computed from it; logging does not count."""
    others = [one for one in step.readers if one not in inside and (step, one) not in ends]
    is_scaled = any(one in others for _, one in ends)
    for one in others:
        is_map = one.value is None or one.value.dtype.is_floating_point  # `gate > 0.5` selects from other maps
        others += [reader for reader in one.readers if is_map and reader not in others]
    known = {step, *others} | inside
    sums = [one for one in others if one.kind in _SUMS and any(each.shape and each not in known for each in one.inputs)]
    return is_scaled or bool(sums) or any(map(weight, others))


def _gates(product: Step, times: Sequence[int]) -> Iterator[tuple[Step, set[Step]]]:
    """Each operand that is a gate, and what leads to it alone.

    A gate is smaller than the other, or squashed; of two that are squashed, only one may end in a sigmoid or softmax.
    With more than twice the convolutions that ran (at `times`) before the other was made, it is a network's mask.
    """
    operands = product.inputs[:2]
    above = list(map(_ancestors, operands))
    own = [above[0] - above[1], above[1] - above[0]]
    squashed = [0 < len(own[at]) < len(above[at]) and _ends_in(SQUASHING, operands[at]) for at in (0, 1)]
    if all(squashed):
        squashed = [_ends_in(_SIGMOIDS, one) for one in operands]
    for index, other in ((0, 1), (1, 0)):
        mine, its = operands[index].shape, operands[other].shape
        is_smaller = len(mine) == len(its) and mine != its and all(a <= b for a, b in zip(mine, its, strict=True))
        before = sum(time <= operands[other].values[0][1].made for time in times)
        is_mask = sum(map(weight, own[index])) > 2 * max(1, before)
        if (is_smaller or (squashed[index] and not squashed[other])) and not is_mask:
            yield operands[index], own[index]


def _ends_in(kinds: Set[str], step: Step | None) -> bool:
    """The last operation that does more than pass on or reshape is one of these kinds, also inside of a module."""
    while step is not None and step.kind not in kinds:
        whole = step.inputs[0] if step.kind == "entry" else step
        inner = whole.call.steps if whole.call else []
        last = next((one for one in reversed(inner) if one.value is step.value), None)
        step = last or _passed(step) or next((one for one in step.inputs if step.kind in _RESHAPING), None)
    return step is not None


def _ancestors(*steps: Step) -> set[Step]:
    """The steps, and all that they are computed from."""
    found: set[Step] = set()
    waiting = list(steps)
    while waiting:
        step = waiting.pop()
        is_list = step.kind == "input" and step.value is None  # which is not a common value
        if step not in found and step.kind != "outside" and not is_list:
            found.add(step)
            waiting.extend(step.inputs)
    return found


def _sizes_given(step: Step) -> list[tuple[int, ...]]:
    """Sizes of the maps that a step reads; one of which it takes only the size does not count. Where it makes a map of
    tokens, N, L, C or N, C, L, it is the larger one of L and C.
    """
    values, call = [source.value for source in step.inputs if source.value is not None], step.call
    read = [value.shape for value in values if not call or any(call.spans(read.tick) for read in value.readings)]
    return [(max(shape[1:]),) if len(shape) == 3 < len(step.shape) else shape[2:] for shape in read]


def _enlarges(step: Step) -> bool:
    """An upsampling: a single pixel that is spread out, as in ASPP, is a mean, and `interpolate` may reduce a map."""
    given, size, call = _sizes_given(step), step.shape[2:], step.call
    if step.kind in UPSAMPLING:
        is_larger = not given or (max(given[0], default=1) > 1 and math.prod(given[0]) < math.prod(size))
        return is_larger and not (step.kind == "interpolate" and _is_pooled(step, size))
    is_own = call is not None and not call.is_scope and not type(call.module).__module__.startswith("torch.")
    return is_own and any(max(one, default=1) > 1 and 2 * math.prod(one) < math.prod(size) for one in given)


def _is_pooled(step: Step, size: tuple[int, ...]) -> bool:
    """It is a map of this size that was averaged to fewer pixels, as in a pyramid pooling module: not a level of an
    encoder, which has larger convolutions.
    """
    source = next((one.value for one in step.inputs), None)
    origin = None if source is None else source.passed_from()[-1].origin
    if origin is None:
        return False
    if origin.kind in ("adaptive_avg_pool", "avg_pool"):
        return size in _sizes_given(origin)
    facts = conv_facts(origin.call.module) if origin.call else origin.facts
    is_pointwise = origin.kind in FAMILIES["conv"] and max(facts.get("kernel", [0])) == 1
    return (is_pointwise or origin.kind in _PASSING) and _is_pooled(origin, size)


def _upsamples(step: Step) -> bool:
    """The step enlarges a map, or is a block that does somewhere inside."""
    return any(map(_upsamples, step.call.steps)) if step.call and step.call.is_scope else _enlarges(step)


def _keeps_size(step: Step) -> bool:
    """A module that returns a map of the size that it is given: attention over a smaller map, enlarged again."""
    return step.kind == "block" and step.value is not None and step.shape[2:] in _sizes_given(step)


def _was_upsampled(step: Step, is_add: bool, depth: int = 0) -> float:
    """How a result came to its size: 1 by upsampling in this very forward, 0 without, 0.5 by a module that returns a
    map of the size that it is given, and upsamples inside. Operands of different numbers are joined by a decoder.

    A convolution, norm, activation or product with a gate may come after it, also in a block of one convolution. In a
    sum, a module that upsamples inside is a branch, and counts as 0. One of several maps that a block is given has the
    size that the caller's forward gave it, or a module that this one calls.
    """
    frame, whole = step.frame, step.inputs[0] if step.kind == "entry" else step
    if whole.kind == "input" and frame and frame.parent and sum(len(value.shape) > 2 for value in frame.inputs) > 1:
        step = frame.parent.step_of.get(id(step.value), step)
        made = step.inputs[0].call if step.kind == "entry" else None
        step = made.step_of.get(id(step.value), step) if made else step
    if _enlarges(step):
        return 1
    if step.kind == "block" and _upsamples(step):
        return (0 if is_add else 0.5) if _keeps_size(step) else 1
    source = _passed(step)
    inputs = step.inputs if source or weight(step) == 1 or step.kind in _PASSING else ()
    if step.kind == "mul" and not is_add:
        inputs = tuple(one for one in step.inputs if one.shape == step.shape)
    return _was_upsampled(source or inputs[0], is_add, depth + (not source)) if depth < 4 and inputs else 0


def _decoders(recording: Recording, structure: Structure) -> set[str]:
    """Blocks that join an upsampled map with one that they are given, or the blocks that read such a join."""
    residual, found = set(structure.joins.values()), set[str]()
    heads = {path for path, call in recording.first_calls.items() if call.is_scope and is_head(recording, path)}
    own = {path for path in heads if is_head(recording, path, fewer=False)}
    main = structure.main - (own - structure.residual)
    for path, call in recording.first_calls.items():
        for step in call.steps:
            if step.kind not in ("cat", "add") or step.path in residual or step.path in structure.in_gate:
                continue
            maps = [one for one in step.inputs if one.value is not None and one.value.is_from_input(recording.writes)]
            origins = [_was_upsampled(one, step.kind == "add") for one in maps]
            if len(set(origins)) > 1:
                blocks = _readers_among(heads, step, main)
                is_one = path and len(call.outputs) == 1 and any(map(weight, call.steps))
                if is_one and _is_given_one(call, maps, origins) and path not in own:
                    blocks.add(path)
                rising = (one for one, origin in zip(maps, origins, strict=True) if origin == 1)
                blocks = blocks or {one.path for one in rising if one.kind == "block" and weight(one) > 1}
                if not blocks and not covers(main, path):
                    blocks = _readers_among(heads, step, main, least=1)
                found |= blocks
    found = {path for path in found if not _has_several_inside(recording, found, path)}
    found = {path for path in found if not _is_part_of_another(recording, found, path)}
    alike = set()
    for path, call in recording.first_calls.items():  # the last one often has no skip to join
        kind = (path.rpartition(".")[0], type(call.module))
        if path in found:
            alike.add(kind)
        elif kind in alike and kind[1] not in CONTAINERS and path not in own:
            found |= {path for one in call.steps if _upsamples(one) and not _keeps_size(one)}
    return found


def _is_given_one(call: Frame, joined: Sequence[Step], origins: Sequence[float]) -> bool:
    """A decoder block is given the earlier map, or finds it in an attribute; a whole network, perhaps in a wrapper,
    computes it from its image.
    """
    maps = [value for value in call.inputs if len(value.shape) > 2]
    given = list(zip(joined, origins, strict=True))
    rising = {step for one, origin in given if origin == max(origins) for step in _ancestors(one)}
    earlier = {step for one, origin in given if origin != max(origins) for step in _ancestors(one)}
    own = [*(earlier - rising), *joined, *(factor for step in joined for factor in _scaled(step))]
    sources = [source for step in own for source in step.inputs]
    return any(step.value in maps for step in own) or any(map(_is_stored, [*own, *sources]))


def _is_stored(step: Step) -> bool:
    """A map that the network has computed before, and that the block finds in an attribute, as fastai's U-Net does."""
    return step.kind == "outside" and step.value is not None and step.value.made != NEVER


def _scaled(step: Step) -> list[Step]:
    """Operands of the product that a block returns: the map that attention scales."""
    steps = step.call.steps if step.call else []
    return [one for product in steps if product.kind == "mul" and product.value is step.value for one in product.inputs]


def _has_several_inside(recording: Recording, found: set[str], path: str) -> bool:
    """Two decoder blocks of one other class are inside, as in the decoder of a UNet++, which joins maps for them."""
    kinds = [type(recording.modules[one]) for one in found if one != path and covers({path}, one)]
    return any(kinds.count(kind) > 1 for kind in kinds if kind is not type(recording.modules[path]))


def _is_part_of_another(recording: Recording, found: set[str], path: str) -> bool:
    """Another of the decoder blocks contains it; of one class, which contains itself, all levels are decoder blocks."""
    kind = type(recording.modules[path])
    return covers({other for other in found if other != path and type(recording.modules[other]) is not kind}, path)


def _readers_among(heads: Set[str], join: Step, main: Set[str], depth: int = 0, least: int = 2) -> set[str]:
    """Blocks that read the join in the same forward, directly or after a convolution, a norm or an activation.

    Of other modules than main blocks, those of at least so many convolutions that return one map of that size.
    """
    found = set()
    for step in join.readers:
        source = _passed(step)
        is_block = step.kind == "block" and _keeps_size(step) and step.path not in heads
        if step.path in main or (is_block and weight(step) >= least):
            found.add(step.path)
        elif source or (depth < 2 and (step.kind in _PASSING or step.kind.startswith("conv"))):
            found |= _readers_among(heads, step, main, depth + (not source), least)
    return found
