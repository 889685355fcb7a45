"""A plan: what an injection would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, Generic

from torch import nn
from typing_extensions import TypeVar

from simam_inject.dataflow.anatomy import Anatomy
from simam_inject.dataflow.sites import Dataflow
from simam_inject.errors import plural
from simam_inject.matching.hits import Skip
from simam_inject.planning.insertions import PRESENT, Insertion
from simam_inject.planning.tables import notes_on, sites_table
from simam_inject.recipe import Recipe

_SHOWN = 12
ModelT_co = TypeVar("ModelT_co", bound=nn.Module, default=nn.Module, covariant=True)


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Generic[ModelT_co]):
    """The result of `plan(model, recipe)`. It changes the model only when it is applied.

    Example:
        >>> import torchvision
        >>> from simam_inject import injected, plan
        >>> model = torchvision.models.resnet18()
        >>> found = plan(model, "paper")
        >>> len(found.insertions), len(injected(model)), len(injected(found.apply()))
        (8, 0, 8)
    """

    recipe: Recipe
    insertions: tuple[Insertion, ...]
    skips: tuple[Skip, ...]
    flow: Dataflow
    present: tuple[Insertion, ...] = ()
    """What was in the model already."""
    _apply: Callable[[Plan[ModelT_co]], ModelT_co] | None = field(default=None, compare=False)
    replan: Callable[[], Plan[ModelT_co]] | None = field(default=None, compare=False)
    """Plans once more, from a forward on real values."""

    @property
    def anatomy(self) -> Anatomy:
        """Every site of the model."""
        return self.flow.anatomy

    @property
    def placed(self) -> tuple[Insertion, ...]:
        """Every SimAM that is in the model once the plan is applied, with its shape on this example."""
        shapes = {one.path: site.shape for one in self.present if (site := self.anatomy.site_by_path.get(one.path))}
        return *(replace(one, shape=shapes.get(one.path) or one.shape) for one in self.present), *self.insertions

    @property
    def is_done(self) -> bool:
        """True if nothing is inserted because every site of the recipe already has its SimAM."""
        reasons = [skip.reason for skip in self.skips if skip.hit and skip.reason.startswith(PRESENT)]
        return not self.insertions and bool(reasons) and all(reason == PRESENT for reason in reasons)

    def apply(self) -> ModelT_co:
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
            "present": [_as_dict(insertion) for insertion in self.placed[: len(self.present)]],
            "skips": [asdict(skip) for skip in self.skips],
        }

    def why_no_effect(self) -> str:
        """Why the recipe has no effect at all."""
        name = self.recipe.name or "the recipe"
        refused = [skip for skip in self.skips if skip.hit and skip.reason != PRESENT]
        head = f"{name} matched no site in this model: all its rules are optional, and none of them matches"
        if refused:
            head = f"{name} has no effect on this model: all the sites that it matched are skipped"
        near = [f"  {skip.path or '(model)'}: {skip.reason}" for skip in (refused or self.skips)[:3]]
        return "\n".join([f"{head}. Skipped:", *near] if near else [head])

    def __deepcopy__(self, _memo: dict[int, Any]) -> Plan[ModelT_co]:
        """The plan itself, which never changes and belongs to one model: a copy could be applied to nothing."""
        return self

    def __repr__(self) -> str:
        reasons = Counter(skip.reason for skip in self.skips if skip.hit)
        skipped = [f"skipped {count}: {reason:.100}" for reason, count in reasons.most_common(4)]
        return "\n  ".join([f"Plan: {self._heading}", *sites_table(self.insertions).lines(_SHOWN), *skipped])

    def __str__(self) -> str:
        skipped = [f"{skip.path}  skipped: {skip.reason}" for skip in self.skips if skip.hit]
        table = sites_table(self.insertions).lines()
        return "\n  ".join([self._heading, *table, *notes_on(self.insertions), *skipped])

    def _repr_html_(self) -> str:
        notes = "<br>".join(map(escape, notes_on(self.insertions)))
        return f"<b>{self._heading}</b>{sites_table(self.insertions).to_html(_SHOWN)}{notes}"

    @property
    def _heading(self) -> str:
        return f"{plural(len(self.insertions), 'insertion')}, {sum(skip.hit for skip in self.skips)} skipped"


class Insertions(tuple[Insertion, ...]):
    """The sites of a model: a tuple with a short `repr`, and a table in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n  ".join([plural(len(self), "SimAM site"), *sites_table(self).lines(_SHOWN)])

    def _repr_html_(self) -> str:
        return f"<b>{plural(len(self), 'SimAM site')}</b>{sites_table(self).to_html(_SHOWN)}"


def _as_dict(insertion: Insertion) -> dict[str, Any]:
    found = asdict(insertion) | {"shape": list(insertion.shape), "bytes_moved": insertion.bytes_moved}
    return {name: value for name, value in found.items() if name not in ("witness", "expression", "child")}
