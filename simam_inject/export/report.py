"""What an export says: the file, the sites that are live in it, how far it is from eager."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simam_inject.errors import InjectError, VerificationError, plural


class ExportError(InjectError):
    """A model that an exporter cannot express, or a file that cannot be read as an export. No file was written."""


class LostSiteError(ExportError, VerificationError):
    """An exported file that is not the model: a SimAM is missing, has another lambda, or the outputs differ."""


@dataclass(frozen=True, slots=True)
class ExportedSite:
    """One planned site and where it was found in the file."""

    path: str
    """The attended value, as `Insertion.path`."""
    module: str
    """Path of the SimAM module."""
    e_lambda: float
    runs: int
    """How often one forward runs it; as often it is in the graph."""
    found_by: str
    """`name`: the file names the module. `structure`: the formula was recognised, and the lambda is the site's.
    `idle`: eager does not run it in eval mode either, so it is in no graph."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run of the file beside eager."""

    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the input tensors."""
    difference: float
    """Largest |file - eager| over largest |eager|, the worst of all outputs."""
    effect: float
    """The same measure between eager and eager without any SimAM: what a file without them would show."""
    left_out: int = 0
    """How many of eager's last outputs the file does not return."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was proven of one exported file."""

    path: Path
    sites: tuple[ExportedSite, ...]
    comparisons: tuple[Comparison, ...]
    tolerance: float
    dynamic: tuple[str, ...] = ()
    """Which sizes may vary: any of `batch` and `size`."""

    @property
    def form(self) -> str:
        """`onnx`, `pt2` or `torchscript`."""
        return self.path.suffix[1:]

    @property
    def difference(self) -> float:
        """The worst of all comparisons."""
        return max(comparison.difference for comparison in self.comparisons)

    @property
    def is_decisive(self) -> bool:
        """Whether the outputs alone could tell a file without SimAM.

        Where they cannot (an untrained ConvNeXt scales every branch by 1e-6), the graph is all the proof.
        """
        return min(comparison.effect for comparison in self.comparisons) > 10 * self.tolerance

    @property
    def live(self) -> int:
        """How many sites are in the graph."""
        return sum(site.found_by != "idle" for site in self.sites)

    def __str__(self) -> str:
        distance = f"its output differs by {self.difference:.1e} from eager mode"
        return f"{self.path}, which has {plural(self.live, 'live site')}; {distance} ({self.form})"
