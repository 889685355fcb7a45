"""Arguments and options, written once, and the parsing of those that are more than a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PLACE, MODEL, RESULT = "Where SimAM goes", "The model", "What comes out"
CONDITIONS = "How to measure"
EXPORTS = (".onnx", ".pt2", ".torchscript")
"""Suffixes of files that other runtimes run; `simam_inject.export.forms` has the formats, and imports torch."""


def parse_size(text: str) -> tuple[int, ...]:
    """`3x224x224` -> (3, 224, 224): channels, then one to three spatial sizes.

    Raises:
        typer.BadParameter: It has another form.
    """
    parts = text.lower().split("x")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"found {text!r}; write channels x height x width, e.g. 3x224x224")
    return tuple(int(part) for part in parts)


def parse_number(text: str) -> int | float:
    """A number as it was written: an integer stays one, since an integer lambda is probably a channel count.

    Raises:
        typer.BadParameter: It is no number.
    """
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a number, e.g. 1e-4") from None


def parse_output(text: str) -> Path:
    """A file that can be written and whose suffix says a format this program knows.

    Raises:
        typer.BadParameter: It cannot, or does not.
    """
    path = Path(text)
    if path.suffix not in (".safetensors", ".pt", *EXPORTS):
        raise typer.BadParameter(
            f"found {text!r}; the file must end in .safetensors, {', '.join(EXPORTS)}, or in .pt for a YOLO"
        )
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(path.parent)!r}")
    return path


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="resnet50, timm:NAME, torchvision:NAME, ultralytics:NAME, FILE.pt, FILE.py:FACTORY or MODULE:FACTORY",
    ),
]
After = Annotated[
    list[str] | None,
    typer.Option(
        "--after",
        metavar="X",
        help="BLOCK or BLOCK.CHILD, e.g. bottleneck.conv2; may be repeated",
        rich_help_panel=PLACE,
    ),
]
Before = Annotated[
    list[str] | None,
    typer.Option("--before", metavar="X", help="BLOCK.CHILD or BLOCK.residual; may be repeated", rich_help_panel=PLACE),
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe or a YAML file", rich_help_panel=PLACE),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Paths to leave out, e.g. 'layer1.*'; may be repeated", rich_help_panel=PLACE
    ),
]
ELambda = Annotated[
    str | None,
    typer.Option(
        "--e-lambda", metavar="F", help="Lambda of every site, above 0, whatever the recipe says", rich_help_panel=PLACE
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size", metavar="CxHxW", help="Size of one example: channels x height x width", rich_help_panel=MODEL
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="The library's own weights, not random ones", rich_help_panel=MODEL),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, touch nothing", rich_help_panel=RESULT)]
Why = Annotated[bool, typer.Option("--why", help="Show near misses with their reasons", rich_help_panel=RESULT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON", rich_help_panel=RESULT)]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Save weights and sites: x.safetensors, x.pt for YOLO; or export: x.onnx, x.pt2, x.torchscript",
        rich_help_panel=RESULT,
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda", rich_help_panel=CONDITIONS)]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per batch", rich_help_panel=CONDITIONS)]
Dtype = Annotated[str, typer.Option("--dtype", help="fp32, bf16 or fp16", rich_help_panel=CONDITIONS)]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Memory format channels last", rich_help_panel=CONDITIONS)
]
Compiled = Annotated[bool, typer.Option("--compile", help="With torch.compile", rich_help_panel=CONDITIONS)]
Against = Annotated[
    str, typer.Option("--against", metavar="A,B", help="Other attentions: se,eca,cbam,gc", rich_help_panel=CONDITIONS)
]
Rounds = Annotated[int, typer.Option("--rounds", min=3, help="Timed rounds", rich_help_panel=CONDITIONS)]
Chart = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE.svg", help="Draw a bar chart", rich_help_panel=RESULT)
]
