"""One rule of a recipe: what it selects, where it puts the attention, which sites it leaves out.

Keys:
    select   structure, block (class names), pattern (a chain of operations), or path on its own
    place    after or before: output, residual, a child, an operation
    narrow   path, exclude, where, pick
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simam_inject.errors import RecipeError
from simam_inject.recipe.bounds import Bounds
from simam_inject.recipe.fields import (
    BoundsField,
    ChainField,
    Flag,
    Globs,
    GroupsField,
    Lambda,
    PickField,
    Structures,
    TargetField,
)
from simam_inject.recipe.picks import Pick
from simam_inject.recipe.problems import Location, translated
from simam_inject.recipe.targets import Input, KeyedError, Operation, Output, Residual, Target


class Grammar(BaseModel):
    """Base of the recipe's models: frozen, closed, and every mistake a `RecipeError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    root: ClassVar[str]
    """What a message calls the whole of it."""
    homes: ClassVar[Mapping[str, str]] = {}
    """Keys that belong elsewhere, and where."""

    def __init__(self, /, **keys: Any) -> None:
        with translated(self.root, type(self).model_at):
            super().__init__(**keys)

    # Says to pydantic that a nested model may be built without this constructor: its errors then carry the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise self._frozen(f"set {name}")

    def __delattr__(self, name: str) -> None:
        raise self._frozen(f"delete {name}")

    def _frozen(self, what: str) -> RecipeError:
        return RecipeError(f"{self.root}: cannot {what}, since a {type(self).__name__} is frozen; make another one")

    @classmethod
    def model_at(cls, location: Location) -> type[BaseModel] | None:
        """The model that stands at a location inside this one."""
        return cls if not location else None

    def to_dict(self) -> dict[str, Any]:
        """What was set, as JSON types; defaults are left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Where(Grammar):
    """Conditions on the facts of a site; all of them hold."""

    root: ClassVar[str] = "where"
    channels: BoundsField = Field(default=None, description="Channels of the attended map.")
    spatial: BoundsField = Field(default=None, description="Sizes of the attended map; each of them complies.")
    reduction: BoundsField = Field(default=None, description="Input size / map size: 1, 2, 4, 8, 16, 32.")
    stage: BoundsField = Field(default=None, description="log2(reduction) - 1: ResNet's layer1 to layer4 are 1 to 4.")
    kernel: BoundsField = Field(default=None, description="Kernel of the named convolution or pooling.")
    stride: BoundsField = Field(default=None, description="Stride of the named convolution or pooling.")
    dilation: BoundsField = Field(default=None, description="Dilation of the named convolution or pooling.")
    groups: GroupsField = Field(default=None, description="Groups of the named convolution, or `depthwise`.")

    if TYPE_CHECKING:
        # What a caller may write; the fields hold what it is read as.
        def __init__(
            self,
            *,
            channels: Bounds | int | str | list[int | str] | None = None,
            spatial: Bounds | int | str | list[int | str] | None = None,
            reduction: Bounds | int | str | list[int | str] | None = None,
            stage: Bounds | int | str | list[int | str] | None = None,
            kernel: Bounds | int | str | list[int | str] | None = None,
            stride: Bounds | int | str | list[int | str] | None = None,
            dilation: Bounds | int | str | list[int | str] | None = None,
            groups: Bounds | int | str | list[int | str] | None = None,
        ) -> None: ...

    def conditions(self) -> tuple[tuple[str, Bounds], ...]:
        """Name and bounds of each condition that was given."""
        found = ((name, getattr(self, name)) for name in type(self).model_fields)
        return tuple((name, bounds) for name, bounds in found if bounds is not None)


class Rule(Grammar):
    """One rule of a recipe. A mistake raises `RecipeError`.

    >>> Rule(block="Bottleneck", after="conv2").position
    'after'
    """

    root: ClassVar[str] = "rule"
    homes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(Where.model_fields, "under 'where'"),
        **dict.fromkeys(("first", "last", "every", "per"), "under 'pick'"),
        "op": "under 'after' or 'before': {op: ...}",
        "lambda": "to e_lambda",
        "class": "to 'block'",
    }
    structure: Structures = Field(default=(), description="Block(s) by what they are: residual, main, decoder.")
    block: Globs = Field(default=(), description="Class name(s) of the block: globs, any case; subclasses count.")
    pattern: ChainField = Field(default=None, description="A chain of operations, e.g. 'conv2d[k=3] > *norm > act'.")
    path: Globs = Field(default=(), description="Glob(s) on the dotted path: a filter; on its own, a selection.")
    exclude: Globs = Field(default=(), description="Glob(s) on the dotted path that are left out.")
    after: TargetField = Field(default=None, description="output, a child (conv2, relu[2]), or {op: conv2d, ...}.")
    before: TargetField = Field(default=None, description="input, residual, a child (bn2), or {op: batch_norm, ...}.")
    where: Where | None = Field(default=None, description="Conditions on the facts of a site.")
    pick: PickField = Field(default=Pick(), description="all, first, last, or {first | last | every: n, per: ...}.")
    e_lambda: Lambda = Field(default=None, description="The lambda of this rule; without it the recipe's.")
    optional: Flag = Field(default=False, description="The rule may take no site.")

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            structure: str | list[str] | tuple[str, ...] = (),
            block: str | list[str] | tuple[str, ...] = (),
            pattern: str | None = None,
            path: str | list[str] | tuple[str, ...] = (),
            exclude: str | list[str] | tuple[str, ...] = (),
            after: str | Mapping[str, Any] | None = None,
            before: str | Mapping[str, Any] | None = None,
            where: Where | Mapping[str, Any] | None = None,
            pick: str | Mapping[str, Any] | Pick = "all",
            e_lambda: float | None = None,
            optional: bool = False,
        ) -> None: ...

    @property
    def position(self) -> str:
        """`after` or `before`."""
        return "after" if self.before is None else "before"

    @property
    def target(self) -> Target:
        """What the rule names: a child, an operation, the output, or the residual branch."""
        return self.before or self.after or Output()

    @property
    def selector(self) -> str:
        """In one line what the rule selects and where, for messages: `block Bottleneck, after conv2`."""
        if self.pattern is not None:
            selected = f"pattern {self.pattern}"
        elif self.structure:
            selected = f"structure {' or '.join(self.structure)}"
        else:
            name, globs = ("block", self.block) if self.block else ("path", self.path)
            selected = f"{name} {' or '.join(glob.text for glob in globs)}"
        return f"{selected}, {self.position} {self.target}"

    @classmethod
    def model_at(cls, location: Location) -> type[BaseModel] | None:
        """The model that stands at a location inside this one."""
        return Where if location[:1] == ("where",) else cls if not location else None

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        given = [name for name in ("structure", "block", "pattern") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"has both {given[0]!r} and {given[1]!r}; exactly one selects (a 'path' beside it narrows)"
            )
        if not given and not self.path:
            raise ValueError(
                "selects nothing; write structure: main, block: Bottleneck, pattern: 'conv2d > relu', or path: 'layer3.*'"
            )
        return self

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.after is not None and self.before is not None:
            raise ValueError("has both 'after' and 'before'; exactly one says where")
        if self.pattern is None and self.after is None and self.before is None:
            raise ValueError("says not where; write after: output, after: conv2, before: bn2 or before: residual")
        if isinstance(self.before, Output):
            raise KeyedError("before", "nothing reads a block's output inside the block; write after: output")
        if isinstance(self.after, Input):
            raise KeyedError("after", "what a block is given is attended for the block alone; write before: input")
        if isinstance(self.after, Residual):
            raise KeyedError(
                "after", "the residual branch is attended before it joins the skip; write before: residual"
            )
        if self.pattern is not None:
            try:
                self.pattern.find_member(self.target)
            except ValueError as problem:
                raise KeyedError(self.position, str(problem)) from None
        return self

    @model_validator(mode="after")
    def _check_facts(self) -> Self:
        if isinstance(self.target, Operation) and self.where is not None:
            twice = {name for name, _ in self.target.facts} & {name for name, _ in self.where.conditions()}
            if twice:
                name = min(twice)
                raise KeyedError("where", f"{name} is also in {self.position}: {self.target}; say it once")
        return self
