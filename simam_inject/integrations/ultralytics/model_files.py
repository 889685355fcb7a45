"""An ultralytics model file with SimAM in it -> the equivalent recipe against the stock model. Needs no ultralytics.

Rows are `[from, repeats, module, args]`, numbered through backbone and head, and read each other by number, so a SimAM
row shifts every later number: pretrained weights no longer fit. Here the SimAM rows are left out, the others get back
their stock numbers, and each SimAM row becomes a rule: after a layer where all its readers read it through the SimAM,
else before those readers that do. A block class with SimAM inside (`C2f_SimAM`) becomes the stock block and a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
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
    repeats: int
    module: str
    args: tuple[Any, ...]

    @property
    def stock_module(self) -> str:
        """The class without SimAM: `C2f` of `C2f_SimAM`."""
        return _SIMAM.sub("", self.module)

    @property
    def is_simam(self) -> bool:
        """The row is a SimAM and nothing else."""
        return self.module != self.stock_module and bool(_ALONE.fullmatch(self.stock_module.rpartition(".")[2]))

    @property
    def is_block(self) -> bool:
        """The row is a block with a SimAM inside."""
        return self.module != self.stock_module and not self.is_simam

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
        RecipeError: it cannot be read, is not a model file, holds no live SimAM, or says what no recipe can say. Where
            there is nothing to import, the message ends with the notes.
    """
    source = Path(path)
    data = read_yaml(read_file(source))
    try:
        if not isinstance(data, Mapping):
            raise RecipeError(f"recipe: found {describe(data)}; a model file is a mapping with 'backbone' and 'head'")
        reading = _Reading(list(_read_rows(data)))
        rules = reading.rules()
        if not rules:
            dead = any(row.is_simam for row in reading.rows)
            problem = "no row reads the output of a SimAM row" if dead else "no row contains SimAM"
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


def _read_rows(data: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a model file, their `from` resolved."""
    number = 0
    for section in SECTIONS:
        if not isinstance(data.get(section), list):
            raise RecipeError(f"{section}: is missing; an ultralytics model file lists its layers in backbone and head")
        for index, entry in enumerate(data[section]):
            yield _read_row(f"{section}[{index}]", number, entry)
            number += 1


def _read_row(place: str, number: int, entry: object) -> Row:
    if isinstance(entry, list) and len(entry) == 4:
        source, repeats, module, args = entry
        if isinstance(module, str) and type(repeats) is int and isinstance(args, list):
            sources = tuple(_resolve(place, number, one) for one in (source if isinstance(source, list) else [source]))
            return Row(place, number, sources, repeats, module, tuple(args))
    raise RecipeError(f"{place}: is not a row; rows are [from, repeats, module, args], e.g. [-1, 1, SimAM, []]")


def _resolve(place: str, number: int, source: object) -> int:
    """Number of the row that `from` means; negative ones count back from here."""
    resolved = (source if source >= 0 else number + source) if type(source) is int else -2
    if not -1 <= resolved < number:
        raise RecipeError(
            f"{place}: reads row {describe(source)}; row {number} can read rows 0 to {number - 1}, or -1 for the one "
            "before"
        )
    return resolved


class _Reading:
    """The rows of one file, and what is to be said about them."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.notes: list[str] = []
        self.paths: dict[int, str] = {}
        """Path in the stock model of every row without SimAM."""
        for row in rows:
            if not row.is_simam:
                self.paths[row.number] = f"model.{len(self.paths)}"
        self.lambdas = {row.number: self._read_lambda(row) for row in rows if row.is_simam}

    def rules(self) -> list[Rule]:
        """A rule for each place; places of one kind and lambda share one."""
        after: dict[float, list[str]] = {}
        before: list[Rule] = []
        for row in (row for row in self.rows if row.is_block):
            self._note_block(row)
            if not row.is_bottleneck:
                after.setdefault(DEFAULT_E_LAMBDA, []).append(self.paths[row.number])
        for layer, readers in self._readers().items():
            common, *more = {e_lambda for _, e_lambda in readers}
            if self.rows[layer].is_block and not self.rows[layer].is_bottleneck:
                self.notes.append(f"{self.rows[layer]}: a SimAM row follows it and would apply SimAM twice")
            elif common is not None and not more:
                after.setdefault(common, []).append(self.paths[layer])
            else:
                before += [self._before(layer, row, e_lambda) for row, e_lambda in dict.fromkeys(readers) if e_lambda]
        rules = [Rule(path=paths, after="output", e_lambda=e_lambda) for e_lambda, paths in after.items()]
        inside = [self.paths[row.number] for row in self.rows if row.is_bottleneck]
        if inside:
            rules.append(Rule(block="Bottleneck", path=inside, after="cv2", e_lambda=DEFAULT_E_LAMBDA))
        return rules + before

    def _readers(self) -> dict[int, list[tuple[int, float | None]]]:
        """Attended layer -> each read of it: by which row, and with which lambda if through a SimAM."""
        found: dict[int, list[tuple[int, float | None]]] = {}
        used: set[int] = set()
        for row in self.rows:
            if row.is_simam and row is not self.rows[-1]:
                continue  # one at the end is the output, and reads for it
            for source in row.sources if not row.is_simam else (row.number,):
                layer, chain = self._attended(source)
                used.update(chain)
                found.setdefault(layer, []).append((row.number, self.lambdas[chain[0]] if chain else None))
        for number in sorted(self.lambdas.keys() - used):
            self.notes.append(f"{self.rows[number]}: its output is never used; the recipe omits it")
        return {layer: reads for layer, reads in sorted(found.items()) if any(e_lambda for _, e_lambda in reads)}

    def _attended(self, source: int) -> tuple[int, list[int]]:
        """The layer whose value a row hands on, and the SimAM rows in between, the last one first."""
        chain: list[int] = []
        while source in self.lambdas:
            chain.append(source)
            source = self.rows[source].sources[0]
        if chain and source < 0:
            place = self.rows[chain[-1]].place
            raise RecipeError(f"{place}: is applied to the input image, not to a layer of the stock model")
        for row, other in pairwise(chain):
            note = f"{self.rows[row]}: is applied to row {other}, also a SimAM; the recipe has one"
            if note not in self.notes:
                self.notes.append(note)
        return source, chain

    def _before(self, layer: int, reader: int, e_lambda: float) -> Rule:
        """The rule for one reader among several. Its other inputs stay as they are."""
        row = self.rows[reader]
        if row.is_simam:
            raise RecipeError(f"{row.place}: is the output, and other rows read row {layer} plain; no recipe says that")
        origins = map(self._attended, row.sources)
        others = [base for base, chain in origins if not chain or base != layer]
        if layer in others or -1 in others:
            found = "the input image too" if -1 in others else f"row {layer} both plain and through a SimAM"
            raise RecipeError(f"{row.place}: reads {found}; no recipe can distinguish the two")
        exclude = tuple(self.paths[other] for other in others)
        return Rule(path=self.paths[reader], before="input", exclude=exclude, e_lambda=e_lambda)

    def _note_block(self, row: Row) -> None:
        where = "after its second convolution, before the add" if row.is_bottleneck else "on what it returns"
        other = "" if row.is_bottleneck else "; if yours attends the concat inside, write before: cv2"
        self.notes.append(f"{row}: taken for {row.stock_module} with a SimAM {where}, where most forks have it{other}")

    def _read_lambda(self, row: Row) -> float:
        """The lambda a row means: its only number, or the second beside a channel count."""
        if row.repeats > 1:
            self.notes.append(f"{row}: repeated {row.repeats} times; the recipe has one")
        if len(row.sources) != 1:
            raise RecipeError(f"{row.place}: a SimAM reads one layer; found {join_names(map(str, row.sources), 'and')}")
        numbers = [value for value in row.args if type(value) in (int, float)]
        e_lambda = next((float(value) for value in reversed(numbers) if _is_lambda(value)), DEFAULT_E_LAMBDA)
        for value in numbers:
            if not _is_lambda(value):
                self.notes.append(
                    f"{row}: {value} is probably a channel count and would make the gate a constant; the recipe has "
                    f"e_lambda {e_lambda:g}"
                )
        return e_lambda


def _is_lambda(value: int | float) -> bool:
    """It can be meant as lambda: a fraction, or an integer that is not a channel count."""
    return 0 < value <= 1 if isinstance(value, int) else math.isfinite(value) and value > 0
