"""Arguments and options, each written once, and the objects that hold them for a command.

A command takes one of the dataclasses below as its first parameter; `with_options` turns its fields into options.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

PLACE, MODEL, RESULT = "Placement", "The model", "Output"
CONDITIONS = "Measurement"
EXPORTS = (".onnx", ".pt2", ".torchscript")
"""Suffixes of files that other runtimes run; those of `simam_inject.export.exporting`, which imports torch."""
PEERS = ("se", "eca", "cbam", "gc")
"""Names of `simam_inject.bench.variants.PEERS`, which imports torch."""
DTYPES = ("fp32", "bf16", "fp16")


class Size(tuple[int, ...]):
    """Channels and one to three spatial sizes."""

    __slots__ = ()

    def __str__(self) -> str:
        return "x".join(map(str, self))


def parse_size(text: str) -> Size:
    """`3x224x224` -> (3, 224, 224): channels, then one to three spatial sizes."""
    parts = text.lower().split("x")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"found {text!r}; write channels x height x width, e.g. 3x224x224")
    return Size(int(part) for part in parts)


def parse_number(text: str) -> int | float:
    """A number as it was written: an integer stays one, since an integer lambda is probably a channel count."""
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a number, e.g. 1e-4") from None


def parse_output(text: str) -> Path:
    """A file that can be written and whose suffix says a format that this program knows."""
    path = parse_page(text)
    if path.suffix not in (".safetensors", ".pt", *EXPORTS):
        raise typer.BadParameter(
            f"found {text!r}; the file must end in .safetensors, {', '.join(EXPORTS)}, or in .pt for a YOLO"
        )
    return path


def parse_page(text: str) -> Path:
    """A file in a folder that exists."""
    if not Path(text).parent.is_dir():
        raise typer.BadParameter(f"no such folder: {str(Path(text).parent)!r}")
    return Path(text)


def parse_existing(text: str) -> Path:
    """A file or folder that exists."""
    if not Path(text).exists():
        raise typer.BadParameter(f"no such file or folder: {text!r}")
    return Path(text)


def split_names(text: str) -> tuple[str, ...]:
    """`a, b` -> (a, b)."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell's completion."""
    from simam_inject.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def _check_peers(text: str) -> str:
    unknown = [name for name in split_names(text) if name not in PEERS]
    if unknown:
        raise typer.BadParameter(f"unknown attention {unknown[0]!r}; choose from {', '.join(PEERS)}")
    return text


def _check_dtype(text: str) -> str:
    if text not in DTYPES:
        raise typer.BadParameter(f"found {text!r}; choose from {', '.join(DTYPES)}")
    return text


def _check_device(text: str) -> str:
    if text.partition(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"found {text!r}; expected cpu, cuda or cuda:N")
    return text


def _option(panel: str, name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="resnet50, timm:NAME, torchvision:NAME, ultralytics:NAME, FILE.pt or FILE.yaml of a YOLO, FILE.py:FACTORY "
        "or MODULE:FACTORY",
    ),
]
Pretrained = Annotated[bool, _option(MODEL, "--pretrained", "Load the library's pretrained weights")]
Against = Annotated[
    str,
    _option(CONDITIONS, "--against", f"Other attentions: {','.join(PEERS)}", metavar="A,B", callback=_check_peers),
]
AsJson = Annotated[bool, _option(RESULT, "--json", "Print only JSON")]
Quiet = Annotated[bool, _option(RESULT, "--quiet", "Print only errors")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, with which weights, and the size of its example input."""

    model: ModelName
    weights: Annotated[
        Path | None,
        _option(
            MODEL,
            "--weights",
            "Load weights: .safetensors, a state_dict in .pth or .pt, or a YOLO checkpoint",
            metavar="FILE",
            parser=parse_existing,
        ),
    ] = None
    pretrained: Pretrained = False
    num_classes: Annotated[
        int | None, _option(MODEL, "--num-classes", "Number of classes of the head", metavar="N", min=1)
    ] = None
    seed: Annotated[int | None, _option(MODEL, "--seed", "Seed of the random weights", metavar="N", min=0)] = None
    input_size: Annotated[
        Size | None,
        _option(
            MODEL,
            "--input-size",
            "Size of one example: channels x height x width",
            metavar="CxHxW",
            parser=parse_size,
        ),
    ] = None
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ModelOptions):
    """The model, where SimAM goes, and how much is printed."""

    after: Annotated[
        list[str] | None,
        _option(PLACE, "--after", "BLOCK or BLOCK.CHILD, e.g. bottleneck.conv2; may be repeated", metavar="X"),
    ] = None
    before: Annotated[
        list[str] | None,
        _option(PLACE, "--before", "BLOCK.CHILD or BLOCK.residual; may be repeated", metavar="X"),
    ] = None
    recipe: Annotated[
        str | None,
        _option(
            PLACE, "--recipe", "A shipped recipe or a YAML file", metavar="NAME|FILE", autocompletion=complete_recipe
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        _option(PLACE, "--exclude", "Paths to leave out, e.g. 'layer1.*'; may be repeated", metavar="GLOB"),
    ] = None
    e_lambda: Annotated[
        float | None,
        _option(
            PLACE,
            "--e-lambda",
            "Lambda of every site, above 0; overrides the recipe",
            metavar="F",
            parser=parse_number,
        ),
    ] = None
    strength: Annotated[
        float,
        _option(PLACE, "--strength", "From 0 (no effect) to 1 (SimAM)", metavar="F", min=0.0, max=1.0),
    ] = 1.0
    verbose: Annotated[bool, _option(RESULT, "--verbose", "Show every site and every check")] = False

    @property
    def selectors(self) -> tuple[tuple[str, str], ...]:
        """Position and place of each `--after` and `--before`."""
        places = [("after", text) for text in self.after or ()] + [("before", text) for text in self.before or ()]
        return tuple(places)


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectOptions:
    """What `inject` takes beside the options that other commands share."""

    dry_run: Annotated[bool, _option(RESULT, "--dry-run", "Print the plan and change nothing")] = False
    why: Annotated[bool, _option(RESULT, "--why", "Also list near misses with their reasons")] = False
    calibrate: Annotated[
        Path | None,
        _option(
            PLACE,
            "--calibrate",
            "Fit gains and norm statistics to the images in this folder",
            metavar="FOLDER",
            parser=parse_existing,
        ),
    ] = None
    output: Annotated[
        Path | None,
        _option(
            RESULT,
            "--output",
            "Save weights and sites to x.safetensors (YOLO: x.pt), or export to x.onnx, x.pt2 or x.torchscript",
            metavar="FILE",
            parser=parse_output,
        ),
    ] = None
    dynamic: Annotated[bool, _option(RESULT, "--dynamic", "Export with dynamic batch and image size")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """Where a page is written."""

    html: Annotated[Path, _option(RESULT, "--html", "Output file", metavar="FILE.html", parser=parse_page)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The conditions of a measurement."""

    device: Annotated[str, _option(CONDITIONS, "--device", "cpu or cuda", callback=_check_device)] = "cpu"
    batch: Annotated[int, _option(CONDITIONS, "--batch", "Images per batch", metavar="N", min=1)] = 1
    dtype: Annotated[str, _option(CONDITIONS, "--dtype", "fp32, bf16 or fp16", callback=_check_dtype)] = "fp32"
    channels_last: Annotated[bool, _option(CONDITIONS, "--channels-last", "Use the channels_last memory format")] = (
        False
    )
    compiled: Annotated[bool, _option(CONDITIONS, "--compile", "With torch.compile")] = False
    against: Against = ""
    rounds: Annotated[int, _option(CONDITIONS, "--rounds", "Timed rounds", metavar="N", min=3)] = 15
    chart: Annotated[Path | None, _option(RESULT, "--chart", "Draw a bar chart", metavar="FILE.svg")] = None


def _panel(parameter: inspect.Parameter) -> int:
    """Place of an option in the help: what says where SimAM goes comes first."""
    panel = getattr(parameter.annotation.__metadata__[0], "rich_help_panel", None)
    return (None, PLACE, MODEL, CONDITIONS, RESULT).index(panel)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Turn a function of options objects into one that Typer reads: each field of each object becomes an option."""
    fields: dict[str, list[str]] = {}
    classes: dict[str, Any] = {}
    parameters = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        hints = get_type_hints(kind, include_extras=True)
        classes[parameter.name] = kind
        fields[parameter.name] = [field.name for field in dataclasses.fields(kind)]
        for field in dataclasses.fields(kind):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )

    def command(**values: Any) -> None:
        objects = {name: kind(**{key: values[key] for key in fields[name]}) for name, kind in classes.items()}
        function(**objects)

    parameters.sort(key=_panel)
    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
