"""From recordings to `Site` facts: one for every value of every scope, one for every module that returns something."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.anatomy import SCRIPTED, Anatomy, Site
from simam_inject.dataflow.axes import find_axes
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.module_kinds import conv_facts, module_kind
from simam_inject.dataflow.recorder import storage_of
from simam_inject.dataflow.structure import find_structure
from simam_inject.dataflow.values import NEVER, Read, Recording, Shape, Step, Value, covers, keyed
from simam_inject.kinds import TRANSPARENT, is_convolution
from simam_inject.modules import called_modules, has_children, own_calls, runs_hooks
from simam_inject.source import returns_the_same

_NOT_BASES = frozenset({"Module", "object"})
_LISTS = (nn.ModuleList, nn.ModuleDict)
UNUSED = "its output is never used by an operation that is recorded"
_NO_EFFECT = "no output of the model depends on it through operations that are recorded"
_IN_PLACE = (
    "it modifies a tensor in place, and its result is not read under its own name; use `before` with an operation that "
    "reads that tensor"
)
_REWORKED = (
    "hooks see only what its forward returns, and the __call__ of {} may return another tensor: in plain code, let it "
    "only return the result of `super().__call__(...)`, perhaps after `.contiguous()`, `.float()` or `.to(...)`"
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dataflow:
    """One recorded model: the facts for rules, and the values for the planner."""

    anatomy: Anatomy
    recording: Recording
    example: Example


class Surveyor:
    """Reads every fact that a rule can ask about off a recording.

    Args:
        model: the twin that was recorded.
        example: what it was run on.
        base: what it did.
        batch: shapes of its values for more samples; empty where it takes no more.
        size: shapes of its values for a larger image; None where it takes one size only.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        base: Recording,
        batch: dict[str, Shape],
        size: dict[str, Shape] | None,
    ) -> None:
        self.model = model
        self.example = example
        self.base = base
        is_larger = any(
            step.value and step.value.shape != batch.get(at, step.value.shape) for at, step in base.steps.items()
        )
        self.batch = batch if is_larger else {}
        self.size = size
        self.samples = None if self.batch else example.samples
        self.image = _input_size(base, example)
        self.live = _live_storages(base)

    def survey(self) -> Dataflow:
        """All sites, in the order of execution; those that never ran come last."""
        sites = {path: self._site(step) for path, step in self.base.steps.items()}
        names = dict[str, str]()
        """Paths of calls, and those of their modules where these have another one."""
        for path, module in called_modules(self.model):
            step = None if path in sites else self._step_of_call(path)
            if step is not None:
                names[step.path], self.base.steps[path] = path, step
            elif path not in sites and not (isinstance(module, _LISTS) and type(module).forward is nn.Module.forward):
                sites[path] = self._outside_of_steps(path, module)
        self._relate(sites)
        found = []
        for site in sorted(sites.values(), key=lambda site: site.runs == 0):
            found.append(site)
            if site.path in names:
                found.append(replace(site, path=names[site.path], kind="module", reads=(site.path,), joins=None))
        shapes = tuple(tuple(tensor.shape) for tensor in self.example.tensors)
        return Dataflow(Anatomy(tuple(found), shapes), self.base, self.example)

    def _relate(self, sites: dict[str, Site]) -> None:
        """Fill in what sites are to each other: readers, residual joins, places in the structure."""
        readers = defaultdict[str, list[str]](list)
        for path, step in self.base.steps.items():
            if path in sites and step.kind not in ("block", "input", "entry"):
                for origin in _origins([source.value for source in step.inputs], looked_through=frozenset()):
                    readers[origin].append(path)
        structure = find_structure(self.base, sites)
        named = [(word, getattr(structure, word)) for word in ("residual", "main", "decoder")]
        for path, site in sites.items():
            sites[path] = replace(
                site,
                readers=tuple(readers[path]),
                joins=structure.joins.get(path),
                on_skip=covers(structure.on_skip, path),
                obstacle=site.obstacle or self._why_unused(self.base.steps.get(path)),
                in_gate=covers(structure.in_gate, path),
                structure=tuple(word for word, paths in named if path in paths) if site.kind == "block" else (),
            )

    def _site(self, step: Step) -> Site:
        """What a module is given, an operation computes, or a module returns to its caller; or one entry of these."""
        whole = step.whole
        value, call = step.value, whole.call
        facts = _facts_of_several(step) if value is None else self._facts(step.path, value)
        facts = {**step.facts, **facts, **({} if step.call is None else _module_facts(step.call.module))}
        if call is not None and value is not None and not all(map(returns_the_same, own_calls(call.module))):
            facts = {"obstacle": _REWORKED.format(type(call.module).__name__)} | facts
        known = [source for source in whole.inputs if source.kind != "outside"]
        read = [source.value for source in known]
        if call is not None and call.is_scope:  # what is written in place before the block returns it is another value
            writes, returned = self.base.writes, [one for _, one in step.values]
            read = [one for one in returned if not any(one.made < t < call.end for t in writes.get(one.storage, ()))]
        if whole.kind == "input":
            read = [value]
        if step.varies:
            facts["reduction"] = None
        return Site(
            path=step.path,
            scope=step.path.rpartition(".")[0] if step.frame is None else step.frame.path,
            kind=whole.kind,
            operands=tuple(dict.fromkeys(source.path for source in known)),
            reads=_origins(read),
            runs=step.runs,
            **facts,
        )

    def _why_unused(self, step: Step | None) -> str | None:
        if step is None or step.value is None or step.frame is None:
            return None
        if step.whole.kind == "input":
            return None
        is_live = any(one.storage in self.live for each in (step, *step.later) for _, one in each.values)
        if any(map(self._is_used, (step, *step.later))):
            return None if is_live else _NO_EFFECT
        is_in_place = step.value.made in self.base.writes.get(step.value.storage, ())
        return _IN_PLACE if is_in_place and is_live else UNUSED

    def _is_used(self, step: Step) -> bool:
        """An operation reads it later, or the model returns it; being an argument or an entry does not count."""
        value, call = step.value, step.whole.call
        if value is None:
            return False
        same, tick = self.base.same_tensor(value), value.made if call is None else call.end
        return any(one in self.base.results or any(read.tick > tick for read in one.readings) for one in same)

    def _step_of_call(self, path: str) -> Step | None:
        """The step of a module's first call where it has another path: in a Sequential that holds the module too."""
        frame = self.base.first_calls.get(path)
        steps = [] if frame is None or frame.parent is None else frame.parent.steps
        return next((step for step in steps if step.call is frame and step.kind != "entry"), None)

    def _outside_of_steps(self, path: str, module: nn.Module) -> Site:
        """The site of a module whose path no step has: it never ran, or a leaf called it."""
        frame = self.base.first_calls.get(path)
        kind = "block" if has_children(module) else module_kind(module)
        obstacle = _why_not_seen(module)
        if frame is not None and frame.parent is not None:
            obstacle = f"is called by {frame.parent.path}, a module without children, whose inside is not recorded"
        runs, scope = self.base.calls[path], path.rpartition(".")[0]
        return Site(path=path, scope=scope, kind=kind, runs=runs, obstacle=obstacle, **_module_facts(module))

    def _facts(self, path: str, value: Value) -> dict[str, Any]:
        """Shape facts of a value and, where SimAM cannot be applied to it, the obstacle."""
        shape, dtype = value.shape, str(value.dtype).removeprefix("torch.")
        facts: dict[str, Any] = {"shape": shape, "dtype": dtype}
        if not value.dtype.is_floating_point:
            return facts | {"obstacle": f"contains {dtype}, not floating-point numbers"}
        if not 3 <= len(shape) <= 5:
            return facts | {"obstacle": f"is not a feature map: its shape is {shape}"}
        size = {} if self.size is None else self.size
        batch = self.batch.get(path)
        axes = find_axes(value, batch, size.get(path), fixed_size=self.size is None, samples=self.samples)
        if "obstacle" not in axes:
            facts["reduction"] = _reduction(self.image, shape[2:] if axes["channel_dim"] == 1 else shape[1:-1])
        return facts | axes


def _live_storages(recording: Recording) -> Set[int]:
    """Memory on whose content a result depends; all memory if the forward reads a tensor of unknown origin."""
    sources, live = defaultdict[int, set[int]](set), {0}
    model, given = recording.modules[""], recording.first_calls[""].inputs
    written = defaultdict[int, list[int]](list)
    for storage, ticks in recording.writes.items():
        for tick in ticks:
            written[tick].append(storage)
    # Reads of parameters and buffers are not recorded.
    live |= {storage_of(tensor) for tensor in chain(model.parameters(), model.buffers())}
    for storage, values in recording.by_storage.items():
        for value in values:
            is_unknown = value.origin is None and value.alias_of is None and (value.made == NEVER or value.returns)
            if is_unknown and storage not in (one.storage for one in given):
                return recording.by_storage.keys() | {0}
            computed = [_computed_by(recording, read, written) for read in value.readings]
            if value in recording.results or [] in computed:
                live.add(storage)
            for made in chain.from_iterable(computed):
                sources[made].add(storage)
    waiting = [*live]
    while waiting:
        found = sources[waiting.pop()] - live
        live |= found
        waiting += found
    return live


def _computed_by(recording: Recording, read: Read, written: Mapping[int, list[int]]) -> list[int]:
    """Memory of what the reader computes, and what it writes into; `written` is `Recording.writes` by time."""
    first = recording.steps.get(read.path)
    steps = [first, *first.later] if first else []
    ticks = chain([read.tick], *(range(step.call.start, step.call.end + 1) for step in steps if step.call))
    found = [value.storage for step in steps for _, value in step.values]
    return [*found, *(storage for tick in ticks for storage in written.get(tick, ()))] if found else []


def _why_not_seen(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return SCRIPTED
    if not runs_hooks(module):
        return f"the __call__ of {type(module).__name__} runs no hooks, so what it returns is not seen"
    return "never ran in the example forward"


def _facts_of_several(step: Step) -> dict[str, Any]:
    inside = [(keys, value) for keys, value in step.values if keys]
    found = [(keyed(step.path, keys), len(keys)) for keys, value in inside if 3 <= len(value.shape) <= 5]
    maps = tuple(path for path, depth in found if depth == 1)
    nested = tuple(path for path, depth in found if depth > 1)
    count = "one tensor" if len(inside) == 1 else f"{len(inside)} tensors" if inside else "no tensor, and none"
    advice = f"; name one, e.g. {(maps + nested)[0]}" if found else ", not a feature map" if inside else ""
    return {"maps": maps, "nested_maps": nested, "obstacle": f"returns {count} in a list, tuple or dict{advice}"}


def _origins(values: Sequence[Value | None], looked_through: Set[str] = TRANSPARENT) -> tuple[str, ...]:
    """Paths of the operations that computed values, across block borders and operations of these kinds."""
    found: dict[str, None] = {}
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop(0)
        if value is None or value in seen:
            continue
        seen.add(value)
        origin = value.origin
        if origin is None:
            waiting.insert(0, value.alias_of)
        elif origin.inputs and origin.kind in looked_through:
            waiting.insert(0, origin.inputs[0].value)
        else:
            found[origin.path] = None
    return tuple(found)


def _module_facts(module: nn.Module) -> dict[str, Any]:
    names = tuple(base.__name__ for base in type(module).__mro__ if base.__name__ not in _NOT_BASES)
    if isinstance(module, torch.jit.ScriptModule):  # made from a class whose name it keeps
        names = (module.original_name, *names)
    return {"class_name": names[0] if names else type(module).__name__, "bases": names, **conv_facts(module)}


def _reduction(image: Shape, spatial: Shape) -> int | None:
    """Of the last dimension, or of the area (volume) for tokens of an image; as a power of two."""
    if not math.prod(image) or not spatial[-1]:
        return None
    is_tokens = len(spatial) == 1 < len(image)
    ratio = (math.prod(image) / spatial[0]) ** (1 / len(image)) if is_tokens else image[-1] / spatial[-1]
    return int(2 ** max(0, round(math.log2(ratio))))


def _input_size(recording: Recording, example: Example) -> Shape:
    """Spatial size of the input as the network sees it, of which detectors resize the image: what the first convolution
    reads; before a space-to-depth, which makes more channels of the same numbers, that of the image.
    """
    images = [tensor for tensor in example.tensors if tensor.dim() > 2]
    for frame in recording.first_calls.values():
        if not has_children(frame.module) and is_convolution(module_kind(frame.module)):
            read = frame.inputs[0].shape if frame.inputs else ()
            if len(read) < 3:
                break
            alike = [one.shape for one in images if one.dim() == len(read) > 3 and one.numel() == math.prod(read) > 0]
            scales = ((shape, {(a % b, a // b) for a, b in zip(shape[2:], read[2:], strict=True)}) for shape in alike)
            whole = (shape for shape, found in scales if len(found) == 1 and not max(found)[0])
            return next(whole, read)[2:]
    return max((tuple(image.shape[2:]) for image in images), key=lambda size: size[-1], default=(0,))
