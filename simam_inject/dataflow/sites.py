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
from simam_inject.dataflow.values import Frame, Recording, Value, keyed
from simam_inject.nested import Key

_NOT_BASES = frozenset({"Module", "object"})
UNUSED = "its output is never used"


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
    """Reads every fact that a rule can ask about off the recordings."""

    def __init__(
        self, model: nn.Module, example: Example, base: Recording, batch: Recording | None, size: Recording | None
    ) -> None:
        self.model = model
        self.example = example
        self.base = base
        self.batch = batch
        self.size = size
        self.length = _input_length(base, example)
        self.sites: dict[str, Site] = {}

    def survey(self) -> Dataflow:
        """All sites, in the order of execution."""
        for path, node in self.base.nodes.items():
            self._enter_node(path, node)
        for path, module in self.model.named_modules():
            if path not in self.sites and not _is_mere_container(module):
                self._enter_module(path, module)
        order = {path: place for place, path in enumerate(self.base.order)}
        self._enter_readers()
        structure = find_structure(self.base, self.sites)
        sites = []
        for path, site in self.sites.items():
            words = [word for word in ("residual", "main", "decoder") if path in getattr(structure, word)]
            if site.kind != "block":
                words = []
            sites.append(
                replace(
                    site,
                    joins=structure.joins.get(path),
                    structure=tuple(words),
                    on_skip=covers(structure.on_skip, path),
                    in_gate=covers(structure.in_gate, path),
                )
            )
        sites.sort(key=lambda site: (site.runs == 0, order.get(site.path, math.inf)))
        shapes = tuple(tuple(tensor.shape) for tensor in self.example.tensors)
        return Dataflow(Anatomy(tuple(sites), shapes, self._opaque()), self.base, self.example)

    def _opaque(self) -> dict[str, str]:
        return {
            path: f"it {_SCRIPTED}"
            for path, module in self.model.named_modules()
            if isinstance(module, torch.jit.ScriptModule)
        }

    def _enter_node(self, path: str, node: fx.Node) -> None:
        kind = node.meta.get("kind", node.meta["entry_of"].meta["kind"] if "entry_of" in node.meta else "")
        frame: Frame | None = node.meta.get("frame") or (
            node.meta["entry_of"].meta.get("frame") if "entry_of" in node.meta else None
        )
        is_entry = "entry_of" in node.meta
        module = self.base.modules[frame.path] if frame is not None else None
        facts: dict[str, Any] = dict(node.meta.get("facts", {}))
        if module is not None and not is_entry:
            facts |= _module_facts(module)
        if module is not None and is_entry:
            facts |= {"class_name": None}
        operands = self._operands(node)
        reads = dict.fromkeys(origin for value in self._inputs(node) for origin in _origins(value))
        value: Value | None = node.meta.get("value")
        if value is None and len(node.meta.get("values", ())) == 1 and node.meta["values"][0][0] == ():
            value = node.meta["values"][0][1]
        facts |= self._facts(path, value, node.meta.get("values", ()))
        if kind == "block":
            returned = [value for _, value in node.meta.get("values", ())] or ([value] if value else [])
            reads = dict.fromkeys(origin for one in returned for origin in _origins(one))
        if kind != "input" and "obstacle" not in facts and value is not None:
            returned_at = frame.end if frame is not None else value.made
            if not self._is_used(value, returned_at):
                facts["obstacle"] = UNUSED
        self.sites[path] = Site(
            path=path,
            scope=node.meta["scope"],
            kind=kind,
            operands=operands,
            reads=tuple(reads),
            runs=self.base.runs[path],
            **facts,
        )

    def _is_used(self, value: Value, tick: int) -> bool:
        """An operation reads it after a tick, or the model returns it; being an argument or an entry does not count."""
        if any(read.tick > tick for read in value.reads) or value in self.base.results:
            return True
        aliases = (one for one in self.base.by_storage.get(value.storage, ()) if one.kind == "alias")
        return any(self._is_used(alias, tick) for alias in aliases if value in alias.inputs)

    def _operands(self, node: fx.Node) -> tuple[str, ...]:
        """Paths of the tensors that a node reads; for an entry of a list, those that the list was made from."""
        if "entry_of" in node.meta:
            return self._operands(node.meta["entry_of"])
        found: dict[str, None] = {}
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                continue
            path = source.meta.get("path")
            if path is not None:
                found[path] = None
        return tuple(found)

    def _inputs(self, node: fx.Node) -> list[Value]:
        if "entry_of" in node.meta:
            return self._inputs(node.meta["entry_of"])
        return [
            source.meta["value"]
            for source in node.all_input_nodes
            if "value" in source.meta and source.op != "get_attr"
        ]

    def _enter_module(self, path: str, module: nn.Module) -> None:
        """A module that no graph calls: the root, one that was never called, or one inside a scripted module."""
        scope = path.rpartition(".")[0]
        calls = self.base.calls[path]
        is_block = any(True for _ in module.children())
        obstacle = "never ran in the example forward"
        if isinstance(module, torch.jit.ScriptModule):
            obstacle = _SCRIPTED
        elif type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule):
            obstacle = f"the __call__ of {type(module).__name__} runs no hooks, so what it returns is not seen"
        facts: dict[str, Any] = {"obstacle": obstacle}
        reads: tuple[str, ...] = ()
        if calls:
            frame = self.base.first_calls[path]
            value = frame.outputs[0][1] if len(frame.outputs) == 1 and frame.outputs[0][0] == () else None
            facts = self._facts(path, value, frame.outputs)
            reads = tuple(dict.fromkeys(origin for _, one in frame.outputs for origin in _origins(one)))
            self._enter_entries(path, frame, scope)
        self.sites[path] = Site(
            path=path,
            scope=scope,
            kind="block" if is_block else module_kind(module),
            reads=reads,
            runs=calls,
            **facts,
            **_module_facts(module),
        )

    def _enter_entries(self, path: str, frame: Frame, scope: str) -> None:
        for keys, value in frame.outputs:
            if keys:
                at = keyed(path, keys)
                facts = self._facts(at, value, ())
                self.sites.setdefault(
                    at,
                    Site(path=at, scope=scope, kind="block", reads=_origins(value), runs=self.base.runs[at], **facts),
                )

    def _facts(self, path: str, value: Value | None, values: Any) -> dict[str, Any]:
        """Shape facts of a value and, where SimAM cannot be applied to it, the obstacle."""
        if value is None:
            inside: list[tuple[tuple[Key, ...], Value]] = [(keys, one) for keys, one in values if keys]
            maps = tuple(keyed(path, keys) for keys, one in inside if len(keys) == 1 and 3 <= len(one.shape) <= 5)
            count = "one tensor" if len(inside) == 1 else f"{len(inside)} tensors"
            return {"maps": maps, "obstacle": f"returns {count} in a list, tuple or dict; name one, e.g. {maps[0]}"
                    if maps else f"returns {count} in a list, tuple or dict, not a feature map"}  # fmt: skip
        shape, dtype = value.shape, str(value.dtype).removeprefix("torch.")
        facts: dict[str, Any] = {"shape": shape, "dtype": dtype}
        if not value.dtype.is_floating_point:
            return facts | {"obstacle": f"contains {dtype}, not floating-point numbers"}
        if not 3 <= len(shape) <= 5:
            return facts | {"obstacle": f"is not a feature map: its shape is {shape}"}
        axes = find_axes(
            shape,
            value.layout,
            self._other(self.batch, path),
            self._other(self.size, path),
            fixed_size=self.size is None,
        )
        if axes.obstacle is not None:
            return facts | {"obstacle": axes.obstacle}
        spatial = shape[2:] if axes.channel_dim == 1 else shape[1:-1]
        return facts | {
            "channel_dim": axes.channel_dim,
            "axes": axes.name,
            "axes_measured": axes.measured,
            "reduction": _reduction(self.length, spatial),
        }

    def _other(self, recording: Recording | None, path: str) -> tuple[int, ...] | None:
        value = None if recording is None else recording.values.get(path)
        return None if value is None else value.shape

    def _enter_readers(self) -> None:
        readers: defaultdict[str, list[str]] = defaultdict(list)
        for site in self.sites.values():
            if site.kind not in ("block", "input") and ":" not in site.path:
                for read in site.reads:
                    readers[read].append(site.path)
        for path, site in self.sites.items():
            if readers[path]:
                self.sites[path] = replace(site, readers=tuple(readers[path]))


_SCRIPTED = "is a torch.jit.ScriptModule, whose operations cannot be recorded"


def _origins(value: Value) -> tuple[str, ...]:
    """Paths of the operations that computed a value, across block borders and operations that pass their input on."""
    found: dict[str, None] = {}
    waiting, seen = [value], set()
    while waiting:
        step = waiting.pop(0)
        if id(step) in seen:
            continue
        seen.add(id(step))
        if step.inputs and (step.kind in TRANSPARENT or step.kind == "alias"):
            waiting = [*step.inputs, *waiting]
        elif step.path is not None:
            found[step.path.partition(":")[0] if step.kind != "input" else step.path] = None
    return tuple(found)


def _is_mere_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict)) and type(module).forward is nn.Module.forward


def _module_facts(module: nn.Module) -> dict[str, Any]:
    names = tuple(base.__name__ for base in type(module).__mro__ if base.__name__ not in _NOT_BASES)
    return {"class_name": names[0] if names else type(module).__name__, "bases": names, **conv_facts(module)}


def _input_length(recording: Recording, example: Example) -> int:
    """Length of the last spatial dimension of what the first convolution reads: the input as the network sees it."""
    for path, module in recording.modules.items():
        if recording.calls[path] and module_kind(module).startswith("conv"):
            frame = min(
                (
                    recording.first_calls[p]
                    for p, m in recording.modules.items()
                    if recording.calls[p] and module_kind(m).startswith("conv")
                ),
                key=lambda frame: frame.start,
            )
            if frame.inputs and len(frame.inputs[0].shape) > 2:
                return int(frame.inputs[0].shape[-1])
            break
    return max((tensor.shape[-1] for tensor in example.tensors if tensor.dim() > 2), default=0)


def _reduction(base: int, spatial: tuple[int, ...]) -> int | None:
    if not spatial or not spatial[-1] or not base:
        return None
    return int(2 ** max(0, round(math.log2(base / spatial[-1]))))
