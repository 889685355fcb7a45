"""Calls that a forward hands on before it computes anything: `if isinstance(x, dict): return self.loss(x)`.

The graph holds the other branch. Such a call runs the stock forward instead, provided that what it reaches comes back
through `self.forward`, where the attention is, and runs none of the children that the graph runs.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn

from simam_inject.tracing.questions import classes
from simam_inject.tracing.tracer import Body

_LISTINGS = frozenset({"children", "modules", "named_children", "named_modules", "_modules"})
_QUESTIONS = frozenset({"hasattr", "isinstance", "len", "type"})
_SELF = ast.dump(ast.Name("self", ast.Load()))


def detours(module: nn.Module, body: Body) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """(argument, its classes) of the calls that the stock method of `module`, in its stock class, may serve."""
    asked = {what for what, _, answer in body.classes if not answer}
    if not asked & {argument.name for argument in body.arguments}:
        return ()
    stock = type(module)
    function = inspect.unwrap(inspect.getattr_static(stock, body.name))
    called = {str(node.target).partition(".")[0] for node in body.graph.nodes if node.op in ("call_module", "get_attr")}
    found = []
    for name, kinds_source, branch in _leading_branches(function):
        kinds = _resolve(kinds_source, function)
        if name in asked and kinds is not None and not _runs(branch, stock, body.name, called):
            found.append((name, classes(kinds)))
    return tuple(found)


def _leading_branches(function: Any) -> Iterator[tuple[str, ast.expr, list[ast.stmt]]]:
    """(argument, classes, body) of each `if isinstance(argument, classes):` that begins a function and leaves it."""
    try:
        statements = _statements(function)
    except (OSError, TypeError, SyntaxError):  # the source is not there
        return
    for statement in statements:
        match statement:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.If(
                test=ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), kinds]), body=branch, orelse=[]
            ) if isinstance(branch[-1], (ast.Return, ast.Raise)):
                yield name, kinds, branch
            case _:
                return


def _resolve(expression: ast.expr, function: Any) -> Any:
    """The class or classes that an expression names, or None."""
    match expression:
        case ast.Name(id=name):
            return function.__globals__.get(name, getattr(builtins, name, None))
        case ast.Attribute(value=owner, attr=name):
            return getattr(_resolve(owner, function), name, None)
        case ast.Tuple(elts=parts):
            kinds = tuple(_resolve(part, function) for part in parts)
            return None if None in kinds else kinds
    return None


def _statements(function: Any) -> list[ast.stmt]:
    """The body of a function.

    Raises:
        OSError, TypeError, SyntaxError: its source is not there.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    found: list[ast.stmt] = tree.body[0].body  # type: ignore[attr-defined]
    return found


def _runs(branch: list[ast.stmt], stock: type, method: str, children: set[str]) -> bool:
    """May a branch, or a method that it reaches other than `method`, run one of the children? In doubt, yes."""
    waiting, seen = [branch], {method}
    while waiting:
        statements = waiting.pop()
        for name in _names(statements, children):
            if name in children | _LISTINGS:
                return True
            if name in seen:
                continue
            seen.add(name)
            for base in stock.__mro__:
                function = vars(base).get(name)
                if base is not nn.Module and inspect.isfunction(function):
                    try:
                        waiting.append(_statements(function))
                    except (OSError, TypeError, SyntaxError):
                        return True
    return False


def _names(statements: list[ast.stmt], children: set[str]) -> Iterator[str]:
    """Attributes and texts in the statements, without children that are only asked about: `self.model[-1].stride`."""
    parents = {part: node for root in statements for node in ast.walk(root) for part in ast.iter_child_nodes(node)}
    for node in (node for root in statements for node in ast.walk(root)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Attribute) and not (node.attr in children and _is_only_asked(node, parents)):
            yield node.attr


def _is_only_asked(node: ast.expr, parents: dict[ast.AST, ast.AST]) -> bool:
    """`len(self.model)`, `getattr(self.model[-1], "end2end", None) is not None`: nothing is kept that could be run."""
    part: ast.AST = node
    while isinstance(parents.get(part), (ast.Attribute, ast.Subscript)):
        part = parents[part]
    call = parents.get(part)
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and part in call.args):
        return False
    return call.func.id in _QUESTIONS or (call.func.id == "getattr" and isinstance(parents[call], ast.Compare))


def handed_on(module: nn.Module, body: Body) -> dict[str, Any]:
    """Defaults of the one method that gets all extra keywords of `body`: to pass one of them changes nothing.

    `model(x, augment=False)` where `forward(self, x, **kwargs)` returns `self.predict(x, **kwargs)`.
    """
    name = next((a.name for a in body.arguments if a.kind is inspect.Parameter.VAR_KEYWORD and not a.value), None)
    function = inspect.unwrap(inspect.getattr_static(type(module), body.name))
    if name is None:
        return {}
    asked = {what for what, _, answer in body.classes if not answer}
    elsewhere = {branch[0] for argument, _, branch in _leading_branches(function) if argument in asked}
    try:
        statements = _statements(function)
    except (OSError, TypeError, SyntaxError):
        return {}
    rest = [s for s in statements if not (isinstance(s, ast.If) and ast.dump(s.body[0]) in map(ast.dump, elsewhere))]
    nodes = [node for statement in rest for node in ast.walk(statement)]
    methods = [
        getattr(type(module), node.func.attr, None)
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.dump(node.func.value) == _SELF
        and any(word.arg is None and getattr(word.value, "id", "") == name for word in node.keywords)
    ]
    uses = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
    if uses != 1 or len(methods) != 1 or not inspect.isfunction(methods[0]):
        return {}
    parameters = inspect.signature(methods[0]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is None or isinstance(p.default, bool)}
