"""The position of an operation in the source of a forward: the expression whose value it computes."""

from __future__ import annotations

import ast
import hashlib
import inspect
import types
from dataclasses import dataclass
from functools import lru_cache
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
    span = (first - code.co_firstlineno, start, last - code.co_firstlineno, end)
    try:
        locate(source.function, span)
    except LookupError:
        return "its expression is not found in the source of the forward"
    return Expression(name, source.digest, span)


@dataclass(frozen=True, slots=True)
class MethodSource:
    """A method as text, and as the syntax tree of its `def`, whose first line is line 1."""

    function: ast.FunctionDef
    digest: str


def method_source(method: object) -> MethodSource | None:
    """The source of a plain method; None for one that is decorated, built in, or whose file is gone."""
    if not isinstance(method, types.FunctionType):
        return None
    try:
        text = _text(method.__code__)
        is_indented = text[:1].isspace()
        function: ast.AST = ast.parse(f"if True:\n{text}" if is_indented else text).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    function = function.body[0] if isinstance(function, ast.If) else function
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:  # decorators would run again
        return None
    ast.increment_lineno(function, -int(is_indented))
    return MethodSource(function, hashlib.sha256(text.encode()).hexdigest()[:16])


@lru_cache(maxsize=512)
def _text(code: types.CodeType) -> str:
    return inspect.getsource(code)


def locate(function: ast.FunctionDef, span: tuple[int, int, int, int]) -> ast.expr | ast.AugAssign:
    """The expression, or the augmented assignment (`x += y`), that stands at a span of a method's source.

    Raises:
        LookupError: there is none.
    """
    for node in ast.walk(function):
        if isinstance(node, (ast.expr, ast.AugAssign)) and span in _spans(node):
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


def _spans(node: ast.expr | ast.AugAssign) -> list[tuple[int, int, int, int]]:
    """Where a code object can say that an expression stands; columns count bytes in both."""
    end = (node.end_lineno or 0) - 1, node.end_col_offset or 0
    found = [(node.lineno - 1, node.col_offset, *end)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # over several lines: from the name on
        name = node.func
        found.append(((name.end_lineno or 0) - 1, (name.end_col_offset or 0) - len(name.attr.encode()), *end))
    return found


def _method_names(kind: type) -> list[str]:
    names = dict.fromkeys(name for base in kind.__mro__ for name, value in vars(base).items() if _plain_code(value))
    return ["forward", *(name for name in names if name != "forward")]


def _plain_code(value: object) -> types.CodeType | None:
    return value.__code__ if isinstance(value, types.FunctionType) else None
