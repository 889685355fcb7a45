"""Which releases of ultralytics this adapter is tested with."""

from __future__ import annotations

import re
import warnings

import ultralytics

OLDEST, NEWEST = (8, 3, 200), (8, 4, 190)


def warn_if_untested(version: str = ultralytics.__version__) -> None:
    """Say once, at import, that nobody has tried this release."""
    parts = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if not OLDEST <= parts <= NEWEST:
        warnings.warn(
            f"ultralytics {version} is outside the range that simam_inject is tested with, "
            f"{_told(OLDEST)} to {_told(NEWEST)}: call verify(model), and `simam-inject check best.pt` after training",
            stacklevel=2,
        )


def _told(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
