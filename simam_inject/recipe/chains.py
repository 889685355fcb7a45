"""Chains of operations: `conv2d[k=3, groups=depthwise] > *norm > act`.

A chain follows the dataflow, across block borders: `a > b` holds when `b` reads what `a` computes and nobody else does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from simam_inject.recipe.bounds import Bounds, parse_bounds
from simam_inject.recipe.kinds import Kinds, parse_kinds
from simam_inject.recipe.targets import OPERATION_FACTS, Child, Facts, Output, Target
from simam_inject.recipe.wording import describe, did_you_mean

MAX_LENGTH = 400
MAX_LINKS = 16
_LINK = re.compile(r"(?P<name>[^\[\]\s]+)\s*(?:\[(?P<facts>[^\[\]]*)\])?")
_FACT = re.compile(r"(?P<key>[A-Za-z_]+)\s*(?P<sign>>=|<=|!=|==|>|<|=)\s*(?P<value>[A-Za-z0-9]+)")
_SHORT = {"k": "kernel", "s": "stride", "d": "dilation", "g": "groups"}


@dataclass(frozen=True, slots=True)
class Link:
    """One member of a chain: an operation of some kind, with conditions."""

    kinds: Kinds
    name: str
    """As it was written, without the conditions."""
    text: str
    facts: Facts = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of operations. Make it with `parse_chain`."""

    links: tuple[Link, ...]

    def __str__(self) -> str:
        return " > ".join(link.text for link in self.links)

    def find_member(self, target: Target) -> int:
        """Index of the link that a target names.

        Raises:
            ValueError: no link has that name, or several do and no call index says which.
        """
        if isinstance(target, Output):
            return len(self.links) - 1
        if not isinstance(target, Child):
            raise ValueError(
                f"{target} is not a member of the chain ({self}); write its name, e.g. {self.links[0].name}"
            )
        wanted = str(target.name)
        found = [index for index, link in enumerate(self.links) if _is_named(link, wanted)]
        if not found:
            near = did_you_mean(wanted, {link.name for link in self.links})
            raise ValueError(f"{wanted!r} is not a member of the chain ({self}){near}")
        if target.call == 0 or (target.call is None and len(found) > 1):
            choices = ", ".join(f"{wanted}[{number}]" for number in range(1, len(found) + 1))
            raise ValueError(f"{wanted!r} is {len(found)} times in the chain ({self}); write one of {choices}")
        if target.call is not None and target.call > len(found):
            raise ValueError(f"{target} is not in the chain ({self}): {wanted!r} is there {len(found)} times")
        return found[(target.call or 1) - 1]


def _is_named(link: Link, wanted: str) -> bool:
    if link.name.lower() == wanted.lower():
        return True
    try:
        return link.kinds == parse_kinds(wanted)
    except ValueError:
        return False


def parse_chain(value: object) -> Chain:
    """Check what stands at `pattern`.

    Raises:
        ValueError: not a text, too long, or a member that is not valid.
    """
    if isinstance(value, Chain):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"found {describe(value)}; a pattern is a chain such as 'conv2d > batch_norm > relu'")
    if len(value) > MAX_LENGTH:
        raise ValueError(f"found a pattern of {len(value)} characters; at most {MAX_LENGTH} are allowed")
    links = tuple(_parse_link(part) for part in _split(value))
    if len(links) > MAX_LINKS:
        raise ValueError(f"found a pattern of {len(links)} members; at most {MAX_LINKS} are allowed")
    return Chain(links)


def _split(text: str) -> list[str]:
    """Parts between the `>` that stand outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == ">" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _parse_link(part: str) -> Link:
    text = part.strip()
    found = _LINK.fullmatch(text)
    if found is None:
        raise ValueError(
            f"found {describe(text)} as a member of the chain; members are written like conv2d, *norm or "
            "conv2d[k=3, s=2, groups=depthwise], with '>' between them"
        )
    facts: dict[str, Bounds] = {}
    for entry in (found["facts"] or "").split(",") if found["facts"] is not None else ():
        key, bounds = _parse_fact(entry.strip(), text)
        if key in facts:
            raise ValueError(f"{describe(text)} gives {key} twice")
        facts[key] = bounds
    return Link(parse_kinds(found["name"]), found["name"], text, tuple(facts.items()))


def _parse_fact(entry: str, link: str) -> tuple[str, Bounds]:
    fact = _FACT.fullmatch(entry)
    if fact is None:
        raise ValueError(
            f"found {describe(entry)} in {describe(link)}; conditions are written like k=3, s>=2 or groups=depthwise"
        )
    key = _SHORT.get(fact["key"], fact["key"])
    if key not in OPERATION_FACTS:
        near = did_you_mean(key, OPERATION_FACTS)
        raise ValueError(
            f"unknown condition {fact['key']!r} in {describe(link)}; "
            f"allowed are k (kernel), s (stride), d (dilation), g (groups){near}"
        )
    value = fact["value"] if fact["sign"] in ("=", "==") else fact["sign"] + fact["value"]
    try:
        return key, parse_bounds(value, depthwise=key == "groups")
    except ValueError as problem:
        raise ValueError(f"{fact['key']} in {describe(link)}: {problem}") from None
