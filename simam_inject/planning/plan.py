"""A plan: what an injection would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from torch import nn

from simam_inject.dataflow.records import Anatomy
from simam_inject.dataflow.sites import Dataflow
from simam_inject.matching import Skip
from simam_inject.planning.records import PRESENT, Insertion
from simam_inject.recipe import Recipe

_SHOWN = 12


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The result of `plan(model, recipe)`. It changes the model only when it is applied."""

    recipe: Recipe
    insertions: tuple[Insertion, ...]
    skips: tuple[Skip, ...]
    flow: Dataflow
    present: tuple[Insertion, ...] = ()
    """What was in the model already."""
    _apply: Callable[[Plan], nn.Module] | None = field(default=None, compare=False)

    @property
    def anatomy(self) -> Anatomy:
        """Every site of the model."""
        return self.flow.anatomy

    @property
    def placed(self) -> tuple[Insertion, ...]:
        """Every SimAM that is in the model once the plan is applied."""
        return *self.present, *self.insertions

    @property
    def is_done(self) -> bool:
        """True if nothing is inserted because every site of the recipe already has its SimAM."""
        reasons = [skip.reason for skip in self.skips if skip.hit and skip.reason.startswith(PRESENT)]
        return not self.insertions and bool(reasons) and all(reason == PRESENT for reason in reasons)

    def apply(self) -> nn.Module:
        """Apply the plan to the planned model in place, and return it. If an error is raised, the model is unchanged.

        Raises:
            ModelError: the model has changed since it was planned, or a module cannot hold its insertions.
        """
        assert self._apply is not None, "this plan has no model"
        return self._apply(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only: the resolved recipe, insertions and skips."""
        return {
            "recipe": self.recipe.to_dict(),
            "insertions": [_as_dict(insertion) for insertion in self.insertions],
            "present": [_as_dict(insertion) for insertion in self.present],
            "skips": [asdict(skip) for skip in self.skips],
        }

    def __repr__(self) -> str:
        return f"Plan: {self._write(_SHOWN)}"

    def __str__(self) -> str:
        return self._write(None)

    def _write(self, most: int | None) -> str:
        """The sites, and at most so many of them."""
        hits = [skip for skip in self.skips if skip.hit]
        skipped = [f"{skip.path}  skipped: {skip.reason}" for skip in hits]
        if most is not None:
            reasons = Counter(skip.reason for skip in hits)
            skipped = [f"skipped {count}: {reason:.100}" for reason, count in reasons.most_common(4)]
        head = f"{len(self.insertions)} insertions, {len(hits)} skipped"
        return "\n  ".join([head, *_lines(self.insertions, most), *skipped])

    def _repr_html_(self) -> str:
        hits = sum(skip.hit for skip in self.skips)
        return f"<b>{len(self.insertions)} insertions, {hits} skipped</b>{_table(self.insertions)}"


class Insertions(tuple[Insertion, ...]):
    """The sites of a model: a tuple with a short `repr`, and a table in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n  ".join([f"{len(self)} SimAM sites", *_lines(self, _SHOWN)])

    def _repr_html_(self) -> str:
        return f"<b>{len(self)} SimAM sites</b>{_table(self)}"


def _table(insertions: tuple[Insertion, ...]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.path or '(model)')}</td><td>{escape(_where(one))}</td><td>{_size(one)}</td>"
        f"<td>{one.axes}</td><td>{type(one.edit).__name__}</td><td>{one.e_lambda:g}</td></tr>"
        for one in insertions[:_SHOWN]
    )
    more = len(insertions) - _SHOWN
    tail = f"<tr><td colspan=6>... and {more} more</td></tr>" if more > 0 else ""
    names = "".join(f"<th>{name}</th>" for name in ("site", "position", "size", "axes", "edit", "lambda"))
    return f"<table><tr>{names}</tr>{rows}{tail}</table>"


def _as_dict(insertion: Insertion) -> dict[str, Any]:
    found = asdict(insertion) | {"shape": list(insertion.shape), "bytes_moved": insertion.bytes_moved}
    found["edit"] |= {"module": insertion.edit.module}
    return {name: value for name, value in found.items() if name not in ("witness", "expression")}


def _where(insertion: Insertion) -> str:
    return f"before {insertion.reader}" if insertion.reader else insertion.position


def _size(insertion: Insertion) -> str:
    return "x".join(map(str, insertion.shape[1:]))


def _lines(insertions: tuple[Insertion, ...], most: int | None) -> list[str]:
    """One line for each site; if there are more than `most`, the first ones and the last."""
    lines = [f"{one.path or '(model)'}  {_where(one)}  {_size(one)}  e_lambda={one.e_lambda:g}" for one in insertions]
    if most is None or len(lines) <= most:
        return lines
    return [*lines[: most - 2], f"... {len(lines) - most + 1} more ...", lines[-1]]
