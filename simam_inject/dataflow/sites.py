"""From recordings to `Site` facts: one for every value of every scope, one for every module that returns something."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from simam_inject.dataflow.axes import find_axes
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.kinds import TRANSPARENT, conv_facts, module_kind
from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.dataflow.structure import covers, find_structure
from simam_inject.dataflow.values import Entries, Frame, Recording, Shape, Value, keyed
from simam_inject.modules import runs_hooks

_NOT_BASES = frozenset({"Module", "object"})
UNUSED = "its output is never used"
_IN_PLACE = (
    "it modifies a tensor in place, and its result is not read under its own name; use `before` with an operation that "
    "reads that tensor"
)
_SCRIPTED = "is a torch.jit.ScriptModule, whose operations cannot be recorded"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dataflow:
    """One recorded model: the facts for rules, and the values for the planner."""

    anatomy: Anatomy
    recording: Recording
    example: Example

    def value(self, path: str) -> Value | None:
        """The tensor at a site's path."""
        return self.recording.values.get(path)


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
        self.batch = batch
        self.size = size
        self.length = _input_length(base, example)

    def survey(self) -> Dataflow:
        """All sites, in the order of execution."""
        sites = {path: self._node(path, node) for path, node in self.base.nodes.items()}
        opaque = {}
        for path, module in self.model.named_modules():
            if path not in sites and not _is_mere_container(module):
                sites |= self._module(path, module)
            if isinstance(module, torch.jit.ScriptModule):
                opaque[path] = f"it {_SCRIPTED}"
        for path, facts in self._relations(sites).items():
            if any(facts.values()):
                sites[path] = replace(sites[path], **facts)
        order = {path: place for place, path in enumerate(self.base.runs)}
        found = sorted(sites.values(), key=lambda site: (site.runs == 0, order.get(site.path, math.inf)))
        shapes = tuple(tuple(tensor.shape) for tensor in self.example.tensors)
        return Dataflow(Anatomy(tuple(found), shapes, opaque), self.base, self.example)

    def _relations(self, sites: dict[str, Site]) -> dict[str, dict[str, Any]]:
        """What sites are to each other: readers, residual joins, places in the structure."""
        readers: defaultdict[str, list[str]] = defaultdict(list)
        for site in sites.values():
            if site.kind not in ("block", "input") and ":" not in site.path:
                for read in site.reads:
                    readers[read].append(site.path)
        structure = find_structure(self.base, sites)
        named = [(word, getattr(structure, word)) for word in ("residual", "main", "decoder")]
        return {
            path: {
                "readers": tuple(readers[path]) if path in readers else (),
                "joins": structure.joins.get(path),
                "structure": tuple(word for word, paths in named if path in paths and site.kind == "block"),
                "on_skip": covers(structure.on_skip, path),
                "in_gate": covers(structure.in_gate, path),
            }
            for path, site in sites.items()
        }

    def _node(self, path: str, node: fx.Node) -> Site:
        """What a module is given, an operation computes, or a module returns to its caller; or one entry of these."""
        whole: fx.Node = node.meta.get("entry_of", node)
        kind: str = whole.meta["kind"]
        frame: Frame | None = whole.meta.get("frame")
        value: Value | None = node.meta.get("value")
        facts = {**node.meta.get("facts", {}), **self._facts(path, value, node.meta.get("values", []))}
        if frame is not None and whole is node:
            facts |= _module_facts(frame.module)
        known = [source for source in whole.all_input_nodes if source.op != "get_attr"]
        read = [source.meta["value"] for source in known if "value" in source.meta]
        if kind == "block":
            read = [value] if value is not None else [one for _, one in node.meta["values"]]
        if value is not None and kind != "input" and "obstacle" not in facts:
            returned = value.made if frame is None else frame.end
            if not self._is_used(value, returned):
                is_in_place = value.made in self.base.writes.get(value.storage, ())
                facts |= {"obstacle": _IN_PLACE if is_in_place else UNUSED}
        return Site(
            path=path,
            scope=node.meta["scope"],
            kind=kind,
            operands=tuple(dict.fromkeys(source.meta["path"] for source in known if "path" in source.meta)),
            reads=_origins(read),
            runs=self.base.runs[path],
            **facts,
        )

    def _is_used(self, value: Value, tick: int) -> bool:
        """An operation reads it after a tick, or the model returns it; being an argument or an entry does not count."""
        if any(read.tick > tick for read in value.readings) or value in self.base.results:
            return True
        aliases = (one for one in self.base.by_storage.get(value.storage, ()) if one.kind == "alias")
        return any(self._is_used(alias, tick) for alias in aliases if value in alias.inputs)

    def _module(self, path: str, module: nn.Module) -> dict[str, Site]:
        """A module that no graph calls: the root, one that was never called, or one inside a scripted module."""
        frame = self.base.first_calls.get(path)
        outputs = [] if frame is None else frame.outputs
        whole = outputs[0][1] if len(outputs) == 1 and outputs[0][0] == () else None
        if frame is not None:
            facts = self._facts(path, whole, outputs)
        elif isinstance(module, torch.jit.ScriptModule):
            facts = {"obstacle": _SCRIPTED}
        elif not runs_hooks(module):
            facts = {
                "obstacle": f"the __call__ of {type(module).__name__} runs no hooks, so what it returns is not seen"
            }
        else:
            facts = {"obstacle": "never ran in the example forward"}
        kind = "block" if any(True for _ in module.children()) else module_kind(module)
        facts |= _module_facts(module)
        found = {path: (kind, [value for _, value in outputs], facts, self.base.calls[path])}
        for keys, value in outputs:
            if keys:
                at = keyed(path, keys)
                found[at] = ("block", [value], self._facts(at, value, []), self.base.runs[at])
        scope = path.rpartition(".")[0]
        return {
            at: Site(path=at, scope=scope, kind=kind, reads=_origins(values), runs=runs, **facts)
            for at, (kind, values, facts, runs) in found.items()
        }

    def _facts(self, path: str, value: Value | None, entries: Entries) -> dict[str, Any]:
        """Shape facts of a value and, where SimAM cannot be applied to it, the obstacle."""
        if value is None:
            return _facts_of_several(path, entries)
        shape, dtype = value.shape, str(value.dtype).removeprefix("torch.")
        facts: dict[str, Any] = {"shape": shape, "dtype": dtype}
        if not value.dtype.is_floating_point:
            return facts | {"obstacle": f"contains {dtype}, not floating-point numbers"}
        if not 3 <= len(shape) <= 5:
            return facts | {"obstacle": f"is not a feature map: its shape is {shape}"}
        size = {} if self.size is None else self.size
        axes = find_axes(shape, value.layout, self.batch.get(path), size.get(path), fixed_size=self.size is None)
        if isinstance(axes, str):
            return facts | {"obstacle": axes}
        last = shape[-1] if axes.channel_dim == 1 else shape[-2]
        return facts | {
            "channel_dim": axes.channel_dim,
            "axes": axes.name,
            "axes_measured": axes.measured,
            "reduction": 2 ** max(0, round(math.log2(self.length / last))) if last and self.length else None,
        }


def _facts_of_several(path: str, entries: Entries) -> dict[str, Any]:
    inside = [(keys, value) for keys, value in entries if keys]
    maps = tuple(keyed(path, keys) for keys, value in inside if len(keys) == 1 and 3 <= len(value.shape) <= 5)
    count = "one tensor" if len(inside) == 1 else f"{len(inside)} tensors"
    advice = f"; name one, e.g. {maps[0]}" if maps else ", not a feature map"
    return {"maps": maps, "obstacle": f"returns {count} in a list, tuple or dict{advice}"}


def _origins(values: list[Value]) -> tuple[str, ...]:
    """Paths of the operations that computed values, across block borders and operations that pass their input on."""
    found: dict[str, None] = {}
    waiting, seen = list(values), set()
    while waiting:
        step = waiting.pop(0)
        if id(step) in seen:
            continue
        seen.add(id(step))
        if step.inputs and (step.kind in TRANSPARENT or step.kind == "alias"):
            waiting = [*step.inputs, *waiting]
        elif step.path is not None:
            found[step.path.partition(":")[0]] = None
    return tuple(found)


def _is_mere_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) and type(module).forward is nn.Module.forward


def _module_facts(module: nn.Module) -> dict[str, Any]:
    names = tuple(base.__name__ for base in type(module).__mro__ if base.__name__ not in _NOT_BASES)
    return {"class_name": names[0] if names else type(module).__name__, "bases": names, **conv_facts(module)}


def _input_length(recording: Recording, example: Example) -> int:
    """Length of the last spatial dimension of what the first convolution reads: the input as the network sees it."""
    for frame in recording.first_calls.values():
        if module_kind(frame.module).startswith("conv"):
            if frame.inputs and len(frame.inputs[0].shape) > 2:
                return int(frame.inputs[0].shape[-1])
            break
    return max((tensor.shape[-1] for tensor in example.tensors if tensor.dim() > 2), default=0)
