"""Expressions that stand for another one: the same operation in a branch that the forward takes instead.

    if x.shape == skip.shape:
        x = torch.cat([x, skip], 1)
    else:
        x = torch.cat([F.interpolate(x, size), skip], 1)

Both are the value `cat` of the block, so SimAM is applied to both. Loops and inner functions are not searched.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from simam_inject.kinds import kind_of

_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "matmul"}
_REPEATED = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_EXCLUSIVE = {
    ast.If: ({"body", "orelse"},),
    ast.IfExp: ({"body", "orelse"},),
    ast.Try: ({"body", "handlers"}, {"handlers", "orelse"}, {"handlers"}),
    ast.Match: ({"cases"},),
}
"""Fields of a statement of which one runs; of a single one, one entry."""
_Path = tuple[tuple[ast.AST, str, int], ...]
"""From the function to a node: each node above it, the field that it is in, and its place there."""


def in_other_branches(function: ast.FunctionDef, node: ast.AST) -> list[ast.AST]:
    """Expressions that compute what the node computes where the function takes another branch.

    They are the same operation, with the same number of such operations before them. What runs repeatedly is left out.
    """
    own = function.args.args[0].arg if function.args.args else ""
    operation = _operation(node, own)
    alike = [(each, path) for each, path in _nodes(function, ()) if operation and _operation(each, own) == operation]
    numbers = [sum(not _are_exclusive(path, one) for _, one in alike[:at]) for at, (_, path) in enumerate(alike)]
    mine = next(((path, number) for (each, path), number in zip(alike, numbers, strict=True) if each is node), None)
    return [
        each
        for (each, path), number in zip(alike, numbers, strict=True)
        if mine and _are_exclusive(path, mine[0]) and number == mine[1]
    ]


def _nodes(node: ast.AST, path: _Path) -> Iterator[tuple[ast.AST, _Path]]:
    """Every node of a function with its path, in the order in which Python evaluates them."""
    for field, value in ast.iter_fields(node):
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, (*_REPEATED, *_INNER)):
                yield from _nodes(child, (*path, (node, field, place)))
                yield child, (*path, (node, field, place))


def _operation(node: ast.AST, own: str) -> str:
    """`cat` for `torch.cat(...)`, `add` for `a + b` and `a += b`, `self.act` for a child; "" for other nodes."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        is_variable = isinstance(node, ast.BinOp) or isinstance(node.target, ast.Name)
        return _OPERATORS.get(type(node.op), "") if is_variable else ""
    if not isinstance(node, ast.Call):
        return ""
    owner, _, name = ast.unparse(node.func).rpartition(".")
    return f"{own}.{name}" if owner == own else kind_of(name)


def _are_exclusive(one: _Path, other: _Path) -> bool:
    """Whether one call of the function runs only one of two nodes."""
    depth = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if depth is None:  # one is inside the other
        return False
    (above, field, place), (_, other_field, other_place) = one[depth], other[depth]
    if any({field, other_field} == fields for fields in _EXCLUSIVE.get(type(above), ())):
        return True
    first = one if place < other_place else other  # earlier statements of one block, and those after it
    is_block = field == other_field and isinstance(getattr(above, field)[place], ast.stmt)
    blocks = (getattr(each, name) for each, name, _ in first[depth + 1 :])
    ends = (block[-1] for block in blocks if isinstance(block, list))
    return is_block and any(isinstance(end, (ast.Return, ast.Raise)) for end in ends)
