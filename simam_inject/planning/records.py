"""What a plan says: where SimAM goes, what was skipped and why; and what a verification found."""

from __future__ import annotations

from dataclasses import dataclass

PRESENT = "has SimAM already"
"""Reason of a skip whose site has the very SimAM that the rule wants; one with another lambda says more."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """One SimAM: planned, or in the model now."""

    path: str
    """The attended value, named as `Site.path` is."""
    position: str
    """`after`: everyone who reads the value reads the attended one. `before`: only `reader` does."""
    shape: tuple[int, ...]
    """Shape of the attended map in the example forward."""
    e_lambda: float
    rule: int
    """Index of the rule in the recipe that took the site, from 0."""
    reader: str | None = None
    """For `before`: path of the one operation that reads the attended value."""
    channel_dim: int = 1
    dtype: str = "float32"
    reduction: int | None = None
    runs: int = 1
    """How often one forward runs it."""
    means: str = "forward"
    """How it is put in: `forward` (the block's forward is rewritten), `boundary` (the module's output is wrapped)."""
    note: str = ""
    """What a user should know, e.g. that conv-norm folding is held back here."""
    scope: str = ""
    """Path of the module that holds it ("" is the model itself)."""

    @property
    def bytes_moved(self) -> int:
        """Bytes one forward of the example moves for this attention at the least: one read, one write per run."""
        size = {"float64": 8, "float32": 4}.get(self.dtype, 2)
        elements = 1
        for length in self.shape:
            elements *= length
        return 2 * size * elements * self.runs


@dataclass(frozen=True, slots=True)
class Skip:
    """A site that a rule named, or nearly named, and that gets no SimAM."""

    path: str
    reason: str
    rule: int
    hit: bool
    """True: the rule took it and it was skipped all the same (a 1x1 map). False: a near miss."""


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
        words = {True: "ok", False: "failed", None: "not run"}
        told = [
            f"  {words[check.ok]}: {check.name}" + f": {check.detail}" * bool(check.detail) for check in self.checks
        ]
        head = "verified" if self.ok else "verification failed"
        return "\n".join([head if any(check.ok is not None for check in self.checks) else "not verified", *told])
