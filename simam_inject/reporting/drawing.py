"""The dataflow of a block drawn as text, with SimAM in it.

    conv1 > bn1 > relu > conv2 > [SimAM] > bn2 > relu > conv3 > bn3 > (+) > relu
    x > downsample > (+)

Each line is one way through the block. A value that several operations read is the start of several lines; lines meet
in `(+)` and `(cat)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.planning.records import Insertion
from simam_inject.reporting.sites import CONTAINERS, class_of, local_name

MARK = "[SimAM]"
_SYMBOLS = {"add": "(+)", "mul": "(*)", "sub": "(-)", "cat": "(cat)"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One kind of block with SimAM in it."""

    block: str
    """Its class."""
    lines: tuple[str, ...]
    paths: tuple[str, ...]
    """The blocks with these lines."""

    def __str__(self) -> str:
        count = f"{len(self.paths)} blocks, first {self.paths[0]}" if len(self.paths) > 1 else self.paths[0]
        return "\n".join([f"{self.block} ({count or 'the model itself'})", *(f"  {line}" for line in self.lines)])


def draw(anatomy: Anatomy, insertions: Iterable[Insertion]) -> tuple[Drawing, ...]:
    """Draw every block that contains an insertion; blocks that look the same are drawn once."""
    by_scope: dict[str, list[Insertion]] = {}
    for insertion in insertions:
        by_scope.setdefault(_scope(anatomy, insertion), []).append(insertion)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for scope, inside in by_scope.items():
        found.setdefault((class_of(anatomy, scope), _lines(anatomy, scope, inside)), []).append(scope)
    return tuple(Drawing(name, lines, tuple(paths)) for (name, lines), paths in found.items())


def _scope(anatomy: Anatomy, insertion: Insertion) -> str:
    """The block to draw: the one around the value, or the block itself whose output is attended.

    A block inside a larger one that has no structure of its own (`cv2` of a `C2f`) is drawn from outside.
    """
    site = anatomy.site_by_path[insertion.path]
    is_output = site.kind == "block" and insertion.reader is None and ":" not in site.path
    if not is_output or site.class_name in CONTAINERS or not any(one.scope == site.path for one in anatomy.sites):
        return site.scope
    around = anatomy.site_by_path.get(site.scope)
    is_inner = bool(site.scope) and around is not None and around.class_name not in CONTAINERS
    return site.scope if is_inner and not site.structure else site.path


def _lines(anatomy: Anatomy, scope: str, insertions: Sequence[Insertion]) -> tuple[str, ...]:
    """The lines, those with SimAM first, then the longest. Each operation continues its operand's longest line."""
    sites = [site for site in anatomy.sites if site.scope == scope and site.runs and site.path and ":" not in site.path]
    operations = [site for site in sites if site.kind != "input"]
    names = {site.path: _name(site, scope) for site in sites}
    after = {one.path for one in insertions if one.reader is None}
    if scope in after and operations:
        after.add(operations[-1].path)  # what the block returns
    names |= {path: f"{names[path]} > {MARK}" for path in after & names.keys()}
    lines: list[list[str]] = []
    ends: dict[str, list[str]] = {}  # the line that ends in a value
    length: Counter[str] = Counter()
    for site in operations:
        operands = sorted(dict.fromkeys(site.operands), key=lambda path: -length[path.partition(":")[0]])
        for number, operand in enumerate(operands or [""]):
            source = operand.partition(":")[0]  # `chunk:1` is part of the value `chunk`
            line = ends.pop(source, None)
            if line is None:
                is_only_input = not lines and len(sites) == len(operations) + 1
                line = [] if is_only_input or not source else [names.get(source) or local_name(source, scope)]
                lines.append(line)
            line += [MARK for one in insertions if one.path == operand and _is_read_in(one, site.path)]
            line.append(names[site.path] if number == 0 else _name(site, scope))
            if number == 0:
                ends[site.path] = line
                length[site.path] = length[source] + 1
    counts = Counter(" > ".join(line) for line in lines or [["...", MARK]])
    ordered = sorted(counts, key=lambda line: (MARK not in line, -line.count(" > ")))
    return tuple(line if counts[line] == 1 else f"{line}  ({counts[line]} times)" for line in ordered)


def _is_read_in(insertion: Insertion, path: str) -> bool:
    """Whether `path`, or an operation inside it, is the reader that gets the attended value."""
    return insertion.reader is not None and f"{insertion.reader}.".startswith(f"{path}.")


def _name(site: Site, scope: str) -> str:
    """`conv2`, also for its second call; `(+)` and `(+ 2)` for the first and the second addition."""
    local = local_name(site.path, scope)
    name, _, number = local.removesuffix("]").partition("[")
    if site.class_name is not None:
        return name
    symbol = _SYMBOLS.get(site.kind)
    return local if symbol is None else f"{symbol[:-1]} {number})" if number else symbol
