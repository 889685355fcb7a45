"""The options of each command as a frozen record, with the help of each. Imports nothing that is slow to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import typer

from simam_inject.zoo.names import EXPORTS, PEERS, WAYS_TO_NAME

Dtype = Literal["fp32", "bf16", "fp16"]
"""Names of `bench.run.DTYPES`, which cannot be imported without torch."""


def parse_size(text: str) -> tuple[int, ...]:
    """`3x64x64`: channels, then one to three spatial sizes."""
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.lower().split("x"))
    if not 2 <= len(sizes) <= 4 or not all(0 < size < 2**31 for size in sizes):
        raise typer.BadParameter(f"found {text!r}; write channels x height x width, e.g. 3x224x224")
    return sizes


def parse_number(text: str) -> float:
    """A number; an integer stays one, since as lambda it is probably a channel count."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a number, e.g. 1e-4") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers, separated by commas."""
    return tuple(parse_number(part) for part in text.split(",") if part.strip())


def parse_time(text: str) -> float:
    """`2h`, `30m`, `90s` or a number of seconds."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in ("h", "m", "s") else (text, "s")
    if not number.replace(".", "", 1).isdecimal():
        raise typer.BadParameter("write a time, e.g. 2h, 30m or 90s")
    return float(number) * {"h": 3600, "m": 60, "s": 1}[unit]


def parse_peers(text: str) -> tuple[str, ...]:
    """Names of other attention modules, separated by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in PEERS]:
        raise typer.BadParameter(f"unknown attention {unknown[0]!r}; choose from {', '.join(PEERS)}")
    return names


def parse_device(text: str) -> str:
    """A device to compute on."""
    if text not in ("cpu", "cuda") and not text.removeprefix("cuda:").isdecimal():
        raise typer.BadParameter(f"found {text!r}; choose from cpu, cuda, cuda:N")
    return text


def file_to_write(*suffixes: str) -> Callable[[str], Path]:
    """A parser of files to write, in a folder that exists, with one of these suffixes (any, if there are none)."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.is_dir():
            raise typer.BadParameter(f"{text!r} is a folder; give the name of a file")
        if suffixes and path.suffix not in suffixes:
            raise typer.BadParameter(f"found {text!r}; the file must end in {', '.join(suffixes)}")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"no such folder: {str(path.parent)!r}")
        return path

    return parse


def _print_version(given: bool) -> None:
    if given:
        from simam_inject import __version__

        typer.echo(__version__)
        raise typer.Exit


def _complete_recipe(incomplete: str) -> list[str]:
    from simam_inject.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def _option(panel: str | None, text: str, metavar: str | None = None, default: Any = None, **more: Any) -> Any:
    return typer.Option(default, help=text, metavar=metavar, rich_help_panel=panel, **more)


def _flag(panel: str | None, text: str, name: str, **more: Any) -> Any:
    return typer.Option(False, name, help=text, rich_help_panel=panel, **more)


_place, _model, _study, _measure, _train, _output = (
    partial(_option, panel)
    for panel in ("Placement", "The model", "The study", "Measurement", "The training", "Output")
)
_RECIPE = ("A shipped recipe or a YAML file", "NAME|FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a command prints."""

    json: bool = _flag(None, "Print only JSON", "--json")
    quiet: bool = _flag(None, "Print only errors", "--quiet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(OutputOptions):
    """A model, its weights, and the size of its input."""

    model: str = typer.Argument(..., metavar="MODEL", help=WAYS_TO_NAME)
    weights: Path | None = _model(
        "Load weights: .safetensors, a state_dict in .pth or .pt, or a YOLO checkpoint",
        "FILE",
        exists=True,
        dir_okay=False,
    )
    pretrained: bool = _flag("The model", "Load the library's pretrained weights", "--pretrained")
    num_classes: int | None = _model("Number of classes of the head", "N", min=1)
    seed: int | None = _model("Seed of the random weights", "N", min=0, max=2**32 - 1)
    input_size: tuple[int, ...] | None = _model(
        "Size of one example: channels x height x width", "CxHxW", parser=parse_size
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions(ModelOptions):
    """A model, and where SimAM is applied: `explain`."""

    after: list[str] = _place("BLOCK or BLOCK.CHILD, e.g. bottleneck.conv2; may be repeated", "X", [])
    before: list[str] = _place("BLOCK.CHILD or BLOCK.residual; may be repeated", "X", [])
    recipe: list[str] = _place(f"{_RECIPE[0]}; may be repeated", _RECIPE[1], [], autocompletion=_complete_recipe)
    exclude: list[str] = _place("Paths to exclude, e.g. 'layer1.*'; may be repeated", "GLOB", [])
    e_lambda: float | None = _place("Lambda of every site, above 0; overrides the recipe", "F", parser=parse_number)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrengthOptions(RecipeOptions):
    """The options of commands that apply SimAM."""

    strength: float | None = _place("From 0 (no effect) to 1 (SimAM, as new sites have)", "F", min=0.0, max=1.0)

    @property
    def new_strength(self) -> float:
        """Of new sites; those that the model has keep theirs if the option is not given."""
        return 1.0 if self.strength is None else self.strength


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectOptions(StrengthOptions):
    """`simam-inject MODEL`."""

    version: bool = _flag(None, "Print the version", "--version", callback=_print_version, is_eager=True)
    calibrate: Path | None = _place(
        "Fit gains and norm statistics to the images in this folder", "FOLDER", exists=True, file_okay=False
    )
    dry_run: bool = _flag("Output", "Print the plan and change nothing", "--dry-run")
    why: bool = _flag("Output", "Also list near misses with their reasons", "--why")
    verbose: bool = _flag("Output", "Show every site and every check", "--verbose")
    output: Path | None = _output(
        "Save weights and sites to x.safetensors (YOLO: x.pt), or export to x.onnx, x.pt2 or x.torchscript",
        "FILE",
        parser=file_to_write(".safetensors", ".pt", *EXPORTS),
    )
    dynamic: bool = _flag("Output", "Export with dynamic batch and image size", "--dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions(StrengthOptions):
    """`report`."""

    html: Path = _output("Output file", "FILE.html", ..., parser=file_to_write(".html"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions(RecipeOptions):
    """`bench`."""

    device: str = _measure("cpu or cuda", None, "cpu", parser=parse_device)
    batch: int = _measure("Images per batch", "N", 1, min=1)
    dtype: Dtype = _measure("Dtype of weights and inputs", None, "fp32")
    channels_last: bool = _flag("Measurement", "Use the channels_last memory format", "--channels-last")
    compile: bool = _flag("Measurement", "With torch.compile", "--compile")
    against: tuple[str, ...] = _measure("Other attention modules: se,eca,cbam,gc", "A,B", "", parser=parse_peers)
    rounds: int = _measure("Timed rounds", "N", 15, min=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapsOptions(StrengthOptions):
    """`maps`."""

    images: list[Path] = typer.Argument(..., metavar="IMAGE...", help="Images, or folders of images", exists=True)
    site: list[str] = _place("Sites to draw, e.g. 'layer4.*'; default: the last of each map size", "GLOB", [])
    channel: int | None = _output("Draw this channel instead of the mean over channels", "N", min=0)
    difference: bool = _flag("Output", "Draw how much SimAM changes the feature map at each site", "--difference")
    output: Path = _output("The picture", "FILE", "maps.png", parser=file_to_write(".png", ".jpg", ".pdf", ".svg"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRecipeOptions(OutputOptions):
    """`recipes show`."""

    name: str = typer.Argument(..., metavar="NAME", autocompletion=_complete_recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions(OutputOptions):
    """`recipes from-yaml`."""

    file: str = typer.Argument(..., metavar="FILE.yaml", help="A model file with SimAM rows")
    output: Path | None = _output("Output file", "FILE", parser=file_to_write())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions(OutputOptions):
    """`show`."""

    file: Path = typer.Argument(..., metavar="FILE", help="A .safetensors file written with --output")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions(FileOptions):
    """`check`."""

    file: Path = typer.Argument(
        ..., metavar="FILE", help="A YOLO checkpoint (.pt), or a .safetensors file written with --output"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """`compare`."""

    model: str = typer.Argument(..., metavar="MODEL", help=WAYS_TO_NAME)
    recipe: list[str] = _place(*_RECIPE, ..., autocompletion=_complete_recipe)
    data: str = _study("Folder of images, or a data.yaml of ultralytics", "FOLDER|YAML", ...)
    e_lambda: tuple[float, ...] = _study("Lambdas of SimAM; one variant for each", "A,B", "", parser=parse_numbers)
    seeds: int = _study("Runs of each variant; below 5 nothing is tested", "N", 10, min=1)
    study: str = _study("Journal file or database URL", "FILE|URL", "compare.journal")
    name: str = _study("Name of the study, where the storage holds several", None, "compare")
    budget: float | None = _study("Start no run after this time", "2h|30m|90s", parser=parse_time)
    resolve: float | None = _study("Report how many seeds detect this difference", "F", min=0.0)
    workers: int = _study("Processes on this machine", "N", 1, min=1)
    retry_stale: bool = _flag("The study", "Also repeat the runs of silent workers elsewhere", "--retry-stale")
    pretrained: bool = _flag("The model", "Load the library's pretrained weights", "--pretrained")
    against: tuple[str, ...] = _measure("Other attention modules: se,eca,cbam,gc", "A,B", "", parser=parse_peers)
    device: str = _measure("cpu or cuda", None, "cpu", parser=parse_device)
    weights: str | None = _train("Trained weights to start from", "FILE")
    epochs: int = _train("Epochs of every run", "N", 20, min=1)
    size: int | None = _train("Image size; default 224 for classifiers, 640 for others", "N", min=1)
    batch: int = _train("Batch size", "N", 64, min=1)
    rate: float = _train("Learning rate for a batch of 256 images", "F", 0.1, min=0.0)
    ema: float = _train(
        "Evaluate an exponential moving average of the weights with this decay", "F", 0.0, min=0.0, max=0.99999
    )
    augment: bool = _train("Random crops and flips", None, True)
    amp: bool = _flag("The training", "Train with bfloat16 autocast", "--amp")
    compile: bool = _flag("The training", "With torch.compile", "--compile")
    loaders: int = _train("Data-loading processes per worker", "N", 0, min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """`compare report`."""

    study: str = typer.Argument(..., metavar="STUDY", help="Journal file or database URL")
    name: str = _study("Name of the study in the storage", None, "compare")
    html: Path | None = _output("Write one HTML file", "FILE.html", parser=file_to_write(".html"))
    markdown: Path | None = _output("Write Markdown", "FILE", parser=file_to_write())
