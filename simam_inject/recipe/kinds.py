"""Names of operations: what `op:` and the members of a `pattern` can say.

A kind is one operation however it is written: `relu` is `nn.ReLU`, `F.relu`, `x.relu()` and `torch.relu_`. A family
is a name for several kinds: `conv`, `norm`, `act`, `pool`. A name may be a glob (`*norm`). The vocabulary is open,
since a model may compute anything; a name close to a known kind is refused as a slip of the pen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from simam_inject.kinds import FAMILIES, KINDS, NOT_OPERATIONS, find_kind
from simam_inject.recipe.globs import Glob, parse_glob
from simam_inject.recipe.wording import describe, suggest

_LITERAL = re.compile(r"[A-Za-z_+][A-Za-z0-9_]*|\*")


@dataclass(frozen=True, slots=True)
class Kinds:
    """One name of operations: a kind, a family or a glob. Make it with `parse_kinds`."""

    text: str

    def matches(self, kind: str) -> bool:
        """An operation of this kind is meant."""
        if kind in NOT_OPERATIONS:
            return False
        return kind in FAMILIES[self.text] if self.text in FAMILIES else Glob(self.text).matches(kind)

    def __str__(self) -> str:
        return self.text


def parse_kinds(text: object) -> Kinds:
    """Check the name of an operation; spellings such as `BatchNorm2d`, `SiLU` and `concat` become the kind they mean.

    Raises:
        ValueError: not a text, not a name or glob, or a name that is almost, but not quite, a known one.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"found {describe(text)}; operations are named like conv2d, batch_norm, relu or act")
    name = text.strip()
    if name == "*":
        return Kinds(name)
    if name.lower() == "depthwise":
        raise ValueError(
            "depthwise is a condition, not an operation; write conv2d[g=depthwise] in a pattern, "
            "else {op: conv2d, groups: depthwise}"
        )
    if parse_glob(name).is_wild:
        return Kinds(name.lower())
    if not _LITERAL.fullmatch(name):
        raise ValueError(f"found {describe(name)}; operations are named like conv2d, batch_norm or *norm")
    known = find_kind(name)
    if known is None:
        _refuse_slip(name.lower())
    return Kinds(known or name.lower())


def _refuse_slip(name: str) -> None:
    near = suggest(name, KINDS | FAMILIES.keys(), cutoff=0.75)
    if near:
        raise ValueError(
            f"found {name!r}; operations are named like conv2d, batch_norm, relu, max_pool, add, cat, or by family: "
            f"{', '.join(FAMILIES)}. Did you mean {near!r}?"
        )
