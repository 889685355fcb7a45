"""The position of an operation in the source of a forward: the expression whose value it computes."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from torch import nn

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How records are read from files, which are untrusted."""
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\W\d]\w*$")]
"""A name in Python."""
Count = Annotated[int, Field(ge=0, le=2**40)]

_PARSING = threading.Lock()
"""Python 3.11 raises a SystemError now and then if several threads parse."""


if hasattr(os, "register_at_fork"):  # a process that is forked meanwhile would have it locked for ever
    os.register_at_fork(before=_PARSING.acquire, after_in_parent=_PARSING.release, after_in_child=_PARSING.release)


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a method: data, so that it can be stored in a file and found again."""

    __pydantic_config__ = STRICT
    method: Name
    """Name of the method."""
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """Hash of the method's source, so that another version of it is refused."""
    span: tuple[Count, Count, Count, Count]
    """First line, column, last line, end column; lines counted from the first line of the method's source."""


def find_expression(
    module: nn.Module, code: types.CodeType, instruction: int, *, is_referenced: bool
) -> Expression | str:
    """The expression that an instruction of a method of this module computes, or the reason why it cannot be named.

    Args:
        is_referenced: something in the model refers to the method, and may call it.
    """
    kind = type(module)
    methods = dict.fromkeys(name for base in kind.__mro__ for name, value in vars(base).items() if _plain_code(value))
    names = [name for name in methods if _plain_code(getattr(kind, name, None)) is code]
    if not names:
        return "it is computed by a function that is not a plain method of the module"
    name = names[0]
    if len(names) > 1:
        return f"it is computed in a method with two names ({names[0]} and {names[1]})"
    if name in vars(module):
        return (
            f"it is computed in the method {name}, which was set on the instance, as by `model.{name} = "
            f"torch.compile(model.{name})`: inject first, and set it after that"
        )
    is_called = may_run(kind, name) and not is_referenced
    if not is_called or (name != "forward" and _is_called_otherwise(kind, name)):
        return f"it is computed in the method {name}, which is not always called as self.{name}"
    positions = next(islice(code.co_positions(), instruction // 2, None), None)
    if positions is None or None in positions:
        return "Python has no source position for it"
    first, last, start, end = (int(number or 0) for number in positions)
    source = method_source(getattr(type(module), name))
    if source is None:
        return "the source of its forward is not available, or was changed after the import"
    span = (first - code.co_firstlineno, start, last - code.co_firstlineno, end)
    try:
        locate(source.function, span)
    except LookupError as error:
        return f"its expression cannot be wrapped in the source of the forward: {error}"
    return Expression(name, source.digest, span)


@dataclass(frozen=True, slots=True)
class MethodSource:
    """A method as text, and as the syntax tree of its `def`, whose first line is line 1."""

    function: ast.FunctionDef
    digest: str


def method_source(method: object) -> MethodSource | None:
    """The source of a plain method; None if it is decorated or built in, or its file is missing or was changed."""
    code = _plain_code(method)
    text = None if code is None else _text(id(code), code)
    if code is None or text is None:
        return None
    try:
        function = _parse_method(text)
    except SyntaxError:  # a part of a statement, as a lambda in a dict is
        return None
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:  # decorators would run again
        return None
    return MethodSource(function, hashlib.sha256(text.encode()).hexdigest()[:16])


def parse(text: str) -> ast.Module:
    """The syntax tree of a text; in one thread at a time."""
    with _PARSING:
        return ast.parse(text)


def _parse_method(text: str) -> ast.stmt:
    is_indented = text[:1].isspace()
    function = parse(f"if True:\n{text}" if is_indented else text).body[0]
    function = function.body[0] if isinstance(function, ast.If) else function
    return ast.increment_lineno(function, -int(is_indented))


@lru_cache(maxsize=512)
def _text(_identity: int, code: types.CodeType) -> str | None:
    """The source text of a function; None if its file is missing, or was edited since it was imported.

    Args:
        _identity: `id` of the code: equal code of two files has two texts.
    """
    try:
        text, lines = inspect.getsource(code), inspect.findsource(code)[0]
        is_rewritten = any(name.startswith("@py") for name in (*code.co_names, *code.co_varnames))  # asserts, by pytest
        return text if is_rewritten or code in _codes(code.co_filename, "".join(lines)) else None
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


@lru_cache(maxsize=64)
def _codes(filename: str, text: str) -> frozenset[types.CodeType]:
    """Every code object of a file; they are equal if instructions, names, constants and positions are."""
    return frozenset(codes_in(compile(text, filename, "exec", dont_inherit=True)))


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object, and those of the functions and classes in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from codes_in(const)


def locate(function: ast.FunctionDef, span: tuple[int, int, int, int]) -> ast.expr | ast.AugAssign:
    """The expression, or the augmented assignment (`x += y`), at a span of a method's source.

    Raises:
        LookupError: there is none.
    """
    for node in ast.walk(function):
        if isinstance(node, (ast.expr, ast.AugAssign)) and span in _spans(node):
            if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                raise LookupError("a variable that is assigned to")
            if isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name):
                raise LookupError("an augmented assignment to something that is not a variable")
            return node
    raise LookupError(f"no expression at {span}")


def always_returns(kind: type, expression: Expression) -> bool:
    """Whichever way the forward takes, it returns the value of this expression, as it is.

    Only plain code is recognised: one `return` at the end, of the expression itself or of a variable that is set from
    it in the same block of statements and not mentioned in between.
    """
    source = method_source(inspect.getattr_static(kind, expression.method))
    assert source is not None  # the expression was found in it
    function, node = source.function, locate(source.function, expression.span)
    last = function.body[-1]
    returns = [n for n in ast.walk(function) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))]
    if expression.method != "forward" or returns != [last] or not isinstance(last, ast.Return):
        return False
    return last.value is node or _is_from(function, last.value, node)


def returns_the_same(call: Any) -> bool:
    """A `__call__` that returns what each `super().__call__(...)` does, also by a variable, and uses it no more.

    What another function makes of `super().__call__`, as `checkpoint`, is such a result. Loops, inner functions and
    decorators (of other libraries than torch) are not read.
    """
    call = inspect.unwrap(
        call, stop=lambda one: not str(getattr(one, "__globals__", {}).get("__name__")).startswith("torch.")
    )
    code = None if hasattr(call, "__wrapped__") else _plain_code(call)
    text = None if code is None else _text(id(code), code)
    nodes = list(ast.walk(_parse_method(text))) if text else []
    if code is None or any(isinstance(one, (ast.FunctionDef, ast.Lambda, ast.For, ast.While)) for one in nodes[1:]):
        return False
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    bases = [one for one in nodes if isinstance(one, ast.Attribute) and one.attr == "__call__"]
    results: list[ast.AST] = [one for one in bases if not ast.unparse(one).startswith(f"{code.co_varnames[0]}.")]
    assigned, rebound = list[ast.AST](), list[ast.AST]()
    for result in results:
        if isinstance(getattr(result, "ctx", None), ast.Store):
            rebound.append(parents[result])
            continue
        user = _user(result, parents)
        targets = user.targets if isinstance(user, ast.Assign) else [getattr(user, "target", None)]
        if isinstance(user, (ast.Assign, ast.AnnAssign)) and len(targets) == 1 and isinstance(targets[0], ast.Name):
            same = [one for one in nodes if isinstance(one, ast.Name) and one.id == targets[0].id]
            end = user.end_lineno or 0, user.end_col_offset or 0
            assigned.append(user)
            results += [one for one in same if (one.lineno, one.col_offset) > end and one not in results]
        elif not isinstance(user, ast.Return):
            return False
    return bool(results) and all(one in assigned for one in rebound)


def _user(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """What uses the result of a call, or of a function that is called or given to another, perhaps converted."""
    is_function = isinstance(node, ast.Attribute)
    while isinstance(user := parents[node], (ast.Attribute, ast.Call, ast.keyword)):
        if isinstance(user, ast.Attribute) and user.attr in ("contiguous", "float", "to"):
            is_function = True
        elif isinstance(user, ast.Call):
            name = ast.unparse(user.func).rpartition(".")[2]
            if not is_function and name != "cast":
                break
            is_function = is_function and name == "partial"
        elif not isinstance(user, ast.keyword):
            break
        node = user
    return user


def _is_from(function: ast.FunctionDef, name: ast.expr | None, node: ast.expr | ast.AugAssign) -> bool:
    """A variable is set from the expression at the top level of the function, and from there on is this name alone."""
    for place, statement in enumerate(function.body):
        if isinstance(statement, ast.Assign) and statement.value is node and len(statement.targets) == 1:
            target = statement.targets[0]
        elif statement is node and isinstance(statement, ast.AugAssign):
            target = statement.target
        else:
            continue
        if not isinstance(target, ast.Name) or _is_shared(function, target.id):
            return False
        after = [n for later in function.body[place + 1 :] for n in ast.walk(later)]
        # Names are also bound by `case y`, `except E as y`, `import z as y`.
        places = [(n, getattr(n, attribute, None)) for n in after for attribute in ("id", "name", "asname", "rest")]
        return [n for n, found in places if found == target.id] == [name]
    return False


def _is_shared(function: ast.FunctionDef, name: str) -> bool:
    """Whether inner functions use the variable, or it is declared global or nonlocal."""
    nodes = list(ast.walk(function))
    inner = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and n != function]
    used = {n.id for one in inner for n in ast.walk(one) if isinstance(n, ast.Name)}
    return name in used or any(name in n.names for n in nodes if isinstance(n, (ast.Global, ast.Nonlocal)))


def may_run(kind: type, method: str) -> bool:
    """The class's forward may run the method by its name; so may tools that choose between several forwards."""
    return method.startswith("forward") or method in run_by_forward(kind)


def _is_called_otherwise(kind: type, method: str) -> bool:
    """Somewhere the method is looked up on something else than `self`, which does not find one on the instance."""
    for function, is_of_class in _functions(kind):
        code = _plain_code(function)
        if code is None or method not in _names_in(code):
            continue
        text = _text(id(code), code)
        if text is None or is_of_class:
            return True
        uses = [n for n in ast.walk(_parse_method(text)) if isinstance(n, ast.Attribute) and is_named(n.attr, method)]
        owner = code.co_varnames[:1]
        if any(not isinstance(use.value, ast.Name) or (use.value.id,) != owner for use in uses):
            return True
    return False


def is_named(attribute: str, name: str) -> bool:
    """An attribute in the source has this name: `__act` is `_Block__act` when it is compiled."""
    return attribute == name or (attribute.startswith("__") and name.endswith(attribute))


def _functions(kind: type) -> Iterator[tuple[object, bool]]:
    """Functions of the class and its bases, without decorators, and whether the first argument is the class."""
    for base in kind.__mro__:
        if base not in (nn.Module, object):
            for each in vars(base).values():
                if callable(each) or isinstance(each, (property, classmethod)):
                    yield inspect.unwrap(getattr(each, "fget", each)), isinstance(each, classmethod)


def run_by_forward(kind: type) -> list[str]:
    """Names of the methods of a class that its forward may run: those that it mentions, directly or indirectly."""
    names = ["forward"]
    for name in names:
        static = [n for n in _names_in(_plain_code(inspect.getattr_static(kind, name, None))) if n not in names]
        names += [n for n in static if isinstance(inspect.getattr_static(kind, n, None), types.FunctionType)]
    return names


def mentioned_by_forward(kind: type) -> set[str]:
    """Every name in the code of `forward` and of the methods that it may run, those of `nn.Module` aside.

    Methods that it runs without their names, as `for child in self` does, count too.
    """
    names = (*run_by_forward(kind), "__iter__", "__getitem__", "__len__")
    methods = [inspect.getattr_static(kind, name, None) for name in names]
    own = [method for method in methods if getattr(method, "__module__", None) != nn.Module.__module__]
    return {name for method in own for name in _names_in(_plain_code(method))}


def _names_in(code: types.CodeType | None) -> list[str]:
    return [*dict.fromkeys(name for each in codes_in(code) for name in each.co_names)] if code else []


def _spans(node: ast.expr | ast.AugAssign) -> list[tuple[int, int, int, int]]:
    """Positions that a code object can give for an expression; columns count bytes in both."""
    end = (node.end_lineno or 0) - 1, node.end_col_offset or 0
    found = [(node.lineno - 1, node.col_offset, *end)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # over several lines: from the name on
        name = node.func
        found.append(((name.end_lineno or 0) - 1, (name.end_col_offset or 0) - len(name.attr.encode()), *end))
    return found


def _plain_code(value: object) -> types.CodeType | None:
    return value.__code__ if isinstance(value, types.FunctionType) else None
