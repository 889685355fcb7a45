"""Where in the source of a forward an operation stands: the expression whose value it computes."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from dataclasses import dataclass
from itertools import islice

from torch import nn


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a method: data, so that it can be stored in a file and found again."""

    method: str
    """Name of the method."""
    digest: str
    """Hash of the method's source, so that another version of it is refused."""
    span: tuple[int, int, int, int]
    """First line, column, last line, end column; lines counted from the first line of the method's source."""


def find_expression(module: nn.Module, code: types.CodeType, instruction: int) -> Expression | str:
    """The expression that an instruction of a method of this module computes, or the reason why it cannot be named."""
    name = next((n for n in _method_names(type(module)) if _plain_code(getattr(type(module), n, None)) is code), None)
    if name is None:
        return "it is computed by a function that is not a plain method of the module"
    positions = next(islice(code.co_positions(), instruction // 2, None), None)
    if positions is None or None in positions:
        return "Python keeps no source positions for it"
    first, last, start, end = (int(number or 0) for number in positions)
    source = method_source(getattr(type(module), name))
    if source is None:
        return "the source of its forward is not available"
    shift = source.indent
    line = code.co_firstlineno
    span = (first - line, start - shift, last - line, end - shift)
    expression = Expression(name, source.digest, span)
    try:
        locate(ast.parse(source.text), span)
    except (LookupError, SyntaxError):
        return "its expression is not found in the source of the forward"
    return expression


@dataclass(frozen=True, slots=True)
class MethodSource:
    """The text of a method, without its indentation."""

    text: str
    digest: str
    indent: int


def method_source(method: object) -> MethodSource | None:
    """The source of a plain method; None for one that is decorated, built in, or whose file is gone."""
    if not isinstance(method, types.FunctionType):
        return None
    try:
        text = inspect.getsource(method)
    except (OSError, TypeError):
        return None
    indent = len(text) - len(text.lstrip())
    plain = textwrap.dedent(text)
    if not plain.startswith("def ") or plain.count("\t"):  # decorators would run again
        return None
    return MethodSource(plain, hashlib.sha256(plain.encode()).hexdigest()[:16], indent)


def locate(tree: ast.Module, span: tuple[int, int, int, int]) -> ast.expr | ast.AugAssign:
    """The expression, or the augmented assignment (`x += y`), that stands at a span of a method's source.

    Raises:
        LookupError: there is none.
    """
    for node in ast.walk(tree):
        if isinstance(node, (ast.expr, ast.AugAssign)) and _span(node) == span:
            if isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name):
                raise LookupError("an augmented assignment to something that is not a variable")
            return node
    raise LookupError(f"no expression at {span}")


def run_by_forward(kind: type) -> list[str]:
    """Names of the methods of a class that its forward may run: those that it mentions, directly or indirectly."""
    names = ["forward"]
    for name in names:
        static = [n for n in _names_in(_plain_code(inspect.getattr_static(kind, name, None))) if n not in names]
        names += [n for n in static if isinstance(inspect.getattr_static(kind, n, None), types.FunctionType)]
    return names


def mentioned_by_forward(kind: type) -> set[str]:
    """Every name in the code of `forward` and of the methods that it may run, those of `nn.Module` aside."""
    methods = [inspect.getattr_static(kind, name, None) for name in run_by_forward(kind)]
    own = [method for method in methods if getattr(method, "__module__", None) != nn.Module.__module__]
    return {name for method in own for name in _names_in(_plain_code(method))}


def _names_in(code: types.CodeType | None) -> list[str]:
    if code is None:
        return []
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names_in(const)]
    return [*dict.fromkeys([*code.co_names, *inner])]


def _span(node: ast.expr | ast.AugAssign) -> tuple[int, int, int, int]:
    # Columns of the ast count bytes, as those of code objects do.
    return (node.lineno - 1, node.col_offset, (node.end_lineno or 0) - 1, node.end_col_offset or 0)


def _method_names(kind: type) -> list[str]:
    names = dict.fromkeys(name for base in kind.__mro__ for name, value in vars(base).items() if _plain_code(value))
    return ["forward", *(name for name in names if name != "forward")]


def _plain_code(value: object) -> types.CodeType | None:
    return value.__code__ if isinstance(value, types.FunctionType) else None
