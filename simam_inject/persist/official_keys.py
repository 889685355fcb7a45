"""The authors' keys -> torchvision's keys. Pure: names and shapes in, pairs of names out.

The authors wrap the attended convolution and its SimAM in a Sequential, so `conv2.weight` is `conv2.0.weight` there;
where the attention is a member of the block's own Sequential, all later members are numbered higher. Both are solved
block by block (`layer1.0`, `features.3`, the rest):

    exact       the module of the same name holds tensors of the same names and shapes
    unwrapped   the module of that name without a trailing `.0` does
    in order    the block holds as many modules as ours, and, one by one in order, they agree in names and shapes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simam_inject.errors import FileError

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"(layer\d+\.\d+|features\.\d+)\.")
_COUNTER = "num_batches_tracked"
"""Checkpoints of torch before 0.4.1 lack it; nothing in eval mode reads it."""
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where one tensor of the checkpoint goes."""

    source: str
    target: str
    how: str
    """`exact`, `unwrapped` or `in order`."""


def map_keys(theirs: Shapes, ours: Shapes) -> tuple[Mapped, ...]:
    """Pair every key of a checkpoint with a key of the model.

    Args:
        theirs: keys and shapes of the checkpoint, in its order.
        ours: keys and shapes of the model, in its order.

    Raises:
        FileError: a block cannot be paired; the message says which, and what differs.
    """
    prefix = common_prefix(theirs)
    their_blocks, our_blocks = (
        _blocks({key.removeprefix(prefix): shape for key, shape in theirs.items()}),
        _blocks(ours),
    )
    found: list[Mapped] = []
    problems: list[str] = []
    for name in dict.fromkeys([*our_blocks, *their_blocks]):
        there, here = their_blocks.get(name, {}), our_blocks.get(name, {})
        pairs = _by_name(there, here) or _in_order(there, here)
        if pairs is None:
            problems.append(_block_difference(name, there, here))
            continue
        for source, target, how in pairs:
            leaves = [leaf for leaf in there[source] if leaf in here[target]]
            found += [Mapped(f"{prefix}{source}.{leaf}", f"{target}.{leaf}", how) for leaf in leaves]
    if problems:
        more = f"\n  ... and {len(problems) - 3} more blocks" if len(problems) > 3 else ""
        raise FileError("its tensors do not fit this model:\n" + "\n".join(problems[:3]) + more)
    return tuple(found)


def common_prefix(keys: Iterable[str]) -> str:
    """The wrappers' prefix that all keys have: "", `module.`, `module.module.`, ..."""
    names = list(keys)
    prefix = ""
    while names:
        step = next((step for step in _PREFIXES if all(name.startswith(step) for name in names)), None)
        if step is None:
            break
        prefix += step
        names = [name.removeprefix(step) for name in names]
    return prefix


_Module = dict[str, tuple[int, ...]]
"""Leaf name (weight, running_mean, ...) -> shape."""
_Block = dict[str, _Module]


def _blocks(shapes: Shapes) -> dict[str, _Block]:
    """Block -> module -> leaf -> shape, all in the order given."""
    blocks: dict[str, _Block] = {}
    for key, shape in shapes.items():
        found = _BLOCK.match(key)
        module, _, leaf = key.rpartition(".")
        blocks.setdefault(found[1] if found else "", {}).setdefault(module, {})[leaf] = shape
    return blocks


def _agree(one: _Module, other: _Module) -> bool:
    """The same leaves with the same shapes, the counter aside."""
    return {k: v for k, v in one.items() if k != _COUNTER} == {k: v for k, v in other.items() if k != _COUNTER}


def _by_name(there: _Block, here: _Block) -> list[tuple[str, str, str]] | None:
    pairs = []
    for name, module in there.items():
        bare = name.removesuffix(".0")
        if name in here and _agree(module, here[name]):
            pairs.append((name, name, "exact"))
        elif bare != name and bare in here and _agree(module, here[bare]):
            pairs.append((name, bare, "unwrapped"))
        else:
            return None
    return pairs if {target for _, target, _ in pairs} == here.keys() and len(pairs) == len(here) else None


def _in_order(there: _Block, here: _Block) -> list[tuple[str, str, str]] | None:
    if len(there) != len(here):
        return None
    pairs = list(zip(there, here, strict=True))
    if not all(_agree(there[source], here[target]) for source, target in pairs):
        return None
    return [(source, target, "in order") for source, target in pairs]


def _block_difference(block: str, there: _Block, here: _Block) -> str:
    theirs, ours = _flat(there), _flat(here)
    only_theirs = [key for key in theirs if ours.get(key) != theirs[key]]
    only_ours = [key for key in ours if theirs.get(key) != ours[key]]
    return f"  {block or 'outside of blocks'}: file {_listed(only_theirs, theirs)}; model {_listed(only_ours, ours)}"


def _flat(block: _Block) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{leaf}": shape for module, leaves in block.items() for leaf, shape in leaves.items()}


def _listed(keys: list[str], shapes: Shapes) -> str:
    shown = [f"{key} {'x'.join(map(str, shapes[key])) or 'scalar'}" for key in keys[:3]]
    return (", ".join(shown) or "nothing else") + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
