"""Arguments and options, each written once, and how their values are read.

The options of a command are the fields of one dataclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

PANELS = (None, "Placement", "The study", "The model", "Measurement", "The training", "Output")
"""The boxes of the help, in their order; arguments are in none."""
EXPORTS = (".onnx", ".pt2", ".torchscript")
"""Suffixes of exported files: those of `simam_inject.export.exporting`, which imports torch."""
PEERS = ("se", "eca", "cbam", "gc")
"""Names of `simam_inject.bench.variants.PEERS`, which imports torch."""
DTYPES = ("fp32", "bf16", "fp16")


def parse_size(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224): channels, then one to three spatial sizes."""
    parts = text.lower().split("x")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"found {text!r}; write channels x height x width, e.g. 3x224x224")
    return tuple(map(int, parts))


def parse_names(text: str) -> tuple[str, ...]:
    """`a, b` -> (a, b)."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def parse_number(text: str) -> int | float:
    """An integer stays one, since `e_lambda` warns about an integer: it is probably a channel count."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a number, e.g. 1e-4") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """`1e-4,0.1` -> (1e-4, 0.1)."""
    return tuple(float(parse_number(part)) for part in parse_names(text))


def parse_time(text: str) -> float:
    """`2h`, `30m`, `90s` or `90` in seconds."""
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:])
    try:
        return float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        raise typer.BadParameter(f"write a time, e.g. 2h, 30m or 90s; found {text!r}") from None


def one_of(noun: str, *known: str) -> Callable[[Any], Any]:
    """A check that a value, or each of several, is one of a few; `cuda:1` counts as `cuda`."""

    def check(value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if name.partition(":")[0] not in known:
                raise typer.BadParameter(f"unknown {noun} {name!r}; choose from {', '.join(known)}")
        return value

    return check


def writable(*suffixes: str) -> Callable[[str], Path]:
    """A parser of a file to write: in an existing folder, with one of these suffixes if there are any."""

    def parse(text: str) -> Path:
        path = Path(text)
        if not path.parent.is_dir():
            raise typer.BadParameter(f"no such folder: {str(path.parent)!r}")
        if path.is_dir():
            raise typer.BadParameter(f"{text!r} is a folder")
        if suffixes and path.suffix not in suffixes:
            raise typer.BadParameter(f"found {text!r}; the file must end in {', '.join(suffixes)}")
        return path

    return parse


def folder(text: str) -> Path:
    """A parser of an existing folder."""
    path = Path(text)
    if path.is_file():
        raise typer.BadParameter(f"{text!r} is a file, not a folder")
    if not path.is_dir():
        raise typer.BadParameter(f"folder {text!r} does not exist")
    return path


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell's completion."""
    from simam_inject.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def argument(metavar: str, text: str = "", **more: Any) -> Any:
    """A field that is an argument of the command line."""
    return typer.Argument(metavar=metavar, help=text, show_default=False, **more)


def option(panel: str, text: str, metavar: str | None = None, *, default: Any = None, **more: Any) -> Any:
    """A field that is an option of the command line; `default=...` makes it required, a bool a flag."""
    return typer.Option(default, help=text, rich_help_panel=panel, metavar=metavar, **more)


_place, _study, _model, _measure, _train, _output = (partial(option, panel) for panel in PANELS if panel)
_MODEL_NAME = argument(
    "MODEL",
    "resnet50, timm:NAME, torchvision:NAME, ultralytics:NAME, FILE.pt or FILE.yaml of a YOLO, FILE.py:FACTORY "
    "or MODULE:FACTORY",
)
_RECIPE = partial(_place, "A shipped recipe or a YAML file", "NAME|FILE", autocompletion=complete_recipe)
_PRETRAINED = _model("Load the library's pretrained weights", default=False)
_NUM_CLASSES = _model("Number of classes of the head", "N", min=1)
_STRENGTH = _place("From 0 (no effect) to 1 (SimAM)", "F", default=1.0, min=0.0, max=1.0)
_DEVICE = _measure("cpu or cuda", default="cpu", callback=one_of("device", "cpu", "cuda", "cuda:N"))
_AGAINST = _measure(
    f"Other attentions: {','.join(PEERS)}", "A,B", default="", parser=parse_names, callback=one_of("attention", *PEERS)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How much is printed."""

    json: bool = _output("Print only JSON", default=False)
    quiet: bool = _output("Print only errors", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(OutputOptions):
    """Which model, with which weights, and the size of its example input."""

    model: str = _MODEL_NAME
    weights: Path | None = _model(
        "Load weights: .safetensors, a state_dict in .pth or .pt, or a YOLO checkpoint",
        "FILE",
        exists=True,
        dir_okay=False,
    )
    pretrained: bool = _PRETRAINED
    num_classes: int | None = _NUM_CLASSES
    seed: int | None = _model("Seed of the random weights", "N", min=0, max=2**32 - 1)
    input_size: tuple[int, ...] | None = _model(
        "Size of one example: channels x height x width", "CxHxW", parser=parse_size
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The model, and where SimAM goes."""

    after: list[str] | None = _place("BLOCK or BLOCK.CHILD, e.g. bottleneck.conv2; may be repeated", "X")
    before: list[str] | None = _place("BLOCK.CHILD or BLOCK.residual; may be repeated", "X")
    recipe: str | None = _RECIPE()
    exclude: list[str] | None = _place("Paths to exclude, e.g. 'layer1.*'; may be repeated", "GLOB")
    e_lambda: float | None = _place("Lambda of every site, above 0; overrides the recipe", "F", parser=parse_number)

    @property
    def sources(self) -> list[str]:
        """What `load_recipe` reads: `--recipe`, and a selector for each `--after` and `--before`."""
        after = [f"after {place}" for place in self.after or ()]
        before = [f"before {place}" for place in self.before or ()]
        return [*([self.recipe] if self.recipe else []), *after, *before]


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectOptions(Options):
    """What is inserted, saved and printed."""

    strength: float = _STRENGTH
    calibrate: Path | None = _place(
        "Fit gains and norm statistics to the images in this folder", "FOLDER", parser=folder
    )
    dry_run: bool = _output("Print the plan and change nothing", default=False)
    why: bool = _output("Also list near misses with their reasons", default=False)
    verbose: bool = _output("Show every site and every check", default=False)
    output: Path | None = _output(
        "Save weights and sites to x.safetensors (YOLO: x.pt), or export to x.onnx, x.pt2 or x.torchscript",
        "FILE",
        parser=writable(".safetensors", ".pt", *EXPORTS),
    )
    dynamic: bool = _output("Export with dynamic batch and image size", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions(Options):
    """What is inserted, and where the page about it is written."""

    strength: float = _STRENGTH
    html: Path = _output("Output file", "FILE.html", default=..., parser=writable(".html"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions(Options):
    """The conditions of a measurement."""

    device: str = _DEVICE
    batch: int = _measure("Images per batch", "N", default=1, min=1)
    dtype: str = _measure("fp32, bf16 or fp16", default="fp32", callback=one_of("dtype", *DTYPES))
    channels_last: bool = _measure("Use the channels_last memory format", default=False)
    compile: bool = _measure("With torch.compile", default=False)
    against: tuple[str, ...] = _AGAINST
    rounds: int = _measure("Timed rounds", "N", default=15, min=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions(Options):
    """Which images and sites are drawn, and how."""

    images: list[Path] = argument("IMAGE...", "Images, or folders of images", exists=True)
    strength: float = _STRENGTH
    site: list[str] | None = _place("Sites to draw, e.g. 'layer4.*'; default: the last of each map size", "GLOB")
    channel: int | None = _output("Draw this channel instead of the mean over channels", "N", min=0)
    difference: bool = _output("Draw how much SimAM changes the feature map at each site", default=False)
    output: Path = _output("The picture", "FILE", default="maps.png", parser=writable(".png", ".jpg", ".pdf", ".svg"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions(OutputOptions):
    """Which file is read."""

    file: Path = argument("FILE", "A .safetensors file of --output or simam_inject.persist.save")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions(FileOptions):
    """Which file is checked, and in which model."""

    file: Path = argument("FILE", "A YOLO checkpoint (.pt), or a .safetensors file of --output")
    model: str | None = _model("Load a .safetensors file into this model and verify", "MODEL")
    num_classes: int | None = _NUM_CLASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """Which shipped recipe."""

    name: str = argument("NAME", autocompletion=complete_recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFileOptions:
    """Which model file, and where its recipe is written."""

    file: str = argument("FILE.yaml")
    output: Path | None = _output("Output file", "FILE", parser=writable())


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """A study: what is compared, on which data, and how it is trained."""

    model: str = _MODEL_NAME
    data: str = _study("Folder of images, or a data.yaml of ultralytics", "FOLDER|YAML", default=...)
    recipe: list[str] = _RECIPE(default=...)
    against: tuple[str, ...] = _AGAINST
    e_lambda: tuple[float, ...] = _study(
        "Lambdas of SimAM; one variant for each", "A,B", default="", parser=parse_numbers
    )
    seeds: int = _study("Runs of each variant; below 5 nothing is tested", "N", default=10, min=1)
    study: str = _study("Journal file or database URL", "FILE|URL", default="compare.journal")
    name: str = _study("Name of the study, where the storage holds several", default="compare")
    budget: float | None = _study("Start no run after this time", "2h|30m|90s", parser=parse_time)
    resolve: float | None = _study("Report how many seeds detect this difference", "F")
    workers: int = _study("Processes on this machine", "N", default=1, min=1)
    retry_stale: bool = _study("Repeat the runs of workers that died", default=False)
    weights: str | None = _train("Trained weights to start from", "FILE")
    pretrained: bool = _PRETRAINED
    device: str = _DEVICE
    epochs: int = _train("Epochs of every run", "N", default=20, min=1)
    size: int | None = _train("Image size; default 224, or 640 for a YOLO", "N")
    batch: int = _train("Batch size", "N", default=64, min=1)
    rate: float = _train("Learning rate for a batch of 256 images", "F", default=0.1)
    ema: float = _train("Evaluate an exponential moving average of the weights with this decay", "F", default=0.0)
    augment: bool = _train("Random crops and flips", default=True)
    amp: bool = _train("Train with bfloat16 autocast", default=False)
    compile: bool = _train("With torch.compile", default=False)
    loaders: int = _train("Data-loading processes per worker", "N", default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """Which study, and where its report is written."""

    study: str = argument("STUDY", "Journal file or database URL")
    html: Path | None = _output("Write one HTML file", "FILE.html", parser=writable(".html"))
    markdown: Path | None = _output("Write Markdown", "FILE", parser=writable())
    name: str = _study("Name of the study in the storage", default="compare")
