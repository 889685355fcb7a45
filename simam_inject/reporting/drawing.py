"""Positions drawn: the dataflow of a block as text, with the SimAM in it.

    conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu
    x > downsample > (+)

Each line is one way through the block. A value that several operations read begins the lines that it feeds; `(+)` and
`(cat)` are where lines meet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.planning.records import Insertion
from simam_inject.reporting.anatomy import CONTAINERS, class_of, local_name

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
    members: dict[str, list[Site]] = {}
    for site in anatomy.sites:
        if site.runs and site.path and ":" not in site.path:
            members.setdefault(site.scope, []).append(site)
    by_scope: dict[str, list[Insertion]] = {}
    for insertion in insertions:
        by_scope.setdefault(_scope(anatomy, insertion, members), []).append(insertion)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for scope, held in by_scope.items():
        block = anatomy.site_by_path.get(scope)
        returned = block.reads if block is not None else ()
        lines = _Lines(scope, members.get(scope, []), held, anatomy, returned).draw()
        found.setdefault((class_of(anatomy, scope), lines), []).append(scope)
    return tuple(Drawing(name, lines, tuple(paths)) for (name, lines), paths in found.items())


def _scope(anatomy: Anatomy, insertion: Insertion, members: dict[str, list[Site]]) -> str:
    """The block to draw: the one around the value, or the block itself whose output is attended.

    A block inside a larger one that has no structure of its own (`cv2` of a `C2f`) is drawn from outside.
    """
    site = anatomy.site_by_path[insertion.path]
    is_output = site.kind == "block" and insertion.reader is None and ":" not in site.path
    if not is_output or site.path not in members or site.class_name in CONTAINERS:
        return site.scope
    around = anatomy.site_by_path.get(site.scope)
    is_inner = bool(site.scope) and around is not None and around.class_name not in CONTAINERS
    return site.scope if is_inner and not site.structure else site.path


def _whole(path: str) -> str:
    """The value that an entry is part of: `chunk` for `chunk:1`."""
    return path.partition(":")[0]


@dataclass
class _Lines:
    """The lines of one block: each operation continues the longest line that ends in one of its operands."""

    scope: str
    sites: list[Site]
    insertions: list[Insertion]
    anatomy: Anatomy
    returned: tuple[str, ...]
    lines: list[list[str]] = field(default_factory=list)
    length: Counter[str] = field(default_factory=Counter)

    def draw(self) -> tuple[str, ...]:
        """The lines, those with SimAM first, then the longest."""
        ends: dict[str, int] = {}
        inputs = [site.path for site in self.sites if site.kind == "input"]
        for site in self.sites:
            if site.kind == "input":
                continue
            operands = sorted(dict.fromkeys(site.operands), key=lambda path: -self.length[_whole(path)])
            for index, operand in enumerate(operands):
                source = _whole(operand)
                line = ends.pop(source, None)
                if line is None:
                    self.lines.append([] if [source] == inputs and not self.lines else [self._name(source)])
                    line = len(self.lines) - 1
                self.lines[line] += [*self._marks(operand, site.path), self._name(site.path)]
                if index == 0:
                    ends[site.path] = line
                    self.length[site.path] = self.length[source] + 1
            if not operands:
                self.lines.append([self._name(site.path)])
                ends[site.path] = len(self.lines) - 1
        self._mark_ends(ends)
        ordered = sorted(self.lines, key=lambda line: (MARK not in line, -len(line)))
        return tuple(" > ".join(line) for line in ordered)

    def _name(self, path: str) -> str:
        site = self.anatomy.site_by_path.get(path)
        local = local_name(path, self.scope)
        if site is not None and site.class_name is not None:
            return re.sub(r"\[\d+\]$", "", local)
        if site is None or site.kind not in _SYMBOLS:
            return local
        number = re.search(r"\[(\d+)\]$", local)
        symbol = _SYMBOLS[site.kind]
        return symbol if number is None else f"{symbol[:-1]} {number.group(1)})"

    def _marks(self, operand: str, reader: str) -> list[str]:
        """The SimAMs between a value and one operation that reads it."""
        found = [
            insertion
            for insertion in self.insertions
            if insertion.path in (operand, *self._sources(operand)) and self._is_read_by(insertion, reader)
        ]
        return [MARK] * len(found)

    def _sources(self, operand: str) -> tuple[str, ...]:
        """The operation inside a child block that computes what the block returns."""
        site = self.anatomy.site_by_path.get(operand)
        return site.reads if site is not None and site.kind == "block" and len(site.reads) == 1 else ()

    def _is_read_by(self, insertion: Insertion, reader: str) -> bool:
        wanted = insertion.reader
        return wanted is None or wanted == reader or wanted.startswith(f"{reader}.")

    def _mark_ends(self, ends: dict[str, int]) -> None:
        """What the block returns, and a value that no other operation of the block reads."""
        for insertion in self.insertions:
            if insertion.reader is not None:
                continue
            if insertion.path in ends:
                self.lines[ends[insertion.path]].append(MARK)
            elif insertion.path == self.scope:
                self.lines[self._result(ends)].append(MARK)

    def _result(self, ends: dict[str, int]) -> int:
        """The line that ends in what the block returns; a new one where the inside is not known."""
        for path, line in ends.items():
            if {path, *self._sources(path)} & set(self.returned):
                return line
        if not self.lines:
            self.lines.append(["..."])
        return len(self.lines) - 1
