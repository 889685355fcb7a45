"""Rows: one JSON line per model, written once, read back to resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the inventory."""

    library: str
    name: str
    family: str = ""
    """Module of the library that defines it."""
    parameters: int = 0
    classes: tuple[str, ...] = ()
    """Sorted names of all module classes with children."""
    convolutions: int = 0
    """Convolutions whose patches overlap (kernel > stride): they make a spatial map beyond a patch stem."""
    error: str = ""

    @property
    def key(self) -> str:
        """Name that tells it from a model of another library."""
        return f"{self.library}:{self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check on one model."""

    name: str
    ok: bool | None
    """None: it could not be run; `detail` says why."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recipe on one model."""

    recipe: str
    planned: int = 0
    output: int = 0
    """Insertions by a hook on the module that returns the value."""
    input: int = 0
    """Insertions by a hook on the module that reads it."""
    expression: int = 0
    """Insertions around one expression of a forward."""
    inferred: int = 0
    """Insertions whose axes were inferred, not measured."""
    notes: dict[str, int] = field(default_factory=dict)
    """Notes on insertions, generalised -> how often."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason, generalised -> how often."""
    passed: int = 0
    """Checks that passed."""
    findings: tuple[Finding, ...] = ()
    """The others: failed, or not run."""
    plan_seconds: float = 0.0
    error: str = ""

    @property
    def failures(self) -> list[str]:
        """What went wrong, in words; empty if nothing did."""
        failed = [f"{finding.name}: {finding.detail}" for finding in self.findings if finding.ok is False]
        return [self.error, *failed] if self.error else failed


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the sweep."""

    library: str
    name: str
    family: str = ""
    parameters: int = 0
    extent: str = ""
    """What was run: `numeric` or `planned`."""
    sizes: tuple[str, ...] = ()
    """Shapes of the inputs: as declared; of the numeric checks; of the second size."""
    outcomes: tuple[Outcome, ...] = ()
    seconds: float = 0.0
    error: str = ""
    """Why the model could not be examined at all: a build error, a crash, a time-out."""
    commit: str = ""
    """As `Run.commit` of the run that wrote it."""

    @property
    def key(self) -> str:
        """Name that tells it from a model of another library."""
        return f"{self.library}:{self.name}"

    @property
    def failures(self) -> list[str]:
        """What went wrong, in words; empty for a fully covered model."""
        failed = [f"{outcome.recipe}: {failure}" for outcome in self.outcomes for failure in outcome.failures]
        return [self.error, *failed] if self.error else failed


@dataclass(frozen=True, slots=True)
class Run:
    """One start of the program: what wrote the rows after it."""

    date: str
    command: str
    machine: str
    versions: dict[str, str]
    commit: str
    """Of this repository, `+` where the working tree differed."""


def append(path: Path, record: Entry | Row | Run) -> None:
    """Add one line to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read_entries(path: Path) -> dict[str, Entry]:
    """The inventory by `Entry.key`; the last line of a model counts."""
    return {entry.key: entry for entry in map(_entry, _lines(path))}


def read_rows(path: Path) -> dict[str, Row]:
    """The rows by `Row.key`; the last line of a model counts."""
    return {row.key: row for row in map(row_of, _lines(path))}


def read_runs(path: Path) -> list[Run]:
    """Every start, oldest first."""
    return [Run(**data) for data in _lines(path)]


def row_of(data: dict[str, Any]) -> Row:
    """Inverse of `asdict`."""
    outcomes = tuple(
        Outcome(**{**outcome, "findings": tuple(Finding(**finding) for finding in outcome["findings"])})
        for outcome in data["outcomes"]
    )
    return Row(**{**data, "outcomes": outcomes, "sizes": tuple(data["sizes"])})


def _entry(data: dict[str, Any]) -> Entry:
    return Entry(**{**data, "classes": tuple(data["classes"])})


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
