"""Operations with conditions, one by one or in a chain: `{op: conv2d, kernel: 3}`, `conv2d[k=3] > *norm > act`.

A chain follows the dataflow across block borders: `a > b` matches if `b` is the only operation that reads the result of
`a`.

A condition on a fact is a number, `">=64"`, `">=8, <=32"` (all of these), `"1x7"`, a list (any of these), or
`depthwise` for groups. A fact with several dimensions (a map of 56x56, a kernel of 3x3) satisfies a single number when
each dimension does.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from simam_inject.errors import describe, did_you_mean, join_names
from simam_inject.kinds import FAMILIES, KINDS, find_kind
from simam_inject.recipe.grammar import Name, RecipeModel, allow, as_tuple, one_or_many, read_as
from simam_inject.recipe.names import BlockValue, Child, Kind

MAX_LENGTH = 400
MAX_LINKS = 16
_SIGNS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_TEST = r"\s*(?:(?:>=|<=|>|<|=|==|!=)?\s*(?:-1|[0-9]{1,10})|(?:=|==|!=)?\s*[0-9]{1,10}(?:x[0-9]{1,10}){1,2})\s*"
_NUMBER = "a whole number from 0, a comparison such as '>=64' or '>=8, <=32', a size such as '1x7' or '!=1x7'"
_LINK = re.compile(r"(?P<name>[^\[\]\s]+)\s*(?:\[(?P<facts>[^\[\]]*)\])?")
_FACT = re.compile(r"\s*(?P<key>[A-Za-z_]+)\s*(?P<bounds>(?:>=|<=|!=|==|>|<|=)\s*[A-Za-z0-9]+)\s*")
_SHORT = {"k": "kernel", "s": "stride", "d": "dilation", "g": "groups"}

Fact = int | tuple[int, ...]
_Number = Annotated[int, Field(strict=True, ge=-1, lt=2**31)] | Annotated[str, Field(pattern=f"^{_TEST}(,{_TEST})*$")]
_NUMBERS = one_or_many("Numbers", Annotated[_Number, allow(f"{_NUMBER}, or a list of these")], 64)
_GROUP = Annotated[Literal["depthwise"] | _Number, allow(f"{_NUMBER}, depthwise, or a list of these")]
_KNOWN = {"anyOf": [{"enum": sorted(FAMILIES.keys() | KINDS)}, {}]}  # an editor completes these and takes others
_KIND = Annotated[Name, Field(json_schema_extra=_KNOWN), AfterValidator(Kind)]
Numbers = Annotated[int | str | Sequence[int | str], read_as(_NUMBERS)]
Groups = Annotated[int | str | Sequence[int | str], read_as(one_or_many("Groups", _GROUP, 64))]
Kinds = Annotated[str | Sequence[str], read_as(one_or_many("Kinds", _KIND, 16))]


def is_met(condition: Numbers, fact: Fact, *, depthwise: bool = False) -> bool:
    """The fact, a number or one for each dimension, satisfies the condition.

    Args:
        depthwise: it is the number of groups of a depthwise convolution.

    >>> is_met(">=8, <=32", 16), is_met((1, "3x3"), (3, 3)), is_met("!=1x7", (1, 7))
    (True, True, False)
    """
    return any(
        depthwise if entry == "depthwise" else all(_holds(test, fact) for test in str(entry).split(","))
        for entry in as_tuple(condition)
    )


def _holds(test: str, fact: Fact) -> bool:
    sign, size = re.findall(r"([<>=!]*)\s*(-?[0-9x]+)", test)[0]
    facts = fact if isinstance(fact, tuple) else (fact,)
    wanted = tuple(map(int, size.split("x")))
    wanted = wanted * len(facts) if len(wanted) == 1 else wanted
    if sign in _SIGNS:
        return all(map(_SIGNS[sign], facts, wanted))
    return (facts == wanted) is (sign != "!=")


class FactConditions(RecipeModel):
    """Conditions on the facts of an operation, all of which must be met."""

    kernel: Numbers | None = Field(default=None, description="Kernel of a convolution or pooling.")
    stride: Numbers | None = Field(default=None, description="Stride of a convolution or pooling.")
    dilation: Numbers | None = Field(default=None, description="Dilation of a convolution or pooling.")
    groups: Groups | None = Field(default=None, description="Groups of a convolution, or `depthwise`.")

    def conditions(self) -> tuple[tuple[str, Numbers], ...]:
        """Name and condition of each fact that was given."""
        names = [name for name in type(self).model_fields if name not in ("op", "which")]
        return tuple((name, getattr(self, name)) for name in names if getattr(self, name) is not None)


class Operation(FactConditions):
    """The operations of some kinds inside a block: every one, the first or the last."""

    op: Kinds = Field(description="Kind(s) of operation: conv2d, batch_norm, relu, add; or a family: conv, act.")
    which: Literal["all", "first", "last"] = Field(
        default="all", description="Which of the operations in each block, in execution order."
    )

    def includes(self, kind: str) -> bool:
        """An operation of this kind is meant."""
        return any(name.includes(kind) for name in as_tuple(self.op))

    def __str__(self) -> str:
        op = self.op if isinstance(self.op, str) else f"[{', '.join(self.op)}]"
        facts = [f"{name}: {join_names(as_tuple(condition))}" for name, condition in self.conditions()]
        which = [] if self.which == "all" else [f"which: {self.which}"]
        return "{" + ", ".join([f"op: {op}", *facts, *which]) + "}"


@dataclass(frozen=True, slots=True)
class Link:
    """One operation of a chain."""

    text: str
    """As it was written."""
    kind: Kind
    facts: FactConditions


@lru_cache(maxsize=256)
def parse_chain(text: str) -> tuple[Link, ...]:
    """Read a `pattern`; a `ValueError` if it is too long, or names an element that is not valid."""
    parts = re.split(r">(?![^\[]*\])", text)
    if len(text) > MAX_LENGTH or len(parts) > MAX_LINKS:
        raise ValueError(f"found {len(parts)} elements; expected at most {MAX_LINKS}, in {MAX_LENGTH} characters")
    return tuple(_parse_link(part.strip()) for part in parts)


def _parse_link(text: str) -> Link:
    found = _LINK.fullmatch(text)
    facts = [_FACT.fullmatch(entry) for entry in (found["facts"] or "").split(",")] if found and found["facts"] else []
    if found is None or not all(facts):
        raise ValueError(
            f"found {describe(text)} as an element of the chain; expected one such as conv2d, *norm or "
            "conv2d[k=3, s>=2, groups=depthwise], with '>' between them"
        )
    pairs = [(_SHORT.get(fact["key"], fact["key"]), fact["bounds"].lstrip("= ")) for fact in facts if fact]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{describe(text)} gives a condition twice")
    return Link(text, Kind(found["name"]), FactConditions.model_validate(dict(pairs)))


def find_element(chain: Sequence[Link], target: BlockValue | Child | Operation) -> int:
    """Index of the element of a chain that a target names, by default the last; a `ValueError` if none or several."""
    if target == BlockValue("output"):
        return len(chain) - 1
    wanted = target.name if isinstance(target, Child) else str(target)
    found = [index for index, link in enumerate(chain) if link.kind in (wanted.lower(), find_kind(wanted))]
    if not found or not isinstance(target, Child):
        near = did_you_mean(wanted, {link.kind for link in chain})
        raise ValueError(f"{str(target)!r} is not an element of the chain{near}")
    call = 1 if target.call is None and len(found) == 1 else target.call
    if not call or call > len(found):
        choices = join_names(f"{wanted}[{number}]" for number in range(1, len(found) + 1))
        problem = "is not an element of the chain" if call else "is ambiguous in the chain"
        raise ValueError(f"{str(target)!r} {problem}; write {choices}")
    return found[call - 1]
