"""What every export format offers to the rest: write a file, open it, run it, show its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from simam_inject.export.gates import Graph
from simam_inject.export.records import ExportError
from simam_inject.tracing.inputs import Example

SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".torchscript": "torchscript"}


class Artefact(Protocol):
    """An exported file, opened."""

    graph: Graph

    def run(self, example: Example) -> list[Tensor]:
        """Every tensor that the exported program returns, on the CPU or where the program keeps its weights."""


class Form(Protocol):
    """One export format."""

    def write(self, model: nn.Module, example: Example, dynamic: tuple[str, ...], path: Path) -> None:
        """Export the model, which is in eval mode, to a file at `path`."""

    def read(self, path: Path) -> Artefact:
        """Open a file of this format."""


def form_name(path: Path) -> str:
    """The format that the file's suffix says.

    Raises:
        ExportError: a suffix that is none of `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path.name!r} says no export format; the suffix must be one of {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


def form_of(path: Path) -> Form:
    """The format's implementation, imported when it is first asked for.

    Raises:
        ExportError: a suffix that says no format, or ONNX without the packages it needs.
    """
    name = form_name(path)
    if name == "pt2":
        from simam_inject.export import program

        return cast(Form, program)
    if name == "torchscript":
        from simam_inject.export import script

        return cast(Form, script)
    try:
        from simam_inject.export import onnx_file
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {error.name!r}; install it with: pip install 'simam_inject[export]'"
        ) from None
    return cast(Form, onnx_file)
