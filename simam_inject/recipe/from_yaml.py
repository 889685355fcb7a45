"""An ultralytics model file with SimAM rows -> the equivalent recipe against the stock model.

Rows are numbered, and others read them by number, so a SimAM row shifts every later number: pretrained weights no
longer fit, and a number that was not shifted reads the wrong layer without a word. Here the SimAM rows are taken out,
the others get back their stock numbers, and each SimAM row becomes a rule: after a layer where all its readers read it
through the SimAM, else before those readers that do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe.fields import DEFAULT_E_LAMBDA
from simam_inject.recipe.loading import read_file
from simam_inject.recipe.model_rows import Row, read_rows, write_rows
from simam_inject.recipe.reading import read_yaml
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import describe, join_names


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """What a model file with SimAM rows says."""

    recipe: Recipe
    notes: tuple[str, ...]
    """One sentence for each row that does not do what it seems to."""
    stock: dict[str, Any] = field(hash=False)
    """The model file without its SimAM rows, every number as the stock model has it."""


def import_model_yaml(path: str | Path) -> ImportedModel:
    """Read an ultralytics model file that contains SimAM rows.

    Args:
        path: the YAML file.

    Returns:
        The recipe for the stock model, notes on dead and mistaken rows, and the stock model file.

    Raises:
        RecipeError: it cannot be read, is no model file, holds no live SimAM row, or says what no recipe can say.
    """
    source = Path(path)
    data = read_yaml(read_file(source))
    try:
        return _import(data, name=f"{source.stem}-simam" if "simam" not in source.stem.lower() else source.stem)
    except RecipeError as error:
        raise RecipeError(f"{error} (in {source})") from None


def _import(data: Any, name: str) -> ImportedModel:
    if not isinstance(data, Mapping):
        raise RecipeError(f"recipe: found {describe(data)}; a model file is a mapping with 'backbone' and 'head'")
    rows = read_rows(data)
    reading = _Reading(rows)
    if not reading.attentions:
        raise RecipeError("backbone: no row of this model file is a SimAM, so there is nothing to import")
    rules = reading.rules()
    if not rules:
        raise RecipeError(f"backbone: nobody reads a SimAM of this model file: {'; '.join(reading.notes)}")
    description = f"the SimAM rows of {name}, against the stock model"
    recipe = Recipe(name=name, description=description, rules=rules)
    return ImportedModel(recipe, tuple(reading.notes), write_rows(data, rows, reading.stock_numbers))


@dataclass(slots=True)
class _Reading:
    """The rows of one file, and what is to be said about them."""

    rows: tuple[Row, ...]
    notes: list[str] = field(default_factory=list)
    attentions: dict[int, float] = field(init=False)
    """Lambda of each SimAM row."""
    stock_numbers: dict[int, int] = field(init=False)
    """Number in the stock model of every other row."""

    def __post_init__(self) -> None:
        self.attentions = {row.number: self._e_lambda(row) for row in self.rows if row.is_simam}
        plain = [row.number for row in self.rows if not row.is_simam]
        self.stock_numbers = {number: place for place, number in enumerate(plain)}
        for row in self.rows:
            if "simam" in row.module.lower() and not row.is_simam:
                self.notes.append(
                    f"{row}: a block class of its own; only rows that are a SimAM are read. The recipes "
                    "yolo-bottleneck and yolo-concat put SimAM inside the stock blocks"
                )

    def rules(self) -> list[Rule]:
        """A rule for each place; places of one kind and lambda share one."""
        after: dict[float, list[str]] = {}
        before: list[Rule] = []
        for layer in self._attended_layers():
            plain, through = self._readers(layer)
            lambdas = {self._lambda_of(number) for numbers in through.values() for number in numbers}
            if not plain and len(lambdas) == 1:
                after.setdefault(lambdas.pop(), []).append(self._path(layer))
            else:
                before += [self._before(layer, reader, numbers[0]) for reader, numbers in through.items()]
        return [Rule(path=paths, after="output", e_lambda=e_lambda) for e_lambda, paths in after.items()] + before

    def _attended_layers(self) -> list[int]:
        """Rows that a live SimAM reads; the dead ones are noted."""
        layers: list[int] = []
        for number in self.attentions:
            if self._is_dead(number):
                self.notes.append(f"{self.rows[number]}: dead, nobody reads it; the recipe leaves it out")
                continue
            source = self.rows[number].sources[0]
            if source in self.attentions:
                self.notes.append(
                    f"{self.rows[number]}: attends what row {source}, a SimAM too, attends; the recipe has one"
                )
            base, _ = self._base(number)
            if base < 0:
                raise RecipeError(
                    f"{self.rows[number].place}: attends the input image, which is no layer of the stock model"
                )
            if base not in layers:
                layers.append(base)
        return layers

    def _is_dead(self, number: int) -> bool:
        readers = [row.number for row in self.rows if number in row.sources]
        is_output = number == len(self.rows) - 1
        return not is_output and all(reader in self.attentions and self._is_dead(reader) for reader in readers)

    def _readers(self, layer: int) -> tuple[list[int], dict[int, list[int]]]:
        """Rows other than SimAM that read a layer plain, and those that read it through a SimAM, with its number."""
        plain: list[int] = []
        through: dict[int, list[int]] = {}
        for row in self.rows:
            for source in row.sources if not row.is_simam else ():
                base, attention = self._base(source)
                if base == layer and attention is None:
                    plain.append(row.number)
                elif base == layer and attention is not None:
                    through.setdefault(row.number, []).append(attention)
        last = len(self.rows) - 1
        if last in self.attentions and self._base(last)[0] == layer:
            through.setdefault(last, []).append(last)
        return plain, through

    def _base(self, number: int) -> tuple[int, int | None]:
        """The layer that a row's value comes from, and the SimAM nearest to it, if any."""
        attention = None
        while number in self.attentions:
            attention = number
            number = self.rows[number].sources[0]
        return number, attention

    def _before(self, layer: int, reader: int, attention: int) -> Rule:
        """The rule for one reader among several. Its other inputs stay as they are."""
        others = [
            self._path(base)
            for source in self.rows[reader].sources
            for base, through in [self._base(source)]
            if through is None or base != layer
        ]
        if self._path(layer) in others:
            raise RecipeError(
                f"{self.rows[reader].place}: reads row {layer} both plain and through a SimAM; "
                "no recipe can tell the two apart"
            )
        return Rule(path=self._path(reader), before="input", exclude=others, e_lambda=self._lambda_of(attention))

    def _path(self, number: int) -> str:
        return f"model.{self.stock_numbers[number]}"

    def _lambda_of(self, number: int) -> float:
        return self.attentions[number]

    def _e_lambda(self, row: Row) -> float:
        """The lambda a row means: its only number, or the second beside a channel count."""
        if row.repeats > 1:
            self.notes.append(f"{row}: repeated {row.repeats} times; the recipe has one")
        if len(row.sources) != 1:
            raise RecipeError(f"{row.place}: a SimAM reads one layer; found {join_names(map(str, row.sources), 'and')}")
        e_lambda = next((float(value) for value in reversed(row.args) if _is_lambda(value)), DEFAULT_E_LAMBDA)
        for value in row.args:
            if isinstance(value, int | float) and not isinstance(value, bool) and not _is_lambda(value):
                self.notes.append(
                    f"{row}: {value} is no lambda but, it seems, a channel count, and would make the gate a constant; "
                    f"the recipe has {e_lambda:g}"
                )
        return e_lambda


def _is_lambda(value: object) -> bool:
    """A number that can be meant as lambda: a fraction, or an integer that is no channel count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= 1 if isinstance(value, int) else math.isfinite(value) and value > 0


def write_recipe(recipe: Recipe) -> str:
    """The recipe as the text of a YAML file that reads back as the same recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=120)
