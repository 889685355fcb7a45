"""The structure of a network, from its dataflow alone: residual joins, skips, gates, main and decoder blocks.

docs/recipes.md has the definitions. A *join* is an `add` of a branch with its skip, a *gate* one factor of a `mul`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from simam_inject.dataflow.anatomy import Site
from simam_inject.dataflow.decoders import Decoders
from simam_inject.dataflow.main_blocks import MainBlocks
from simam_inject.dataflow.steps import (
    SQUASHING,
    Structure,
    ancestors,
    has_two_maps,
    is_returned,
    keeps_size,
    passed_on,
    sizes_given,
    upsamples,
    was_upsampled,
    weight,
)
from simam_inject.dataflow.values import Frame, Recording, Step, covers
from simam_inject.kinds import words

_MOST_ON_SKIP = 2  # a projection is one convolution; GhostNet's is a depthwise and a pointwise one
_SIGMOIDS = words("sigmoid hardsigmoid softmax hard_sigmoid")
_SUMS = words("add sub cat stack")  # after which a map is more than a gate
_PRODUCTS = words("mul matmul bmm einsum scaled_dot_product_attention")
_DEFORMABLE = "deform_conv2d"
_RESHAPING = words(
    "view view_as reshape flatten unflatten expand expand_as repeat squeeze unsqueeze permute transpose interpolate"
)


def find_structure(recording: Recording, sites: Mapping[str, Site]) -> Structure:
    """Read the structure off the recorded steps."""
    found = Structure()
    steps = [(path, one) for path, call in recording.first_calls.items() for one in call.steps]
    adds = [(path, one) for path, one in steps if one.kind == "add" and has_two_maps(one)]
    found.residual.update(path for path, add in adds if _enter_join(found, add))
    _enter_ties(recording, found, adds)
    times = [one.value.made for one in recording.steps.values() if one.value and one.is_leaf and weight(one)]
    for call in recording.first_calls.values():
        found.in_gate.update(step.path for step in _inside_gates(call, times))
    blocks = MainBlocks(recording, sites, found.residual).find()
    found.main = {path for path in blocks if not covers(found.in_gate, path)}
    if any(upsamples(step) for _, step in steps):  # of a classifier, no step does
        found.decoder = Decoders(recording, found).find()
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


def _enter_join(found: Structure, add: Step, wanted: Step | None = None) -> bool:
    """Enter an add if it joins a branch with a skip; of equal operands, the wanted one is the branch."""
    operands = add.inputs[:2]
    above = [ancestors(operand) for operand in operands]
    own = [above[0] - above[1], above[1] - above[0]]
    if len({one.shape for one in operands}) > 1 or not above[0] & above[1]:
        return False
    weights = [sum(map(weight, steps)) for steps in own]
    smallest = [_least_upsampled(steps) for steps in own]
    is_tie = weights[0] == weights[1]
    branch = operands.index(wanted) if is_tie and wanted else int(weights[1] > weights[0])
    skip = 1 - branch
    if (is_tie and not wanted) or weights[skip] > _MOST_ON_SKIP:
        return False
    is_scaled = max(smallest) > 0 and max(smallest) >= 2 * min(smallest)
    if is_scaled and (own[skip] or was_upsampled(operands[branch], is_add=True)):
        return False  # joins another scale, as a pyramid does
    if any(_is_no_step_of_a_skip(step, operands[branch]) for step in own[skip]):
        return False
    found.joins[operands[branch].path] = add.path
    found.on_skip.update(step.path for step in own[skip])
    return True


def _least_upsampled(steps: Set[Step]) -> int:
    """Length of the smallest map that some of the steps upsample; 0 if none does."""
    given = [size for step in steps if upsamples(step) and not keeps_size(step) for size in sizes_given(step)]
    return min((size[-1] for size in given if size), default=0)


def _is_no_step_of_a_skip(step: Step, branch: Step) -> bool:
    """A product of two maps or matrices, a subtraction, one pixel or a map fitted to another, numbers but zeros that
    an operation makes (anchors), or one of several results of a block with convolutions, where the branch is one, too.
    """
    is_made = step.call is None and step.kind not in ("input", "zeros") and not step.inputs
    is_one_of_several = step.kind == branch.kind == "entry" and any(map(weight, step.inputs))
    is_product = step.kind in _PRODUCTS and has_two_maps(step)
    sizes = sizes_given(step) if step.kind == "interpolate" else []
    is_fitted = any(size == step.shape[2:] or set(size) == {1} for size in sizes)
    is_fitted |= step.kind.startswith("expand") and any(one.shape[2:] != step.shape[2:] for one in step.inputs)
    return is_made or is_one_of_several or is_product or is_fitted or step.kind == "sub"


def _inside_gates(call: Frame, times: Sequence[int]) -> set[Step]:
    """Steps that only gates are computed from, though the network may return them: not the branches of SKNet, which are
    also multiplied by gates, nor a mask that is added to a later one.
    """
    products = [step for step in call.steps if step.kind in ("mul", _DEFORMABLE) and has_two_maps(step)]
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
    With more than twice the convolutions that ran (at `times`) before the other was made, it is a network's mask. The
    offsets of a deformable convolution and its mask are gates of what it reads, if computed from the same maps alone.
    """
    if product.kind == _DEFORMABLE:
        for one in product.inputs[1:]:
            inside = ancestors(one) - ancestors(product.inputs[0])
            is_other = any(step.kind == "input" for step in inside) or is_returned(one)
            if not is_other and not _is_mask(inside, product.inputs[0], times):
                yield one, inside
        return
    operands = product.inputs[:2]
    above = list(map(ancestors, operands))
    own = [above[0] - above[1], above[1] - above[0]]
    squashed = [0 < len(own[at]) < len(above[at]) and _ends_in(SQUASHING, operands[at]) for at in (0, 1)]
    if all(squashed):
        squashed = [_ends_in(_SIGMOIDS, one) for one in operands]
    for index, other in ((0, 1), (1, 0)):
        mine, its = operands[index].shape, operands[other].shape
        is_smaller = len(mine) == len(its) and mine != its and all(a <= b for a, b in zip(mine, its, strict=True))
        is_gate = is_smaller or (squashed[index] and not squashed[other])
        if is_gate and not _is_mask(own[index], operands[other], times):
            yield operands[index], own[index]


def _is_mask(own: Set[Step], other: Step, times: Sequence[int]) -> bool:
    before = sum(time <= other.values[0][1].made for time in times)
    return sum(map(weight, own)) > 2 * max(1, before)


def _ends_in(kinds: Set[str], step: Step | None) -> bool:
    """The last operation that does more than pass on or reshape is one of these kinds, also inside of a module."""
    while step is not None and step.kind not in kinds:
        call = step.whole.call
        inner = call.steps if call else []
        last = next((one for one in reversed(inner) if one.value is step.value), None)
        step = last or passed_on(step) or next((one for one in step.inputs if step.kind in _RESHAPING), None)
    return step is not None
