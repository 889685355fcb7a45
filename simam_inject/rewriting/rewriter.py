"""Apply planned insertions to a model, all or nothing, and take them out again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.discovery.flow import Flow
from simam_inject.discovery.naming import join
from simam_inject.errors import ModelError
from simam_inject.planning.records import Insertion
from simam_inject.rewriting.classes import (
    SPECIFICATION,
    is_injected,
    put,
    specification_of,
    stock_class,
)
from simam_inject.rewriting.records import Edit, Specification
from simam_inject.rewriting.surgeon import Operation, prepare
from simam_inject.tracing.recording import Call
from simam_inject.tracing.scopes import Trace
from simam_inject.tracing.tracer import Body


@dataclass(frozen=True, slots=True)
class Preparation:
    """Everything worked out and nothing changed yet."""

    operations: tuple[Operation, ...]
    insertions: tuple[Insertion, ...]
    """As asked for, with notes where an alternative forward cannot run any more."""
    refused: dict[tuple[str, str | None], str]
    """Insertions that no module can hold, by (path, reader), with the reason. They are in no operation."""
    kept: tuple[nn.Module, ...]
    """Modules that hold all that is asked of them already, and are left as they are."""


def prepare_all(
    trace: Trace, flow: Flow, insertions: tuple[Insertion, ...], present: tuple[Insertion, ...] = ()
) -> Preparation:
    """Work out the rewrite of every module concerned, for a model in its stock classes. Nothing is changed.

    Args:
        present: those of the insertions that are in the model. A module with no other is kept: it may not run in this
            example, or its norm may have been folded since.
    """
    modules = dict(trace.model.named_modules())
    grouped: dict[str, list[Insertion]] = {}
    for insertion in insertions:
        grouped.setdefault(insertion.scope, []).append(insertion)
    operations: list[Operation] = []
    kept: list[nn.Module] = []
    noted: dict[tuple[str, str | None], Insertion] = {}
    refused: dict[tuple[str, str | None], str] = {}
    for path, members in grouped.items():
        module = modules[path]
        if all(insertion in present for insertion in members):
            kept.append(module)
            noted.update({(insertion.path, insertion.reader): insertion for insertion in members})
            continue
        call = trace.calls[id(module)][0]
        body = trace.scopes[path].body if path in trace.scopes else None
        edits: tuple[Edit, ...] = ()
        for insertion in tuple(members):
            try:
                edits += (_edit_of(insertion, path, module, flow, {edit.child for edit in edits}),)
            except ModelError as error:
                refused[insertion.path, insertion.reader] = str(error)
                members.remove(insertion)
        if not edits:
            continue
        try:
            operation = prepare(module, call, edits, body)
        except ModelError:
            refused.update(_culprits(module, call, members, edits, body))
            continue
        operations.append(operation)
        for insertion, edit in zip(members, operation.specification.edits, strict=True):
            noted[insertion.path, insertion.reader] = replace(insertion, note=edit.note)
    held = tuple(noted[key] for i in insertions if (key := (i.path, i.reader)) in noted)
    return Preparation(tuple(operations), held, refused, tuple(kept))


def _culprits(
    module: nn.Module, call: Call, members: list[Insertion], edits: tuple[Edit, ...], body: Body | None
) -> dict[tuple[str, str | None], str]:
    """Which of a module's insertions it cannot hold; each is tried on its own."""
    refused = {}
    for insertion, edit in zip(members, edits, strict=True):
        try:
            prepare(module, call, (edit,), body)
        except ModelError as error:
            refused[insertion.path, insertion.reader] = str(error)
    return refused or {(insertion.path, insertion.reader): "cannot be combined" for insertion in members}


def operate(operations: tuple[Operation, ...]) -> None:
    """Carry out prepared operations; on any failure the modules are as they were."""
    done: list[nn.Module] = []
    try:
        for operation in operations:
            module = operation.module
            done.append(module)
            for edit in operation.specification.edits:
                attention = SimAM(edit.e_lambda, channel_dim=edit.channel_dim)
                module._modules[edit.child] = attention.train(module.training)
            module.__dict__[SPECIFICATION] = operation.specification
            put(module, operation.swapped)
    except BaseException:
        for module in done:
            restore_stock(module)
        raise


def restore_stock(module: nn.Module) -> None:
    """Give one injected module its class and children back.

    Raises:
        ModelError: somebody else has changed its class since; nothing has been changed.
    """
    check_class(module)
    specification = module.__dict__.pop(SPECIFICATION, None)
    if specification is not None:
        for edit in specification.edits:
            module._modules.pop(edit.child, None)
    if stock_class(module) is not type(module):
        put(module, stock_class(module))


def check_class(module: nn.Module) -> None:
    """Refuse a module whose rewritten class was subclassed again, since that would be undone too.

    Raises:
        ModelError: it was.
    """
    swapped = type(module)
    if swapped is not stock_class(module) and "_simam_stock_class" not in vars(swapped):
        raise ModelError(
            f"the class of a {stock_class(module).__name__} was changed again after SimAM was injected (it is "
            f"{swapped.__name__} now, made by fully_shard or parametrize): inject first, then wrap; to take SimAM out, "
            "undo the other change first, or eject a model that is not wrapped yet"
        )


def edits_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, Edit]]:
    """Every SimAM of the model: (path of the module that holds it, that module, the edit), in module order."""
    for path, module in model.named_modules():
        if is_injected(module):
            for edit in specification_of(module).edits:
                yield path, module, edit


def insertion_of(path: str, edit: Edit) -> Insertion:
    """The public record of an edit of the module at `path`."""
    return Insertion(
        path=join(path, edit.value),
        position=edit.position,
        shape=edit.shape,
        e_lambda=edit.e_lambda,
        rule=edit.rule,
        reader=None if edit.reader is None else join(path, edit.reader),
        channel_dim=edit.channel_dim,
        dtype=edit.dtype,
        reduction=edit.reduction,
        runs=edit.runs,
        means="forward" if edit.value else "boundary",
        note=edit.note,
        scope=path,
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken out of one module: enough to put the very same objects back."""

    module: nn.Module
    swapped: type[nn.Module]
    specification: Specification
    children: dict[str, nn.Module | None]


def take_out(model: nn.Module) -> tuple[Taken, ...]:
    """Give every injected module of the model its class and children back.

    Raises:
        ModelError: as `check_class`; nothing has been changed.
    """
    modules = [module for module in model.modules() if is_injected(module)]
    for module in modules:
        check_class(module)
    taken = tuple(Taken(m, type(m), specification_of(m), dict(m._modules)) for m in modules)
    for module in modules:
        restore_stock(module)
    return taken


def put_back(taken: tuple[Taken, ...], only: tuple[nn.Module, ...] | None = None) -> None:
    """Undo `take_out`, of all modules unless told of which."""
    for before in taken:
        module = before.module
        if only is not None and not any(module is each for each in only):
            continue
        module._modules.clear()
        module._modules.update(before.children)
        module.__dict__[SPECIFICATION] = before.specification
        put(module, before.swapped)


@contextmanager
def stock(model: nn.Module) -> Iterator[None]:
    """The model as it was before injection, for the time being: same objects, stock classes, no SimAM children."""
    taken = take_out(model)
    try:
        yield
    finally:
        put_back(taken)


def _edit_of(insertion: Insertion, scope: str, module: nn.Module, flow: Flow, taken: set[str]) -> Edit:
    value = reader = None
    if insertion.means == "boundary":
        value = ""
    else:
        value, reader = _local_names(insertion, scope, flow)
    stem = "simam_" + _as_attribute(value or "output")
    if reader is not None:
        stem += "_for_" + _as_attribute(reader)
    child, number = stem, 1
    while child in taken or hasattr(module, child):
        number += 1
        child = f"{stem}_{number}"
    return Edit(
        value=value,
        position=insertion.position,
        reader=reader,
        child=child,
        e_lambda=float(insertion.e_lambda),
        channel_dim=insertion.channel_dim,
        shape=tuple(insertion.shape),
        dtype=insertion.dtype,
        reduction=insertion.reduction,
        rule=insertion.rule,
        runs=insertion.runs,
        note=insertion.note,
    )


def _as_attribute(name: str) -> str:
    """The name of a value as part of an attribute's, which need not tell all: it is made unique."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[-50:] or "value"


def _local_names(insertion: Insertion, scope_path: str, flow: Flow) -> tuple[str, str | None]:
    """Names, inside the scope, of the attended value and of the one reader of a `before`."""
    scope = flow.trace.scopes[scope_path]
    names = flow.names[scope_path]
    for node, name in names.items():
        if insertion.reader is None and flow.path(scope, node) == insertion.path:
            return name, None
        if insertion.reader is not None and flow.path(scope, node) == insertion.reader:
            for source in flow.tensor_inputs(node):
                if source in names and flow.path(scope, source) == insertion.path:
                    return names[source], name
    raise ModelError(f"{insertion.reader or scope_path} reads {insertion.path} through a list or tuple")
