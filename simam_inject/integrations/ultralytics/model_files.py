"""An ultralytics model file with SimAM in it -> the equivalent recipe against the stock model. Needs no ultralytics.

Rows are `[from, repeats, module, args]`, numbered through backbone and head, and read each other by number, so a SimAM
row shifts every later number: pretrained weights no longer fit. Here the SimAM rows are left out, the others get back
their stock numbers, and each SimAM row becomes a rule: after a layer where all its readers read it through the SimAM,
else before those readers that do. A block class with SimAM inside (`C2f_SimAM`) becomes the stock block and a rule.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe import Recipe, Rule
from simam_inject.recipe.recipe import DEFAULT_E_LAMBDA
from simam_inject.recipe.texts import read_file, read_yaml
from simam_inject.recipe.wording import describe, join_names

SECTIONS = ("backbone", "head")
_SIMAM = re.compile(r"_?simam_?", re.IGNORECASE)
_ALONE = re.compile(r"|(module|attention|att|block|layer|[23]d)", re.IGNORECASE)
"""What may be left of the name of a row that is a SimAM and nothing else."""
_OUTPUT = "output of the model"
"""Class of a row that stands for whatever reads the last one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a model file."""

    place: str
    """Path in the file: `head[3]`."""
    number: int
    sources: tuple[int, ...]
    """Numbers of the rows it reads; -1 is the input image."""
    module: str
    stock_module: str
    """The class without SimAM: `C2f` of `C2f_SimAM`."""
    stock_path: str
    """Path of the layer in the stock model; of a SimAM, that of the layer that takes its number."""
    e_lambda: float | None
    """Of a row that is a SimAM and nothing else; None for any other row."""

    @property
    def is_block(self) -> bool:
        """The row is a block with a SimAM inside."""
        return self.module != self.stock_module and self.e_lambda is None

    @property
    def is_bottleneck(self) -> bool:
        """The row is a `Bottleneck` with a SimAM inside."""
        return self.is_block and self.stock_module.lower() == "bottleneck"

    def __str__(self) -> str:
        return f"row {self.number} ({self.module})"


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """What a model file with SimAM says."""

    recipe: Recipe
    notes: tuple[str, ...]
    """One sentence for each row that does not do what it seems to, or that can mean several things."""


def import_model_yaml(path: str | Path) -> ImportedModel:
    """Read an ultralytics model file that contains SimAM.

    Args:
        path: the YAML file.

    Returns:
        The recipe for the stock model, and notes on dead, mistaken and ambiguous rows.

    Raises:
        RecipeError: it cannot be read, is not a model file, has no SimAM whose output is used, or no recipe can
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
            is_dead = any(row.e_lambda is not None for row in reading.rows)
            problem = "no row reads the output of a SimAM row" if is_dead else "no row contains SimAM"
            start = f"backbone: {problem}, so there is nothing to import"
            raise RecipeError("\n  note: ".join([start, *reading.notes]))
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
        self.rows: list[Row] = []
        self.origins: dict[int, tuple[int, float | None]] = {-1: (-1, None)}
        """Number of a row -> the layer of the stock model whose value it returns, and the lambda of a SimAM between."""
        for section in SECTIONS:
            if not isinstance(data.get(section), list):
                raise RecipeError(
                    f"{section}: is missing; an ultralytics model file lists its layers in backbone and head"
                )
            for index, entry in enumerate(data[section]):
                self.rows.append(self._read_row(f"{section}[{index}]", entry))

    def _read_row(self, place: str, entry: object) -> Row:
        source, repeats, module, args = entry if isinstance(entry, list) and len(entry) == 4 else (None,) * 4
        if not isinstance(module, str) or type(repeats) is not int or not isinstance(args, list):
            raise RecipeError(f"{place}: is not a row; rows are [from, repeats, module, args], e.g. [-1, 1, SimAM, []]")
        number, stock_module = len(self.rows), _SIMAM.sub("", module)
        sources = tuple(_resolve(place, number, one) for one in (source if isinstance(source, list) else [source]))
        stock_path = f"model.{sum(row.e_lambda is None for row in self.rows)}"
        row = Row(place, number, sources, module, stock_module, stock_path, None)
        if module == stock_module or not _ALONE.fullmatch(stock_module.rpartition(".")[2]):
            return row
        if repeats > 1:
            self.notes.append(f"{row}: repeated {repeats} times; the recipe has one")
        if len(sources) != 1:
            raise RecipeError(f"{place}: a SimAM reads one layer; found {join_names(map(str, sources), 'and')}")
        return replace(row, e_lambda=self._read_lambda(row, args))

    def _read_lambda(self, row: Row, args: list[Any]) -> float:
        """The lambda a SimAM row means: its only number, or the second beside a channel count."""
        numbers = [value for value in args if type(value) in (int, float)]
        e_lambda = next((float(value) for value in reversed(numbers) if _is_lambda(value)), DEFAULT_E_LAMBDA)
        for value in numbers:
            if not _is_lambda(value):
                self.notes.append(
                    f"{row}: {value} is probably a channel count and would make the gate a constant; the recipe has "
                    f"e_lambda {e_lambda:g}"
                )
        return e_lambda

    def rules(self) -> list[Rule]:
        """A rule for each place; places of one kind and lambda share one."""
        after: dict[float | None, list[str]] = defaultdict(list)
        inside: list[str] = []
        before: list[Rule] = []
        for row in (row for row in self.rows if row.is_block):
            self._note_block(row)
            (inside if row.is_bottleneck else after[DEFAULT_E_LAMBDA]).append(row.stock_path)
        for layer, readers in sorted(self._readers().items()):
            row, lambdas = self.rows[layer], {e_lambda for _, e_lambda in readers}
            if lambdas == {None}:
                continue
            if row.is_block and not row.is_bottleneck:
                self.notes.append(f"{row}: a SimAM row follows it and would apply SimAM twice")
            elif len(lambdas) == 1:
                after[lambdas.pop()].append(row.stock_path)
            else:
                before += [
                    self._before(layer, reader, e_lambda) for reader, e_lambda in dict.fromkeys(readers) if e_lambda
                ]
        rules = [Rule(path=paths, after="output", e_lambda=e_lambda) for e_lambda, paths in after.items()]
        if inside:
            rules.append(Rule(block="Bottleneck", path=inside, after="cv2", e_lambda=DEFAULT_E_LAMBDA))
        return rules + before

    def _readers(self) -> dict[int, list[tuple[Row, float | None]]]:
        """Layer -> the rows that read its value, each with the lambda of the SimAM that the value goes through."""
        last = tuple(row.number for row in self.rows[-1:])
        rows = [*self.rows, Row("", len(self.rows), last, _OUTPUT, _OUTPUT, "", None)]
        used: set[int] = set()
        for row in reversed(rows):
            if row.e_lambda is None or row.number in used:
                used.update(row.sources)
        readers: dict[int, list[tuple[Row, float | None]]] = defaultdict(list)
        for row in rows:
            if row.e_lambda is not None:
                self.origins[row.number] = self._origin_of(row, row.e_lambda, is_used=row.number in used)
                continue
            self.origins[row.number] = row.number, None
            for source in row.sources:
                layer, e_lambda = self.origins[source]
                readers[layer].append((row, e_lambda))
        return readers

    def _origin_of(self, row: Row, e_lambda: float, *, is_used: bool) -> tuple[int, float]:
        layer, other = self.origins[row.sources[0]]
        if not is_used:
            self.notes.append(f"{row}: its output is never used; the recipe omits it")
        elif layer < 0:
            raise RecipeError(f"{row.place}: is applied to the input image, not to a layer of the stock model")
        elif other is not None:
            self.notes.append(f"{row}: is applied to row {row.sources[0]}, also a SimAM; the recipe has one")
        return layer, e_lambda

    def _before(self, layer: int, row: Row, e_lambda: float) -> Rule:
        """The rule for one reader among several. Its other inputs stay as they are."""
        if row.module == _OUTPUT:
            place = self.rows[-1].place
            raise RecipeError(f"{place}: is the output, and other rows read row {layer} plain; no recipe says that")
        origins = [self.origins[source] for source in row.sources]
        others = [other for other, through in origins if through is None or other != layer]
        if layer in others or -1 in others:
            found = "the input image too" if -1 in others else f"row {layer} both plain and through a SimAM"
            raise RecipeError(f"{row.place}: reads {found}; no recipe can distinguish the two")
        exclude = tuple(self.rows[other].stock_path for other in others)
        return Rule(path=row.stock_path, before="input", exclude=exclude, e_lambda=e_lambda)

    def _note_block(self, row: Row) -> None:
        where = "after its second convolution, before the add" if row.is_bottleneck else "on what it returns"
        other = "" if row.is_bottleneck else "; if yours attends the concat inside, write before: cv2"
        self.notes.append(f"{row}: taken for {row.stock_module} with a SimAM {where}, where most forks have it{other}")


def _resolve(place: str, number: int, source: object) -> int:
    """Number of the row that `from` means; negative ones count back from here."""
    resolved = (source if source >= 0 else number + source) if type(source) is int else -2
    if not -1 <= resolved < number:
        raise RecipeError(
            f"{place}: reads row {describe(source)}; row {number} can read rows 0 to {number - 1}, or -1 for the one "
            "before"
        )
    return resolved


def _is_lambda(value: int | float) -> bool:
    """It can be meant as lambda: a fraction, or an integer that is not a channel count."""
    return 0 < value <= 1 if isinstance(value, int) else math.isfinite(value) and value > 0
