"""What a plan consists of: insertions, and the edit by which each of them is applied."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from simam_inject.source import STRICT, Count, Expression, Name

PRESENT = "already has SimAM"
"""Reason of a skip whose site has the SimAM of the rule already; if its lambda differs, the reason says so."""
Line = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without line breaks and other control characters."""
Path = Line
"""A dotted path."""
Key = Annotated[int, Field(ge=-(2**40), le=2**40)] | Line | None


@dataclass(frozen=True, slots=True)
class Output:
    """The value is what `module` returns: a forward hook on it, whatever its forward does."""

    __pydantic_config__ = STRICT
    module: Path
    """Dotted path of the module that holds the SimAM as a child."""
    key: Key = None
    """Which entry, where the module returns a list, tuple or dict."""
    kind: Literal["output"] = field(default="output", repr=False)


@dataclass(frozen=True, slots=True)
class Input:
    """The value is an argument of `module`: a forward pre-hook on it. `before` changes it for this module alone."""

    __pydantic_config__ = STRICT
    module: Path
    argument: Annotated[int, Field(ge=0, le=1000)] | Name
    """Position or keyword of the argument."""
    key: Key = None
    """Which entry, where the argument is a list, tuple or dict."""
    kind: Literal["input"] = field(default="input", repr=False)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The value is an operation's in the middle of a forward: that one expression of the source is wrapped."""

    __pydantic_config__ = STRICT
    module: Path
    """Dotted path of the module whose method computes the value, and which holds the SimAM as a child."""
    value: Path
    """Name of the value inside the module, such as `add` or `mul[2]`."""
    kind: Literal["rewritten"] = field(default="rewritten", repr=False)


Edit = Output | Input | Rewritten


@dataclass(frozen=True, slots=True)
class Insertion:
    """One SimAM: planned, or in the model now. Plain data, for hooks, pickles and files (`editing.serialization`)."""

    __pydantic_config__ = STRICT
    path: Path
    """The attended value, named as `Site.path` is."""
    position: Annotated[str, Field(pattern="^(after|before)$")]
    """`after`: every reader of the value gets the attended one. `before`: only `reader` does, or it is the only one."""
    shape: Annotated[tuple[Count, ...], Field(min_length=3, max_length=5)]
    """Shape of the attended map in the example forward."""
    e_lambda: Annotated[float, Field(gt=0)]
    rule: Annotated[int, Field(ge=0, le=10**6)]
    """Index of the rule in the recipe that took the site, from 0."""
    edit: Annotated[Edit, Field(discriminator="kind")]
    """How it is applied."""
    module: Path
    """Dotted name of the SimAM module, e.g. `layer1.0.conv2.simam`; that of its holder is `edit.module`."""
    reader: Path | None = None
    """For `before`: path of the one operation that reads the attended value."""
    channel_dim: int = 1
    axes: Annotated[str, Field(max_length=10)] = "NCHW"
    axes_measured: bool = True
    dtype: Annotated[str, Field(max_length=20, pattern=r"^\w*$")] = "float32"
    reduction: Count | None = None
    runs: Count = 1
    """How often one forward runs it."""
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    gain: Annotated[float, Field(gt=0)] = 1.0
    note: Line = ""
    """What a user should know: what folding weights removes, or that a hook may not get the value in each forward."""
    witness: Path | None = None
    """Path of the norm that alone reads the value: folded into a convolution, it would be folded across SimAM."""
    expression: Expression | None = None
    """For `Rewritten`: where in the source."""
    child: str = field(init=False, repr=False, compare=False)
    """Name of the SimAM among the children of its holder; kept, since `torch.compile` would compile a path."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "child", self.module.rpartition(".")[2])

    @property
    def name(self) -> str:
        """The path for messages: `(model)` for what the model returns, `(model):0` for an entry of it."""
        return f"(model){self.path}" if self.path[:1] in ("", ":") else self.path

    @property
    def bytes_moved(self) -> int:
        """Bytes one forward of the example moves for this attention at the least: one read, one write per run."""
        size = {"float64": 8, "float32": 4}.get(self.dtype, 2)
        return 2 * size * math.prod(self.shape) * self.runs
