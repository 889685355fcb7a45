"""Decoder blocks, at each join (`cat`, `add`) of an upsampled map with an earlier one: see docs/recipes.md."""

from __future__ import annotations

from collections.abc import Sequence

from simam_inject.dataflow.steps import (
    PASSING,
    Structure,
    adds_upsampled,
    ancestors,
    is_head,
    keeps_size,
    passed_on,
    upsamples,
    was_upsampled,
    weight,
)
from simam_inject.dataflow.values import NEVER, Frame, Recording, Step, covers
from simam_inject.kinds import is_convolution
from simam_inject.modules import CONTAINERS


class Decoders:
    """Searches a recording for decoder blocks; residual joins, gates and main blocks are found already."""

    def __init__(self, recording: Recording, known: Structure) -> None:
        self.recording = recording
        self.other_joins = {*known.joins.values(), *known.in_gate}
        scopes = [path for path, call in recording.first_calls.items() if call.is_scope]
        self.heads = {path for path in scopes if is_head(recording, path)}
        self.own_heads = {path for path in self.heads if is_head(recording, path, fewer=False)}
        self.main = known.main - (self.own_heads - known.residual)

    def find(self) -> set[str]:
        """Paths of decoder blocks."""
        found, calls = set[str](), self.recording.first_calls
        for path, call in calls.items():
            for step in call.steps:
                if step.kind in ("cat", "add") and step.path not in self.other_joins:
                    found |= self._blocks_at(path, call, step)
        kinds = {path: type(self.recording.modules[path]) for path in found}
        inside = {path: [kinds[one] for one in found if one != path and covers({path}, one)] for path in found}
        # The decoder of a UNet++ joins maps for the blocks in it, which are several of one other class.
        found = {path for path in found if all(inside[path].count(one) < 2 for one in {*inside[path]} - {kinds[path]})}
        # Of one class, which contains itself, all levels are decoder blocks.
        found = {path for path in found if not covers({one for one in found if kinds[one] is not kinds[path]}, path)}
        alike = set()
        for path, call in calls.items():  # the last one often has no skip to join
            kind = (path.rpartition(".")[0], type(call.module))
            if path in found:
                alike.add(kind)
            elif kind in alike and kind[1] not in CONTAINERS and path not in self.own_heads:
                found |= {path for one in call.steps if upsamples(one) and not keeps_size(one)}
        return found

    def _blocks_at(self, path: str, call: Frame, join: Step) -> set[str]:
        """Decoder blocks that a join belongs to; none if its operands came to their size in the same way."""
        maps = [one for one in join.inputs if one.value is not None and not one.value.is_constant]
        origins = [1 if adds_upsampled(one) else was_upsampled(one, join.kind == "add") for one in maps]
        if len(set(origins)) < 2:
            return set()
        found = self._readers_of(join)
        is_one = path and len(call.outputs) == 1 and any(map(weight, call.steps))
        if is_one and _is_given_one(call, maps, origins) and path not in self.own_heads:
            found.add(path)
        rising = [one for one, origin in zip(maps, origins, strict=True) if origin == 1]
        found = found or {one.path for one in rising if one.kind == "block" and weight(one) > 1}
        return found or (set() if covers(self.main, path) else self._readers_of(join, least=1))

    def _readers_of(self, join: Step, depth: int = 0, least: int = 2) -> set[str]:
        """Blocks that read the join in the same forward, directly or after a convolution, a norm or an activation.

        Of other modules than main blocks, those of at least so many convolutions that return one map of that size.
        """
        found = set()
        for step in join.readers:
            source = passed_on(step)
            is_block = step.kind == "block" and keeps_size(step) and step.path not in self.heads
            if step.path in self.main or (is_block and weight(step) >= least):
                found.add(step.path)
            elif source or (depth < 2 and (step.kind in PASSING or is_convolution(step.kind))):
                found |= self._readers_of(step, depth + (not source), least)
        return found


def _is_given_one(call: Frame, joined: Sequence[Step], origins: Sequence[float]) -> bool:
    """A decoder block is given the earlier map, or finds it in an attribute; a whole network, perhaps in a wrapper,
    computes it from its image.
    """
    maps = [value for value in call.inputs if len(value.shape) > 2]
    rising = ancestors(*(one for one, origin in zip(joined, origins, strict=True) if origin == max(origins)))
    own = [*(ancestors(*joined) - rising), *joined, *(factor for step in joined for factor in _scaled(step))]
    sources = [source for step in own for source in step.inputs]
    found = [step.value for step in (*own, *sources) if step.kind == "outside"]  # as in fastai's U-Net
    return any(step.value in maps for step in own) or any(value and value.made != NEVER for value in found)


def _scaled(step: Step) -> list[Step]:
    """Operands of the product that a block returns: the map that attention scales."""
    steps = step.call.steps if step.call else []
    return [one for product in steps if product.kind == "mul" and product.value is step.value for one in product.inputs]
