"""What one step of a forward is for the structure: its convolutions and ancestors, a head, an upsampling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.dataflow.module_kinds import UPSAMPLING
from simam_inject.dataflow.values import Recording, Step
from simam_inject.kinds import FAMILIES, is_convolution, words

_WEIGHTED = (_ConvNd, nn.Linear)
_MOST = 4
"""Channels of a result that is an image, a mask or a flow."""
_ARITHMETIC = words("add sub mul div")
SQUASHING = words("sigmoid hardsigmoid softmax hard_sigmoid tanh clamp relu6")
_NOT_LAST = (FAMILIES["norm"] | FAMILIES["act"]) - SQUASHING  # after the last convolution of a head
PASSING = FAMILIES["norm"] | FAMILIES["act"] | {"pad"}  # between an upsampling and its join


@dataclass(slots=True)
class Structure:
    """What `find_structure` finds, by path."""

    joins: dict[str, str] = field(default_factory=dict)
    """Path of a branch -> path of the add that it enters."""
    residual: set[str] = field(default_factory=set)
    main: set[str] = field(default_factory=set)
    decoder: set[str] = field(default_factory=set)
    on_skip: set[str] = field(default_factory=set)
    """Paths of steps on a skip; whatever is inside them is on it too."""
    in_gate: set[str] = field(default_factory=set)


def weight(step: Step) -> int:
    """Convolutions and matrix products in a step: as operations, or as modules where these cannot be seen."""
    if step.call is None or step.is_leaf:
        return int(is_convolution(step.kind) or step.kind == "linear")
    modules = sum(isinstance(part, _WEIGHTED) for part in step.call.module.modules())
    return max(modules, sum(map(weight, step.call.steps)))


def has_two_maps(step: Step) -> bool:
    """Its first two operands are tensors that the network computes."""
    return sum(bool(one.shape) and one.kind != "outside" for one in step.inputs[:2]) == 2


def passed_on(step: Step) -> Step | None:
    """The step whose result it passes on, perhaps interpolated to its own size, or scaled or shifted by a number."""
    is_same = step.kind == "interpolate" and any(one.shape == step.shape for one in step.inputs)
    if is_same or (step.kind in _ARITHMETIC and not has_two_maps(step)):
        return max(step.inputs, key=lambda one: len(one.shape), default=None)
    return step.passed


def ancestors(*steps: Step) -> set[Step]:
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


# Heads, which make a result of the network


def is_head(recording: Recording, path: str, *, fewer: bool = True, last: bool = False) -> bool:
    """A module ends as a head, and no convolution reads what is computed from its result.

    Args:
        fewer: see `_ends_as_head`.
        last: False if a convolution may read a result of at most 4 channels that the network returns.
    """
    step = recording.steps.get(path)
    if step is None or not _ends_as_head(step, fewer):
        return False
    is_result = is_returned(step) and step.shape[1:2] <= (_MOST,)
    return (is_result and not last) or not _meets_convolution(recording, step)


def is_returned(step: Step) -> bool:
    """The network returns the result."""
    return any(frame.parent is None for _, value in step.values for frame, _ in value.returns)


def _ends_as_head(step: Step, fewer: bool) -> bool:
    """Its last convolution makes at most 4 channels; or it is 1x1 or, if that counts, makes fewer channels than it is
    given, without norm or activation after it.
    """
    inside = list(_leaves(step))
    at, last = max(((at, one) for at, one in enumerate(inside) if weight(one)), default=(0, step))
    is_less = fewer and any(last.shape[1:2] < one.shape[1:2] for one in last.inputs[:1])
    is_plain = not any(one.kind in _NOT_LAST for one in inside[at:])
    return ((is_less or _is_pointwise(last)) and is_plain) or last.shape[1:2] <= (_MOST,)


def _leaves(step: Step) -> Iterator[Step]:
    """The operations and leaf modules in the call of a block, in the order in which they ran."""
    for one in step.call.steps if step.call else ():
        yield from [one] if one.is_leaf else _leaves(one)


def _is_pointwise(step: Step) -> bool:
    return {*step.facts.get("kernel", ())} == {1}


def _meets_convolution(recording: Recording, step: Step) -> bool:
    """A convolution or a linear layer reads what is computed from the result."""
    values = [value for _, value in step.values]
    for value in values:
        reads = [read.path for one in recording.same_tensor(value) for read in one.readings]
        readers = [recording.steps[path] for path in reads if path in recording.steps]
        if any(map(weight, readers)):
            return True
        values += [one for reader in readers for _, one in reader.values if one not in values]
    return False


# Where a map was enlarged: what a decoder joins with an earlier map


def sizes_given(step: Step) -> list[tuple[int, ...]]:
    """Sizes of the maps that a step reads; one of which it takes only the size does not count. Where it makes a map of
    tokens, N, L, C or N, C, L, it is the larger one of L and C.
    """
    values, call = [source.value for source in step.inputs if source.value is not None], step.call
    read = [value.shape for value in values if not call or any(call.spans(read.tick) for read in value.readings)]
    return [(max(shape[1:]),) if len(shape) == 3 < len(step.shape) else shape[2:] for shape in read]


def _enlarges(step: Step) -> bool:
    """An upsampling: a single pixel that is spread out, as in ASPP, is a mean, and `interpolate` may reduce a map."""
    call, is_upsampling = step.call, step.kind in UPSAMPLING
    is_own = call is not None and not call.is_scope and not type(call.module).__module__.startswith("torch.")
    given, size = sizes_given(step) if is_upsampling or is_own else [], step.shape[2:]
    if is_upsampling:
        is_larger = not given or (max(given[0], default=1) > 1 and math.prod(given[0]) < math.prod(size))
        return is_larger and not (step.kind == "interpolate" and _is_pooled(step, size))
    return any(max(one, default=1) > 1 and 2 * math.prod(one) < math.prod(size) for one in given)


def _is_pooled(step: Step, size: tuple[int, ...]) -> bool:
    """It is a map of this size that was averaged to fewer pixels, as in a pyramid pooling module: not a level of an
    encoder, which has larger convolutions.
    """
    source = next((one.value for one in step.inputs), None)
    origin = None if source is None else source.passed_from()[-1].origin
    if origin is None:
        return False
    if origin.kind in ("adaptive_avg_pool", "avg_pool"):
        return size in sizes_given(origin)
    is_projection = origin.kind in FAMILIES["conv"] and _is_pointwise(origin)
    return (is_projection or origin.kind in PASSING) and _is_pooled(origin, size)


def upsamples(step: Step) -> bool:
    """The step enlarges a map, or is a block that does somewhere inside."""
    return any(map(upsamples, step.call.steps)) if step.call and step.call.is_scope else _enlarges(step)


def keeps_size(step: Step) -> bool:
    """A module that returns a map of the size that it is given: attention over a smaller map, enlarged again."""
    return step.kind == "block" and step.value is not None and step.shape[2:] in sizes_given(step)


def adds_upsampled(step: Step) -> bool:
    """A sum of maps that were all upsampled, as levels that are added to each other before they meet another one."""
    operands = step.inputs[:2] if step.kind == "add" and has_two_maps(step) else ()
    return bool(operands) and all(adds_upsampled(one) or (upsamples(one) and not keeps_size(one)) for one in operands)


def was_upsampled(step: Step, is_add: bool, depth: int = 0) -> float:
    """How a result came to its size: 1 by upsampling in this very forward, 0 without, 0.5 by a module that returns a
    map of the size that it is given, and upsamples inside. Operands of different numbers are joined by a decoder.

    A convolution, norm, activation or product with a gate may come after it, also in a block of one convolution. In a
    sum, a module that upsamples inside is a branch, and counts as 0. One of several maps that a block is given has the
    size that the caller's forward gave it, or a module that this one calls.
    """
    frame, is_given = step.frame, step.whole.kind == "input"
    if is_given and frame and frame.parent and sum(len(value.shape) > 2 for value in frame.inputs) > 1:
        step = frame.parent.step_of.get(id(step.value), step)
        made = step.inputs[0].call if step.kind == "entry" else None
        step = made.step_of.get(id(step.value), step) if made else step
    if _enlarges(step):
        return 1
    if upsamples(step):
        return (0 if is_add else 0.5) if keeps_size(step) else 1
    source = passed_on(step)
    inputs = step.inputs if source or weight(step) == 1 or step.kind in PASSING else ()
    if step.kind == "mul" and not is_add:
        inputs = tuple(one for one in step.inputs if one.shape == step.shape)
    return was_upsampled(source or inputs[0], is_add, depth + (not source)) if depth < 4 and inputs else 0
