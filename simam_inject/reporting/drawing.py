"""Where SimAM is inside the blocks, drawn as text: one line for the longest way through a block, one for each other.

conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu
x > downsample > (+)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from simam_inject.dataflow.anatomy import Anatomy
from simam_inject.modules import CONTAINERS
from simam_inject.planning.insertions import Insertion

SIMAM = "[SimAM]"
CONTAINER_NAMES = tuple(kind.__name__ for kind in CONTAINERS)
_SYMBOLS = {"add": "(+)", "mul": "(*)"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """Blocks of one class that look alike. `str` gives the drawing with a heading."""

    block: str
    lines: tuple[str, ...]
    paths: tuple[str, ...]

    def __str__(self) -> str:
        first = self.paths[0] or "the model itself"
        which = f"{len(self.paths)} blocks, first {first}" if len(self.paths) > 1 else first
        return "\n  ".join([f"{self.block} ({which})", *self.lines])


def draw(anatomy: Anatomy, insertions: Iterable[Insertion]) -> list[Drawing]:
    """Each kind of block that has a SimAM, in the order of the first ones."""
    by_scope: dict[str, list[Insertion]] = {}
    for one in insertions:
        called = replace(one, path=_as_called(one.path, anatomy), reader=one.reader and _as_called(one.reader, anatomy))
        by_scope.setdefault(_scope_of(called, anatomy), []).append(called)
    paths: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for scope, inside in by_scope.items():
        block = anatomy.site_by_path.get(scope)
        lines = _Block(anatomy, scope, inside).draw()
        paths.setdefault(((block and block.class_name) or "", lines), []).append(scope)
    return [Drawing(block, lines, tuple(found)) for (block, lines), found in paths.items()]


def _as_called(path: str, anatomy: Anatomy) -> str:
    """The path of the call of a module that has two names."""
    site = anatomy.site_by_path.get(path)
    return site.reads[0] if site is not None and site.kind == "module" else path


def _scope_of(insertion: Insertion, anatomy: Anatomy) -> str:
    """The block to draw: for its output the block itself, unless it is a container or nothing is known inside."""
    path = insertion.path.partition(":")[0]
    block = anatomy.site_by_path.get(path)
    is_container = block is None or block.class_name in CONTAINER_NAMES
    is_known = any(site.scope == path for site in anatomy.sites if site.path != path)
    if insertion.position == "after" and is_known and not is_container:
        return path
    site = anatomy.site_by_path.get(insertion.path)
    return site.scope if site is not None else path.rpartition(".")[0]


class _Block:
    """The operations of one block's forward, and which of them read which."""

    def __init__(self, anatomy: Anatomy, scope: str, insertions: list[Insertion]) -> None:
        self.scope, self.insertions = scope, insertions
        own = [site for site in anatomy.sites if site.scope == scope != site.path and site.runs]
        self.sites = {site.path: site for site in own if site.kind != "module" and site.path == _whole(site.path)}
        self.operands = {
            path: [operand for operand in site.operands if _whole(operand) in self.sites]
            for path, site in self.sites.items()
        }
        self.length: dict[str, int] = {}
        for path, operands in self.operands.items():  # in the order of execution
            self.length[path] = 1 + max((self.length.get(_whole(operand), 0) for operand in operands), default=0)

    def draw(self) -> tuple[str, ...]:
        read = {_whole(operand) for operands in self.operands.values() for operand in operands}
        ends = [path for path, site in self.sites.items() if path not in read and site.kind != "input"]
        seen: set[str] = set()
        sides, lines = [(end, "") for end in reversed(ends)], []
        for value, reader in sides:  # grows while lines are drawn
            lines.append(" > ".join(reversed(self._trace(value, reader, seen, sides))))
        counts = Counter(lines)
        return tuple(line if count == 1 else f"{line}  ({count} times)" for line, count in counts.items())

    def _trace(self, value: str, reader: str, seen: set[str], sides: list[tuple[str, str]]) -> list[str]:
        """From a value back to one that is drawn, or to an input; what else is read on the way joins `sides`."""
        is_side, parts = bool(reader), [self._label(reader)] if reader else []
        while True:
            path = _whole(value)
            parts += [SIMAM] * self._is_attended(value, reader) + [self._label(path)]
            operands = [] if path in seen else self.operands[path]
            seen.add(path)
            if not operands:
                return parts if is_side or self.sites[path].kind != "input" else parts[:-1]
            value, *others = sorted(operands, key=lambda operand: -self.length[_whole(operand)])
            sides += [(other, path) for other in others]
            reader = path

    def _label(self, path: str) -> str:
        site = self.sites[path]
        if site.class_name is None and site.kind != "block" and (len(self.operands[path]) > 1 or site.kind == "cat"):
            return _SYMBOLS.get(site.kind, f"({site.kind})")
        return re.sub(r"\[\d+\]$", "", path.removeprefix(f"{self.scope}."))

    def _is_attended(self, value: str, reader: str) -> bool:
        """SimAM is applied to the value before this reader; without a reader, to what the block returns."""
        return any(
            (one.path, one.reader) == (value, reader)
            if one.position == "before"
            else one.path in (value, _whole(value)) or (not reader and _whole(one.path) == self.scope)
            for one in self.insertions
        )


def _whole(path: str) -> str:
    """The value that `chunk:0` is an entry of."""
    return path.partition(":")[0]
