"""Positions drawn: the dataflow of a block as text, with the SimAM in it.

    conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu
    x > downsample > (+)

Each line is one way through the block. A value that is read by several operations begins the lines it feeds; `(+)` and
`(cat)` are where lines meet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from simam_inject.discovery.records import Anatomy, Site
from simam_inject.planning.records import Insertion

MARK = "[SimAM]"
_SYMBOLS = {"add": "(+)", "mul": "(*)", "sub": "(-)", "cat": "(cat)"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One kind of block with SimAM in it."""

    class_name: str
    lines: tuple[str, ...]
    paths: tuple[str, ...]
    """The blocks that look like this."""

    def __str__(self) -> str:
        count = f"{len(self.paths)} blocks, first {self.paths[0]}" if len(self.paths) > 1 else self.paths[0]
        return "\n".join([f"{self.class_name} ({count or 'the model itself'})", *(f"  {line}" for line in self.lines)])


def draw(anatomy: Anatomy, insertions: Iterable[Insertion]) -> tuple[Drawing, ...]:
    """Draw every block that holds an insertion; blocks that look the same are drawn once."""
    by_scope: dict[str, list[Insertion]] = {}
    for insertion in insertions:
        by_scope.setdefault(insertion.scope, []).append(insertion)
    members: dict[str, list[Site]] = {}
    for site in anatomy.sites:
        if site.is_traced and site.runs:
            members.setdefault(site.scope, []).append(site)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for scope, held in by_scope.items():
        block = anatomy.site_by_path.get(scope)
        name = block.class_name if block is not None and block.class_name else "model"
        lines = _Ways(scope, members.get(scope, []), held).lines()
        found.setdefault((name, lines), []).append(scope)
    return tuple(Drawing(name, lines, tuple(paths)) for (name, lines), paths in found.items())


@dataclass
class _Ways:
    """The lines of one block: each operation continues the longest line that ends in one of its operands."""

    scope: str
    sites: list[Site]
    insertions: list[Insertion]
    ways: list[list[str]] = field(default_factory=list)
    length: Counter[str] = field(default_factory=Counter)

    def lines(self) -> tuple[str, ...]:
        """The lines, the longest first."""
        ends: dict[str, int] = {}
        for site in sorted(self.sites, key=lambda site: site.kind != "input"):
            if site.kind == "input":
                self.length[site.path] = 0
        for site in self._operations():
            operands = sorted(dict.fromkeys(site.operands), key=lambda path: -self.length[path])
            for index, operand in enumerate(operands):
                is_main = index == 0
                way = ends.pop(operand, None) if is_main else None
                if way is None and not is_main and operand in ends:
                    way = ends.pop(operand)
                if way is None:
                    is_first_way = operand == self._only_input() and not self.ways
                    self.ways.append([] if is_first_way else [self._name(operand)])
                    way = len(self.ways) - 1
                self.ways[way] += [*self._marks(operand, site.path), self._name(site.path)]
                if is_main:
                    ends[site.path] = way
                    self.length[site.path] = self.length[operand] + 1
            if not operands:
                self.ways.append([self._name(site.path)])
                ends[site.path] = len(self.ways) - 1
        self._mark_ends(ends)
        ordered = sorted(self.ways, key=lambda way: (MARK not in way, -len(way)))
        return tuple(" > ".join(way) for way in ordered)

    def _operations(self) -> list[Site]:
        return [site for site in self.sites if site.kind != "input"]

    def _only_input(self) -> str | None:
        inputs = [site.path for site in self.sites if site.kind == "input"]
        return inputs[0] if len(inputs) == 1 else None

    def _name(self, path: str) -> str:
        site = next((site for site in self.sites if site.path == path), None)
        local = path[len(self.scope) + 1 :] if self.scope and path.startswith(f"{self.scope}.") else path
        if site is None or site.class_name is not None or site.kind not in _SYMBOLS:
            return re.sub(r"\[\d+\]$", "", local) if site is not None and site.class_name is not None else local
        number = re.search(r"\[(\d+)\]$", local)
        symbol = _SYMBOLS[site.kind]
        return symbol if number is None else f"{symbol[:-1]} {number.group(1)})"

    def _marks(self, operand: str, reader: str) -> list[str]:
        """The SimAMs between a value and one who reads it."""
        return [
            MARK
            for insertion in self.insertions
            if insertion.path == operand and insertion.means == "forward" and insertion.reader in (None, reader)
        ]

    def _mark_ends(self, ends: dict[str, int]) -> None:
        """What the block returns, and a value that nobody else in the block reads."""
        for insertion in self.insertions:
            is_end = insertion.means == "forward" and insertion.path in ends and insertion.reader is None
            if is_end:
                self.ways[ends[insertion.path]].append(MARK)
            elif insertion.means == "boundary":
                if not self.ways:
                    self.ways.append(["..."])
                last = self._operations()[-1].path if self._operations() else None
                self.ways[ends.get(last or "", 0)].append(MARK)
