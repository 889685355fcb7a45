"""Which models of the inventory are in scope, and which of these get the numeric checks."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.coverage.records import Entry

NO_MAP = "no convolution with overlapping patches: it has no spatial conv map beyond a patch stem"


def exclusion(entry: Entry) -> str:
    """Why a model is out of scope; "" if it is in. Only of timm are there so many that it is worth leaving them out."""
    if entry.error:
        return f"cannot be built: {entry.error}"
    return NO_MAP if entry.library == "timm" and not entry.convolutions else ""


def representatives(entries: Iterable[Entry], *, families_only: bool = False) -> set[str]:
    """Keys of the smallest model in scope of each family and, unless `families_only`, of each set of block classes."""
    seen: set[tuple[str, ...]] = set()
    chosen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: (entry.parameters, entry.key)):
        if exclusion(entry):
            continue
        family = (entry.library, "family", entry.family)
        for mark in (family,) if families_only else (family, (entry.library, *entry.classes)):
            if mark not in seen:
                seen.add(mark)
                chosen.add(entry.key)
    return chosen


def in_order(entries: Iterable[Entry], chosen: set[str]) -> list[Entry]:
    """In scope: those with numeric checks first, and the smallest first."""
    wanted = [entry for entry in entries if not exclusion(entry)]
    return sorted(wanted, key=lambda entry: (entry.key not in chosen, entry.parameters, entry.key))


def shard(entries: list[Entry], index: int, count: int) -> list[Entry]:
    """Every `count`-th, starting with the `index`-th (from 1)."""
    return entries[index - 1 :: count]
