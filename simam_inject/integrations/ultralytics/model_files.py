"""An ultralytics model file with SimAM in it -> the equivalent recipe against the stock model. Needs no ultralytics.

Rows are `[from, repeats, module, args]`, numbered through backbone and head, and read each other by number, so a SimAM
row shifts every later number: pretrained weights no longer fit. Here the SimAM rows are taken out, the others get back
their stock numbers, and each SimAM row becomes a rule: after a layer where all its readers read it through the SimAM,
else before those readers that do. A block class with SimAM inside (`C2f_SimAM`) becomes the stock block and a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a model file."""

    place: str
    """Path in the file: `head[3]`."""
    number: int
    sources: tuple[int, ...]
    """Numbers of the rows it reads; -1 is the input image."""
    written: Any
    """`from` as it was written: a number or a list; negative numbers count back."""
    repeats: int
    module: str
    args: tuple[Any, ...]

    @property
    def contains_simam(self) -> bool:
        """The row is a SimAM, or a block with one inside."""
        return _SIMAM.search(self.module) is not None

    @property
    def is_simam(self) -> bool:
        """The row is a SimAM and nothing else."""
        return self.contains_simam and _ALONE.fullmatch(self.stock_module.rpartition(".")[2]) is not None

    @property
    def stock_module(self) -> str:
        """The class without SimAM: `C2f` of `C2f_SimAM`."""
        return _SIMAM.sub("", self.module)

    @property
    def is_bottleneck(self) -> bool:
        """The row is a `Bottleneck` with a SimAM inside."""
        return self.contains_simam and self.stock_module.lower() == "bottleneck"

    def __str__(self) -> str:
        return f"row {self.number} ({self.module})"


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """What a model file with SimAM says."""

    recipe: Recipe
    notes: tuple[str, ...]
    """One sentence for each row that does not do what it seems to, or that can mean several things."""
    stock: dict[str, Any] = field(hash=False)
    """The model file without SimAM, every number as the stock model has it."""


def import_model_yaml(path: str | Path) -> ImportedModel:
    """Read an ultralytics model file that contains SimAM.

    Args:
        path: the YAML file.

    Returns:
        The recipe for the stock model, notes on dead, mistaken and ambiguous rows, and the stock model file.

    Raises:
        RecipeError: it cannot be read, is no model file, holds no live SimAM, or says what no recipe can say. Where
            there is nothing to import, the message ends with the notes.
    """
    source = Path(path)
    data = read_yaml(read_file(source))
    name = source.stem if "simam" in source.stem.lower() else f"{source.stem}-simam"
    try:
        if not isinstance(data, Mapping):
            raise RecipeError(f"recipe: found {describe(data)}; a model file is a mapping with 'backbone' and 'head'")
        reading = _Reading(read_rows(data))
        rules = reading.rules()
        if not rules:
            is_dead = any(row.is_simam for row in reading.rows)
            problem = "no row reads the output of a SimAM row" if is_dead else "no row contains SimAM"
            raise RecipeError(
                "\n  note: ".join([f"backbone: {problem}, so there is nothing to import", *reading.notes])
            )
    except RecipeError as error:
        raise RecipeError(f"{error} (in {source})") from None
    recipe = Recipe(name=name, description=f"the SimAM of {name}, against the stock model", rules=rules)
    return ImportedModel(recipe, tuple(reading.notes), reading.write_stock(data))


def write_recipe(recipe: Recipe) -> str:
    """The recipe as the text of a YAML file that reads back as the same recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=120)


def read_rows(data: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of a model file, their `from` resolved.

    Raises:
        RecipeError: a section is missing, or a row is not one.
    """
    rows: list[Row] = []
    for section in SECTIONS:
        if not isinstance(data.get(section), list):
            raise RecipeError(f"{section}: is missing; an ultralytics model file lists its layers in backbone and head")
        for index, entry in enumerate(data[section]):
            rows.append(_read_row(f"{section}[{index}]", len(rows), entry))
    return tuple(rows)


def _read_row(place: str, number: int, entry: object) -> Row:
    if isinstance(entry, list) and len(entry) == 4:
        source, repeats, module, args = entry
        if isinstance(module, str) and type(repeats) is int and isinstance(args, list):
            sources = tuple(_resolve(place, number, one) for one in (source if isinstance(source, list) else [source]))
            return Row(place, number, sources, source, repeats, module, tuple(args))
    raise RecipeError(f"{place}: is not a row; rows are [from, repeats, module, args], e.g. [-1, 1, SimAM, []]")


def _resolve(place: str, number: int, source: object) -> int:
    """Number of the row that `from` means; negative ones count back from here."""
    if isinstance(source, int) and not isinstance(source, bool):
        resolved = source if source >= 0 else number + source
        if -1 <= resolved < number:
            return resolved
    raise RecipeError(
        f"{place}: reads row {describe(source)}; row {number} can read rows 0 to {number - 1}, or -1 for the one before"
    )


class _Reading:
    """The rows of one file, and what is to be said about them."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self.rows = rows
        self.notes: list[str] = []
        self.stock_numbers: dict[int, int] = {}
        """Number in the stock model of every row that is no SimAM."""
        self.origins: dict[int, tuple[int, float | None]] = {-1: (-1, None)}
        """Row -> the layer whose value it hands on, and the lambda if that is attended; -1 is the input image."""
        for row in rows:
            if row.is_simam:
                e_lambda = self._read_lambda(row)
                self.origins[row.number] = self.origins[row.sources[0]][0], e_lambda
            else:
                self.stock_numbers[row.number] = len(self.stock_numbers)
                self.origins[row.number] = row.number, None

    def rules(self) -> list[Rule]:
        """A rule for each place; places of one kind and lambda share one."""
        after: dict[float, list[str]] = {}
        before: list[Rule] = []
        inside: list[str] = []
        for row in self.rows:
            if row.contains_simam and not row.is_simam:
                self._note_block(row)
                paths = inside if row.is_bottleneck else after.setdefault(DEFAULT_E_LAMBDA, [])
                paths.append(self._path(row.number))
        for layer in self._attended_layers():
            row = self.rows[layer]
            if row.contains_simam and not row.is_bottleneck:
                self.notes.append(f"{row}: a SimAM row follows it and would apply SimAM twice; the recipe has one")
                continue
            readers = [(reader, e_lambda) for reader, base, e_lambda in self._reads() if base == layer]
            common, *more = {e_lambda for _, e_lambda in readers}
            if common is not None and not more:
                after.setdefault(common, []).append(self._path(layer))
            else:
                attended = {reader: e_lambda for reader, e_lambda in readers if e_lambda is not None}
                before += [self._before(layer, reader, e_lambda) for reader, e_lambda in attended.items()]
        rules = [Rule(path=paths, after="output", e_lambda=e_lambda) for e_lambda, paths in after.items()]
        if inside:
            rules.append(Rule(block="Bottleneck", path=inside, after="cv2", e_lambda=DEFAULT_E_LAMBDA))
        return rules + before

    def _note_block(self, row: Row) -> None:
        where = "after its second convolution, before the add" if row.is_bottleneck else "on what it returns"
        other = "" if row.is_bottleneck else "; if yours attends the concat inside, write before: cv2"
        self.notes.append(f"{row}: taken for {row.stock_module} with a SimAM {where}, where most forks have it{other}")

    def _attended_layers(self) -> list[int]:
        """Layers that a SimAM which is read attends; the other SimAM rows are noted."""
        read = {source for row in self.rows if not row.is_simam for source in row.sources} | {len(self.rows) - 1}
        attentions = [row for row in self.rows if row.is_simam]
        for row in reversed(attentions):
            if row.number in read:
                read.add(row.sources[0])
        layers: dict[int, None] = {}
        for row in attentions:
            layer, source = self.origins[row.number][0], row.sources[0]
            if row.number not in read:
                self.notes.append(f"{row}: its output is never used; the recipe omits it")
                continue
            if layer < 0:
                raise RecipeError(f"{row.place}: is applied to the input image, not to a layer of the stock model")
            if source != layer:
                self.notes.append(f"{row}: is applied to row {source}, also a SimAM; the recipe has one")
            layers[layer] = None
        return list(layers)

    def _reads(self) -> Iterator[tuple[int, int, float | None]]:
        """A row, a layer that it reads, and the lambda if through a SimAM; a SimAM at the end reads for the output."""
        for row in self.rows:
            for source in row.sources if not row.is_simam else ():
                yield row.number, *self.origins[source]
        if self.rows[-1].is_simam:
            yield len(self.rows) - 1, *self.origins[len(self.rows) - 1]

    def _before(self, layer: int, reader: int, e_lambda: float) -> Rule:
        """The rule for one reader among several. Its other inputs stay as they are."""
        row = self.rows[reader]
        origins = [self.origins[source] for source in row.sources]
        others = [base for base, through in origins if through is None or base != layer]
        if row.is_simam:
            raise RecipeError(f"{row.place}: is the output, and other rows read row {layer} plain; no recipe says that")
        if layer in others or -1 in others:
            found = "the input image too" if -1 in others else f"row {layer} both plain and through a SimAM"
            raise RecipeError(f"{row.place}: reads {found}; no recipe can distinguish the two")
        exclude = tuple(map(self._path, others))
        return Rule(path=self._path(reader), before="input", exclude=exclude, e_lambda=e_lambda)

    def _path(self, number: int) -> str:
        return f"model.{self.stock_numbers[number]}"

    def _read_lambda(self, row: Row) -> float:
        """The lambda a row means: its only number, or the second beside a channel count."""
        if row.repeats > 1:
            self.notes.append(f"{row}: repeated {row.repeats} times; the recipe has one")
        if len(row.sources) != 1:
            raise RecipeError(f"{row.place}: a SimAM reads one layer; found {join_names(map(str, row.sources), 'and')}")
        e_lambda = next((float(value) for value in reversed(row.args) if _is_lambda(value)), DEFAULT_E_LAMBDA)
        for value in row.args:
            if isinstance(value, int | float) and not isinstance(value, bool) and not _is_lambda(value):
                self.notes.append(
                    f"{row}: {value} is probably a channel count and would make the gate a constant; the recipe has "
                    f"e_lambda {e_lambda:g}"
                )
        return e_lambda

    def write_stock(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The model file without SimAM; everything else as it was."""
        stock = {**data, **{section: [] for section in SECTIONS}}
        for number, here in self.stock_numbers.items():
            row = self.rows[number]
            written = row.written if isinstance(row.written, list) else [row.written]
            bases = [self.origins[source][0] for source in row.sources]
            sources = [self.stock_numbers.get(base, -1) for base in bases]
            # counted back, and the row before: as people write it
            sources = [-1 if was < 0 and one == here - 1 else one for one, was in zip(sources, written, strict=True)]
            source = sources if isinstance(row.written, list) else sources[0]
            stock[row.place.partition("[")[0]].append([source, row.repeats, row.stock_module, list(row.args)])
        return stock


def _is_lambda(value: object) -> bool:
    """A number that can be meant as lambda: a fraction, or an integer that is no channel count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= 1 if isinstance(value, int) else math.isfinite(value) and value > 0
