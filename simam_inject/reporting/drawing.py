"""Positions drawn: the dataflow of a block as text, with the SimAM in it.

    conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu
    x > downsample > (+)

Each line is one way through the block. A value that several operations read begins the lines that it feeds; `(+)` and
`(cat)` are where lines meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

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
    for scope, inside in by_scope.items():
        lines = _Block(anatomy, scope, members.get(scope, []), inside).lines()
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


@dataclass(frozen=True, slots=True)
class _Block:
    """One block: each operation continues the longest line that ends in one of its operands."""

    anatomy: Anatomy
    scope: str
    sites: list[Site]
    insertions: list[Insertion]

    def lines(self) -> tuple[str, ...]:
        """The lines, those with SimAM first, then the longest."""
        lines: list[list[str]] = []
        ends: dict[str, list[str]] = {}
        """The line that ends in a value."""
        length: Counter[str] = Counter()
        inputs = [site.path for site in self.sites if site.kind == "input"]
        for site in self.sites:
            # An operand `chunk:1` is part of the value `chunk`.
            operands = sorted(dict.fromkeys(site.operands), key=lambda path: -length[path.partition(":")[0]])
            for operand in operands:
                source = operand.partition(":")[0]
                line = ends.pop(source, None)
                if line is None:
                    line = [] if [source] == inputs and not lines else [self._name(source)]
                    lines.append(line)
                line += [*self._marks(operand, site.path), self._name(site.path)]
                if operand == operands[0]:
                    ends[site.path] = line
                    length[site.path] = length[source] + 1
            if not operands and site.kind != "input":
                ends[site.path] = [self._name(site.path)]
                lines.append(ends[site.path])
        self._mark_ends(lines, ends)
        ordered = sorted(lines, key=lambda line: (MARK not in line, -len(line)))
        return tuple(" > ".join(line) for line in ordered)

    def _name(self, path: str) -> str:
        site = self.anatomy.site_by_path.get(path)
        local = local_name(path, self.scope)
        name, _, number = local.removesuffix("]").partition("[")
        if site is not None and site.class_name is not None:
            return name
        if site is None or site.kind not in _SYMBOLS:
            return local
        symbol = _SYMBOLS[site.kind]
        return f"{symbol[:-1]} {number})" if number else symbol

    def _marks(self, operand: str, reader: str) -> list[str]:
        """The SimAMs between a value and one operation that reads it."""
        paths = (operand, *self._computed_by(operand))
        return [
            MARK
            for insertion in self.insertions
            if insertion.path in paths and (insertion.reader is None or f"{insertion.reader}.".startswith(f"{reader}."))
        ]

    def _computed_by(self, path: str) -> tuple[str, ...]:
        """The operation inside a child block that computes what the block returns."""
        site = self.anatomy.site_by_path.get(path)
        return site.reads if site is not None and site.kind == "block" and len(site.reads) == 1 else ()

    def _mark_ends(self, lines: list[list[str]], ends: dict[str, list[str]]) -> None:
        """What the block returns, and a value that no other operation of the block reads."""
        for insertion in self.insertions:
            if insertion.reader is None and insertion.path in ends:
                ends[insertion.path].append(MARK)
            elif insertion.reader is None and insertion.path == self.scope:
                self._result(lines, ends).append(MARK)

    def _result(self, lines: list[list[str]], ends: dict[str, list[str]]) -> list[str]:
        """The line that ends in what the block returns; a new one where the inside is not known."""
        block = self.anatomy.site_by_path.get(self.scope)
        returned = set(block.reads) if block is not None else set()
        for path, line in ends.items():
            if returned.intersection([path, *self._computed_by(path)]):
                return line
        if not lines:
            lines.append(["..."])
        return lines[-1]
