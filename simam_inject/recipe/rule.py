"""One rule of a recipe: what it selects, where it puts the attention, which sites it leaves out.

Keys:
    select   structure, block (class names), pattern (a chain of operations), or path on its own
    place    after or before: output, residual, a child, an operation
    narrow   path, exclude, where, pick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from simam_inject.errors import describe, join_names, warn_of_channel_count
from simam_inject.recipe.grammar import Name, RecipeModel, Text, allow, as_tuple, either, one_or_many, read_as
from simam_inject.recipe.names import BlockValue, Child, Glob, parse_place, write_child
from simam_inject.recipe.operations import FactConditions, Link, Numbers, Operation, find_element, parse_chain

T = TypeVar("T")
Target = BlockValue | Child | Operation
Structure = Literal["residual", "main", "decoder"]
_MISPLACED = {
    ("before", "output"): "a block's output is not read inside the block; write after: output",
    ("after", "input"): "the input of a block can only be changed for the block itself; write before: input",
    ("after", "residual"): "SimAM is applied to the branch before it joins the skip connection; write before: residual",
}
_SELECTS = ("structure", "block", "pattern")
_SCHEMA: dict[str, Any] = {
    "description": "Which blocks or values are selected, where SimAM is applied in them, and which sites are excluded.",
    "anyOf": [{"required": [key]} for key in (*_SELECTS, "path")],
    "allOf": [
        *({"not": {"required": list(pair)}} for pair in (*combinations(_SELECTS, 2), ("after", "before"))),
        {"anyOf": [{"required": [key]} for key in ("pattern", "after", "before")]},
    ],
}
"""Which keys of a rule go together, as far as a schema can express it."""


class Where(FactConditions):
    """Conditions on the facts of a site, all of which must be met."""

    channels: Numbers | None = Field(default=None, description="Channels of the feature map.")
    spatial: Numbers | None = Field(default=None, description="Spatial sizes of the map; all must satisfy it.")
    reduction: Numbers | None = Field(default=None, description="Input size / map size: 1, 2, 4, 8, 16, 32.")
    stage: Numbers | None = Field(default=None, description="log2(reduction) - 1: 1 to 4 in ResNet's layer1 to layer4.")


Count = Annotated[int, Field(strict=True, ge=1, le=10_000)]


class Pick(RecipeModel):
    """A choice among the sites that a rule found."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in ("first", "last", "every")]})
    first: Count | None = Field(default=None, description="Take the first n.")
    last: Count | None = Field(default=None, description="Take the last n.")
    every: Count | None = Field(default=None, description="Take every n-th: with 2 the first, third, fifth ...")
    per: Literal["model", "stage", "reduction", "parent"] = Field(default="model", description="Count separately.")

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        modes = [name for name in ("first", "last", "every") if getattr(self, name) is not None]
        if len(modes) > 1 or (not modes and self.per != "model"):
            found = " and ".join(modes) or "none"
            raise ValueError(f"found {found} of first, last, every; exactly one of them is required")
        return self

    @property
    def takes_all(self) -> bool:
        """Every site is taken."""
        return self.first is None and self.last is None and self.every in (None, 1)

    def choose(self, sites: Sequence[T]) -> Sequence[T]:
        """Those of one group's sites that are taken."""
        if self.last is not None:
            return sites[-self.last :]
        return sites[: self.first] if self.first is not None else sites[:: self.every]

    def __str__(self) -> str:
        given = [f"{name}: {value}" for name, value in self.to_dict().items()]
        return "{" + ", ".join(given) + "}" if given else "all"


def _warn_of_channels(value: object) -> object:
    warn_of_channel_count(value, f"e_lambda: {describe(value)}", stacklevel=2)
    return value


Lambda = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True), BeforeValidator(_warn_of_channels)]
_PLACES = (
    "'output', 'input', 'residual', an operation such as {op: conv2d, kernel: 3}, or the name of a child, numbers "
    "in quotes: '0', 'conv2', 'relu[2]', '{conv1,conv2}' for several"
)
_PLACE = Annotated[Name, allow(_PLACES), AfterValidator(lambda text: parse_place(text) and text)]
_WORD = Annotated[
    Literal["all", "first", "last"],
    allow("'all', 'first', 'last', or a mapping such as {last: 1, per: reduction}"),
    AfterValidator(lambda word: Pick() if word == "all" else Pick(**{word: 1})),
]
_GLOB = Annotated[Name, AfterValidator(Glob)]
Pattern = Annotated[Text, AfterValidator(lambda text: parse_chain(text) and text)]
Globs = Annotated[str | Sequence[str], read_as(one_or_many("Globs", _GLOB, 100))]
Structures = Annotated[Structure | Sequence[Structure], read_as(one_or_many("Structures", Structure, 3))]
TargetField = Annotated[str | Operation | Mapping[str, Any], read_as(either(_PLACE, Operation, Mapping | Operation))]
WhereField = Annotated[Where | Mapping[str, Any], read_as(Where)]
PickField = Annotated[Pick | str | Mapping[str, Any], read_as(either(_WORD, Pick, Mapping | Pick))]


class Rule(RecipeModel):
    """One rule of a recipe. A mistake raises `RecipeError`.

    >>> Rule(block="Bottleneck", after="conv2").position
    'after'
    """

    model_config = ConfigDict(json_schema_extra=_SCHEMA)
    homes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(Where.model_fields, "under 'where'"),
        **dict.fromkeys(Pick.model_fields, "under 'pick'"),
        **dict.fromkeys(("op", "which"), "under 'after' or 'before': {op: ...}"),
    }
    structure: Structures = Field(default=(), description="Block(s) by structure: residual, main, decoder.")
    block: Globs = Field(default=(), description="Class name(s) of the block: globs, any case; subclasses count.")
    pattern: Pattern | None = Field(default=None, description="A chain of operations: 'conv2d[k=3] > *norm > act'.")
    path: Globs = Field(default=(), description="Glob(s) on the dotted path: a filter; alone, a selector.")
    exclude: Globs = Field(default=(), description="Glob(s) on the dotted path to exclude.")
    after: TargetField | None = Field(default=None, description="output, child (conv2, relu[2]), or {op: conv2d, ...}.")
    before: TargetField | None = Field(default=None, description="input, residual, child (bn2), or {op: norm, ...}.")
    where: WhereField | None = Field(default=None, description="Conditions on the facts of a site.")
    pick: PickField = Field(default=Pick(), description="all, first, last, or {first | last | every: n, per: ...}.")
    e_lambda: Lambda | None = Field(default=None, description="Lambda of this rule; default: that of the recipe.")
    optional: bool = Field(default=False, strict=True, description="The rule may match no site.")

    @field_validator("after", "before")
    @classmethod
    def _check_target(cls, written: str | Operation, info: ValidationInfo) -> str | Operation:
        target = _read_target(written)
        if isinstance(target, BlockValue) and (info.field_name, target.word) in _MISPLACED:
            problem = _MISPLACED[str(info.field_name), target.word]
            raise ValueError(f"{problem}, or {write_child(target.word)!r} for a child of that name")
        if info.data.get("pattern") is not None:
            find_element(parse_chain(info.data["pattern"]), target)
        return written

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        given = [name for name in _SELECTS if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"has both {given[0]!r} and {given[1]!r}; exactly one may select, and a 'path' narrow")
        if not given and not self.path:
            raise ValueError("has no selector; write e.g. structure: main, block: Bottleneck or path: 'layer3.*'")
        if self.after is not None and self.before is not None:
            raise ValueError("has both 'after' and 'before'; exactly one is required")
        if self.pattern is None and self.after is None and self.before is None:
            raise ValueError("has neither 'after' nor 'before'; write e.g. after: output, after: conv2, before: bn2")
        return self

    @property
    def selects(self) -> Literal["structure", "block", "pattern", "path"]:
        """The key that selects; a `path` beside another key narrows."""
        return "structure" if self.structure else "block" if self.block else "pattern" if self.pattern else "path"

    @property
    def chain(self) -> tuple[Link, ...]:
        """The elements of `pattern`."""
        return () if self.pattern is None else parse_chain(self.pattern)

    @property
    def position(self) -> Literal["after", "before"]:
        """Whether the named value is attended for all its readers, or what one reader reads."""
        return "after" if self.before is None else "before"

    @property
    def target(self) -> Target:
        """What the rule names: a child, an operation, the output, the input, or the residual branch."""
        written = self.after if self.before is None else self.before
        return BlockValue("output") if written is None else _read_target(written)

    @property
    def conditions(self) -> tuple[tuple[str, Numbers], ...]:
        """Name and condition of each fact in `where`."""
        return () if self.where is None else cast("Where", self.where).conditions()

    @property
    def choice(self) -> Pick:
        """The value of `pick`."""
        return cast("Pick", self.pick)

    @property
    def selector(self) -> str:
        """In one line what the rule selects and where, for messages: `block Bottleneck, after conv2`."""
        return f"{self.selects} {join_names(as_tuple(getattr(self, self.selects)))}, {self.position} {self.target}"


def _read_target(written: object) -> Target:
    return written if isinstance(written, Operation) else parse_place(str(written))
