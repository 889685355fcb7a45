"""An ultralytics model file with SimAM in it -> the equivalent recipe against the stock model.

Rows are `[from, repeats, module, args]`, numbered through backbone and head, and read each other by number, so a SimAM
row shifts every later number: pretrained weights no longer fit. Here the SimAM rows are left out, the others get back
their stock numbers, and each SimAM row becomes a rule: after a layer where all its readers read it through the SimAM,
else before those readers that do. A block class with SimAM inside (`C2f_SimAM`) becomes the stock block and a rule.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simam_inject.errors import RecipeError, describe, join_names
from simam_inject.recipe import Recipe, Rule
from simam_inject.recipe.recipe import DEFAULT_E_LAMBDA
from simam_inject.recipe.texts import read_file, read_yaml

_SIMAM = re.compile(r"_?simam_?", re.IGNORECASE)
_ALONE = re.compile(r"(nn\.)?(module|attention|att|block|layer|[23]d)?", re.IGNORECASE)
"""What may be left of the name of a row that is a SimAM and nothing else."""
_WHERE = {
    "bottleneck": "after its second convolution, before the add, as in most forks",
    "head": "on each feature map that it reads, since it returns predictions",
    "block": "after its output, as in most forks; if yours applies it to the concatenation inside, write before: cv2",
}
"""Where a bottleneck, a head, and any other block with SimAM inside has it."""
_IS_HEAD = re.compile(r"detect|segment|pose|obb|classify|decoder", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """What a model file with SimAM says."""

    recipe: Recipe
    notes: tuple[str, ...]
    """One sentence for each row that does not do what it seems to, or that can mean several things."""


class _Value(NamedTuple):
    """What a row returns: the value of a layer of the stock model, as it is or through SimAM."""

    layer: int
    """Number of the layer in the stock model; -1 for the input image."""
    e_lambda: float | None = None
    """Lambda of the last SimAM; None for the value as it is."""
    through: tuple[str, ...] = ()
    """Names of the SimAM rows between."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A row of the stock model, or what reads the last row of the file."""

    place: str
    """`head[3]`"""
    name: str
    """`row 3 (C2f_SimAM)`"""
    number: int
    block: str
    """The stock class, if SimAM is inside: `C2f` of `C2f_SimAM`."""
    path: str
    """Its path in the stock model; "" for none."""
    reads: tuple[_Value, ...]

    @property
    def kind(self) -> str:
        """What has SimAM inside, as `_WHERE` names it; "" for a layer without."""
        name = "head" if _IS_HEAD.search(self.block) else self.block.lower()
        return name if name in ("head", "bottleneck", "") else "block"


def import_model_yaml(path: str | Path) -> ImportedModel:
    """Read an ultralytics model file that contains SimAM.

    Args:
        path: The YAML file.

    Returns:
        The recipe for the stock model, and notes on dead, mistaken and ambiguous rows.

    Raises:
        RecipeError: It cannot be read, is not a model file, has no SimAM whose output is used, or no recipe can
            express it. Where there is nothing to import, the message ends with the notes.
    """
    source = Path(path)
    data = read_yaml(read_file(source))
    try:
        if not isinstance(data, Mapping):
            raise RecipeError(f"recipe: found {describe(data)}; a model file is a mapping with 'backbone' and 'head'")
        reading = _Reading(data)
        rules = reading.rules()
        if not rules:
            problem = "no row reads the output of a SimAM row" if reading.simams else "no row contains SimAM"
            lines = [f"backbone: {problem}, so there is nothing to import", *reading.notes]
            raise RecipeError("\n  note: ".join(lines))
    except RecipeError as error:
        raise RecipeError(f"{error} (in {source})") from None
    name = source.stem if "simam" in source.stem.lower() else f"{source.stem}-simam"
    recipe = Recipe(name=name, description=f"the SimAM of {name}, against the stock model", rules=rules)
    return ImportedModel(recipe, tuple(reading.notes))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as the text of a YAML file that reads back as the same recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=120)


class _Reading:
    """The rows of one file, and notes on them."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.notes: list[str] = []
        self.values: list[_Value] = []
        """What each row returns."""
        self.layers: list[_Layer] = []
        self.simams: list[str] = []
        """Names of the rows that are SimAM."""
        place = "backbone"
        for section in ("backbone", "head"):
            if not isinstance(data.get(section), list):
                raise RecipeError(f"{section}: is missing; a model file lists its layers in backbone and head")
            for index, entry in enumerate(data[section]):
                place = f"{section}[{index}]"
                self._read_row(place, entry)
        self.output = _Layer(place, "the output", len(self.values), "", "", tuple(self.values[-1:]))

    def _read_row(self, place: str, entry: object) -> None:
        source, repeats, module, args = entry if isinstance(entry, list) and len(entry) == 4 else (None,) * 4
        if not isinstance(module, str) or type(repeats) is not int or not isinstance(args, list):
            raise RecipeError(f"{place}: is not a row; rows are [from, repeats, module, args], e.g. [-1, 1, SimAM, []]")
        sources = source if isinstance(source, list) else [source]
        reads = tuple(self._resolve(place, one) for one in sources)
        number, rest = len(self.values), _SIMAM.sub("", module)
        name = f"row {number} ({module})"
        if rest == module or not _ALONE.fullmatch(rest):
            block, index = "" if rest == module else rest, len(self.layers)
            self.layers.append(_Layer(place, name, number, block, f"model.{index}", reads))
            self.values.append(_Value(index))
            return
        if len(reads) != 1:
            raise RecipeError(f"{place}: a SimAM reads one layer; found {join_names(sources or ['none'], 'and')}")
        value = reads[0]
        if value.layer < 0:
            raise RecipeError(f"{place}: is applied to the input image, not to a layer of the stock model")
        if repeats > 1:
            self.notes.append(f"{name}: repeated {repeats} times; the recipe has one")
        if value.through:
            self.notes.append(f"{name}: is applied to {value.through[-1]}, also a SimAM; the recipe has one")
        self.values.append(_Value(value.layer, self._read_lambda(name, args), (*value.through, name)))
        self.simams.append(name)

    def _resolve(self, place: str, source: object) -> _Value:
        """What the row that `from` means returns; negative numbers count back from here."""
        number = len(self.values)
        resolved = (source if source >= 0 else number + source) if type(source) is int else -2
        if not -1 <= resolved < number:
            raise RecipeError(f"{place}: reads row {describe(source)}; row {number} can read rows 0 to {number - 1}")
        return self.values[resolved] if resolved >= 0 else _Value(-1)

    def _read_lambda(self, name: str, args: list[Any]) -> float:
        """The lambda a SimAM row means: its only number, or the second beside a channel count."""
        numbers = [value for value in args if type(value) in (int, float)]
        lambdas = [value for value in numbers if 0 < value <= (1 if type(value) is int else sys.float_info.max)]
        e_lambda = float(lambdas[-1]) if lambdas else DEFAULT_E_LAMBDA
        if len(lambdas) < len(numbers):
            problem = f"{args!r:.80} probably has a channel count, which would make the gate a constant"
            self.notes.append(f"{name}: {problem}; the recipe has e_lambda {e_lambda:g}")
        return e_lambda

    def rules(self) -> list[Rule]:
        """A rule for each place; places of one kind and lambda share one."""
        readers: dict[int, list[tuple[_Layer, float | None]]] = defaultdict(list)
        used: set[str] = set()
        for row in (*self.layers, self.output):
            for value in row.reads:
                readers[value.layer].append((row, value.e_lambda))
                used.update(value.through)
        dead = [name for name in self.simams if name not in used]
        self.notes += [f"{name}: its output is never used; the recipe omits it" for name in dead]
        after: dict[float | None, list[str]] = defaultdict(list)
        heads = [row.path for row in self.layers if row.kind == "head"]
        before = [Rule(path=path, before="input", e_lambda=DEFAULT_E_LAMBDA) for path in heads]
        for index, row in enumerate(self.layers):
            if not readers[index] and row.number != index:
                self.notes.append(f"{row.name}: its output is never used; were row numbers raised for SimAM rows?")
            if row.kind:
                self.notes.append(f"{row.name}: read as {row.block} with SimAM {_WHERE[row.kind]}")
            lambdas = {e_lambda for _, e_lambda in readers[index]}
            if row.kind == "block":
                after[DEFAULT_E_LAMBDA].append(row.path)
                if lambdas - {None}:
                    self.notes.append(f"{row.name}: a SimAM row follows it and would apply SimAM twice")
            elif len(lambdas) == 1 and None not in lambdas:
                after[lambdas.pop()].append(row.path)
            else:
                before += [self._before(index, *reader) for reader in dict.fromkeys(readers[index]) if reader[1]]
        rules = [Rule(path=paths, after="output", e_lambda=e_lambda) for e_lambda, paths in after.items()]
        if inside := [row.path for row in self.layers if row.kind == "bottleneck"]:
            rules.append(Rule(block="Bottleneck", path=inside, after="cv2", e_lambda=DEFAULT_E_LAMBDA))
        return rules + before

    def _before(self, index: int, reader: _Layer, e_lambda: float | None) -> Rule:
        """The rule for one reader among several of a layer. Its other inputs stay as they are."""
        number = self.layers[index].number
        if not reader.path:
            raise RecipeError(f"{reader.place}: no recipe can say that other rows read row {number} plain")
        others = [value.layer for value in reader.reads if value.e_lambda is None or value.layer != index]
        if index in others or -1 in others:
            found = "the input image too" if -1 in others else f"row {number} both plain and through a SimAM"
            raise RecipeError(f"{reader.place}: reads {found}; no recipe can distinguish the two")
        exclude: Any = {"exclude": [self.layers[other].path for other in others]} if others else {}
        return Rule(path=reader.path, before="input", e_lambda=e_lambda, **exclude)
