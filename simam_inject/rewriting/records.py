"""What was put into one module, as data: enough to do it again after unpickling, and never code.

Everything here may come out of a file that somebody else wrote, so every field is checked before it is used: names
reach generated source.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from simam_inject.errors import FileError

_CHILD_NAME = re.compile(r"simam(_[A-Za-z0-9_]{1,120})?")
_MAX_NAME = 1000
_METHOD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Edit:
    """One SimAM in one module."""

    value: str
    """Name of the attended value inside the module; "" is what the module itself returns."""
    position: str
    reader: str | None
    child: str
    """Name of the attribute that holds the SimAM."""
    e_lambda: float
    channel_dim: int
    shape: tuple[int, ...]
    dtype: str
    reduction: int | None
    rule: int
    runs: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Any) -> Edit:
        """Inverse of `to_dict`.

        Raises:
            FileError: a field is missing, unknown, or not of its form.
        """
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise FileError(f"a SimAM site in the file is not a site: {data!r:.120}")
        checks = {
            "value": data["value"] == "" or _is_value_name(data["value"]),
            "position": data["position"] in ("after", "before"),
            "reader": data["reader"] is None or _is_value_name(data["reader"]),
            "child": _is(_CHILD_NAME, data["child"]),
            "e_lambda": type(data["e_lambda"]) is float and math.isfinite(data["e_lambda"]) and data["e_lambda"] > 0,
            "channel_dim": type(data["channel_dim"]) is int and data["channel_dim"] in (1, -1),
            "shape": isinstance(data["shape"], list) and all(type(length) is int for length in data["shape"]),
            "dtype": _is(_METHOD_NAME, data["dtype"]),
            "reduction": data["reduction"] is None or type(data["reduction"]) is int,
            "rule": type(data["rule"]) is int,
            "runs": type(data["runs"]) is int,
            "note": isinstance(data["note"], str),
        }
        wrong = [name for name, is_right in checks.items() if not is_right]
        if wrong:
            raise FileError(f"a SimAM site in the file has an invalid {wrong[0]}: {data[wrong[0]]!r:.120}")
        return cls(**{**data, "shape": tuple(data["shape"])})


@dataclass(frozen=True, slots=True)
class Specification:
    """Everything that was put into one module."""

    edits: tuple[Edit, ...]
    arguments: Any = None
    """Description (`tracing.values.describe`) of the recorded (args, kwargs); None where nothing needs tracing."""
    fingerprints: tuple[tuple[str, str], ...] = ()
    """Hash of each traced method before the edit, by method name."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "version": 1,
            "edits": [edit.to_dict() for edit in self.edits],
            "arguments": self.arguments,
            "fingerprints": dict(self.fingerprints),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Specification:
        """Inverse of `to_dict`.

        Raises:
            FileError: not a specification of a version this package knows.
        """
        if not isinstance(data, dict) or data.get("version") != 1:
            version = data.get("version") if isinstance(data, dict) else None
            raise FileError(f"the file's SimAM specification has version {version!r}; this package reads version 1")
        fingerprints = data.get("fingerprints")
        edits = data.get("edits")
        if not isinstance(edits, list) or not edits or not isinstance(fingerprints, dict):
            raise FileError("the file's SimAM specification is incomplete")
        if not all(_is(_METHOD_NAME, name) and _is(_FINGERPRINT, value) for name, value in fingerprints.items()):
            raise FileError("the file's SimAM specification has an invalid fingerprint")
        return cls(
            tuple(Edit.from_dict(edit) for edit in edits), data.get("arguments"), tuple(sorted(fingerprints.items()))
        )


def _is_value_name(text: Any) -> bool:
    """Any name that a child can have: it is compared with those of a graph, and reaches no source."""
    return isinstance(text, str) and 0 < len(text) < _MAX_NAME and text.isprintable()


def _is(pattern: re.Pattern[str], text: Any) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None
