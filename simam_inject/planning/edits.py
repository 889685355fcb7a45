"""Find the least invasive exact edit: the output of a module, the input of one, or one expression of a forward.

A hook needs a module that returns the value (or that alone reads it), and that runs once for each time the value is
computed. A value that a forward computes inside may go elsewhere when flags, sizes or modes change: its expression in
the source is wrapped, unless the source shows that the module always returns it. Where the source is not available, a
hook attends it as in the example, and the plan has a note.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import fx, nn

from simam_inject.branches import in_other_branches
from simam_inject.dataflow.anatomy import Site
from simam_inject.dataflow.sites import Dataflow
from simam_inject.dataflow.values import Frame, Value
from simam_inject.errors import a_type
from simam_inject.matching.match import why_not_attendable
from simam_inject.modules import CONTAINERS, NORMS
from simam_inject.nested import Key
from simam_inject.planning.insertions import Edit, Input, Output, Rewritten
from simam_inject.source import Expression, always_returns, find_expression, locate, mentioned_by_forward, method_source

EditT = TypeVar("EditT", Output, Input)
_LISTS_CHILDREN = frozenset({"children", "named_children", "modules", "named_modules", "_modules"})
_FOLDS = ("reparameterize", "switch_to_deploy", "convert_to_deploy", "merge_kernel", "fuse_convs", "fuse")
"""Methods by which re-parameterized blocks fold their branches into one convolution."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The edit for one value, with further fields of its `Insertion`."""

    edit: Edit
    expression: Expression | None = None
    note: str = ""
    witness: str | None = None


def resolve(flow: Dataflow, site: Site, reader: str | None) -> Resolved | str:
    """The edit that attends a site, for everyone who reads it or for one reader alone; a sentence if there is none."""
    value = flow.recording.value(site.path)
    if value is None:
        return "its value could not be recorded in the example forward"
    found = _for_all(flow, site, value) if reader is None else _for_one(flow, site, value, reader)
    if isinstance(found, str):
        return found
    note = "; ".join(filter(None, [found.note, _folding(flow, found.edit)]))
    return replace(found, note=note, witness=_witness(flow, value, found.edit))


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
    hook = given if isinstance(output, str) else output
    if not isinstance(hook, str):
        return Resolved(hook, note=_as_in_the_example(hook))
    no_hook = output or given or "no module returns it, and no module is its only reader"
    return f"{no_hook}; {rewritten}{_nearest(flow, site)}"


def _as_in_the_example(hook: Output | Input) -> str:
    name = hook.module or "the model"
    does = f"{name} returns" if isinstance(hook, Output) else f"only {name} reads"
    return f"{does} this value in the example; this may depend on the input"


def _is_always(flow: Dataflow, site: Site, edit: Output | Input) -> bool:
    """Whether the hook gets the value of the site in every forward, also after flags, modes and sizes have changed."""
    named = site.path.partition(":")[0]
    owner = flow.recording.modules.get(site.scope)
    if isinstance(edit, Input):  # what a module is given, or what the next child of a Sequential reads
        holder = edit.module if site.kind == "input" else edit.module.rpartition(".")[0]
        return holder == site.scope and (site.kind == "input" or _is_sequence(owner))
    whole = flow.recording.steps.get(named)
    is_named = whole is not None and whole.call is not None and whole.call.path == edit.module
    if is_named or _is_at_an_end(flow, edit.module, named):
        return True
    step = flow.recording.steps.get(site.path)
    if owner is None or step is None or step.source is None or edit.module != site.scope:
        return False
    expression = find_expression(owner, *step.source, is_referenced=flow.recording.refers_to(step.source[0]))
    return isinstance(expression, Expression) and always_returns(type(owner), expression)


def _is_at_an_end(flow: Dataflow, module: str, container: str) -> bool:
    """The module is the container, or the part that a Sequential runs first or last, as found in the recording."""
    parent = module.rpartition(".")[0]
    is_part = bool(module) and _is_sequence(flow.recording.modules.get(parent))
    return module == container or (is_part and _is_at_an_end(flow, parent, container))


def _is_sequence(module: nn.Module | None) -> bool:
    """It runs its children one after another, whatever happens."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _for_one(flow: Dataflow, site: Site, value: Value, reader: str) -> Resolved | str:
    """Attend what one reader reads: by its own hook if it is a module, as for all if nothing else reads it."""
    step = flow.recording.steps.get(reader)
    frame = None if step is None else step.call
    ticks = [read.tick for read in value.readings if read.path == reader]
    name = reader or "the model"
    reason = f"{name} is an operation, and other operations read the same value: name a module, or use after"
    reason += _nearest(flow, site)
    if frame is not None:
        given = _input(flow, flow.anatomy.site_by_path[reader], value, frame)
        if isinstance(given, Input):
            returned = [one for one in frame.inputs for call, _ in one.returns if call.path == site.path]
            if site.runs > 1 and len(set(returned)) > 1:
                return f"{name} reads what several calls of {site.path} return: use after"
            is_always = _is_at_an_end(flow, given.module, frame.path)
            return Resolved(given, note="" if is_always else _as_in_the_example(given))
        other = f"reads what another call of {site.path} returns" if site.runs > 1 else "reads it more than once"
        ticks, reason = [frame.start, frame.end], given or f"{name} {other}"
    if not ticks:
        return f"{name} reads what another call of {site.path} returns{_nearest(flow, site)}"
    # What the reader returns of its argument is attended as well, so reads of that do not count.
    others = [one for one in flow.recording.same_tensor(value) if frame is None or not frame.spans(one.made)]
    is_read = any(not min(ticks) <= read.tick <= max(ticks) for one in others for read in one.readings)
    is_result = any(one in flow.recording.results for one in others)
    return reason if is_read or is_result else _for_all(flow, site, value)


# What a module returns


def _output(flow: Dataflow, site: Site, value: Value) -> Output | str:
    """The module whose output is attended: the one that is named, else the nearest block that returns the value."""
    named = site.path.partition(":")[0]
    returns = value.returns
    exact = [entry for entry in returns if entry[0].path == named]
    blocks = [entry for entry in returns if entry[0].is_scope and entry[0].path]
    root = [entry for entry in returns if not entry[0].path]
    leaves = [entry for entry in returns if not entry[0].is_scope]
    order = [*exact, *blocks, *leaves, *root]
    if exact and isinstance(flow.recording.modules[named], CONTAINERS):  # its last child that returns the tensor
        inside = [one for one in returns if one[0].path.startswith(f"{named}.")]
        inside = [one for one in inside if not isinstance(one[0].module, CONTAINERS)]
        order = [*reversed(inside), *blocks, *root]
    return _first(
        (Output(frame.path, keys[0] if keys else None), _why_no_output(flow, site, value, frame, keys))
        for frame, keys in order
    )


def _first(candidates: Iterable[tuple[EditT, str | None]]) -> EditT | str:
    """The first edit without a problem; else the first of the problems, "" if there are none."""
    reason = ""
    for edit, problem in candidates:
        if problem is None:
            return edit
        reason = reason or problem
    return reason


def _why_no_output(flow: Dataflow, site: Site, value: Value, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    name, named = frame.path or "the model", flow.recording.first_calls.get(site.path.partition(":")[0])
    problem = _why_no_hook(flow, site, frame, keys)
    if problem is not None:
        return problem
    if value.made < frame.start:
        return f"{name} returns a tensor that it did not compute"
    if frame is not named:  # where the module itself is named, what it returns is meant
        reads = [read.tick for one in flow.recording.same_tensor(value) for read in one.readings]
        if named and named.spans(frame.end):
            if any(named.end > tick > frame.end for tick in reads):
                return f"{named.path or 'the model'} reads it before returning it"
        elif any(frame.spans(tick) for tick in reads):
            return f"{name} reads it before returning it"
    if sum(call.path == frame.path for call, _ in value.returns) > 1:  # in one call, or from a call of itself
        return f"{name} returns it twice"
    return _why_not_replaced(flow, value, frame.end)


def _why_no_hook(flow: Dataflow, site: Site, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    """Why a module cannot hold a SimAM as its child, or would run it too often."""
    name, calls = frame.path or "the model", flow.recording.calls[frame.path]
    problem = _why_no_holder(frame.module, name)
    if problem is not None:
        return problem
    if len(keys) > 1:
        return f"it is nested {len(keys)} levels deep in what {name} takes or returns"
    if calls != site.runs:
        return f"{name} runs {calls} times in one forward, and this value is computed {site.runs} time(s)"
    return None


def _why_no_holder(module: nn.Module, name: str) -> str | None:
    """Why a module cannot have a SimAM as its child."""
    if type(module) in CONTAINERS:
        return f"{name} is {a_type(module)}, which runs all of its children"
    if isinstance(module, CONTAINERS):
        return f"{name} is {a_type(module)}, a container, which runs all of its children or lists them"
    if isinstance(module, fx.GraphModule):
        return f"{name} is a torch.fx.GraphModule, whose copies lose its hooks and methods"
    if not _LISTS_CHILDREN.isdisjoint(mentioned_by_forward(type(module))):
        return f"{name} iterates over its children, and would run the SimAM as one of them"
    return None


def _why_not_replaced(flow: Dataflow, value: Value, tick: int) -> str | None:
    """Another tensor that shares its memory is read after an in-place write: a new tensor would not get the write."""
    if not value.storage:
        return None
    writes = [write for write in flow.recording.writes.get(value.storage, ()) if write > tick]
    if not writes:
        return None
    for other in flow.recording.by_storage[value.storage]:
        if other is not value and other.made <= tick and any(read.tick > min(writes) for read in other.readings):
            return "it shares memory with a tensor that is read after an in-place operation modified it"
    return None


# What one module reads


def _input(flow: Dataflow, site: Site, value: Value, reader: Frame | None) -> Input | str:
    """The outermost module that alone reads the value; for one reader, this module itself or one inside it."""
    if reader is None and value in flow.recording.results:
        return "the model returns it"
    own = site.scope if site.kind == "input" else None
    return _first(
        (Input(frame.path, name, keys[0] if keys else None), _why_no_input(flow, site, value, frame, keys))
        for frame, name, keys in sorted(value.arguments, key=lambda entry: (entry[0].path != own, entry[0].start))
        if frame.path and value.made < frame.start and _reads_alone(flow, value, frame, reader)
    )


def _reads_alone(flow: Dataflow, value: Value, frame: Frame, reader: Frame | None) -> bool:
    """All reads of the value are inside a call; those inside it are all of the reader's, where there is one.

    A call inside the reader must be all that becomes of it there: the reader does not return, pass on or keep it. What
    the call returns of its argument is attended.
    """
    results = flow.recording.results
    same = [one for one in flow.recording.same_tensor(value) if not frame.spans(one.made)]
    ticks = [read.tick for one in same for read in one.readings]
    if reader is None:
        return bool(ticks) and all(map(frame.spans, ticks)) and not any(one in results for one in same)
    if frame is not reader and (value in results or any(reader.spans(one.made) for one in same)):
        return False
    return reader.spans(frame.start) and all(frame.spans(tick) == reader.spans(tick) for tick in ticks)


def _why_no_input(flow: Dataflow, site: Site, value: Value, frame: Frame, keys: tuple[Key, ...]) -> str | None:
    problem = _why_no_hook(flow, site, frame, keys)
    if problem is not None:
        return problem
    if sum(one is frame for one, _, _ in value.arguments) > 1:
        is_given_twice = flow.recording.first_calls[""].inputs.count(value) > 1
        why = ": the example inputs hold one tensor more than once" if is_given_twice else ""
        return f"{frame.path} receives it more than once in one call{why}"
    writes = [write for write in flow.recording.writes.get(value.storage, ()) if write >= frame.start]
    reads = [read.tick for other in flow.recording.by_storage.get(value.storage, ()) for read in other.readings]
    if writes and any(tick > min(writes) and not frame.spans(tick) for tick in reads):
        return "an in-place operation modifies it while other operations still read it"
    return None


# One expression of a forward


def _rewritten(flow: Dataflow, site: Site, value: Value) -> Resolved | str:
    step, owner = flow.recording.steps.get(site.path), flow.recording.modules[site.scope]
    if step is None or step.frame is None or step.value is None or step.kind in ("entry", "input"):
        return "it is one of several tensors that one call returns" if ":" in site.path else "no operation computes it"
    if step.source is None:
        where = "operation that computes it" if step.call is None else f"call of {step.path}"
        return f"the {where} is not in a method of {type(owner).__name__}"
    is_repeated = sum(other.source == step.source for other in step.frame.steps) > 1
    if is_repeated or site.runs > flow.recording.calls[site.scope]:
        return "it is computed in a loop, or together with other operations"
    problem = _why_no_holder(owner, site.scope or "the model")
    if problem is not None:
        return problem
    expression = find_expression(owner, *step.source, is_referenced=flow.recording.refers_to(step.source[0]))
    if isinstance(expression, str):
        return expression
    inside = site.path.removeprefix(f"{site.scope}.")
    note = _other_branches(owner, expression)
    return _why_not_replaced(flow, value, value.made) or Resolved(Rewritten(site.scope, inside), expression, note)


def _other_branches(owner: nn.Module, expression: Expression) -> str:
    """What a user should know of operations of this kind in branches that the forward takes instead."""
    source = method_source(getattr(type(owner), expression.method))
    assert source is not None  # the expression was found in it
    _, are_others = in_other_branches(source.function, locate(source.function, expression.span))
    what = "another branch of the forward has operations of this kind, which may be without SimAM"
    return what if are_others else ""


# What else a plan says


def _witness(flow: Dataflow, value: Value, edit: Edit) -> str | None:
    """The norm that alone reads the attended value."""
    readers = {read.path for read in value.readings}
    if len(readers) != 1 or "" in readers or isinstance(edit, Rewritten):
        return None
    step = flow.recording.steps.get(readers.pop())
    frame = None if step is None else step.call
    if frame is None or frame.path == edit.module:
        return None
    return frame.path if isinstance(frame.module, NORMS) else None


def _folding(flow: Dataflow, edit: Edit) -> str:
    """What folding weights will make impossible."""
    path = edit.module.rpartition(".")[0] if isinstance(edit, Output) else edit.module
    while path:
        module = flow.recording.modules[path]
        fold = next((name for name in _FOLDS if callable(getattr(type(module), name, None))), None)
        block = flow.anatomy.site_by_path.get(path)
        is_map = block is not None and block.obstacle is None  # heads have a `fuse` that drops what only training needs
        if fold is not None and is_map and not isinstance(module, CONTAINERS):
            return (
                f"{path}.{fold}() would remove this SimAM, and the next forward raises an error only if the module "
                f"that holds it is removed as well; the output of {path} can be used instead"
            )
        path = path.rpartition(".")[0]
    return ""


def _nearest(flow: Dataflow, site: Site) -> str:
    """Advice: the nearest module whose output can be attended."""
    path = site.scope
    while path:
        block, value = flow.anatomy.site_by_path.get(path), flow.recording.value(path)
        is_container = isinstance(flow.recording.modules.get(path), CONTAINERS)
        is_map = block is not None and why_not_attendable(block) is None and not is_container
        if block and value and is_map and isinstance(_output(flow, block, value), Output):
            return f". The output of {path} can be used instead"
        path = path.rpartition(".")[0]
    return ""
