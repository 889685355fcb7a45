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
from simam_inject.planning.planner import Planned
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
    planned: tuple[Planned, ...] = ()
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
        hits = [skip for skip in self.skips if skip.hit]
        lines = [f"Plan: {len(self.insertions)} insertions, {len(hits)} skipped"]
        lines += [f"  {line}" for line in _shorten([_line(insertion) for insertion in self.insertions])]
        if hits:
            reasons = Counter(skip.reason for skip in hits)
            lines += [f"  skipped {count}: {reason:.100}" for reason, count in reasons.most_common(4)]
        return "\n".join(lines)

    def __str__(self) -> str:
        hits = [skip for skip in self.skips if skip.hit]
        lines = [f"{len(self.insertions)} insertions, {len(hits)} skipped"]
        lines += [f"  {_line(insertion)}" for insertion in self.insertions]
        lines += [f"  {skip.path}  skipped: {skip.reason}" for skip in hits]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        hits = sum(skip.hit for skip in self.skips)
        return f"<b>{len(self.insertions)} insertions, {hits} skipped</b>{_table(self.insertions)}"


class Insertions(tuple[Insertion, ...]):
    """The sites of a model: a tuple with a short `repr`, and a table in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(
            [f"{len(self)} SimAM sites", *(f"  {line}" for line in _shorten([_line(one) for one in self]))]
        )

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
    edit = {"kind": type(insertion.edit).__name__.lower(), **asdict(insertion.edit)}
    return {**asdict(insertion), "shape": list(insertion.shape), "edit": edit, "bytes_moved": insertion.bytes_moved}


def _where(insertion: Insertion) -> str:
    return f"before {insertion.reader}" if insertion.reader else insertion.position


def _size(insertion: Insertion) -> str:
    return "x".join(map(str, insertion.shape[1:]))


def _line(insertion: Insertion) -> str:
    return f"{insertion.path or '(model)'}  {_where(insertion)}  {_size(insertion)}  e_lambda={insertion.e_lambda:g}"


def _shorten(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN:
        return lines
    return [*lines[: _SHOWN - 2], f"... {len(lines) - _SHOWN + 1} more ...", lines[-1]]
