"""Heads, which make a result of the network, and the number of convolutions and matrix products in a step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from simam_inject.dataflow.module_kinds import conv_facts
from simam_inject.dataflow.values import Recording, Step
from simam_inject.kinds import FAMILIES, words

_WEIGHTED = (_ConvNd, nn.Linear)
_MOST = 4
"""Channels of a result that is an image, a mask or a flow."""
SQUASHING = words("sigmoid hardsigmoid softmax hard_sigmoid tanh clamp relu6")
_NOT_LAST = (FAMILIES["norm"] | FAMILIES["act"]) - SQUASHING  # after the last convolution of a head


def weight(step: Step) -> int:
    """Convolutions and matrix products in a step: as operations, or as modules where these cannot be seen."""
    if step.call is None or step.is_leaf:
        return int(step.kind.startswith("conv") or step.kind == "linear")
    modules = sum(isinstance(part, _WEIGHTED) for part in step.call.module.modules())
    return max(modules, sum(map(weight, step.call.steps)))


def _is_returned(step: Step) -> bool:
    """The network returns the result as it is."""
    return any(frame.parent is None for _, value in step.values for frame, _ in value.returns)


def is_head(recording: Recording, path: str, *, fewer: bool = True) -> bool:
    """It is a last head, or ends as one in at most 4 channels, which the network returns.

    Args:
        fewer: see `_ends_as_head`.
    """
    step = recording.steps.get(path)
    is_result = step is not None and _is_returned(step) and step.shape[1:2] <= (_MOST,)
    return is_last_head(recording, path, fewer=fewer) or (is_result and step is not None and _ends_as_head(step, fewer))


def is_last_head(recording: Recording, path: str, *, fewer: bool = True) -> bool:
    """A module ends as a head, and no convolution reads what is computed from its result."""
    step = recording.steps.get(path)
    return step is not None and _ends_as_head(step, fewer) and not _meets_convolution(recording, step)


def _ends_as_head(step: Step, fewer: bool) -> bool:
    """Its last convolution makes at most 4 channels; or it is 1x1 or, if that counts, makes fewer channels than it is
    given, without norm or activation after it.
    """
    inside = list(_leaves(step))
    at, last = max(((at, one) for at, one in enumerate(inside) if weight(one)), default=(0, step))
    facts = conv_facts(last.call.module) if last.call else last.facts
    is_less = fewer and any(last.shape[1:2] < one.shape[1:2] for one in last.inputs[:1])
    is_less = is_less or max(facts.get("kernel", [0])) == 1
    is_plain = not any(one.kind in _NOT_LAST for one in inside[at:])
    return (is_less and is_plain) or last.shape[1:2] <= (_MOST,)


def _leaves(step: Step) -> Iterator[Step]:
    """The operations and leaf modules in the call of a block, in the order in which they ran."""
    for one in step.call.steps if step.call else ():
        yield from [one] if one.is_leaf else _leaves(one)


def _meets_convolution(recording: Recording, step: Step) -> bool:
    """A convolution, or a matrix product, reads what is computed from the result."""
    values = [value for _, value in step.values]
    for value in values:
        reads = [read.path for one in recording.same_tensor(value) for read in one.readings]
        readers = [recording.steps[path] for path in reads if path in recording.steps]
        if any(map(weight, readers)):
            return True
        values += [one for reader in readers for _, one in reader.values if one not in values]
    return False
