"""Expressions that stand for another one: the same operation in a branch that the forward takes instead.

    if x.shape == skip.shape:
        x = torch.cat([x, skip], 1)
    else:
        x = torch.cat([F.interpolate(x, size), skip], 1)

Both are the value `cat` of the block, so SimAM is applied to both. Which one is meant has to be clear from the source:
both have the same operations of their kind before them, and as many after. Loops and inner functions are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from simam_inject.kinds import kind_of

_OPERATORS: dict[type, str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "matmul"}
_OPERATORS |= {ast.Pow: "pow", ast.USub: "neg"}
_OPAQUE: tuple[type, ...] = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
_OPAQUE += (ast.GeneratorExp, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_EXCLUSIVE: dict[type, tuple[set[str], ...]] = {
    ast.If: ({"body", "orelse"},),
    ast.IfExp: ({"body", "orelse"},),
    ast.Try: ({"body", "handlers"}, {"handlers", "orelse"}, {"handlers"}),
    ast.Match: ({"cases"},),
}
"""Fields of a statement of which one runs; of a single one, one entry."""
_NUMBER = re.compile(r"-?[\d.]+|.*\.(shape|size\(\))\[-?\d+\]|.*\.(size|dim|numel)\(-?\d*\)|len\(.*\)|\[.*\]")
_Path = tuple[tuple[ast.AST, str, int], ...]
"""From the function to a node: each node above it, the field that it is in, and its place there."""


def in_other_branches(function: ast.FunctionDef, node: ast.AST) -> tuple[list[ast.AST], bool]:
    """Expressions that compute what the node computes where the function takes another branch.

    Returns:
        Them, and whether there are others of the same operation in other branches, which are not known to be the same.
    """
    own = function.args.args[0].arg if function.args.args else ""
    operation = _operation(node, own)
    alike = [(each, path) for each, path in _nodes(function, ()) if operation and _operation(each, own) == operation]
    mine = next((path for each, path in alike if each is node), None)
    others = [(each, path) for each, path in alike if mine and _are_exclusive(path, mine)]
    found = [each for each, path in others if mine and _is_same(alike, path, mine)]
    return found, len(found) < len(others)


def _is_same(alike: Sequence[tuple[ast.AST, _Path]], one: _Path, other: _Path) -> bool:
    """The same operations may run before two nodes, as many with each, and the result of the first one is used."""
    is_used = not isinstance(one[-1][0], ast.Expr) and not any(isinstance(node, _OPAQUE) for node, *_ in one[1:])
    counts = {sum(not _are_exclusive(path, each) for _, each in alike) for path in (one, other)}
    return is_used and _before(alike, one) == _before(alike, other) and len(counts) == 1


def _before(alike: Sequence[tuple[ast.AST, _Path]], path: _Path) -> list[ast.AST]:
    """Nodes that may run before the one at a path."""
    end = next(at for at, (_, other) in enumerate(alike) if other is path)
    return [each for each, other in alike[:end] if not _are_exclusive(other, path)]


def _nodes(node: ast.AST, path: _Path) -> Iterator[tuple[ast.AST, _Path]]:
    """Every node of a function with its path, in the order in which Python evaluates them."""
    for field, value in ast.iter_fields(node):
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                yield from _nodes(child, (*path, (node, field, place)))
                yield child, (*path, (node, field, place))


def _operation(node: ast.AST, own: str) -> str:
    """`cat` for `torch.cat(...)`, `add` for `a + b` and `a += b`, `self.act` for a child; "" for other nodes."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.UnaryOp)):
        parts = [getattr(node, name) for name in ("left", "right", "target", "value", "operand") if hasattr(node, name)]
        is_number = all(_NUMBER.fullmatch(ast.unparse(part)) for part in parts)
        is_variable = not isinstance(node, ast.AugAssign) or isinstance(node.target, ast.Name)
        return _OPERATORS.get(type(node.op), "") if is_variable and not is_number else ""
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
    return is_block and any(_leaves(getattr(each, name)) for each, name, _ in first[depth + 1 :])


def _leaves(block: object) -> bool:
    """The function ends with a block of statements, whatever is true then."""
    end = block[-1] if isinstance(block, list) and block else None
    if isinstance(end, ast.If):
        return _leaves(end.body) and _leaves(end.orelse)
    return isinstance(end, (ast.Return, ast.Raise)) or (isinstance(end, ast.With) and _leaves(end.body))
