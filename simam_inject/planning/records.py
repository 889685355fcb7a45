"""Records of a plan and of a verification."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from simam_inject.source import Expression

PRESENT = "already has SimAM"
"""Reason of a skip whose site has the very SimAM that the rule wants; one with another lambda says more."""


@dataclass(frozen=True, slots=True)
class Output:
    """The value is what `module` returns: a forward hook on it, whatever its forward does."""

    module: str
    """Dotted path of the module that holds the SimAM as a child."""
    key: int | str | None = None
    """Which entry, where the module returns a list, tuple or dict."""


@dataclass(frozen=True, slots=True)
class Input:
    """The value is read by one module alone: a forward pre-hook on it."""

    module: str
    argument: int | str
    """Position or keyword of the argument."""
    key: int | str | None = None
    """Which entry, where the argument is a list, tuple or dict."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The value is an operation's in the middle of a forward: that one expression of the source is wrapped."""

    owner: str
    """Dotted path of the module whose method computes the value."""
    value: str
    """Name of the value inside the owner, such as `add` or `mul[2]`."""

    @property
    def module(self) -> str:
        """Path of the module that holds the SimAM as a child: the owner."""
        return self.owner


Edit = Output | Input | Rewritten


def write_edit(edit: Edit) -> dict[str, Any]:
    """The edit as plain data: its kind, the path of the holder as `module`, and its other fields."""
    if isinstance(edit, Rewritten):
        return {"kind": "rewritten", "module": edit.owner, "value": edit.value}
    return {"kind": "output" if isinstance(edit, Output) else "input", **asdict(edit)}


@dataclass(frozen=True, slots=True)
class Insertion:
    """One SimAM: planned, or in the model now."""

    path: str
    """The attended value, named as `Site.path` is."""
    position: str
    """`after`: every reader of the value gets the attended one. `before`: only `reader` does."""
    shape: tuple[int, ...]
    """Shape of the attended map in the example forward."""
    e_lambda: float
    rule: int
    """Index of the rule in the recipe that took the site, from 0."""
    edit: Edit
    """How it is put in."""
    module: str
    """Dotted name of the SimAM module, e.g. `layer1.0.conv2.simam`; that of its holder is `edit.module`."""
    reader: str | None = None
    """For `before`: path of the one operation that reads the attended value."""
    channel_dim: int = 1
    axes: str = "NCHW"
    axes_measured: bool = True
    dtype: str = "float32"
    reduction: int | None = None
    runs: int = 1
    """How often one forward runs it."""
    strength: float = 1.0
    gain: float = 1.0
    note: str = ""
    """What a user should know: what folding weights removes, or that a hook may not meet the value in each forward."""
    witness: str | None = None
    """Path of the norm that alone reads the value: folded into a convolution, it would be folded across SimAM."""
    expression: Expression | None = None
    """For `Rewritten`: where in the source."""

    @property
    def bytes_moved(self) -> int:
        """Bytes one forward of the example moves for this attention at the least: one read, one write per run."""
        size = {"float64": 8, "float32": 4}.get(self.dtype, 2)
        elements = 1
        for length in self.shape:
            elements *= length
        return 2 * size * elements * self.runs


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that verification looked at."""

    name: str
    ok: bool | None
    """None: it could not be run on this model; `detail` says why."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one verification."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(check.ok is not False for check in self.checks)

    def __str__(self) -> str:
        passed = sum(check.ok is True for check in self.checks)
        head = f"verified: {passed} checks" if self.ok else "verification failed"
        words = {True: "ok", False: "failed", None: "not run"}
        lines = [
            f"  {words[check.ok]}: {check.name}" + f": {check.detail}" * bool(check.detail)
            for check in self.checks
            if check.ok is not True
        ]
        return "\n".join([head, *lines])
