"""One rule of a recipe: what it selects, where it puts the attention, which sites it leaves out.

Keys:
    select   structure, block (class names), pattern (a chain of operations), or path on its own
    place    after or before: output, residual, a child, an operation
    narrow   path, exclude, where, pick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator
from typing_extensions import TypeAliasType

from simam_inject.recipe.fields import Globs, Groups, Lambda, Numbers, Structures, entries_of
from simam_inject.recipe.grammar import Grammar, KeyedError
from simam_inject.recipe.names import Child, Glob, Whole, parse_glob, parse_place
from simam_inject.recipe.operations import Chain, Conditions, Facts, Operation, parse_chain
from simam_inject.recipe.wording import describe, did_you_mean, join_names

T = TypeVar("T")


def _check_pattern(text: str) -> str:
    parse_chain(text)
    return text


Pattern = Annotated[str, StringConstraints(strict=True, min_length=1), AfterValidator(_check_pattern)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000)]


class Where(Conditions):
    """Conditions on the facts of a site; all of them hold."""

    root: ClassVar[str] = "where"
    channels: Numbers | None = Field(default=None, description="Channels of the feature map.")
    spatial: Numbers | None = Field(
        default=None, description="Spatial sizes of the feature map; all must satisfy the condition."
    )
    reduction: Numbers | None = Field(default=None, description="Input size / map size: 1, 2, 4, 8, 16, 32.")
    stage: Numbers | None = Field(
        default=None, description="log2(reduction) - 1: ResNet's layer1 to layer4 return 1 to 4."
    )
    kernel: Numbers | None = Field(default=None, description="Kernel of the named convolution or pooling.")
    stride: Numbers | None = Field(default=None, description="Stride of the named convolution or pooling.")
    dilation: Numbers | None = Field(default=None, description="Dilation of the named convolution or pooling.")
    groups: Groups | None = Field(default=None, description="Groups of the named convolution, or `depthwise`.")


class Pick(Grammar):
    """A choice among the sites that a rule found."""

    root: ClassVar[str] = "pick"
    first: Count | None = Field(default=None, description="Take the first n.")
    last: Count | None = Field(default=None, description="Take the last n.")
    every: Count | None = Field(default=None, description="Take every n-th: with 2 the first, third, fifth ...")
    per: Literal["model", "stage", "reduction", "parent"] = Field(
        default="model", description="Count separately for each of these."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_word(cls, data: Any) -> Any:
        words: dict[object, dict[str, int]] = {"all": {}, "first": {"first": 1}, "last": {"last": 1}}
        if isinstance(data, str) and data in words:
            return words[data]
        if isinstance(data, Mapping | Pick):
            return data
        near = did_you_mean(data, ("all", "first", "last")) if isinstance(data, str) else ""
        raise ValueError(
            f"found {describe(data)}; expected all, first, last, or a mapping such as {{last: 1, per: reduction}}{near}"
        )

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


Target = Whole | Child | Operation
_MISPLACED: dict[tuple[str, str | None], str] = {
    ("before", "output"): "a block's output is not read inside the block; write after: output",
    ("after", "input"): "the input of a block can only be changed for the block itself; write before: input",
    ("after", "residual"): "SimAM is applied to the branch before it joins the skip connection; write before: residual",
}


def _check_target(value: object) -> str | Operation:
    if isinstance(value, Operation):
        return value
    if isinstance(value, Mapping):
        if "op" not in value:
            raise KeyedError("op", "is missing; it is the kind of the operation, e.g. {op: conv2d, kernel: 3}")
        return Operation.model_validate(value)
    if isinstance(value, str) and value.strip():
        return str(parse_place(value))
    hint = "; for several children write '{conv1,conv2}'" if isinstance(value, list | tuple) else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        hint = f"; the name of a child is written in quotes: '{describe(value)}'"
    raise ValueError(
        f"found {describe(value)}; expected 'output', 'input', 'residual', the name of a child such as conv2 "
        f"or relu[2], or an operation such as {{op: conv2d, kernel: 3}}{hint}"
    )


if TYPE_CHECKING:
    TargetField = str | Operation | Mapping[str, Any] | None
    WhereField = Where | Mapping[str, Any] | None
    PickField = Pick | str | Mapping[str, Any]
else:
    _TEXT = WithJsonSchema({"type": "string", "minLength": 1})  # `schema` adds the mapping
    TargetField = TypeAliasType("Target", Annotated[Any, PlainValidator(_check_target), _TEXT])
    WhereField = Where | None
    PickField = Pick


class Rule(Grammar):
    """One rule of a recipe. A mistake raises `RecipeError`.

    >>> Rule(block="Bottleneck", after="conv2").position
    'after'
    """

    root: ClassVar[str] = "rule"
    homes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(Where.model_fields, "under 'where'"),
        **dict.fromkeys(Pick.model_fields, "under 'pick'"),
        **dict.fromkeys(("op", "which"), "under 'after' or 'before': {op: ...}"),
        "lambda": "to e_lambda",
        "class": "to 'block'",
    }
    structure: Structures = Field(default=(), description="Block(s) by structure: residual, main, decoder.")
    block: Globs = Field(default=(), description="Class name(s) of the block: globs, any case; subclasses count.")
    pattern: Pattern | None = Field(
        default=None, description="A chain of operations, e.g. 'conv2d[k=3] > *norm > act'."
    )
    path: Globs = Field(default=(), description="Glob(s) on the dotted path: a filter; on its own, a selection.")
    exclude: Globs = Field(default=(), description="Glob(s) on the dotted path to exclude.")
    after: TargetField = Field(default=None, description="output, a child (conv2, relu[2]), or {op: conv2d, ...}.")
    before: TargetField = Field(default=None, description="input, residual, a child (bn2), or {op: batch_norm, ...}.")
    where: WhereField = Field(default=None, description="Conditions on the facts of a site.")
    pick: PickField = Field(default=Pick(), description="all, first, last, or {first | last | every: n, per: ...}.")
    e_lambda: Lambda | None = Field(default=None, description="Lambda of this rule; default: that of the recipe.")
    optional: bool = Field(default=False, strict=True, description="The rule may match no site.")

    @property
    def blocks(self) -> tuple[Glob, ...]:
        """The class names."""
        return tuple(parse_glob(text) for text in entries_of(self.block))

    @property
    def paths(self) -> tuple[Glob, ...]:
        """The paths: a selection on their own, else a filter."""
        return tuple(parse_glob(text) for text in entries_of(self.path))

    @property
    def excluded(self) -> tuple[Glob, ...]:
        """The paths that are left out."""
        return tuple(parse_glob(text) for text in entries_of(self.exclude))

    @property
    def structures(self) -> tuple[str, ...]:
        """The words at `structure`."""
        return entries_of(self.structure)

    @property
    def chain(self) -> Chain | None:
        """The pattern."""
        return None if self.pattern is None else parse_chain(self.pattern)

    @property
    def position(self) -> Literal["after", "before"]:
        """Whether the named value is attended for all its readers, or what one reader reads."""
        return "after" if self.before is None else "before"

    @property
    def target(self) -> Target:
        """What the rule names: a child, an operation, the output, the input, or the residual branch."""
        written = self.before if self.before is not None else self.after
        if isinstance(written, Operation):
            return written
        return parse_place(written) if isinstance(written, str) else Whole("output")

    @property
    def conditions(self) -> Facts:
        """What `where` says."""
        return self.where.conditions() if isinstance(self.where, Where) else ()

    @property
    def choice(self) -> Pick:
        """What `pick` says."""
        return self.pick if isinstance(self.pick, Pick) else Pick()

    @property
    def selects(self) -> Literal["structure", "block", "pattern", "path"]:
        """The key that selects; a `path` beside another key narrows."""
        return "structure" if self.structure else "block" if self.block else "pattern" if self.pattern else "path"

    @property
    def selector(self) -> str:
        """In one line what the rule selects and where, for messages: `block Bottleneck, after conv2`."""
        selected = join_names(map(str, entries_of(getattr(self, self.selects))))
        return f"{self.selects} {selected}, {self.position} {self.target}"

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        given = [name for name in ("structure", "block", "pattern") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"has both {given[0]!r} and {given[1]!r}; exactly one may select (a 'path' beside it narrows)"
            )
        if not given and not self.path:
            raise ValueError(
                "has no selector; write structure: main, block: Bottleneck, pattern: 'conv2d > relu', or "
                "path: 'layer3.*'"
            )
        if self.after is not None and self.before is not None:
            raise ValueError("has both 'after' and 'before'; exactly one is required")
        if self.pattern is None and self.after is None and self.before is None:
            raise ValueError(
                "has neither 'after' nor 'before'; write after: output, after: conv2, before: bn2 or before: residual"
            )
        return self

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        target = self.target
        word = target.word if isinstance(target, Whole) else None
        if (self.position, word) in _MISPLACED:
            raise KeyedError(self.position, _MISPLACED[self.position, word])
        if self.pattern is not None:
            chain = parse_chain(self.pattern)
            try:
                chain.find_member(target)
            except ValueError as problem:
                raise KeyedError(self.position, str(problem)) from None
        if isinstance(target, Operation):
            twice = {name for name, _ in target.conditions()} & {name for name, _ in self.conditions}
            if twice:
                raise KeyedError("where", f"{min(twice)} is also in {self.position}: {target}; keep one of them")
        return self
