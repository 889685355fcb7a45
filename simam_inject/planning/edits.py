"""Find the least invasive exact edit: the output of a module, the input of one, or one expression of a forward.

A hook needs a module that returns the value (or that alone reads it), and that runs once for each time the value is
computed. Where the value is one that a forward computes inside, the source has to show that the module always returns
or reads it, whatever flags, sizes and modes decide; otherwise the expression itself is wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from simam_inject.dataflow.kinds import module_kind
from simam_inject.dataflow.records import Site
from simam_inject.dataflow.sites import Dataflow
from simam_inject.dataflow.values import Frame, Value
from simam_inject.nested import Key
from simam_inject.planning.records import Edit, Input, Output, Rewritten
from simam_inject.source import Expression, always_passes, always_returns, find_expression, mentioned_by_forward

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_LISTS_CHILDREN = frozenset({"children", "named_children", "modules", "named_modules", "_modules"})
_NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm")
_FOLDS = ("reparameterize", "switch_to_deploy", "fuse_convs", "fuse", "get_equivalent_kernel_bias")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The edit for one value."""

    edit: Edit
    witness: str | None = None
    """Path of the norm that alone reads the value: folded into a convolution, it would be folded across SimAM."""
    expression: Expression | None = None
    """For `Rewritten`: where in the source."""
    note: str = ""


def resolve(flow: Dataflow, site: Site, reader: str | None) -> Resolved | str:
    """The edit that attends a site, for everyone who reads it or for one reader alone; a sentence if there is none."""
    value = flow.value(site.path)
    if value is None:
        return "its value could not be recorded in the example forward"
    found = _for_all(flow, site, value) if reader is None else _for_one(flow, site, value, reader)
    if isinstance(found, str):
        return found
    note = "; ".join(filter(None, [found.note, _note(flow, found.edit)]))
    return Resolved(found.edit, _witness(flow, value, found.edit), found.expression, note)


def _for_all(flow: Dataflow, site: Site, value: Value) -> Resolved | str:
    output = _output(flow, site, value)
    if isinstance(output, Output) and _is_always(flow, site, output):
        return Resolved(output)
    given = _input(flow, site, value, None)
    if isinstance(given, Input) and _is_always(flow, site, given):
        return Resolved(given)
    rewritten = _rewritten(flow, site, value)
    if isinstance(rewritten, Resolved):
        return rewritten
    for edit in (output, given):
        if not isinstance(edit, str):
            does = "returns" if isinstance(edit, Output) else "alone reads"
            note = f"{edit.module or 'the model'} {does} this value in the example; this may depend on the input"
            return Resolved(edit, note=note)
    return f"{output or given or 'no module returns it or alone reads it'}; {rewritten}{_nearest(flow, site)}"


def _is_always(flow: Dataflow, site: Site, edit: Output | Input) -> bool:
    """The hook meets the value of the site whatever the forward's Python decides: flags, modes and sizes change."""
    named = site.path.partition(":")[0]
    owner = flow.recording.modules.get(site.scope)
    if site.kind == "input" or (isinstance(edit, Output) and edit.module == named.partition("[")[0]):
        return True
    if isinstance(flow.recording.modules.get(named), _CONTAINERS) or isinstance(owner, _CONTAINERS):
        return True
    expression = _expression(flow, site.path)
    if owner is None or expression is None:
        return False
    if isinstance(edit, Output):
        return edit.module == site.scope and always_returns(type(owner), expression)
    call = _expression(flow, edit.module)
    return (
        call is not None
        and edit.module.rpartition(".")[0] == site.scope
        and always_passes(type(owner), expression, call)
    )


def _expression(flow: Dataflow, path: str) -> Expression | None:
    """Where in the source of its scope's forward the value at a path is computed."""
    node = flow.recording.nodes.get(path)
    source = None if node is None else node.meta.get("source")
    if node is None or source is None:
        return None
    found = find_expression(flow.recording.modules[node.meta["scope"]], *source)
    return None if isinstance(found, str) else found


def _for_one(flow: Dataflow, site: Site, value: Value, reader: str) -> Resolved | str:
    node = flow.recording.nodes.get(reader)
    frame: Frame | None = None if node is None else node.meta.get("frame")
    if frame is not None:
        given = _input(flow, flow.anatomy.site_by_path[reader], value, frame)
        if isinstance(given, Input):
            return Resolved(given)
        if not _is_read_by_others(value, frame.start, frame.end, flow):
            return _for_all(flow, site, value)
        return given or f"{reader} reads it more than once"
    ticks = [read.tick for read in value.reads if read.path == reader]
    if ticks and not _is_read_by_others(value, min(ticks), max(ticks), flow):
        return _for_all(flow, site, value)
    return (
        f"{reader} is an operation, and other operations read the same value: name a module, or use after"
        f"{_nearest(flow, site)}"
    )


def _is_read_by_others(value: Value, start: int, end: int, flow: Dataflow) -> bool:
    return value in flow.recording.results or any(not start <= read.tick <= end for read in value.reads)


# What a module returns


def _output(flow: Dataflow, site: Site, value: Value) -> Output | str:
    """The module whose output is attended: the one that is named, else the nearest block that returns the value."""
    named = site.path.partition(":")[0]
    returns = [(frame, keys) for frame, keys in value.returns if frame.end]
    exact = [entry for entry in returns if entry[0].path == named]
    blocks = [entry for entry in returns if entry[0].is_scope and entry[0].path]
    root = [entry for entry in returns if not entry[0].path]
    leaves = [entry for entry in returns if not entry[0].is_scope]
    if exact and isinstance(flow.recording.modules[named], _CONTAINERS):  # its last child that returns the tensor
        inside = [entry for entry in returns if entry[0].path.startswith(f"{named}.")]
        order = [*reversed(inside), *blocks, *root]
    else:
        order = [*exact, *blocks, *leaves, *root]
    reason = ""
    for frame, keys in order:
        problem = _why_no_output(flow, site, value, frame, keys)
        if problem is None:
            return Output(frame.path, keys[0] if keys else None)
        reason = reason or problem
    return reason


def _why_no_output(flow: Dataflow, site: Site, value: Value, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    name = frame.path or "the model"
    problem = _why_no_holder(flow, frame, keys)
    if problem is not None:
        return problem
    if value.made < frame.start:
        return f"{name} returns a tensor that it did not compute"
    if flow.recording.calls[frame.path] != site.runs:
        calls = flow.recording.calls[frame.path]
        return f"{name} runs {calls} times in one forward, and computes this value {site.runs} time(s)"
    if frame.path != site.path.partition(":")[0] and any(frame.spans(read.tick) for read in value.reads):
        return f"{name} reads it before returning it"  # where the module itself is named, what it returns is meant
    if [entry for entry in frame.outputs if entry[1] is value][1:]:
        return f"{name} returns it twice"
    return _why_not_replaced(flow, value, frame.end)


def _why_no_holder(flow: Dataflow, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    """Why a module cannot hold a SimAM as its child."""
    module = flow.recording.modules[frame.path]
    name = frame.path or "the model"
    if isinstance(module, _CONTAINERS):
        return f"{name} is a {type(module).__name__}, which runs all of its children"
    if isinstance(module, fx.GraphModule):
        return f"{name} is a torch.fx.GraphModule, whose copies lose its hooks"
    if lists_its_children(module):
        return f"{name} iterates over its children, and would run the SimAM as one of them"
    if len(keys) > 1:
        return f"it is nested {len(keys)} levels deep in what {name} takes or returns"
    return None


def lists_its_children(module: nn.Module) -> bool:
    """The module's own forward, or a method that it runs, asks for its children as a list."""
    return not _LISTS_CHILDREN.isdisjoint(mentioned_by_forward(type(module)))


def _why_not_replaced(flow: Dataflow, value: Value, tick: int) -> str | None:
    """Another tensor over the same memory is read after somebody wrote into that memory: it would miss the write."""
    if not value.storage:
        return None
    writes = [write for write in flow.recording.writes.get(value.storage, ()) if write > tick]
    if not writes:
        return None
    for other in flow.recording.by_storage[value.storage]:
        if other is not value and other.made <= tick and any(read.tick > min(writes) for read in other.reads):
            return "it shares memory with a tensor that is read after an in-place operation modified it"
    return None


# What one module reads


def _input(flow: Dataflow, site: Site, value: Value, reader: Frame | None) -> Input | str:
    """The outermost module that alone reads the value (or through which `reader` does)."""
    reason = ""
    reads = value.reads
    if reader is None and value in flow.recording.results:
        return "the model returns it"
    for frame, name, keys in sorted(value.arguments, key=lambda entry: entry[0].start):
        if not frame.path or value.made >= frame.start:
            continue
        if reader is not None:
            related = frame is reader or (frame.start < reader.start <= frame.end) or reader.spans(frame.start)
            inside = [read for read in reads if frame.spans(read.tick)]
            wanted = [read for read in reads if reader.spans(read.tick)]
            if not related or inside != wanted:
                continue
        elif not reads or not all(frame.spans(read.tick) for read in reads):
            continue
        problem = _why_no_input(flow, site, value, frame, keys)
        if problem is None:
            return Input(frame.path, name, keys[0] if keys else None)
        reason = reason or problem
    return reason


def _why_no_input(flow: Dataflow, site: Site, value: Value, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    problem = _why_no_holder(flow, frame, keys)
    if problem is not None:
        return problem
    if sum(one is frame for one, _, _ in value.arguments) > 1:
        return f"{frame.path} receives it more than once in one call"
    if flow.recording.calls[frame.path] != site.runs:
        calls = flow.recording.calls[frame.path]
        return f"{frame.path} runs {calls} times in one forward, and this value is computed {site.runs} time(s)"
    if value in [one for _, one in frame.outputs]:
        return f"{frame.path} returns it"
    writes = [write for write in flow.recording.writes.get(value.storage, ()) if write >= frame.start]
    for other in flow.recording.by_storage.get(value.storage, ()):
        outside = [read.tick for read in other.reads if not frame.spans(read.tick)]
        if writes and any(tick > min(writes) for tick in outside):
            return "an in-place operation modifies it while other operations still read it"
    return None


# One expression of a forward


def _rewritten(flow: Dataflow, site: Site, value: Value) -> Resolved | str:
    node = flow.recording.nodes.get(site.path)
    if node is None or "source" not in node.meta or "value" not in node.meta:
        is_entry = ":" in site.path
        return "it is one of several tensors that one call returns" if is_entry else "no operation computes it"
    source = node.meta["source"]
    if source is None:
        return "the operation that computes it is not in a method of the module"
    same = [other for other in node.graph.nodes if other.meta.get("source") == source]
    if len(same) > 1 or site.runs > flow.recording.calls[site.scope]:
        return "it is computed in a loop, or together with other operations"
    owner = flow.recording.modules[site.scope]
    if isinstance(owner, _CONTAINERS) or lists_its_children(owner):
        return f"{site.scope or 'the model'} iterates over its children"
    if isinstance(owner, fx.GraphModule):
        return f"{site.scope or 'the model'} is a torch.fx.GraphModule, whose code is made anew in each copy"
    expression = find_expression(owner, *source)
    if isinstance(expression, str):
        return expression
    problem = _why_not_replaced(flow, value, value.made)
    if problem is not None:
        return problem
    name = site.path[len(site.scope) + 1 :] if site.scope else site.path
    return Resolved(Rewritten(site.scope, name), expression=expression)


# What else a plan says


def _witness(flow: Dataflow, value: Value, edit: Edit) -> str | None:
    """The norm that alone reads the attended value."""
    readers = {read.path for read in value.reads}
    if len(readers) != 1 or isinstance(edit, Rewritten):
        return None
    node = flow.recording.nodes.get(readers.pop())
    frame: Frame | None = None if node is None else node.meta.get("frame")
    if frame is None or frame.path == edit.module or module_kind(frame.module) not in _NORMS:
        return None
    return frame.path if isinstance(frame.module, _FOLDABLE) else None


_FOLDABLE = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _note(flow: Dataflow, edit: Edit) -> str:
    """What folding weights will make impossible."""
    holder = edit.owner if isinstance(edit, Rewritten) else edit.module
    path = holder.rpartition(".")[0] if isinstance(edit, Output) else holder
    while path:
        module = flow.recording.modules[path]
        fold = next((name for name in _FOLDS if callable(getattr(type(module), name, None))), None)
        if fold is not None and not isinstance(module, _CONTAINERS):
            return (
                f"{path}.{fold}() would remove this SimAM, and the next forward would raise; the output of {path} "
                "survives it"
            )
        path = path.rpartition(".")[0]
    return ""


def _nearest(flow: Dataflow, site: Site) -> str:
    """Advice: the nearest module whose output can be attended."""
    path = site.scope
    while path:
        block = flow.anatomy.site_by_path.get(path)
        if (
            block is not None
            and block.obstacle is None
            and not isinstance(flow.recording.modules.get(path), _CONTAINERS)
        ):
            return f". The output of {path} can be used instead"
        path = path.rpartition(".")[0]
    return ""


__all__ = ["Resolved", "lists_its_children", "resolve"]
