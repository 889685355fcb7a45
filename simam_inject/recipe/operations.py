"""Operations with conditions, one by one or in a chain: `{op: conv2d, kernel: 3}`, `conv2d[k=3] > *norm > act`.

A chain follows the dataflow across block borders: `a > b` holds when `b` reads what `a` computes and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

from simam_inject.recipe.bounds import Bounds, parse_bounds
from simam_inject.recipe.fields import Groups, KindNames, Numbers, entries_of
from simam_inject.recipe.grammar import Grammar
from simam_inject.recipe.names import Child, Kinds, Whole, parse_kinds
from simam_inject.recipe.wording import describe, did_you_mean

T = TypeVar("T")
Facts = tuple[tuple[str, Bounds], ...]
"""Conditions: pairs of a fact's name and what it may be."""
MAX_LENGTH = 400
MAX_LINKS = 16
_LINK = re.compile(r"(?P<name>[^\[\]\s]+)\s*(?:\[(?P<facts>[^\[\]]*)\])?")
_FACT = re.compile(r"\s*(?P<key>[A-Za-z_]+)\s*(?P<bounds>(?:>=|<=|!=|==|>|<|=)\s*[A-Za-z0-9]+)\s*")
_SHORT = {"k": "kernel", "s": "stride", "d": "dilation", "g": "groups"}


class Conditions(Grammar):
    """A mapping with conditions on the facts of a site or an operation; all of them hold."""

    def conditions(self) -> Facts:
        """Name and bounds of each condition that was given."""
        given = [(name, getattr(self, name)) for name in type(self).model_fields if name not in ("op", "which")]
        return tuple(
            (name, parse_bounds(value, depthwise=name == "groups")) for name, value in given if value is not None
        )


class Operation(Conditions):
    """Every operation of some kinds inside the block, or the first or last of them."""

    root: ClassVar[str] = "operation"
    op: KindNames = Field(description="Kind(s) of operation: conv2d, batch_norm, relu, add; or a family: conv, act.")
    kernel: Numbers | None = Field(default=None, description="Kernel of a convolution or pooling.")
    stride: Numbers | None = Field(default=None, description="Stride of a convolution or pooling.")
    dilation: Numbers | None = Field(default=None, description="Dilation of a convolution or pooling.")
    groups: Groups | None = Field(default=None, description="Groups of a convolution, or `depthwise`.")
    which: Literal["all", "first", "last"] = Field(
        default="all", description="Which of the operations in each block, in execution order."
    )

    @property
    def kinds(self) -> tuple[Kinds, ...]:
        """What `op` names."""
        return tuple(parse_kinds(name) for name in entries_of(self.op))

    def choose(self, named: Sequence[T]) -> Sequence[T]:
        """Those of one block's operations that are meant."""
        return {"all": named, "first": named[:1], "last": named[-1:]}[self.which]

    def __str__(self) -> str:
        kinds = self.op if isinstance(self.op, str) else f"[{', '.join(self.op)}]"
        facts = [f"{name}: {bounds}" for name, bounds in self.conditions()]
        which = [] if self.which == "all" else [f"which: {self.which}"]
        return "{" + ", ".join([f"op: {kinds}", *facts, *which]) + "}"


@dataclass(frozen=True, slots=True)
class Link:
    """One member of a chain."""

    text: str
    name: str
    """As it was written, without the conditions."""
    kinds: Kinds
    facts: Facts

    def is_named(self, name: str) -> bool:
        """The name means this member."""
        if self.name.lower() == name.lower():
            return True
        try:
            return self.kinds == parse_kinds(name)
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of operations. Make it with `parse_chain`."""

    links: tuple[Link, ...]

    def __str__(self) -> str:
        return " > ".join(link.text for link in self.links)

    def find_member(self, target: Whole | Child | Operation) -> int:
        """Index of the link that a target names; the output is the last.

        Raises:
            ValueError: no link has that name, or several do and no call index says which.
        """
        if target == Whole("output"):
            return len(self.links) - 1
        wanted = str(target.name if isinstance(target, Child) else target)
        found = [index for index, link in enumerate(self.links) if link.is_named(wanted)]
        if not found or not isinstance(target, Child):
            near = did_you_mean(wanted, {link.name for link in self.links})
            raise ValueError(f"{wanted!r} is not a member of the chain ({self}){near}")
        if target.call == 0 or (target.call is None and len(found) > 1):
            choices = ", ".join(f"{wanted}[{number}]" for number in range(1, len(found) + 1))
            raise ValueError(f"{wanted!r} is {len(found)} times in the chain ({self}); write one of {choices}")
        if target.call is not None and target.call > len(found):
            raise ValueError(f"{wanted!r} is only {len(found)} times in the chain ({self}); there is no {target}")
        return found[(target.call or 1) - 1]


@lru_cache(maxsize=256)
def parse_chain(text: str) -> Chain:
    """Read what stands at `pattern`.

    Raises:
        ValueError: too long, or a member that is not valid.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"found a pattern of {len(text)} characters; at most {MAX_LENGTH} are allowed")
    parts = re.split(r">(?![^\[]*\])", text)
    if len(parts) > MAX_LINKS:
        raise ValueError(f"found a pattern of {len(parts)} members; at most {MAX_LINKS} are allowed")
    return Chain(tuple(_parse_link(part.strip()) for part in parts))


def _parse_link(text: str) -> Link:
    found = _LINK.fullmatch(text)
    facts = [_FACT.fullmatch(entry) for entry in (found["facts"] or "").split(",")] if found and found["facts"] else []
    if found is None or not all(facts):
        raise ValueError(
            f"found {describe(text)} as a member of the chain; expected one such as conv2d, *norm or "
            "conv2d[k=3, s>=2, groups=depthwise], with '>' between them"
        )
    keys = [(_SHORT.get(fact["key"], fact["key"]), fact["bounds"].lstrip("= ")) for fact in facts if fact]
    if len(dict(keys)) < len(keys) or "which" in dict(keys):
        raise ValueError(f"{describe(text)} gives a condition twice, or one that a chain does not have")
    operation = Operation.model_validate({"op": found["name"], **dict(keys)})
    return Link(text, found["name"], operation.kinds[0], operation.conditions())
