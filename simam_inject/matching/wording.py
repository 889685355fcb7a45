"""Words that reasons and messages share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

MAX_SHOWN = 8


def write_path(path: str) -> str:
    """The path; the model itself has none."""
    return path or "the model itself"


def write_paths(paths: Iterable[str]) -> str:
    """A few paths or names, and how many more there are."""
    every = list(dict.fromkeys(paths))
    more = f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else ""
    return ", ".join(map(write_path, every[:MAX_SHOWN])) + more


def write_counts(names: Sequence[str]) -> str:
    """`Bottleneck (16), Sequential (8)`, the most frequent first."""
    counted = sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0]))
    return write_paths(f"{name} ({count})" for name, count in counted)


def write_times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
