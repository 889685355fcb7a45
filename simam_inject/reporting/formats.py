"""How single facts are written, the same in every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

UNKNOWN = "-"


def format_map(shape: Sequence[int] | None, channel_dim: int = 1) -> str:
    """Channels x spatial sizes of a feature map: `256x56x56`; the whole shape in brackets if it is not one."""
    if shape is None:
        return UNKNOWN
    if len(shape) < 3:
        return f"({', '.join(map(str, shape))})"
    channels = shape[channel_dim]
    spatial = shape[2:] if channel_dim == 1 else shape[1:-1]
    return "x".join(map(str, (channels, *spatial)))


def format_bytes(count: float) -> str:
    """`43.7 MB`: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """`1 site`, `16 sites`, `2 near misses`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def format_span(values: Iterable[str]) -> str:
    """Distinct values in order: one, two, or the first and the last of more."""
    distinct = list(dict.fromkeys(values))
    return " .. ".join([distinct[0], distinct[-1]]) if len(distinct) > 2 else ", ".join(distinct)


def format_reductions(reductions: Iterable[int | None]) -> str:
    """`4`, `4, 16`, or `4..32` for all powers of two between; `-` where none is known."""
    found = sorted({reduction for reduction in reductions if reduction is not None})
    if not found:
        return UNKNOWN
    doubled = all(larger == 2 * smaller for smaller, larger in pairwise(found))
    return f"{found[0]}..{found[-1]}" if len(found) > 2 and doubled else ", ".join(map(str, found))
