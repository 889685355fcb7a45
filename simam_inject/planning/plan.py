"""A plan: everything that would be done, nothing done yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from simam_inject.discovery.records import Anatomy
from simam_inject.planning.records import PRESENT, Insertion, Skip
from simam_inject.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan(model, recipe)` found. Applying it is the only way it touches the model."""

    recipe: Recipe
    insertions: tuple[Insertion, ...]
    skips: tuple[Skip, ...]
    anatomy: Anatomy
    present: tuple[Insertion, ...] = ()
    """What was in the model already."""
    _apply: Callable[[Plan], nn.Module] | None = field(default=None, repr=False, compare=False)

    @property
    def is_done(self) -> bool:
        """There is nothing to insert, since every site of the recipe has the SimAM that it wants."""
        reasons = [skip.reason for skip in self.skips if skip.hit and skip.reason.startswith(PRESENT)]
        return not self.insertions and bool(reasons) and all(reason == PRESENT for reason in reasons)

    def apply(self) -> nn.Module:
        """Carry the plan out: changes the planned model in place, all or nothing, and returns the same object.

        Raises:
            ModelError: the model has changed since it was planned, or a module cannot hold its insertions.
        """
        assert self._apply is not None, "a plan made by hand has no model"
        return self._apply(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only: the resolved recipe, insertions and skips."""
        return {
            "recipe": self.recipe.to_dict(),
            "insertions": [{**asdict(insertion), "shape": list(insertion.shape)} for insertion in self.insertions],
            "present": [{**asdict(insertion), "shape": list(insertion.shape)} for insertion in self.present],
            "skips": [asdict(skip) for skip in self.skips],
        }

    def __str__(self) -> str:
        lines = [f"{len(self.insertions)} insertions, {sum(skip.hit for skip in self.skips)} skipped"]
        for insertion in self.insertions:
            where = f"before {insertion.reader}" if insertion.reader else insertion.position
            size = "x".join(map(str, insertion.shape[1:]))
            lines.append(f"  {insertion.path}  {where}  {size}  e_lambda={insertion.e_lambda:g}")
        lines += [f"  {skip.path}  skipped: {skip.reason}" for skip in self.skips if skip.hit]
        return "\n".join(lines)
