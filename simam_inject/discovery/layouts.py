"""Which dimensions of a tensor hold its channels, followed through whatever moves them.

A layout is the set of those dimensions: {1} for N, C, spatial; {rank - 1} for N, spatial, C; two dimensions while a
channel shuffle has the channels split into groups; none where nothing is known or nothing holds channels (attention
weights).
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Layout = frozenset[int]
Shape = tuple[int, ...]

SECOND: Layout = frozenset({1})
NOWHERE: Layout = frozenset()

RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"})
"""Kinds that keep the order of the elements."""
PERMUTES = frozenset({"permute", "transpose", "swapaxes", "swapdims", "movedim"})
MATRIX_PRODUCTS = frozenset({"matmul", "bmm"})
MOVES = RESHAPES | PERMUTES | MATRIX_PRODUCTS
"""Kinds whose result has its channels elsewhere than what it was computed from, even where the shapes are equal."""
_SECOND = ("conv", "batch_norm", "instance_norm", "group_norm", "interpolate", "pixel_", "local_response_norm")
_LAST = ("linear", "layer_norm", "rms_norm")


def written(kind: str, module: nn.Module | None, rank: int) -> Layout | None:
    """The layout that an operation always writes; None if it depends on what it reads."""
    if isinstance(module, (_ConvNd, _BatchNorm)) or kind.startswith(_SECOND) or (kind.endswith("pool") and rank > 2):
        return SECOND
    if isinstance(module, nn.MultiheadAttention):
        return frozenset({rank - 1})
    if kind in _LAST and not type(module).__name__.endswith(("1d", "2d", "3d")):
        return frozenset({rank - 1})
    return None


def channel_dim(layout: Layout, rank: int) -> int:
    """1 or -1; 0 where the channels stand elsewhere or in several dimensions."""
    if layout == SECOND:
        return 1
    return -1 if rank > 1 and layout == {rank - 1} else 0


def permuted(node: fx.Node, kind: str, module: nn.Module | None, layout: Layout, rank: int) -> Layout:
    """Layout after a permutation, written as a call (`x.permute(0, 2, 3, 1)`) or as a module with `dims`."""
    numbers: list[Any] = []
    for argument in [*node.args[1:], *node.kwargs.values()] if module is None else [getattr(module, "dims", ())]:
        numbers.extend(argument if isinstance(argument, (list, tuple)) else [argument])
    if not all(isinstance(number, int) for number in numbers):
        return NOWHERE
    order = list(range(rank))
    numbers = [number % rank for number in numbers]
    if kind == "permute" and sorted(numbers) == order:
        order = numbers
    elif kind == "movedim" and len(numbers) == 2:
        order.insert(numbers[1], order.pop(numbers[0]))
    elif kind != "permute" and len(numbers) == 2:
        one, other = numbers
        order[one], order[other] = order[other], order[one]
    else:
        return NOWHERE
    return frozenset(place for place, dimension in enumerate(order) if dimension in layout)


def reshaped(before: Shape, after: Shape, layout: Layout) -> Layout:
    """Layout after the same elements in the same order were given another shape.

    Both shapes fall into groups of dimensions with the same product. A group that held nothing but channels still
    does; one that merges channels with something else holds channels if they come first in it (space to depth:
    C, 2, 2 -> 4C) and does not if they come last (depth to space: H, 2 -> 2H).
    """
    found: set[int] = set()
    for ours, theirs in _groups(before, after):
        telling = [dimension for dimension in ours if before[dimension] != 1]
        if not telling and len(ours) == len(theirs):  # a single channel is one all the same
            found.update(there for here, there in zip(ours, theirs, strict=True) if here in layout)
        if not telling or telling[0] not in layout:
            continue
        if all(dimension in layout for dimension in telling) or len(theirs) == 1:
            found.update(dimension for dimension in theirs if after[dimension] != 1 or len(theirs) == 1)
        else:
            found.update(d for d in theirs[:1] if after[d] == before[telling[0]])
    return frozenset(found)


def multiplied(left: Layout, right: Layout, rank: int) -> Layout:
    """Layout of a matrix product: the last dimension is the right factor's, the others are the left one's."""
    last = rank - 1
    return frozenset({d for d in left if d != last} | ({last} & right))


def recognised(before: Shape, after: Shape, layout: Layout) -> Layout:
    """Layout after an operation that nothing is known about: channels are where their number went."""
    rank = len(after)
    if rank < 3:
        return NOWHERE
    if len(before) < 3 or not layout:
        return SECOND if len(before) < 3 else NOWHERE
    channels = math.prod(before[dimension] for dimension in layout)
    if len(before) == rank and all(after[dimension] == before[dimension] for dimension in layout):
        return layout
    if after[1] == channels and after[-1] != channels:
        return SECOND
    if after[-1] == channels and after[1] != channels:
        return frozenset({rank - 1})
    if len(before) == rank:
        return layout
    if layout == {len(before) - 1}:
        return frozenset({rank - 1})
    return layout if max(layout) < rank else NOWHERE


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions with equal products, side by side."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        ours, theirs = [i], [j]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(before):
                left, ours, i = left * before[i], [*ours, i], i + 1
            elif j < len(after):
                right, theirs, j = right * after[j], [*theirs, j], j + 1
            else:
                return groups
        groups.append((ours, theirs))
    if groups:  # what is left over has size 1
        groups[-1][0].extend(range(i, len(before)))
        groups[-1][1].extend(range(j, len(after)))
    return groups
